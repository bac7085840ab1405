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

// sessionFilter says which sessions a list has.
type sessionFilter struct {
	subject   watchword.SubjectID // "": all
	online    string              // "true": live ones; "false": offline MQTT sessions; "": both
	transport string              // "": all
}

// sessionPosition is where a list of sessions continues: from a live session on, by its id, or, after all of these, from an
// offline one on, by its subject and client identifier. If From is not 0, that session is continued with its subscriptions
// from that index on.
type sessionPosition struct {
	Live    watchword.SessionID   `json:"l,omitempty"`
	Offline *session.OfflinePlace `json:"o,omitempty"`
	From    int                   `json:"f,omitempty"`
}

const (
	// sessionBatch is the largest number of sessions that a page reads at once.
	sessionBatch = 256
	// sessionsExamined limits the sessions that one page looks at: where a filter matches few of them, a page is short, or
	// empty, and the list goes on behind it.
	sessionsExamined = 4096
)

// sessionPage returns one page of the live sessions and of the offline MQTT sessions that f selects. It reads the sessions of
// the page and, with a filter, at most sessionsExamined others.
func (a *API) sessionPage(t watchword.TenantID, f sessionFilter, in Page) (live []api.Session, offline []api.OfflineSession, next string, err error) {
	var from sessionPosition
	if in.Token != "" {
		if err := decodePageToken(in.Token, &from); err != nil {
			return nil, nil, "", err
		}
	}
	p := sessionPager{room: pageBytes, left: in.Size, from: from.From}
	live, offline = []api.Session{}, []api.OfflineSession{}
	var at *sessionPosition
	if from.Offline == nil {
		at = a.livePage(t, f, from.Live, &p, &live)
	}
	if at == nil && f.online != "true" && a.Broker != nil && (f.transport == "" || f.transport == "mqtt") {
		at = a.offlinePage(t, f, from.Offline, &p, &offline)
	}
	if p.err != nil || at == nil {
		return live, offline, "", p.err
	}
	next, err = encodePageToken(at)
	return live, offline, next, err
}

// livePage adds live sessions from the given one on. It returns where the list continues; nil after all live ones.
func (a *API) livePage(t watchword.TenantID, f sessionFilter, from watchword.SessionID, p *sessionPager, out *[]api.Session) *sessionPosition {
	if f.online == "false" {
		return nil
	}
	first := from
	for {
		n := p.batch()
		var batch []*session.Session
		if f.subject == "" {
			batch = a.Guard.SessionPage(t, from, n+1)
		} else { // their number has a limit of its own
			batch = slices.DeleteFunc(a.Guard.SubjectSessions(t, f.subject), func(s *session.Session) bool { return s.ID() < from })
		}
		more := f.subject == "" && len(batch) > n
		page := batch
		if more {
			page = batch[:n]
		}
		for _, s := range page {
			if p.full() {
				return &sessionPosition{Live: s.ID()}
			}
			p.examined++
			v, listed := viewSession(s, a.Now())
			if !listed || f.transport != "" && f.transport != v.Transport {
				continue
			}
			if client := s.Client(); client != "" && a.Broker != nil {
				if state, ok := a.Broker.SessionState(t, client); ok && state.Connected && state.ID == v.ID {
					c := viewClientState(state)
					v.MQTT = &c
				}
			}
			whole := p.take(func(cut func(*api.ClientState) *api.ClientState) any {
				v.MQTT = cut(v.MQTT)
				return v
			}, s.ID() == first)
			if !p.complete {
				return &sessionPosition{Live: s.ID()}
			}
			*out = append(*out, v)
			if !whole {
				return &sessionPosition{Live: s.ID(), From: p.at}
			}
		}
		if !more {
			return nil
		}
		from = batch[n].ID()
	}
}

// offlinePage adds offline sessions from a place on; nil: from the first one on. It returns where the list continues; nil
// at its end.
func (a *API) offlinePage(t watchword.TenantID, f sessionFilter, from *session.OfflinePlace, p *sessionPager, out *[]api.OfflineSession) *sessionPosition {
	place := session.OfflinePlace{Subject: f.subject}
	first := from
	if from != nil {
		place = *from
	}
	for {
		batch, next := a.Broker.OfflineStates(t, place, f.subject != "", p.batch())
		for _, state := range batch {
			here := &session.OfflinePlace{Subject: state.Subject, Client: state.Client}
			if p.full() {
				return &sessionPosition{Offline: here}
			}
			p.examined++
			v := api.OfflineSession{
				ID: state.ID, Subject: state.Subject, DisconnectedAt: state.DisconnectedAt.UTC(), ExpiresAt: state.ExpiresAt.UTC(),
				WillAt: optionalTime(state.WillDue), MQTT: viewClientState(state),
			}
			whole := p.take(func(cut func(*api.ClientState) *api.ClientState) any {
				v.MQTT = *cut(&v.MQTT)
				return v
			}, first != nil && *first == *here)
			if !p.complete {
				return &sessionPosition{Offline: here}
			}
			*out = append(*out, v)
			if !whole {
				return &sessionPosition{Offline: here, From: p.at}
			}
		}
		if next == nil {
			return nil
		}
		place = *next
	}
}

