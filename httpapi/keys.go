package httpapi

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/keyring"
)

// ServerKey is one of the server's own keys as the API shows it.
type ServerKey struct {
	ID        watchword.KeyID `json:"id"`
	Role      keyring.Role    `json:"role"`
	State     keyring.State   `json:"state"`
	Alg       string          `json:"alg"`
	CreatedAt time.Time       `json:"created_at"`
	StartsAt  *time.Time      `json:"starts_at,omitempty" doc:"when it signs, or began to"`
	EndsAt    *time.Time      `json:"ends_at,omitempty" doc:"when a retiring key is gone"`
	Offline   bool            `json:"offline,omitempty" doc:"its private half is not on the server"`
}

func viewKey(k keyring.Info) ServerKey {
	at := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.UTC()
		return &t
	}
	return ServerKey{k.ID, k.Role, k.State, k.Alg, k.Created.UTC(), at(k.Starts), at(k.Ends), k.Offline}
}

// PlannedBundle is a trust bundle that waits for a root that lives offline.
type PlannedBundle struct {
	Version   int64             `json:"ver"`
	StartsAt  time.Time         `json:"starts_at"`
	ExpiresAt time.Time         `json:"expires_at"`
	Roots     []watchword.KeyID `json:"roots" doc:"who must sign it"`
	Payload   string            `json:"payload" doc:"what each root signs, byte for byte"`
}

func (a *API) keyRoutes() {
	type keyListOut struct {
		Body struct {
			Keys   []ServerKey `json:"keys"`
			Next   string      `json:"next_page_token,omitempty"`
			Pin    string      `json:"pin" doc:"SHA-256 of the active root's SPKI"`
			Bundle struct {
				Version   int64     `json:"ver"`
				ExpiresAt time.Time `json:"expires_at"`
				Ahead     int       `json:"ahead" doc:"bundles that were signed ahead"`
				Stale     string    `json:"stale,omitempty" doc:"why a root that is not here must sign another"`
			} `json:"bundle"`
		}
	}
	type keyOut struct{ Body ServerKey }
	register(a, operation{method: http.MethodGet, path: "/v1/keys", summary: "The server's own keys"},
		func(_ context.Context, _ *caller, in *Page) (*keyListOut, error) {
			st := a.Keys.Status(a.Now())
			out := &keyListOut{}
			out.Body.Keys, out.Body.Pin = []ServerKey{}, st.Pin
			if i := slices.IndexFunc(st.Keys, func(k keyring.Info) bool { return string(k.ID) == in.Token }); in.Token != "" {
				st.Keys = st.Keys[i+1:] // one that is gone meanwhile: from the beginning
			}
			for _, k := range st.Keys {
				out.Body.Keys = append(out.Body.Keys, viewKey(k))
			}
			var more bool
			var err error
			if out.Body.Keys, more, err = cut(out.Body.Keys, in.Size); more {
				out.Body.Next = string(out.Body.Keys[len(out.Body.Keys)-1].ID)
			}
			b := &out.Body.Bundle
			b.Version, b.ExpiresAt, b.Ahead, b.Stale = st.Version, st.BundleExpires.UTC(), st.Ahead, st.Stale
			return out, err
		})
	type rotateIn struct {
		Role keyring.Role `path:"role" maxLength:"16"`
		Body struct {
			Now bool `json:"now,omitempty" doc:"the next key signs at once, before everybody can know it"`
		} `required:"false"`
	}
	register(a, operation{method: http.MethodPost, path: "/v1/keys/{role}/rotate", summary: "Make a role's next key, or let it sign now"},
		func(ctx context.Context, c *caller, in *rotateIn) (*keyOut, error) {
			k, err := a.Keys.Rotate(ctx, c.actor, in.Role, in.Body.Now, a.Now())
			return &keyOut{viewKey(k)}, err
		})
	type revokeIn struct {
		ID   watchword.KeyID `path:"id" maxLength:"64"`
		Body struct {
			Reason string `json:"reason,omitempty" maxLength:"200"`
		} `required:"false"`
	}
	register(a, operation{method: http.MethodPost, path: "/v1/keys/{id}/revoke", summary: "End a key: what it signed counts no more"},
		func(ctx context.Context, c *caller, in *revokeIn) (*keyOut, error) {
			k, err := a.Keys.Revoke(ctx, c.actor, in.ID, in.Body.Reason, a.Now())
			return &keyOut{viewKey(k)}, err
		})
	type planIn struct {
		Body struct {
			Count int `json:"count" minimum:"1" maximum:"24"`
		}
	}
	type planOut struct {
		Body struct {
			Bundles []PlannedBundle `json:"bundles"`
		}
	}
	register(a, operation{method: http.MethodPost, path: "/v1/keys/bundles/plan", summary: "Lay out trust bundles for a root that lives offline"},
		func(ctx context.Context, c *caller, in *planIn) (*planOut, error) {
			planned, err := a.Keys.Plan(ctx, c.actor, in.Body.Count, a.Now())
			out := &planOut{}
			for _, p := range planned {
				out.Body.Bundles = append(out.Body.Bundles, PlannedBundle{p.Version, p.Starts.UTC(), p.Expires.UTC(), p.Roots, p.Payload})
			}
			return out, err
		})
	type importIn struct {
		Body struct {
			Bundles []string `json:"bundles" minItems:"1" maxItems:"24"`
		}
	}
	register(a, operation{method: http.MethodPost, path: "/v1/keys/bundles", summary: "Take trust bundles that were signed offline", status: http.StatusNoContent, body: maxBody},
		func(ctx context.Context, c *caller, in *importIn) (*none, error) {
			return nil, a.Keys.Import(ctx, c.actor, in.Body.Bundles, a.Now())
		})
}
