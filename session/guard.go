package session

import (
	"context"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/clockjump"
	"github.com/watchword-iot/watchword/policy"
)

// Directory answers who a subject is now and what policy gives it. No answer is older than the last change that the guard
// was told.
type Directory interface {
	Principal(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (*Principal, error)
	// Refresh makes Principal's next answer at least as new as the store is now, and refuses a token that
	// counts no more there. Codes: token_revoked, issuer_revoked, unavailable.
	Refresh(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, jti string, signedBy watchword.KeyID) error
}

// GuardOptions tunes a [Guard]. The zero value is ready to use.
type GuardOptions struct {
	Now               func() time.Time // nil means time.Now
	Total             int              // live sessions at once; 0 means 100,000
	PerSubject        int              // live connections of one subject; 0 means 8
	PerSubjectWaits   int              // requests of one subject that wait; 0 means 1,024
	PerSubjectAnswers int              // requests of one subject that are being answered, those that wait among them; 0 means 2,048
	// Revoked reports whether an issuer key was revoked; nil: none ever is.
	Revoked func(id watchword.KeyID) bool
	// Opened and Ended, if not nil, are told of each session that begins, and of its
	// end, with the session locked: they neither block nor call back but for what the
	// session says of itself. cause is nil where its own transport ended it.
	Opened func(s *Session)
	Ended  func(s *Session, cause error)
}

// Guard knows every live session of this node. It is safe for concurrent use.
// Lock order: Guard.changes, Session.mu, Guard.mu.
type Guard struct {
	directory     Directory
	now           func() time.Time
	total         int
	maxPerSubject [classCount]int // of one subject
	issuerRevoked func(id watchword.KeyID) bool
	opened        func(s *Session)
	ended         func(s *Session, cause error)

	changesMu sync.RWMutex // read-held by each change while it reaches its sessions
	watcher   atomic.Pointer[func(t watchword.TenantID, id watchword.SubjectID)]

	revoked revokedTokens

	mu               sync.Mutex
	sessions         map[watchword.SessionID]*Session
	subjects         map[subjectKey][]*Session
	offline          map[watchword.SessionID]*Session // those without a connection
	offlineBySubject map[subjectKey][]*Session        // likewise
	answerCount      int                              // sessions that are answers: their number is not counted against total
	index            index
	closed           bool
	clockWatch       *clockjump.Watch // while there are sessions: their timers count monotonic time
}

type subjectKey struct {
	tenant watchword.TenantID
	id     watchword.SubjectID
}

// NewGuard returns a guard that asks d.
func NewGuard(d Directory, o GuardOptions) *Guard {
	g := &Guard{
		directory: d, now: o.Now, total: o.Total, maxPerSubject: [classCount]int{ClassConnection: o.PerSubject, ClassWait: o.PerSubjectWaits, ClassAnswer: o.PerSubjectAnswers}, issuerRevoked: o.Revoked,
		opened: o.Opened, ended: o.Ended,
		sessions: map[watchword.SessionID]*Session{}, subjects: map[subjectKey][]*Session{}, index: newIndex(),
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

// Check answers what papers may do now, for one request that is over before
// anything changes. Codes: as in [Guard.Open].
func (g *Guard) Check(ctx context.Context, p Credentials) (*Authority, error) {
	who, err := g.directory.Principal(ctx, p.Tenant, p.Subject)
	if watchword.CodeOf(err) == watchword.NotFound { // deleted since its papers were made out
		return nil, watchword.Refuse(watchword.SubjectRevoked, "the subject %q is gone", p.Subject)
	}
	if err != nil {
		return nil, err
	}
	// Asked at each check, and not only when papers are shown: what was checked before a
	// key was revoked does not slip in after it.
	if g.issuerRevoked != nil && g.issuerRevoked(p.IssuerKey) {
		return nil, watchword.Refuse(watchword.IssuerRevoked, "the server's key that signed this token was revoked")
	}
	if g.revoked.has(p.Tenant, p.JTI) {
		return nil, errRevoked
	}
	return authorize(p, who.Subject, who.Grant, g.now())
}

// Open starts a session. It is in the index before its authority is read, so
// that no change falls between. Codes: token_expired, token_revoked,
// subject_new, subject_suspended, subject_revoked, busy, unavailable.
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

// Reserve takes the place of a session that is yet to start, within the bounds: for a
// transport that has something to lose or to spend before it opens one. It has no
// authority and calls nobody back until [Session.Start]; [Session.Close] gives the place
// up. Codes: busy, unavailable.
func (g *Guard) Reserve(p Credentials, o Options) (*Session, error) {
	now := g.now()
	s := &Session{
		guard: g, id: watchword.SessionID(watchword.NewID("ses_", now)), opened: now, options: o,
		credentials: p,
	}
	if err := g.add(s); err != nil {
		return nil, err
	}
	return s, nil
}

// OpenOffline watches over what a subject left behind when its connection ended: a session
// of the transport's own standard, or its will. Nobody shows papers for it. Of p, the
// tenant, the subject and its incarnation count, and today's policy. Where p has a Key
// too, what is left behind stands on the token that p describes: its key, its issuer
// key, its revocation, its proof and, if there are any, its permissions count as in
// [Guard.Open], only its end does not. Changed is called at once and after each change
// that concerns it; Lapsed where nothing passes: subject_suspended, subject_revoked,
// token_revoked also for another incarnation, issuer_revoked, proof_required,
// unavailable. It ends by [Session.Close], is in no list and counts against no bound:
// those are its transport's.
func (g *Guard) OpenOffline(ctx context.Context, p Credentials, o Options) *Session {
	now := g.now()
	p.offline = true
	s := &Session{guard: g, opened: now, options: o, credentials: p, offline: true}
	s.id = watchword.SessionID(watchword.NewID("ses_", now))
	s.mu.Lock()
	defer s.mu.Unlock()
	g.mu.Lock()
	k := subjectKey{p.Tenant, p.Subject}
	g.offline[s.id] = s
	g.offlineBySubject[k] = append(g.offlineBySubject[k], s)
	g.index.markUnindexed(s)
	g.mu.Unlock()
	_ = s.recompute(ctx, nil) // what is wrong, Lapsed was told
	return s
}

func (g *Guard) add(s *Session) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := subjectKey{s.credentials.Tenant, s.credentials.Subject}
	class := s.options.Class
	limit, what, alike := g.maxPerSubject[class], [classCount]string{"sessions open", "requests waiting", "requests being answered"}[class], 0
	all, old := len(g.sessions)-g.answerCount, s.options.Replaces
	if old != nil && g.sessions[old.id] == old {
		all--
	}
	s.options.Replaces = nil // it is not kept alive
	for _, other := range g.subjects[k] {
		if other.options.Class == class && other != old {
			alike++
		}
	}
	switch {
	case g.closed:
		return watchword.Refuse(watchword.Unavailable, "the server is going down")
	case class != ClassAnswer && all >= g.total:
		return watchword.Refuse(watchword.Busy, "%d sessions are open, the most that this server takes", g.total)
	case alike >= limit:
		return watchword.Refuse(watchword.Busy, "%q has %d %s, the most that one subject may have", s.credentials.Subject, limit, what)
	}
	if len(g.sessions) == 0 {
		g.clockWatch = clockjump.Start(g.now, g.expireAll)
	}
	if class == ClassAnswer {
		g.answerCount++
	}
	g.sessions[s.id] = s
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
	if _, in := all[s.id]; in && s.options.Class == ClassAnswer {
		g.answerCount--
	}
	delete(all, s.id)
	if !s.offline && len(all) == 0 {
		g.clockWatch.Stop()
	}
	k := subjectKey{s.credentials.Tenant, s.credentials.Subject}
	if i := slices.Index(of[k], s); i >= 0 {
		of[k] = slices.Delete(of[k], i, i+1)
	}
	if len(of[k]) == 0 {
		delete(of, k)
	}
	g.index.remove(s)
}

// Session returns a live session of that tenant; nil if there is none, or it is still being opened.
func (g *Guard) Session(t watchword.TenantID, id watchword.SessionID) *Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.sessions[id]; s != nil && s.credentials.Tenant == t && s.Authority() != nil {
		return s
	}
	return nil
}

// Sessions returns the tenant's live sessions, or those of one subject.
func (g *Guard) Sessions(t watchword.TenantID, subject watchword.SubjectID) []*Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	if subject != "" {
		return slices.Clone(g.subjects[subjectKey{t, subject}])
	}
	var out []*Session
	for _, s := range g.sessions {
		if s.credentials.Tenant == t {
			out = append(out, s)
		}
	}
	return out
}

