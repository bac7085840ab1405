package session

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
)

// Class is what kind of session it is. Each has a bound of its own for one subject.
type Class byte

const (
	// ClassConnection is one that lasts: an MQTT connection, a stream, a long poll.
	ClassConnection Class = iota
	// ClassWait is a request that waits for something to happen, such as a command's end.
	ClassWait
	// ClassAnswer is a request that is being answered.
	ClassAnswer

	classCount
)

// Options is what a transport says of its session.
type Options struct {
	Transport string // "poll", "sse", "mqtt", later "websocket"
	Remote    string // address of the peer, for lists
	Class     Class  // which bounds it counts against
	// Changed, if not nil, is called after each change of authority that did not
	// end the session, with the session locked: it takes away what no longer
	// passes, and neither blocks nor calls back into the session but for
	// Authority.
	Changed func(a *Authority)
	// Ended, if not nil, is called once when a session that [Guard.Open] returned
	// ends, under the same rules. cause is nil where the transport itself closed it.
	Ended func(cause error)
	// Cut, if not nil, is called where Changed or Ended may have been, with nothing locked and before the change of
	// authority is answered: it breaks off what the transport is doing under what was taken, within a bounded time that no
	// client decides. All sessions of one change are cut at the same time. It may be called at any time, also after the end.
	Cut func()
	// Covers, if not nil, is asked by [Session.Refresh] whether the authority of the newer
	// token covers what the session holds, under the same rules as Changed. Where it
	// returns an error the refresh is refused with it, and nothing changes.
	Covers func(a *Authority) error
	// Replaces, if not nil, is a session that ends when this one starts: it is not counted
	// beside it.
	Replaces *Session
	// Withdrawn, of a session without a connection (see [Guard.OpenOffline]), is called in the
	// place of Changed where nothing passes at this moment, and why.
	Withdrawn func(cause error)
}

// Session is one live connection. It is safe for concurrent use.
type Session struct {
	guard   *Guard
	id      watchword.SessionID
	opened  time.Time
	options Options
	indexed watchword.Labels // under Guard.mu
	offline bool             // made by Guard.Hold: it has no connection

	authority atomic.Pointer[Authority]
	ended     atomic.Bool // set with mu held

	mu          sync.Mutex // held while authority changes
	started     bool       // it is open: its callbacks are called
	credentials Credentials
	timer       *time.Timer
	cause       error
	done        chan struct{} // made when somebody asks for it
}

// ID returns the session's name.
func (s *Session) ID() watchword.SessionID { return s.id }

// Opened returns when it began.
func (s *Session) Opened() time.Time { return s.opened }

// Transport returns what carries it.
func (s *Session) Transport() string { return s.options.Transport }

// Remote returns the peer's address.
func (s *Session) Remote() string { return s.options.Remote }

// IsConnection reports whether it is a connection, and no request that waits.
func (s *Session) IsConnection() bool {
	return s.options.Class == ClassConnection && s.options.Transport != "poll"
}

// Class returns what kind of session it is.
func (s *Session) Class() Class { return s.options.Class }

// Authority returns what the session may do at this moment. It is never nil on
// a session that [Guard.Open] returned; once Done is closed it no longer counts.
func (s *Session) Authority() *Authority { return s.authority.Load() }

// Done is closed when the session has ended; Cause then says why.
func (s *Session) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done == nil {
		s.done = make(chan struct{})
		if s.ended.Load() {
			if s.done != nil {
				close(s.done)
			}
		}
	}
	return s.done
}

// Ended reports whether the session has ended.
func (s *Session) Ended() bool { return s.ended.Load() }

// Cause returns why the session ended, nil while it lives.
func (s *Session) Cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// Recompute reads authority anew and ends the session if nothing is left.
func (s *Session) Recompute(ctx context.Context) {
	s.recomputeMatching(ctx, func(Credentials) bool { return true })
}

// recomputeMatching is Recompute for a session whose papers of this moment are such.
func (s *Session) recomputeMatching(ctx context.Context, such func(Credentials) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended.Load() || !such(s.credentials) {
		return
	}
	if err := s.recompute(ctx, nil); err != nil {
		s.end(err)
	}
}

// Start opens a session that [Guard.Reserve] returned: from here on it ends by its timer,
// and its callbacks are called. Codes: as [Guard.Open]; the cause of its end where it
// ended meanwhile, not_found where its own transport ended it.
func (s *Session) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended.Load() && s.cause != nil:
		return s.cause
	case s.ended.Load():
		return watchword.Refuse(watchword.NotFound, "the session is over")
	}
	if err := s.recompute(ctx, nil); err != nil {
		s.end(err)
		return err
	}
	s.started = true
	if !s.credentials.offline {
		s.timer = time.AfterFunc(s.credentials.Expires.Sub(s.guard.now()), s.expire)
	}
	if s.guard.opened != nil {
		s.guard.opened(s)
	}
	return nil
}

