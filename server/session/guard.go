package session

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/clockjump"
	"github.com/watchword-iot/watchword/server/internal/sorted"
	"github.com/watchword-iot/watchword/server/policy"
)

// Directory answers for a subject and its policy as they are now. No answer is older than the last
// change that the guard was notified of.
type Directory interface {
	Principal(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (*Principal, error)
	// Refresh makes Principal's next answer at least as new as the store is now, and refuses a token that
	// counts no more there. Codes: token_revoked, issuer_revoked, unavailable.
	Refresh(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, jti string, signedBy watchword.KeyID) error
	// Policies returns the tenant's current policies. Documents that did not change are the same pointers. Code:
	// unavailable.
	Policies(ctx context.Context, t watchword.TenantID) (*policy.Set, error)
	// TokenSubject returns whose an access token is, as it is on record. Codes: not_found, unavailable.
	TokenSubject(ctx context.Context, t watchword.TenantID, jti string) (watchword.SubjectID, error)
}

// GuardOptions holds the settings of a [Guard]. The zero value is ready to use.
type GuardOptions struct {
	Now               func() time.Time // nil means time.Now
	Total             int              // live sessions at once; 0 means 100,000
	PerSubject        int              // live connections of one subject; 0 means 8
	PerSubjectWaits   int              // waiting requests of one subject; 0 means 1,024
	PerSubjectAnswers int              // requests in progress of one subject, waiting ones included; 0 means 2,048
	// Revoked reports whether an issuer key was revoked; nil: no key is.
	Revoked func(id watchword.KeyID) bool
	// Opened and Ended, if not nil, are called when a session begins and ends, with the session
	// locked. They must not block, and may call only accessors of the session. cause is nil where
	// the transport closed the session.
	Opened func(s *Session)
	Ended  func(s *Session, cause error)
}

// Guard knows every live session of this node. It is safe for concurrent use.
// Lock order: Guard.changesMu, Session.mu, Guard.mu.
type Guard struct {
	directory     Directory
	now           func() time.Time
	total         int
	maxPerSubject [classCount]int // limit of each class for one subject
	issuerRevoked func(id watchword.KeyID) bool
	opened        func(s *Session)
	ended         func(s *Session, cause error)

	held atomic.Int64 // sessions in sessions and offline

	changesMu sync.RWMutex // read-held by each change while it is applied to its sessions

	revoked revokedTokens

	mu               sync.Mutex
	sessions         map[watchword.SessionID]*Session
	byID             map[watchword.TenantID]*sorted.Set[*Session] // the same, of each tenant in order of id, for lists
	subjects         map[subjectKey][]*Session
	offline          map[watchword.SessionID]*Session // sessions without a connection
	offlineBySubject map[subjectKey][]*Session        // the same, by subject
	answerCount      int                              // sessions of class ClassAnswer; they do not count against total
	index            index
	policySets       map[watchword.TenantID][]*policy.Set // that settled sessions were computed under
	closed           bool
	clockWatch       *clockjump.Watch // runs while there are sessions, whose timers use monotonic time
}

type subjectKey struct {
	tenant watchword.TenantID
	id     watchword.SubjectID
}

// NewGuard returns a guard that reads subjects and policies from d.
func NewGuard(d Directory, o GuardOptions) *Guard {
	g := &Guard{
		directory: d, now: o.Now, total: o.Total, maxPerSubject: [classCount]int{ClassConnection: o.PerSubject, ClassWait: o.PerSubjectWaits, ClassAnswer: o.PerSubjectAnswers}, issuerRevoked: o.Revoked,
		opened: o.Opened, ended: o.Ended,
		sessions: map[watchword.SessionID]*Session{}, byID: map[watchword.TenantID]*sorted.Set[*Session]{}, subjects: map[subjectKey][]*Session{}, index: newIndex(), policySets: map[watchword.TenantID][]*policy.Set{},
		offline: map[watchword.SessionID]*Session{}, offlineBySubject: map[subjectKey][]*Session{},
	}
	if g.now == nil {
		g.now = time.Now
	}
	if g.total == 0 {
		g.total = 100_000
	}
	for class, limit := range [classCount]int{ClassConnection: 8, ClassWait: 1024, ClassAnswer: 2048} {
		if g.maxPerSubject[class] == 0 {
			g.maxPerSubject[class] = limit
		}
	}
	return g
}

// Check returns the authority of credentials at this moment, for one short request. Codes: as
// [Guard.Open].
func (g *Guard) Check(ctx context.Context, p Credentials) (*Authority, error) {
	a, _, err := g.check(ctx, p)
	return a, err
}

// check is Check, and returns the policies that it was decided under.
func (g *Guard) check(ctx context.Context, p Credentials) (*Authority, *policy.Set, error) {
	who, err := g.directory.Principal(ctx, p.Tenant, p.Subject)
	if watchword.CodeOf(err) == watchword.NotFound { // the subject was deleted after the token was issued
		return nil, nil, watchword.Refuse(watchword.SubjectRevoked, "subject %q was deleted", p.Subject)
	}
	if err != nil {
		return nil, nil, err
	}
	// The issuer key is checked here too, not only when the token is verified: a token that was
	// verified before its issuer key was revoked must not open a session after it.
	if g.issuerRevoked != nil && g.issuerRevoked(p.IssuerKey) {
		return nil, nil, watchword.Refuse(watchword.IssuerRevoked, "the server's key that signed this token was revoked")
	}
	if g.revoked.has(p.Tenant, p.JTI) {
		return nil, nil, errRevoked
	}
	a, err := authorize(p, who.Subject, who.Grant, g.now())
	return a, who.Policies, err
}

// Open starts a session. The session is indexed before its authority is read, so that no change is
// missed. Codes: token_expired, token_revoked, subject_new, subject_suspended, subject_revoked,
// busy, unavailable.
func (g *Guard) Open(ctx context.Context, p Credentials, o Options) (*Session, error) {
	s, err := g.Reserve(p, o)
	if err != nil {
		return nil, err
	}
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Reserve counts a session that will start later, within the limits, for a transport that must
// consume or replace something first. It has no authority and calls no callback until
// [Session.Start]; [Session.End] gives it up. Codes: busy, unavailable.
func (g *Guard) Reserve(p Credentials, o Options) (*Session, error) {
	s := g.newSession(p, o)
	if err := g.add(s); err != nil {
		return nil, err
	}
	return s, nil
}

func (g *Guard) newSession(p Credentials, o Options) *Session {
	now := g.now()
	return &Session{guard: g, id: watchword.SessionID(watchword.NewID("ses_", now)), opened: now, options: o, subject: subjectKey{p.Tenant, p.Subject}, credentials: p}
}

// OpenOffline opens a session for state that outlives a connection: an MQTT persistent session, or
// a will. No token is presented for it. Of p, the tenant, the subject and its incarnation count,
// with the current policy. If p has a Key too, the state depends on the token that p describes: its
// key, issuer key, revocation, proof and permissions count as in [Guard.Open]; only its expiry does
// not. Changed is called at once and after each change of authority; Withdrawn is called where
// nothing is allowed: subject_suspended, subject_revoked, token_revoked (also for another
// incarnation), issuer_revoked, proof_required, unavailable. It ends by [Session.End]. It appears
// in no list and counts against no limit: its transport has its own.
func (g *Guard) OpenOffline(ctx context.Context, p Credentials, o Options) *Session {
	p.offline = true
	s := g.newSession(p, o)
	s.offline = true
	s.mu.Lock()
	defer s.mu.Unlock()
	g.mu.Lock()
	k := subjectKey{p.Tenant, p.Subject}
	g.offline[s.id] = s
	g.held.Add(1)
	g.offlineBySubject[k] = append(g.offlineBySubject[k], s)
	g.index.markUnindexed(s)
	g.mu.Unlock()
	_ = s.recompute(ctx, nil) // Withdrawn has been called with the error
	return s
}

func (g *Guard) add(s *Session) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := s.subject
	class := s.options.Class
	limit, what, alike := g.maxPerSubject[class], [classCount]string{"sessions open", "requests waiting", "requests being answered"}[class], 0
	all, old := len(g.sessions)-g.answerCount, s.options.Replaces
	if old != nil && g.sessions[old.id] == old {
		all--
	}
	s.options.Replaces = nil // so that the replaced session can be freed
	for _, other := range g.subjects[k] {
		if other.options.Class == class && other != old {
			alike++
		}
	}
	switch {
	case g.closed:
		return watchword.Refuse(watchword.Unavailable, "the server is shutting down")
	case class != ClassAnswer && all >= g.total:
		return watchword.Refuse(watchword.Busy, "%d sessions are open, which is the limit of this server (limits.connections)", g.total)
	case alike >= limit:
		return watchword.Refuse(watchword.Busy, "%q has %d %s, which is the limit of one subject", k.id, limit, what)
	}
	if len(g.sessions) == 0 {
		g.clockWatch = clockjump.Start(g.now, g.expireAll, g.expireAll)
	}
	if class == ClassAnswer {
		g.answerCount++
	}
	g.sessions[s.id] = s
	if g.byID[k.tenant] == nil {
		g.byID[k.tenant] = sorted.NewSet(compareIDs)
	}
	g.byID[k.tenant].Add(s)
	g.subjects[k] = append(g.subjects[k], s)
	g.index.markUnindexed(s)
	return nil
}

func (g *Guard) remove(s *Session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	all, of := g.sessions, g.subjects
	if s.offline {
		all, of = g.offline, g.offlineBySubject
	}
	if _, in := all[s.id]; in {
		g.held.Add(-1)
		if s.options.Class == ClassAnswer {
			g.answerCount--
		}
	}
	delete(all, s.id)
	k := s.subject
	if listed := g.byID[k.tenant]; !s.offline && listed != nil {
		if listed.Remove(s); listed.Len() == 0 {
			delete(g.byID, k.tenant)
		}
	}
	if !s.offline && len(all) == 0 {
		g.clockWatch.Stop()
	}
	if i := slices.Index(of[k], s); i >= 0 {
		of[k] = slices.Delete(of[k], i, i+1)
	}
	if len(of[k]) == 0 {
		delete(of, k)
	}
	g.index.remove(s)
	if len(g.sessions)+len(g.offline) == 0 {
		clear(g.policySets)
	}
}

// Session returns a live session of that tenant; nil if there is none, or if it is still being
// opened.
func (g *Guard) Session(t watchword.TenantID, id watchword.SessionID) *Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.sessions[id]; s != nil && s.subject.tenant == t && s.Authority() != nil {
		return s
	}
	return nil
}

