package session

import (
	"context"
	"errors"

	"github.com/watchword-iot/watchword"
)

// maxDecisions is how often one act is decided again because authority changed meanwhile. Each
// time an edit of this subject, its target or the tenant's policies has committed in between.
const maxDecisions = 64

// Act runs do under the authority that the session has at this moment, if may (nil: nothing)
// allows it. do hands the authority's [Authority.Versions] to the store, which compares it in the
// transaction of the act; where it has moved by then, nothing was written, and Act reads authority
// anew and asks may and do again. So what do writes commits only while the session's subject may do
// it, and an edit waits for nobody: whatever was decided before it is refused after it.
//
// do may run several times and must leave nothing behind when it returns
// [watchword.ErrBasisMoved]. The input of the act must be whole before Act is called.
//
// Codes: the session's cause where it has ended; may's; do's; busy; those of [Directory.Renew].
func (s *Session) Act(ctx context.Context, may func(*Authority) error, do func(context.Context, *Authority) error) error {
	return runUnderAuthority(ctx, may, do, s.current, s.renew)
}

// Act is [Session.Act] for what a subject left to be done after its session, such as a will: under
// what policy says today of the subject as a has it. What the token of a says is may's to ask.
func (g *Guard) Act(ctx context.Context, a *Authority, may func(*Authority) error, do func(context.Context, *Authority) error) error {
	p := ByKey(a.credentials.Tenant, a.credentials.Subject, a.credentials.Incarnation, "")
	return runUnderAuthority(ctx, may, do, func() (*Authority, error) { return g.Check(ctx, p) }, func(ctx context.Context) error {
		return g.directory.Refresh(ctx, p.Tenant, p.Subject, "", "")
	})
}

func runUnderAuthority(ctx context.Context, may func(*Authority) error, do func(context.Context, *Authority) error, current func() (*Authority, error), renew func(context.Context) error) error {
	for range maxDecisions {
		a, err := current()
		if err != nil {
			return err
		}
		if may != nil {
			if err := may(a); err != nil {
				return err
			}
		}
		if err := do(ctx, a); !errors.Is(err, watchword.ErrAuthorityChanged) {
			return err
		}
		if err := renew(ctx); err != nil {
			return err
		}
	}
	return watchword.ErrAuthorityChanged
}

// current returns what the session may do now, or why it has ended.
func (s *Session) current() (*Authority, error) {
	if s.ended.Load() {
		return nil, s.endError()
	}
	return s.Authority(), nil
}

// endError is why the session has ended.
func (s *Session) endError() error {
	if cause := s.Cause(); cause != nil {
		return cause
	}
	return watchword.Refuse(watchword.Unavailable, "the session has ended")
}

// renew reads authority anew from the store.
func (s *Session) renew(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended.Load() {
		return nil // the caller finds the cause
	}
	p := s.credentials
	err := s.guard.directory.Refresh(ctx, p.Tenant, p.Subject, p.JTI, p.IssuerKey)
	switch watchword.CodeOf(err) {
	case "":
		if err := s.recompute(ctx, nil); err != nil {
			s.end(err)
		}
		return nil
	case watchword.TokenRevoked, watchword.IssuerRevoked:
		s.end(err)
		return nil
	}
	return err
}