// Count returns how many sessions are live, without the requests that are being answered: these come and go.
func (g *Guard) Count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.sessions) - g.answerCount
}

// OfflineAuthority answers what a subject may do now, of whom nobody shows papers: today's policy
// alone counts, for the life of the subject that is named. Codes: subject_new,
// subject_suspended, subject_revoked, token_revoked for another life, unavailable.
func (g *Guard) OfflineAuthority(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, incarnation int64) (*Authority, error) {
	return g.Check(ctx, Credentials{Tenant: t, Subject: id, Incarnation: incarnation, offline: true})
}

// Watch has f called within each change, before it is answered: of a subject, or of
// policy, where id is empty. What [Guard.OfflineAuthority] returned before may have changed then. f
// does not call the guard. Who calls last is the one who watches.
func (g *Guard) Watch(f func(t watchword.TenantID, id watchword.SubjectID)) { g.watcher.Store(&f) }

func (g *Guard) notifyWatcher(t watchword.TenantID, id watchword.SubjectID) {
	if f := g.watcher.Load(); f != nil {
		(*f)(t, id)
	}
}

// SubjectChanged recomputes the sessions of one subject. When it returns, none
// of them passes anything that is no longer allowed.
func (g *Guard) SubjectChanged(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) {
	g.changesMu.RLock()
	defer g.changesMu.RUnlock()
	g.notifyWatcher(t, id)
	g.mu.Lock()
	k := subjectKey{t, id}
	all := slices.Concat(g.subjects[k], g.offlineBySubject[k])
	g.mu.Unlock()
	for _, s := range all {
		s.Recompute(ctx)
	}
	cutAll(all...)
}

