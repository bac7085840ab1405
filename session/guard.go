package session

import (
	"context"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/policy"
)

// Roll tells what stands today: the subject, with its keys, and its policy. What
// it returns is never older than the last change that was told to the guard.
type Roll interface {
	Today(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (*watchword.Subject, *policy.Grant, error)
}

// GuardOptions tunes a [Guard]. The zero value is ready to use.
type GuardOptions struct {
	Now        func() time.Time // nil means time.Now
	Total      int              // live sessions at once; 0 means 100,000
	PerSubject int              // live sessions of one subject; 0 means 8
}

// Guard knows every live session of this node. It is safe for concurrent use.
// Lock order: Session.mu before Guard.mu.
type Guard struct {
	roll       Roll
	now        func() time.Time
	total      int
	perSubject int

	mu       sync.Mutex
	sessions map[watchword.SessionID]*Session
	subjects map[subjectKey]map[*Session]struct{}
	closed   bool
}

type subjectKey struct {
	tenant watchword.TenantID
	id     watchword.SubjectID
}

// NewGuard returns a guard that asks roll.
func NewGuard(roll Roll, o GuardOptions) *Guard {
	g := &Guard{
		roll: roll, now: o.Now, total: o.Total, perSubject: o.PerSubject,
		sessions: map[watchword.SessionID]*Session{}, subjects: map[subjectKey]map[*Session]struct{}{},
	}
	if g.now == nil {
		g.now = time.Now
	}
	if g.total == 0 {
		g.total = 100_000
	}
	if g.perSubject == 0 {
		g.perSubject = 8
	}
	return g
}

// Check answers what papers may do now, for one request that is over before
// anything changes. Codes: as in [Guard.Open].
func (g *Guard) Check(ctx context.Context, p Papers) (*Authority, error) {
	s, today, err := g.roll.Today(ctx, p.Tenant, p.Subject)
	if watchword.CodeOf(err) == watchword.NotFound { // deleted since its papers were made out
		return nil, watchword.Refuse(watchword.SubjectRevoked, "the subject %q is gone", p.Subject)
	}
	if err != nil {
		return nil, err
	}
	return judge(p, s, today, g.now())
}

// Open starts a session. It is in the index before its authority is read, so
// that no change falls between. Codes: token_expired, token_revoked,
// subject_new, subject_suspended, subject_revoked, busy, unavailable.
func (g *Guard) Open(ctx context.Context, p Papers, o Options) (*Session, error) {
	now := g.now()
	s := &Session{
		guard: g, id: watchword.SessionID(watchword.NewID("ses_", now)), opened: now, options: o,
		papers: p, done: make(chan struct{}),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := g.enter(s); err != nil {
		return nil, err
	}
	if err := s.recompute(ctx); err != nil {
		s.end(err)
		return nil, err
	}
	s.timer = time.AfterFunc(p.Expires.Sub(now), s.expire)
	return s, nil
}

func (g *Guard) enter(s *Session) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := subjectKey{s.papers.Tenant, s.papers.Subject}
	switch {
	case g.closed:
		return watchword.Refuse(watchword.Unavailable, "the server is going down")
	case len(g.sessions) >= g.total:
		return watchword.Refuse(watchword.Busy, "%d sessions are open, the most that this server takes", g.total)
	case len(g.subjects[k]) >= g.perSubject:
		return watchword.Refuse(watchword.Busy, "%q has %d sessions open, the most that one subject may have", s.papers.Subject, g.perSubject)
	}
	if g.subjects[k] == nil {
		g.subjects[k] = map[*Session]struct{}{}
	}
	g.sessions[s.id] = s
	g.subjects[k][s] = struct{}{}
	return nil
}

func (g *Guard) leave(s *Session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.sessions, s.id)
	k := subjectKey{s.papers.Tenant, s.papers.Subject}
	delete(g.subjects[k], s)
	if len(g.subjects[k]) == 0 {
		delete(g.subjects, k)
	}
}

// Session returns a live session of that tenant; nil if there is none.
func (g *Guard) Session(t watchword.TenantID, id watchword.SessionID) *Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.sessions[id]; s != nil && s.papers.Tenant == t {
		return s
	}
	return nil
}

// Sessions returns the tenant's live sessions, or those of one subject.
func (g *Guard) Sessions(t watchword.TenantID, subject watchword.SubjectID) []*Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []*Session
	if subject != "" {
		for s := range g.subjects[subjectKey{t, subject}] {
			out = append(out, s)
		}
		return out
	}
	for _, s := range g.sessions {
		if s.papers.Tenant == t {
			out = append(out, s)
		}
	}
	return out
}

// SubjectChanged recomputes the sessions of one subject. When it returns, none
// of them passes anything that the roll no longer allows.
func (g *Guard) SubjectChanged(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) {
	for _, s := range g.Sessions(t, id) {
		s.Recompute(ctx)
	}
}

// PolicyChanged recomputes the sessions whose subjects the policy applies to,
// before or after the change, as touched says.
func (g *Guard) PolicyChanged(ctx context.Context, t watchword.TenantID, touched func(policy.Who) bool) {
	for _, s := range g.Sessions(t, "") {
		if a := s.Authority(); a == nil || touched(a.Who()) {
			s.Recompute(ctx)
		}
	}
}

// Close ends every session with cause and takes no further ones.
func (g *Guard) Close(cause error) {
	g.mu.Lock()
	g.closed = true
	all := make([]*Session, 0, len(g.sessions))
	for _, s := range g.sessions {
		all = append(all, s)
	}
	g.mu.Unlock()
	for _, s := range all {
		s.Close(cause)
	}
}
