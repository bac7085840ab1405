package httpapi

import (
	"context"
	"net/http"
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/server/keyring"
)

func viewKey(k keyring.Info) api.ServerKey {
	return api.ServerKey{
		ID: k.ID, Role: string(k.Role), State: string(k.State), Alg: k.Alg, CreatedAt: k.Created.UTC(), StartsAt: optionalTime(k.Starts), EndsAt: optionalTime(k.Ends), Offline: k.Offline,
	}
}

func (a *API) keyRoutes() {
	type keyListOut struct{ Body api.ServerKeyList }
	type keyOut struct{ Body api.ServerKey }
	register(a, operation{method: http.MethodGet, path: "/v1/keys", summary: "List the server's keys"},
		func(_ context.Context, _ *caller, in *Page) (*keyListOut, error) {
			st := a.Keys.Status(a.Now())
			out := &keyListOut{}
			out.Body.Keys, out.Body.Pin = []api.ServerKey{}, st.Pin
			if i := slices.IndexFunc(st.Keys, func(k keyring.Info) bool { return string(k.ID) == in.Token }); in.Token != "" {
				st.Keys = st.Keys[i+1:] // the key of the page token was removed: start from the beginning
			}
			for _, k := range st.Keys {
				out.Body.Keys = append(out.Body.Keys, viewKey(k))
			}
			var more bool
			var err error
			if out.Body.Keys, more, err = cutPage(out.Body.Keys, in.Size); more {
				out.Body.NextPageToken = string(out.Body.Keys[len(out.Body.Keys)-1].ID)
			}
			out.Body.Bundle = api.TrustBundle{Epoch: st.Version.Epoch, Version: st.Version.Number, ExpiresAt: st.BundleExpires.UTC(), Ahead: st.PlannedBundles, Stale: st.Stale}
			return out, err
		})
	type rotateIn struct {
		Role keyring.Role         `path:"role" maxLength:"16"`
		Body api.RotateKeyRequest `required:"false"`
	}
	register(a, operation{method: http.MethodPost, path: "/v1/keys/{role}/rotate", summary: "Create a role's next key, or activate it now"},
		func(ctx context.Context, c *caller, in *rotateIn) (*keyOut, error) {
			k, err := a.Keys.Rotate(ctx, c.actor.Actor, in.Role, in.Body.Now, a.Now())
			return &keyOut{viewKey(k)}, err
		})
	type revokeIn struct {
		ID   watchword.KeyID   `path:"id" maxLength:"64"`
		Body api.ReasonRequest `required:"false"`
	}
	register(a, operation{method: http.MethodPost, path: "/v1/keys/{id}/revoke", summary: "Revoke a key: its signatures become invalid"},
		func(ctx context.Context, c *caller, in *revokeIn) (*keyOut, error) {
			k, err := a.Keys.Revoke(ctx, c.actor.Actor, in.ID, in.Body.Reason, a.Now())
			return &keyOut{viewKey(k)}, err
		})
	type planIn struct{ Body api.PlanBundlesRequest }
	type planOut struct{ Body api.PlannedBundles }
	register(a, operation{method: http.MethodPost, path: "/v1/keys/bundles/plan", summary: "Plan trust bundles for an offline root to sign"},
		func(ctx context.Context, c *caller, in *planIn) (*planOut, error) {
			planned, err := a.Keys.PlanBundles(ctx, c.actor.Actor, in.Body.Count, a.Now())
			out := &planOut{}
			for _, p := range planned {
				out.Body.Bundles = append(out.Body.Bundles, api.PlannedBundle{
					Epoch: p.Epoch, Version: p.Version, StartsAt: p.Starts.UTC(), ExpiresAt: p.Expires.UTC(), Roots: p.Roots, Payload: p.Payload,
				})
			}
			return out, err
		})
	type importIn struct{ Body api.ImportBundlesRequest }
	register(a, operation{method: http.MethodPost, path: "/v1/keys/bundles", summary: "Import trust bundles that were signed offline", status: http.StatusNoContent, maxBody: maxBody},
		func(ctx context.Context, c *caller, in *importIn) (*noBody, error) {
			return nil, a.Keys.ImportBundles(ctx, c.actor.Actor, in.Body.Bundles, a.Now())
		})
}