// recompute is called with mu held. may, if not nil, is asked before the new authority
// counts.
func (s *Session) recompute(ctx context.Context, may func(a *Authority) error) error {
	s.guard.markUnindexed(s) // whoever changes policy while it is read here finds the session
	a, err := s.guard.Check(ctx, s.credentials)
	if err != nil && s.offline {
		s.options.Withdrawn(err) // unsettled: whatever changes, it is asked again
		return nil
	}
	if err != nil {
		return err // fail closed: also when the store cannot be asked
	}
	if may != nil {
		if err := may(a); err != nil {
			return err
		}
	}
	s.authority.Store(a)
	s.guard.indexSession(s, a.subject.Labels)
	if (s.started || s.offline) && s.options.Changed != nil {
		s.options.Changed(a)
	}
	return nil
}

// Refresh puts newer papers of the same subject and key in the place of the old
// ones, and the timer with them. Older papers, or the same, change nothing and
// are no error. A session that was opened with a proof takes no papers without one,
// and none becomes proved by a refresh. A token that does not cover what the session
// holds changes nothing: see [Options]. Codes: denied for another subject or key, and
// where Covers says so; proof_required; as [Guard.Open].
func (s *Session) Refresh(ctx context.Context, p Credentials) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkSameHolder(p); err != nil {
		return err
	}
	p.KeyProved = s.credentials.KeyProved
	if !p.Expires.After(s.credentials.Expires) {
		if err := s.checkRefresh(ctx, p); watchword.CodeOf(err) == watchword.Denied {
			return err // so that the answer does not depend on the second of its issue
		}
		return nil
	}
	old := s.credentials
	s.credentials = p
	if err := s.recompute(ctx, s.options.Covers); err != nil {
		s.credentials = old
		s.guard.indexSession(s, s.Authority().subject.Labels)
		return err
	}
	s.timer.Reset(p.Expires.Sub(s.guard.now()))
	return nil
}

// MayRefresh says whether [Session.Refresh] with p would be refused, for who has
// something to spend on p first. Codes: as Refresh.
func (s *Session) MayRefresh(ctx context.Context, p Credentials) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkSameHolder(p); err != nil {
		return err
	}
	p.KeyProved = s.credentials.KeyProved
	return s.checkRefresh(ctx, p)
}

// checkRefresh says whether p count and cover what the session holds. mu is held.
func (s *Session) checkRefresh(ctx context.Context, p Credentials) error {
	a, err := s.guard.Check(ctx, p)
	if err == nil && s.options.Covers != nil {
		err = s.options.Covers(a)
	}
	return err
}

// checkSameHolder says whether p are papers for a refresh of this session. mu is held.
func (s *Session) checkSameHolder(p Credentials) error {
	if p.Tenant != s.credentials.Tenant || p.Subject != s.credentials.Subject || p.Key != s.credentials.Key {
		return watchword.Refuse(watchword.Denied, "a session is refreshed by a token of the same subject and key")
	}
	if s.credentials.KeyProved && !p.KeyProved {
		return watchword.Refuse(watchword.ProofRequired, "this session proved its key: it is refreshed with a proof")
	}
	if s.ended.Load() || !s.started {
		return watchword.Refuse(watchword.NotFound, "the session is over")
	}
	return nil
}

// expire is the timer's, and called where the wall clock ran ahead of it. A refresh
// may have come while it waited for the lock.
func (s *Session) expire() {
	defer cutAll(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expireLocked()
}

// expireLocked is expire, called with mu held.
func (s *Session) expireLocked() {
	if s.ended.Load() || s.timer == nil {
		return
	}
	if left := s.credentials.Expires.Sub(s.guard.now()); left > 0 {
		s.timer.Reset(left)
		return
	}
	s.end(watchword.Refuse(watchword.TokenExpired, "the token is over"))
}

// Close ends the session; cause is nil where its own transport is done with it.
func (s *Session) Close(cause error) {
	if cause != nil {
		defer cutAll(s)
	}
	s.close(cause)
}

func (s *Session) close(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(cause)
}

// revoke ends the session if it stands on that token; what is held lapses.
func (s *Session) revoke(jti string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended.Load() || s.credentials.JTI != jti:
	case s.credentials.offline:
		s.options.Withdrawn(errRevoked)
	default:
		s.end(errRevoked)
	}
}

// end is called with mu held.
func (s *Session) end(cause error) {
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
		return // it never was open, or has no connection
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
