package httpapi

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/session"
)

func viewSessions(ss []*session.Session) []Session {
	out := []Session{}
	for _, s := range ss {
		a := s.Authority()
		if a == nil {
			continue // not open yet
		}
		out = append(out, Session{s.ID(), a.Subject(), s.Transport(), s.Remote(), s.Opened().UTC(), a.Expires().UTC()})
	}
	slices.SortFunc(out, func(a, b Session) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func (a *API) sessionRoutes() {
	type sessionListOut struct {
		Body struct {
			Sessions []Session `json:"sessions"`
		}
	}
	type sessionID struct {
		ID watchword.SessionID `path:"id" maxLength:"64"`
	}
	type sessionListIn struct {
		Device watchword.SubjectID `query:"device" maxLength:"64"`
	}
	register(a, operation{method: http.MethodGet, path: "/v1/sessions", summary: "Live sessions on this node"},
		func(ctx context.Context, c *caller, in *sessionListIn) (*sessionListOut, error) {
			out := &sessionListOut{}
			out.Body.Sessions = viewSessions(a.Guard.Sessions(c.Tenant(), in.Device))
			return out, nil
		})
	register(a, operation{method: http.MethodDelete, path: "/v1/sessions/{id}", summary: "Close a live session", status: http.StatusNoContent},
		func(ctx context.Context, c *caller, in *sessionID) (*none, error) {
			s := a.Guard.Session(c.Tenant(), in.ID)
			if s == nil {
				return nil, watchword.Refuse(watchword.NotFound, "no such session")
			}
			e := c.actor.Did(audit.SessionClose, string(in.ID), a.Now(), map[string]string{"subject": string(s.Authority().Subject())})
			if err := a.Entries.AddEntry(ctx, e); err != nil {
				return nil, err
			}
			s.Close(watchword.Refuse(watchword.SessionClosed, "the session was closed by an operator"))
			return nil, nil
		})

	register(a, operation{method: http.MethodGet, path: "/v1/self/sessions", summary: "My live sessions"},
		func(ctx context.Context, c *caller, _ *none) (*sessionListOut, error) {
			out := &sessionListOut{}
			out.Body.Sessions = viewSessions(a.Guard.Sessions(c.Tenant(), c.Subject()))
			return out, nil
		})
	type sessionRefreshOut struct {
		Body struct {
			ID        watchword.SessionID `json:"id"`
			ExpiresAt time.Time           `json:"expires_at"`
		}
	}
	register(a, operation{method: http.MethodPut, path: "/v1/self/sessions/{id}", summary: "Refresh a live session with the token of this request"},
		func(ctx context.Context, c *caller, in *sessionID) (*sessionRefreshOut, error) {
			s := a.Guard.Session(c.Tenant(), in.ID)
			if s == nil || s.Authority() == nil || s.Authority().Subject() != c.Subject() {
				return nil, watchword.Refuse(watchword.NotFound, "no such session")
			}
			if err := s.Refresh(ctx, c.papers); err != nil {
				return nil, err
			}
			out := &sessionRefreshOut{}
			out.Body.ID, out.Body.ExpiresAt = s.ID(), s.Authority().Expires().UTC()
			return out, nil
		})
}