// OfflineSession returns a session of [Guard.OpenOffline] that has that id and belongs to that tenant; nil if there is none.
func (g *Guard) OfflineSession(t watchword.TenantID, id watchword.SessionID) *Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.offline[id]; s != nil && s.subject.tenant == t {
		return s
	}
	return nil
}

// SubjectSessions returns the live sessions of one subject, in order of id.
func (g *Guard) SubjectSessions(t watchword.TenantID, subject watchword.SubjectID) []*Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.SortedFunc(slices.Values(g.subjects[subjectKey{t, subject}]), compareIDs)
}

// Online reports of each of these subjects whether it has a live connection: MQTT, a stream or a long poll.
func (g *Guard) Online(t watchword.TenantID, ids []watchword.SubjectID) []bool {
	out := make([]bool, len(ids))
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, id := range ids {
		out[i] = slices.ContainsFunc(g.subjects[subjectKey{t, id}], func(s *Session) bool { return s.Class() == ClassConnection && s.Authority() != nil })
	}
	return out
}

// SessionPage returns at most n live sessions of the tenant, in order of id, from the given id on. It reads no others.
func (g *Guard) SessionPage(t watchword.TenantID, from watchword.SessionID, n int) []*Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := g.byID[t]
	if all == nil {
		return nil
	}
	return all.Page(func(s *Session) bool { return s.id < from }, n)
}