func viewClientState(s session.State) api.ClientState {
	c := api.ClientState{Client: s.Client, Subscriptions: s.Filters, Messages: s.Messages, Bytes: s.Bytes, Memory: s.MemoryBytes, Dropped: s.Dropped}
	if c.Subscriptions == nil {
		c.Subscriptions = []string{}
	}
	return c
}

// sessionPager fills one page.
type sessionPager struct {
	room int // bytes left
	left int // sessions left
	from int // index of the first subscription of the first session

	examined int   // sessions that were looked at
	complete bool  // the last session is on the page, as far as its subscriptions fit
	at       int   // index of the subscription that the next page continues with; 0: none
	err      error // of encoding an item
}

// batch returns how many sessions are read at once: no more than the page may take.
func (p *sessionPager) batch() int { return min(sessionBatch, max(1, p.left)) }

// full reports whether the page takes and examines no more sessions.
func (p *sessionPager) full() bool {
	return p.left == 0 || p.room <= 0 || p.examined >= sessionsExamined
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
		if v, listed := viewSession(s, now); listed {
			out = append(out, v)
		}
	}
	return out
}

// viewSession returns what lists show of a session. listed is false for one that is not open yet, and for an ordinary request.
func viewSession(s *session.Session, now time.Time) (v api.Session, listed bool) {
	a := s.Authority()
	if a == nil || s.Class() == session.ClassAnswer && now.Sub(s.Opened()) < longRequest {
		return v, false
	}
	return api.Session{
		ID: s.ID(), Subject: a.Subject(), Transport: s.Transport(), Remote: s.Remote(), OpenedAt: s.Opened().UTC(), ExpiresAt: a.Expires().UTC(),
	}, true
}

// endOfflineSession ends a persistent session whose client is offline.
func (a *API) endOfflineSession(ctx context.Context, c *caller, id watchword.SessionID) error {
	s := a.Guard.OfflineSession(c.Tenant(), id)
	if s == nil || s.Client() == "" || a.Broker == nil {
		return watchword.Refuse(watchword.NotFound, "no open session has this id")
	}
	state, ok := a.Broker.SessionState(c.Tenant(), s.Client())
	if !ok || state.ID != id || state.Connected {
		return watchword.Refuse(watchword.NotFound, "no open session has this id")
	}
	by, err := a.Registry.MayActOn(ctx, c.actor, state.Subject)
	if err != nil {
		return err
	}
	e := by.DoneEntry(audit.SessionClose, string(id), a.Now(), map[string]string{"subject": string(state.Subject), "client": state.Client})
	return a.Broker.EndOfflineSession(c.Tenant(), state.Client, id, func() error { return a.Entries.AddEntry(ctx, e) })
}

func (a *API) sessionRoutes() {
	type sessionListOut struct{ Body api.SessionList }
	type sessionID struct {
		ID watchword.SessionID `path:"id" maxLength:"64"`
	}
	type sessionListIn struct {
		Page
		Subject   watchword.SubjectID `query:"subject" maxLength:"64" doc:"sessions of this device, operator or service"`
		Device    watchword.SubjectID `query:"device" maxLength:"64" doc:"as subject"`
		Online    string              `query:"online" enum:"true,false" doc:"true: live sessions only; false: offline MQTT sessions only"`
		Transport string              `query:"transport" enum:"mqtt,sse,poll,wait,request" doc:"offline MQTT sessions have the transport mqtt"`
	}
	register(a, operation{method: http.MethodGet, path: "/v1/sessions", summary: "List live sessions on this node, and offline MQTT sessions, of all subjects or of one"},
		func(ctx context.Context, c *caller, in *sessionListIn) (*sessionListOut, error) {
			f := sessionFilter{subject: cmp.Or(in.Subject, in.Device), online: in.Online, transport: in.Transport}
			if in.Device != "" && in.Device != f.subject {
				return nil, watchword.RefuseField("device", "must be absent, or equal subject")
			}
			out := &sessionListOut{}
			var err error
			out.Body.Sessions, out.Body.Offline, out.Body.NextPageToken, err = a.sessionPage(c.Tenant(), f, in.Page)
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
			out.Body.Sessions, out.Body.Offline, out.Body.NextPageToken, err = a.sessionPage(c.Tenant(), sessionFilter{subject: c.Subject()}, *in)
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
