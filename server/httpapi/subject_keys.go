package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/server/enroll"
)

// The keys of operators and services: several for one, each with a name and perhaps an end.

type keyLinkIn struct {
	DevicePath
	Body *api.KeyLinkRequest `required:"false"`
}

type keyLinkOut struct{ Body *api.Enrollment }

type keyListOut struct{ Body api.KeyList }

func keyListAnswer(s watchword.Subject, err error) (*keyListOut, error) {
	if err != nil {
		return nil, err
	}
	out := &keyListOut{api.KeyList{Keys: viewKeys(s.Keys)}}
	if out.Body.Keys == nil {
		out.Body.Keys = []api.DeviceKey{}
	}
	return out, nil
}

func parseLifetimes(in *api.KeyLinkRequest) (l enroll.Lifetimes, err error) {
	if in == nil {
		return l, nil
	}
	if l.Link, err = parseDuration("ttl", in.TTL); err == nil {
		l.Key, err = parseDuration("key_ttl", in.KeyTTL)
	}
	return l, err
}

// checkOwnKeys refuses to change the caller's own keys with a token that was not proved to be its own: a further key may do what
// the caller may do, and without its keys the caller is locked out. So a token that was stolen without its key, or that has only
// some of the caller's permissions, does not suffice. Codes: proof_required, denied.
func checkOwnKeys(c *caller, id watchword.SubjectID) error {
	switch {
	case id != c.Subject():
		return nil
	case !c.KeyProved():
		return watchword.Refuse(watchword.ProofRequired, "to change your own keys, use a token that is bound to your key (DPoP)")
	case !c.CoversPolicy():
		return watchword.Refuse(watchword.Denied, "to change your own keys, use a token with all your permissions")
	}
	return nil
}

// checkWholeToken refuses an act that adds an operator, or gives an operator a role or a key, or a service a key, with a token that has only some of the
// caller's permissions: what the caller may give is compared with its policy, so such a token would give more than it has. Code:
// denied.
func checkWholeToken(c *caller) error {
	if c.CoversPolicy() {
		return nil
	}
	return watchword.Refuse(watchword.Denied, "to add an operator, or to give an operator or a service a role or a key, use a token with all your permissions")
}

// revokeKey revokes one key. Codes: proof_required, denied, and those of [registry.Registry.RevokeKey].
func (a *API) revokeKey(ctx context.Context, c *caller, id watchword.SubjectID, key watchword.KeyID) (*noBody, error) {
	if err := checkOwnKeys(c, id); err != nil {
		return nil, err
	}
	_, err := a.Registry.RevokeKey(ctx, c.actor, id, key, a.Now())
	return nil, err
}

// setKeyEnd sets the end of one key. Codes: proof_required, denied, and those of [registry.Registry.SetKeyEnd].
func (a *API) setKeyEnd(ctx context.Context, c *caller, id watchword.SubjectID, key watchword.KeyID, end time.Time) (*keyListOut, error) {
	if err := checkOwnKeys(c, id); err != nil {
		return nil, err
	}
	return keyListAnswer(a.Registry.SetKeyEnd(ctx, c.actor, id, key, end, a.Now()))
}

// createLink makes a link. Codes: proof_required, denied, and those of [enroll.Service.CreateLink].
func (a *API) createLink(ctx context.Context, c *caller, id watchword.SubjectID, in *api.KeyLinkRequest) (*keyLinkOut, error) {
	l, err := parseLifetimes(in)
	if err != nil {
		return nil, err
	}
	if err := checkOwnKeys(c, id); err != nil {
		return nil, err
	}
	link, err := a.Enrollment.CreateLink(ctx, c.actor, id, l, a.Now())
	if err != nil {
		return nil, err
	}
	return &keyLinkOut{viewLink(link)}, nil
}