func compareIDs(a, b *Session) int { return cmp.Compare(a.id, b.id) }

// Count returns the number of live sessions, without sessions of class ClassAnswer.
func (g *Guard) Count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.sessions) - g.answerCount
}

// Held returns the number of all sessions, those without a connection among them. It does not block.
func (g *Guard) Held() int { return int(g.held.Load()) }

// OfflineAuthority returns what a subject may do now without a token: the current policy decides,
// for the given incarnation. Codes: subject_new, subject_suspended, subject_revoked, token_revoked
// for another incarnation, unavailable.
func (g *Guard) OfflineAuthority(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, incarnation int64) (*Authority, error) {
	return g.Check(ctx, Credentials{Tenant: t, Subject: id, Incarnation: incarnation, offline: true})
}

// expireAll ends the sessions whose tokens have expired while their timers have not fired, and those whose tokens were issued by
// a clock that was ahead and has gone back.
func (g *Guard) expireAll() {
	g.mu.Lock()
	all := slices.Collect(maps.Values(g.sessions))
	g.mu.Unlock()
	var busy []*Session
	for _, s := range all {
		if !s.mu.TryLock() { // the session is waiting for the store; the others need not wait for it
			busy = append(busy, s)
			continue
		}
		s.endIfExpiredLocked()
		s.mu.Unlock()
	}
	for _, s := range busy {
		s.endIfExpired()
	}
	abortAll(all...)
}

// Close ends every session with cause and refuses new ones.
func (g *Guard) Close(cause error) {
	g.mu.Lock()
	g.closed = true
	all := make([]*Session, 0, len(g.sessions))
	for _, s := range g.sessions {
		all = append(all, s)
	}
	g.mu.Unlock()
	for _, s := range all {
		s.endAndUnlock(cause)
	}
	abortAll(all...)
}
