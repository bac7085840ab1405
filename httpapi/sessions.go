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

// sessions returns the live sessions of a subject ("": of all), and what those left
// behind who are away.
func (a *API) sessions(t watchword.TenantID, subject watchword.SubjectID) (live []Session, away []Away) {
	live, away = viewSessions(a.Guard.Sessions(t, subject), a.Now()), []Away{}
	if a.Wire == nil {
		return live, away
	}
	at := make(map[watchword.SessionID]int, len(live))
	for i := range live {
		at[live[i].ID] = i
	}
	for _, s := range a.Wire.States(t, subject) {
		c := ClientState{s.Client, s.Filters, s.Messages, s.Bytes, s.Memory, s.Dropped}
		if c.Subscriptions == nil {
			c.Subscriptions = []string{}
		}
		if i, ok := at[s.ID]; ok && s.Live {
			live[i].MQTT = &c
		} else if !s.Live {
			v := Away{ID: s.ID, Subject: s.Subject, LeftAt: s.Left.UTC(), EndsAt: s.Ends.UTC(), MQTT: c}
			if !s.Will.IsZero() {
				will := s.Will.UTC()
				v.WillAt = &will
			}
			away = append(away, v)
		}
	}
	return live, away
}

// longAnswer is how long a request is being answered before it is listed among the sessions.
const longAnswer = time.Second

func viewSessions(ss []*session.Session, now time.Time) []Session {
	out := []Session{}
	for _, s := range ss {
		a := s.Authority()
		if a == nil || s.Class() == session.Answer && now.Sub(s.Opened()) < longAnswer {
			continue // not open yet, or a request as it is answered all the time
		}
		out = append(out, Session{s.ID(), a.Subject(), s.Transport(), s.Remote(), s.Opened().UTC(), a.Expires().UTC(), nil})
	}
	slices.SortFunc(out, func(a, b Session) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// forget ends a session that a client left behind.
func (a *API) forget(ctx context.Context, c *caller, id watchword.SessionID) error {
	_, away := a.sessions(c.Tenant(), "")
	i := slices.IndexFunc(away, func(s Away) bool { return s.ID == id && id != "" })
	if i < 0 {
		return watchword.Refuse(watchword.NotFound, "no such session")
	}
	e := c.actor.Did(audit.SessionClose, string(id), a.Now(), map[string]string{"subject": string(away[i].Subject), "client": away[i].MQTT.Client})
	return a.Wire.Forget(c.Tenant(), id, func() error { return a.Entries.AddEntry(ctx, e) })
}

func (a *API) sessionRoutes() {
	type sessionListOut struct {
		Body struct {
			Sessions []Session `json:"sessions"`
			Away     []Away    `json:"away"`
		}
	}
	type sessionID struct {
		ID watchword.SessionID `path:"id" maxLength:"64"`
	}
	type sessionListIn struct {
		Device watchword.SubjectID `query:"device" maxLength:"64"`
	}
	register(a, operation{method: http.MethodGet, path: "/v1/sessions", summary: "Live sessions on this node, and those that MQTT clients left behind"},
		func(ctx context.Context, c *caller, in *sessionListIn) (*sessionListOut, error) {
			out := &sessionListOut{}
			out.Body.Sessions, out.Body.Away = a.sessions(c.Tenant(), in.Device)
			return out, nil
		})
	register(a, operation{method: http.MethodDelete, path: "/v1/sessions/{id}", summary: "Close a live session, or end one that a client left behind", status: http.StatusNoContent},
		func(ctx context.Context, c *caller, in *sessionID) (*none, error) {
			s := a.Guard.Session(c.Tenant(), in.ID)
			if s == nil {
				return nil, a.forget(ctx, c, in.ID)
			}
			e := c.actor.Did(audit.SessionClose, string(in.ID), a.Now(), map[string]string{"subject": string(s.Authority().Subject())})
			if err := a.Entries.AddEntry(ctx, e); err != nil {
				return nil, err
			}
			s.Close(watchword.Refuse(watchword.SessionClosed, "the session was closed by an operator"))
			return nil, nil
		})

	register(a, operation{method: http.MethodGet, path: "/v1/self/sessions", summary: "My live sessions, and those that I left behind"},
		func(ctx context.Context, c *caller, _ *none) (*sessionListOut, error) {
			out := &sessionListOut{}
			out.Body.Sessions, out.Body.Away = a.sessions(c.Tenant(), c.Subject())
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
