package httpapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/session"
)

// sessions returns the live sessions and the offline MQTT sessions of a subject ("": of all).
func (a *API) sessions(t watchword.TenantID, subject watchword.SubjectID) (live []api.Session, offline []api.OfflineSession) {
	live, offline = viewSessions(a.Guard.Sessions(t, subject), a.Now()), []api.OfflineSession{}
	if a.Broker == nil {
		return live, offline
	}
	at := make(map[watchword.SessionID]int, len(live))
	for i := range live {
		at[live[i].ID] = i
	}
	for _, s := range a.Broker.SessionStates(t, subject) {
		c := api.ClientState{Client: s.Client, Subscriptions: s.Filters, Messages: s.Messages, Bytes: s.Bytes, Memory: s.MemoryBytes, Dropped: s.Dropped}
		if c.Subscriptions == nil {
			c.Subscriptions = []string{}
		}
		if i, ok := at[s.ID]; ok && s.Connected {
			live[i].MQTT = &c
		} else if !s.Connected {
			offline = append(offline, api.OfflineSession{ID: s.ID, Subject: s.Subject, DisconnectedAt: s.DisconnectedAt.UTC(), ExpiresAt: s.ExpiresAt.UTC(), WillAt: optionalTime(s.WillDue), MQTT: c})
		}
	}
	return live, offline
}

// sessionPosition is where a list of sessions continues: after a live session, by its id, or, after
// all of these, after an offline one, by its client identifier. If From is not 0, that session is
// continued with its subscriptions from that index on.
type sessionPosition struct {
	Live    string `json:"l,omitempty"`
	Offline string `json:"a,omitempty"`
	From    int    `json:"f,omitempty"`
}

// sessionPage returns one page of [API.sessions].
func (a *API) sessionPage(t watchword.TenantID, subject watchword.SubjectID, in Page) (live []api.Session, offline []api.OfflineSession, next string, err error) {
	var from sessionPosition
	if in.Token != "" {
		if err := decodePageToken(in.Token, &from); err != nil {
			return nil, nil, "", err
		}
	}
	allLive, allAway := a.sessions(t, subject)
	p := sessionPager{room: pageBytes, left: in.Size, from: from.From}
	live, offline = []api.Session{}, []api.OfflineSession{}
	for _, s := range allLive {
		if from.Offline != "" || !from.next(string(s.ID), from.Live) {
			continue
		}
		whole := p.take(func(cut func(*api.ClientState) *api.ClientState) any {
			s.MQTT = cut(s.MQTT)
			return s
		}, string(s.ID) == from.Live)
		if p.complete {
			live = append(live, s)
			p.last = sessionPosition{Live: string(s.ID), From: p.at}
		}
		if !whole {
			next, err = encodePageToken(p.last)
			return live, offline, next, errors.Join(err, p.err)
		}
	}
	for _, s := range allAway {
		if !from.next(s.MQTT.Client, from.Offline) {
			continue
		}
		whole := p.take(func(cut func(*api.ClientState) *api.ClientState) any {
			s.MQTT = *cut(&s.MQTT)
			return s
		}, s.MQTT.Client == from.Offline)
		if p.complete {
			offline = append(offline, s)
			p.last = sessionPosition{Live: p.last.Live, Offline: s.MQTT.Client, From: p.at}
		}
		if !whole {
			next, err = encodePageToken(p.last)
			return live, offline, next, errors.Join(err, p.err)
		}
	}
	return live, offline, "", p.err
}

// next reports whether a session belongs to the page that begins after position from.
func (from sessionPosition) next(id, last string) bool {
	return id > last || id == last && from.From > 0
}

// sessionPager fills one page.
type sessionPager struct {
	room int // bytes left
	left int // sessions left
	from int // index of the first subscription of the first session

	complete bool // the last session is on the page completely
	at       int  // index of the subscription that the next page continues with; 0: none
	last     sessionPosition
	err      error
}

// take adds a session to the page, with as many of its subscriptions as fit, and reports whether
// more sessions may follow. again says that the session continues from the page before.
func (p *sessionPager) take(view func(cut func(*api.ClientState) *api.ClientState) any, again bool) bool {
	p.complete, p.at = false, 0
	if p.left == 0 || p.room <= 0 {
		return false
	}
	whole := true
	b, err := json.Marshal(view(func(c *api.ClientState) *api.ClientState {
		if c == nil {
			return nil
		}
		out := *c
		first := 0
		if again {
			first = min(p.from, len(c.Subscriptions))
		}
		out.Subscriptions = c.Subscriptions[first:]
		bytes := 0
		for i, f := range out.Subscriptions {
			b, err := json.Marshal(f)
			p.err = errors.Join(p.err, err)
			if bytes += len(b) + 1; i > 0 && bytes > p.room {
				out.Subscriptions, whole, p.at = out.Subscriptions[:i], false, first+i
				break
			}
		}
		return &out
	}))
	p.err = errors.Join(p.err, err)
	p.room -= len(b) + 1
	p.left--
	p.complete = true
	return whole
}