// cutAll has the transports of sessions break off what they are doing under an authority that was taken, all at the same
// time: an edit waits once, however many clients do not read.
func cutAll(all ...*Session) {
	var wg sync.WaitGroup
	for _, s := range all {
		if s.options.Cut != nil {
			wg.Go(s.options.Cut)
		}
	}
	wg.Wait()
}

// PolicyChanged recomputes the sessions that a policy speaks of, in any of its
// versions: the one before the change and the one after it. Those that it does not
// speak of are not touched, nor looked at where its labels tell them apart. When it
// returns, none passes anything that policy no longer allows.
func (g *Guard) PolicyChanged(ctx context.Context, t watchword.TenantID, versions ...*policy.Document) {
	g.changesMu.RLock()
	defer g.changesMu.RUnlock()
	g.notifyWatcher(t, "")
	concerned := g.affected(t, versions)
	var wg sync.WaitGroup
	const share = 64 // of one goroutine, at least
	each := max(share, (len(concerned)+runtime.GOMAXPROCS(0)-1)/runtime.GOMAXPROCS(0))
	for some := range slices.Chunk(concerned, each) {
		wg.Go(func() {
			for _, s := range some {
				s.Recompute(ctx)
			}
		})
	}
	wg.Wait()
	cutAll(concerned...)
}

// TokenRevoked ends the sessions that stand on one token. When it returns, none
// does, nor will one that was on its way to open.
func (g *Guard) TokenRevoked(t watchword.TenantID, subject watchword.SubjectID, jti string) {
	g.changesMu.RLock()
	defer g.changesMu.RUnlock()
	g.revoked.add(t, jti)
	g.mu.Lock()
	k := subjectKey{t, subject}
	all := slices.Concat(g.subjects[k], g.offlineBySubject[k])
	g.mu.Unlock()
	for _, s := range all {
		s.revoke(jti)
	}
	cutAll(all...)
}

// WaitForChanges waits until the changes that are under way have reached every session
// that they concern: what follows from the end of one session must not reach
// another that the same change silences. It is not for callbacks of a session.
func (g *Guard) WaitForChanges() {
	g.changesMu.Lock()
	defer g.changesMu.Unlock()
}

func (g *Guard) affected(t watchword.TenantID, versions []*policy.Document) []*Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	found := map[*Session]struct{}{}
	for s := range g.index.unindexed {
		if s.credentials.Tenant == t {
			found[s] = struct{}{}
		}
	}
	for _, d := range versions {
		ids, labels := d.For()
		add := func(s *Session) {
			if s.credentials.Tenant == t && d.Applies(s.Authority().PolicySubject()) {
				found[s] = struct{}{}
			}
		}
		switch {
		case ids != nil:
			for _, id := range ids {
				k := subjectKey{t, id}
				for _, s := range slices.Concat(g.subjects[k], g.offlineBySubject[k]) {
					if _, known := found[s]; !known {
						add(s)
					}
				}
			}
		case len(labels) > 0:
			for s := range g.index.smallest(t, labels) {
				add(s)
			}
		default:
			for _, some := range []map[watchword.SessionID]*Session{g.sessions, g.offline} {
				for _, s := range some {
					if _, known := found[s]; !known {
						add(s)
					}
				}
			}
		}
	}
	return slices.Collect(maps.Keys(found))
}

// IssuerRevoked ends every session whose token was signed by an issuer key that
// was revoked: GuardOptions.Revoked says so by the time that this is called.
func (g *Guard) IssuerRevoked(ctx context.Context, id watchword.KeyID) {
	g.changesMu.RLock()
	defer g.changesMu.RUnlock()
	g.mu.Lock()
	all := slices.AppendSeq(slices.Collect(maps.Values(g.sessions)), maps.Values(g.offline))
	g.mu.Unlock()
	for _, s := range all {
		s.recomputeMatching(ctx, func(p Credentials) bool { return p.IssuerKey == id })
	}
	cutAll(all...)
}

// expireAll ends the sessions whose tokens are over, though their timers are not.
func (g *Guard) expireAll() {
	g.mu.Lock()
	all := slices.Collect(maps.Values(g.sessions))
	g.mu.Unlock()
	var busy []*Session
	for _, s := range all {
		if !s.mu.TryLock() { // the store is being asked for it: nobody else waits for that
			busy = append(busy, s)
			continue
		}
		s.expireLocked()
		s.mu.Unlock()
	}
	for _, s := range busy {
		s.expire()
	}
	cutAll(all...)
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
		s.close(cause)
	}
	cutAll(all...)
}
