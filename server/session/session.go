package session

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// Class is the kind of a session. Each class has its own limit for one subject.
type Class byte

const (
	// ClassConnection is a long-lived connection: MQTT, a stream, a long poll.
	ClassConnection Class = iota
	// ClassWait is a request that waits for an event, such as the end of a command.
	ClassWait
	// ClassAnswer is a request in progress.
	ClassAnswer

	classCount
)

// Options describes a session to the guard; its transport fills it in.
type Options struct {
	Transport string // "poll", "sse", "mqtt", later "websocket"
	Remote    string // address of the peer, shown in lists
	Client    string // MQTT client identifier; empty for other transports, and for wills
	Class     Class  // decides which limits apply
	// Changed, if not nil, is called after each change of authority that does not end the session,
	// with the session locked. The transport must stop what is no longer allowed. It must not
	// block, and may call only Authority of the session.
	Changed func(a *Authority)
	// Ended, if not nil, is called once when a session of [Guard.Open] ends, under the same rules.
	// cause is nil where the transport closed it.
	Ended func(cause error)
	// Abort, if not nil, is called after Changed or Ended, with nothing locked and before the change
	// of authority is answered. The transport must break off what it is still doing under the old
	// authority, within a bounded time that clients cannot influence. The sessions of one change
	// are cut concurrently. It may be called at any time, also after the end.
	Abort func()
	// Covers, if not nil, is called by [Session.Refresh] with the authority of the new token, under
	// the same rules as Changed. Where it returns an error, the refresh is refused with it and
	// nothing changes.
	Covers func(a *Authority) error
	// Replaces, if not nil, is a session that ends when this one starts; both together count as
	// one.
	Replaces *Session
	// Withdrawn is called for an offline session (see [Guard.OpenOffline]) instead of Changed where
	// nothing is allowed now; cause says why.
	Withdrawn func(cause error)
}

// Session is one live connection or request. It is safe for concurrent use.
type Session struct {
	guard   *Guard
	id      watchword.SessionID
	opened  time.Time
	options Options
	subject subjectKey       // of credentials; it never changes
	indexed watchword.Labels // protected by Guard.mu
	offline bool             // made by [Guard.OpenOffline]: it has no connection

	authority atomic.Pointer[Authority]
	ended     atomic.Bool // set with mu held

	mu          sync.Mutex // held while authority changes
	started     bool       // Start has been called; callbacks are called
	credentials Credentials
	timer       *time.Timer
	cause       error
	done        chan struct{} // made by the first call of Done
}

// ID returns the session's id.
func (s *Session) ID() watchword.SessionID { return s.id }

// Opened returns when the session began.
func (s *Session) Opened() time.Time { return s.opened }

// Transport returns the name of its transport.
func (s *Session) Transport() string { return s.options.Transport }

// Remote returns the peer's address.
func (s *Session) Remote() string { return s.options.Remote }

// Client returns the MQTT client identifier; empty for other transports, and for wills.
func (s *Session) Client() string { return s.options.Client }

// IsConnection reports whether it is a long-lived connection.
func (s *Session) IsConnection() bool {
	return s.options.Class == ClassConnection && s.options.Transport != "poll"
}

// Class returns the class of the session.
func (s *Session) Class() Class { return s.options.Class }

// Authority returns what the session may do now. It is never nil on a session of [Guard.Open];
// after Done is closed it is no longer valid.
func (s *Session) Authority() *Authority { return s.authority.Load() }

// endedSerial is the version of the authority of a session that has ended.
const endedSerial = 1

// AuthorityVersion returns a number that changes when the authority of the session changes, or the session ends. It does not
// wait, as Subscribe does not.
func (s *Session) AuthorityVersion() uint64 {
	a := s.authority.Load()
	if a == nil || s.ended.Load() {
		return endedSerial
	}
	return a.serial
}

// Subscribe decides on subscribing to a filter under the current authority of the session. Nothing is allowed after its end.
func (s *Session) Subscribe(filter string) policy.Decision {
	a := s.authority.Load()
	if a == nil || s.ended.Load() {
		return policy.Decision{}
	}
	return a.Subscribe(filter)
}

// Done returns a channel that is closed when the session has ended; Cause returns why.
func (s *Session) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done == nil {
		s.done = make(chan struct{})
		if s.ended.Load() {
			close(s.done)
		}
	}
	return s.done
}

// Ended reports whether the session has ended.
func (s *Session) Ended() bool { return s.ended.Load() }

// Cause returns why the session ended, nil before.
func (s *Session) Cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// Recompute reads the authority again, and ends the session if nothing is allowed.
func (s *Session) Recompute(ctx context.Context) {
	s.recomputeMatching(ctx, func(Credentials) bool { return true })
}

// recomputeMatching is Recompute for a session whose current credentials satisfy such, and reports whether they do.
func (s *Session) recomputeMatching(ctx context.Context, such func(Credentials) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended.Load() || !such(s.credentials) {
		return false
	}
	if err := s.recompute(ctx, nil); err != nil {
		s.endLocked(err)
	}
	return true
}

// Start starts a session of [Guard.Reserve]: its expiry timer runs, and its callbacks are called.
// Codes: as [Guard.Open]; the cause of its end if it has ended already, not_found if its transport
// closed it.
func (s *Session) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended.Load() && s.cause != nil:
		return s.cause
	case s.ended.Load():
		return watchword.Refuse(watchword.NotFound, "the session has ended")
	}
	if err := s.recompute(ctx, nil); err != nil {
		s.endLocked(err)
		return err
	}
	s.started = true
	if !s.credentials.offline {
		s.timer = time.AfterFunc(s.Authority().Expires().Sub(s.guard.now()), s.endIfExpired)
	}
	if s.guard.opened != nil {
		s.guard.opened(s)
	}
	return nil
}