// keyRoutesOf registers what can be done with the keys of one operator or one service.
func (a *API) keyRoutesOf(one string, kind watchword.Kind, what string) {
	register(a, operation{method: http.MethodPost, path: one + "/link", summary: "Make a new one-time link for " + what + ", with which it enrolls, or gets a further key if it is active; the old link is not valid any more"},
		func(ctx context.Context, c *caller, in *keyLinkIn) (*keyLinkOut, error) {
			if in.ID != c.Subject() { // its own keys have a rule of their own
				if err := checkWholeToken(c); err != nil {
					return nil, err
				}
			}
			if _, err := a.subjectOf(ctx, c, kind, in.ID); err != nil {
				return nil, err
			}
			return a.createLink(ctx, c, in.ID, in.Body)
		})
	register(a, operation{method: http.MethodGet, path: one + "/keys", summary: "List the keys of " + what},
		func(ctx context.Context, c *caller, in *DevicePath) (*keyListOut, error) {
			return keyListAnswer(a.subjectOf(ctx, c, kind, in.ID))
		})
	type keyIn struct {
		DevicePath
		Key watchword.KeyID `path:"kid" maxLength:"64"`
	}
	register(a, operation{method: http.MethodDelete, path: one + "/keys/{kid}", summary: "Revoke one key of " + what + ": its tokens and sessions end at once, those of the other keys stay", status: http.StatusNoContent},
		func(ctx context.Context, c *caller, in *keyIn) (*noBody, error) {
			if _, err := a.subjectOf(ctx, c, kind, in.ID); err != nil {
				return nil, err
			}
			return a.revokeKey(ctx, c, in.ID, in.Key)
		})
	type keyEndIn struct {
		DevicePath
		Key  watchword.KeyID `path:"kid" maxLength:"64"`
		Body api.KeyEndRequest
	}
	register(a, operation{method: http.MethodPut, path: one + "/keys/{kid}/end", summary: "Set the end of one key of " + what + ", or make it earlier: it counts for tokens and sessions at once"},
		func(ctx context.Context, c *caller, in *keyEndIn) (*keyListOut, error) {
			if _, err := a.subjectOf(ctx, c, kind, in.ID); err != nil {
				return nil, err
			}
			return a.setKeyEnd(ctx, c, in.ID, in.Key, in.Body.EndsAt)
		})
}

// selfKeyRoutes registers what an operator or a service can do with its own keys.
func (a *API) selfKeyRoutes() {
	register(a, operation{method: http.MethodGet, path: "/v1/self/keys", summary: "List the caller's keys"},
		func(ctx context.Context, c *caller, _ *noBody) (*keyListOut, error) {
			return keyListAnswer(a.Registry.Subject(ctx, c.Tenant(), c.Subject()))
		})
	type keyIn struct {
		Key watchword.KeyID `path:"kid" maxLength:"64"`
	}
	register(a, operation{method: http.MethodDelete, path: "/v1/self/keys/{kid}", summary: "Revoke one of the caller's keys, of an operator or a service", status: http.StatusNoContent},
		func(ctx context.Context, c *caller, in *keyIn) (*noBody, error) {
			return a.revokeKey(ctx, c, c.Subject(), in.Key)
		})
	type keyEndIn struct {
		Key  watchword.KeyID `path:"kid" maxLength:"64"`
		Body api.KeyEndRequest
	}
	register(a, operation{method: http.MethodPut, path: "/v1/self/keys/{kid}/end", summary: "Set the end of one of the caller's keys, of an operator or a service, or make it earlier"},
		func(ctx context.Context, c *caller, in *keyEndIn) (*keyListOut, error) {
			return a.setKeyEnd(ctx, c, c.Subject(), in.Key, in.Body.EndsAt)
		})
	type linkIn struct {
		Body *api.KeyLinkRequest `required:"false"`
	}
	register(a, operation{method: http.MethodPost, path: "/v1/self/link", summary: "Make a one-time link for a further key of the caller, an operator or a service; needs a token that is bound to the caller's key"},
		func(ctx context.Context, c *caller, in *linkIn) (*keyLinkOut, error) {
			return a.createLink(ctx, c, c.Subject(), in.Body)
		})
}