// longRequest is how long a request runs before it is listed among the sessions.
const longRequest = time.Second

func viewSessions(ss []*session.Session, now time.Time) []api.Session {
	out := []api.Session{}
	for _, s := range ss {
		a := s.Authority()
		if a == nil || s.Class() == session.ClassAnswer && now.Sub(s.Opened()) < longRequest {
			continue // not open yet, or an ordinary request
		}
		out = append(out, api.Session{
			ID: s.ID(), Subject: a.Subject(), Transport: s.Transport(), Remote: s.Remote(), OpenedAt: s.Opened().UTC(), ExpiresAt: a.Expires().UTC(),
		})
	}
	slices.SortFunc(out, func(a, b api.Session) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// endOfflineSession ends a persistent session whose client is offline.
func (a *API) endOfflineSession(ctx context.Context, c *caller, id watchword.SessionID) error {
	_, offline := a.sessions(c.Tenant(), "")
	i := slices.IndexFunc(offline, func(s api.OfflineSession) bool { return s.ID == id && id != "" })
	if i < 0 {
		return watchword.Refuse(watchword.NotFound, "no open session has this id")
	}
	by, err := a.Registry.MayActOn(ctx, c.actor, offline[i].Subject)
	if err != nil {
		return err
	}
	e := by.DoneEntry(audit.SessionClose, string(id), a.Now(), map[string]string{"subject": string(offline[i].Subject), "client": offline[i].MQTT.Client})
	return a.Broker.EndOfflineSession(c.Tenant(), id, func() error { return a.Entries.AddEntry(ctx, e) })
}

func (a *API) sessionRoutes() {
	type sessionListOut struct{ Body api.SessionList }
	type sessionID struct {
		ID watchword.SessionID `path:"id" maxLength:"64"`
	}
	type sessionListIn struct {
		Page
		Device watchword.SubjectID `query:"device" maxLength:"64"`
	}
	register(a, operation{method: http.MethodGet, path: "/v1/sessions", summary: "List live sessions on this node, and offline MQTT sessions"},
		func(ctx context.Context, c *caller, in *sessionListIn) (*sessionListOut, error) {
			out := &sessionListOut{}
			var err error
			out.Body.Sessions, out.Body.Offline, out.Body.NextPageToken, err = a.sessionPage(c.Tenant(), in.Device, in.Page)
			return out, err
		})
	register(a, operation{method: http.MethodDelete, path: "/v1/sessions/{id}", summary: "Close a live session, or delete an offline session", status: http.StatusNoContent},
		func(ctx context.Context, c *caller, in *sessionID) (*noBody, error) {
			s := a.Guard.Session(c.Tenant(), in.ID)
			if s == nil {
				return nil, a.endOfflineSession(ctx, c, in.ID)
			}
			by, err := a.Registry.MayActOn(ctx, c.actor, s.Authority().Subject())
			if err != nil {
				return nil, err
			}
			e := by.DoneEntry(audit.SessionClose, string(in.ID), a.Now(), map[string]string{"subject": string(s.Authority().Subject())})
			if err := a.Entries.AddEntry(ctx, e); err != nil {
				return nil, err
			}
			s.End(watchword.Refuse(watchword.SessionClosed, "the session was closed by an operator"))
			return nil, nil
		})

	register(a, operation{method: http.MethodGet, path: "/v1/self/sessions", summary: "List the caller's live sessions and offline sessions"},
		func(ctx context.Context, c *caller, in *Page) (*sessionListOut, error) {
			out := &sessionListOut{}
			var err error
			out.Body.Sessions, out.Body.Offline, out.Body.NextPageToken, err = a.sessionPage(c.Tenant(), c.Subject(), *in)
			return out, err
		})
	type sessionRefreshOut struct{ Body api.SessionRefresh }
	register(a, operation{method: http.MethodPut, path: "/v1/self/sessions/{id}", summary: "Refresh a live session with the token of this request"},
		func(ctx context.Context, c *caller, in *sessionID) (*sessionRefreshOut, error) {
			s := a.Guard.Session(c.Tenant(), in.ID)
			if s == nil || s.Authority() == nil || s.Authority().Subject() != c.Subject() {
				return nil, watchword.Refuse(watchword.NotFound, "no open session has this id")
			}
			if err := s.Refresh(ctx, c.credentials); err != nil {
				return nil, err
			}
			out := &sessionRefreshOut{}
			out.Body.ID, out.Body.ExpiresAt = s.ID(), s.Authority().Expires().UTC()
			return out, nil
		})
}