// recompute is called with mu held. may, if not nil, checks the new authority before it takes
// effect.
func (s *Session) recompute(ctx context.Context, may func(a *Authority) error) error {
	s.guard.markUnindexed(s) // so that a policy change during the read affects this session
	a, set, err := s.guard.check(ctx, s.credentials)
	if err != nil && s.offline {
		s.options.Withdrawn(err) // the session stays unindexed, so every later change recomputes it
		return nil
	}
	if err != nil {
		return err // fail closed, also where the store cannot be read
	}
	if may != nil {
		if err := may(a); err != nil {
			return err
		}
	}
	if old := s.authority.Swap(a); s.timer != nil && !old.Expires().Equal(a.Expires()) {
		s.timer.Reset(a.Expires().Sub(s.guard.now()))
	}
	s.guard.indexSession(s, a.subject.Labels, set)
	if (s.started || s.offline) && s.options.Changed != nil {
		s.options.Changed(a)
	}
	return nil
}

// Refresh replaces the session's credentials by newer ones of the same subject and key, and its
// expiry with them. The same or older credentials change nothing and are no error. A session that
// was opened with a proof accepts only proved credentials, and a refresh never makes a session
// proved. Credentials that do not cover the session's state are refused: see [Options.Covers].
// Codes: denied for another subject or key, or by Covers; proof_required; as [Guard.Open].
func (s *Session) Refresh(ctx context.Context, p Credentials) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkSameHolder(p); err != nil {
		return err
	}
	p.KeyProved, p.BindingProved = s.credentials.KeyProved, s.credentials.BindingProved
	if !p.Expires.After(s.credentials.Expires) {
		if err := s.checkRefreshLocked(ctx, p); watchword.CodeOf(err) == watchword.Denied {
			return err // compared in whole seconds, so that the answer does not depend on when in a second the token was issued
		}
		return nil
	}
	old := s.credentials
	s.credentials = p
	if err := s.recompute(ctx, s.options.Covers); err != nil {
		s.credentials = old
		s.guard.indexSession(s, s.Authority().subject.Labels, nil) // it is unsettled since: a change meanwhile waits for mu
		return err
	}
	return nil
}

// CheckRefresh returns the error that [Session.Refresh] with p would return, for callers that must
// consume something else first. Codes: as Refresh.
func (s *Session) CheckRefresh(ctx context.Context, p Credentials) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkSameHolder(p); err != nil {
		return err
	}
	p.KeyProved, p.BindingProved = s.credentials.KeyProved, s.credentials.BindingProved
	return s.checkRefreshLocked(ctx, p)
}

// checkRefreshLocked checks that p is valid and covers the session's state. mu is held.
func (s *Session) checkRefreshLocked(ctx context.Context, p Credentials) error {
	a, err := s.guard.Check(ctx, p)
	if err == nil && s.options.Covers != nil {
		err = s.options.Covers(a)
	}
	return err
}

// checkSameHolder checks that p may refresh this session: same subject, key and proof. mu is held.
func (s *Session) checkSameHolder(p Credentials) error {
	if p.Tenant != s.credentials.Tenant || p.Subject != s.credentials.Subject || p.Key != s.credentials.Key {
		return watchword.Refuse(watchword.Denied, "sub and key of the token must be those of the session")
	}
	if s.credentials.KeyProved && !p.KeyProved || s.credentials.BindingProved && !p.BindingProved {
		return watchword.Refuse(watchword.ProofRequired, "the session was opened with a proof of the key: refresh it with a proof")
	}
	if s.ended.Load() || !s.started {
		return watchword.Refuse(watchword.NotFound, "the session has ended")
	}
	return nil
}

// endIfExpired is called by the timer, and where the wall clock ran ahead of it. A refresh may have moved
// the expiry while it waited for the lock.
func (s *Session) endIfExpired() {
	defer abortAll(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endIfExpiredLocked()
}

// endIfExpiredLocked is endIfExpired, called with mu held.
func (s *Session) endIfExpiredLocked() {
	if s.ended.Load() || s.timer == nil {
		return
	}
	now := s.guard.now()
	if s.credentials.Issued.After(now.Add(skew)) {
		s.endLocked(errEarly)
		return
	}
	if left := s.Authority().Expires().Sub(now); left > 0 {
		s.timer.Reset(left)
		return
	}
	if now.Before(s.credentials.Expires) {
		s.endLocked(errKeyInvalid)
		return
	}
	s.endLocked(errExpired)
}

// End ends the session; cause is nil where its transport closes it.
func (s *Session) End(cause error) {
	if cause != nil {
		defer abortAll(s)
	}
	s.endAndUnlock(cause)
}

func (s *Session) endAndUnlock(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(cause)
}

// endIfRevoked ends the session if its token is jti; an offline session is withdrawn.
func (s *Session) endIfRevoked(jti string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended.Load() || s.credentials.JTI != jti:
	case s.credentials.offline:
		s.options.Withdrawn(errRevoked)
	default:
		s.endLocked(errRevoked)
	}
}

// endLocked is called with mu held.
func (s *Session) endLocked(cause error) {
	if s.ended.Load() {
		return
	}
	s.cause = cause
	s.ended.Store(true)
	s.guard.remove(s)
	if s.done != nil {
		close(s.done)
	}
	if !s.started {
		return // never started, or offline
	}
	if s.timer != nil {
		s.timer.Stop()
	}
	if s.options.Ended != nil {
		s.options.Ended(cause)
	}
	if s.guard.ended != nil {
		s.guard.ended(s, cause)
	}
}
