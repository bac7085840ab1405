package session

import (
	"context"
	"errors"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

// maxDecisions limits how often one act is decided again because authority changed in the meantime.
// Each repetition means that an edit of the subject, the target or the tenant's policies was
// committed.
const maxDecisions = 64

// RunAuthorized runs do under the current authority of the session, if may (nil: no check) allows it. do
// passes [Authority.Versions] to the store, which compares them in the transaction of the act. If
// they changed, nothing is written, and RunAuthorized reads the authority again and repeats may and do. So
// the writes of do commit only while the subject may make them; an edit does not wait for acts, and
// every act that was decided before the edit is refused after it.
//
// do may run several times and must have no effect when it returns [watchword.ErrAuthorityChanged].
// The input of the act must be complete before RunAuthorized is called.
//
// Codes: the cause of the session's end; those of may and do; busy; those of [Directory.Refresh].
func (s *Session) RunAuthorized(ctx context.Context, may func(*Authority) error, do func(context.Context, *Authority) error) error {
	return runAuthorized(ctx, may, do, s.currentAuthority, s.renew)
}

// RunAuthorized is [Session.RunAuthorized] for an act after the end of the session, such as publishing a will. It uses
// the current policy for the subject of a. may checks the token of a, where that matters.
func (g *Guard) RunAuthorized(ctx context.Context, a *Authority, may func(*Authority) error, do func(context.Context, *Authority) error) error {
	p := KeyCredentials(a.credentials.Tenant, a.credentials.Subject, a.credentials.Incarnation, "")
	return runAuthorized(ctx, may, do, func() (*Authority, error) { return g.Check(ctx, p) }, func(ctx context.Context) error {
		return g.directory.Refresh(ctx, p.Tenant, p.Subject, "", "")
	})
}

// RunFor is [Session.RunAuthorized] for an act that a subject ordered earlier, such as an enrollment with a link that it made: do runs
// under what policy gives the subject now. Codes: subject_new, subject_suspended; subject_revoked, also for one that was deleted;
// busy; those of do and of [Directory.Refresh].
func (g *Guard) RunFor(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, do func(context.Context, Actor) error) error {
	current := func() (*Authority, error) {
		who, err := g.directory.Principal(ctx, t, id)
		switch {
		case watchword.CodeOf(err) == watchword.NotFound:
			return nil, watchword.Refuse(watchword.SubjectRevoked, "subject %q was deleted", id)
		case err != nil:
			return nil, err
		}
		return g.Check(ctx, KeyCredentials(t, id, who.Subject.Incarnation, ""))
	}
	act := func(ctx context.Context, a *Authority) error {
		return do(ctx, Actor{Actor: audit.Actor{Tenant: t, Subject: id, Versions: a.Versions()}, Policy: a.Policy()})
	}
	return runAuthorized(ctx, nil, act, current, func(ctx context.Context) error { return g.directory.Refresh(ctx, t, id, "", "") })
}

func runAuthorized(ctx context.Context, may func(*Authority) error, do func(context.Context, *Authority) error, current func() (*Authority, error), renew func(context.Context) error) error {
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

// currentAuthority returns the session's authority, or why the session has ended.
func (s *Session) currentAuthority() (*Authority, error) {
	if s.ended.Load() {
		return nil, s.endError()
	}
	return s.Authority(), nil
}

// endError returns why the session has ended.
func (s *Session) endError() error {
	if cause := s.Cause(); cause != nil {
		return cause
	}
	return watchword.Refuse(watchword.Unavailable, "the session has ended")
}

// renew reads the authority again from the store.
func (s *Session) renew(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended.Load() {
		return nil // the caller reads the cause
	}
	p := s.credentials
	err := s.guard.directory.Refresh(ctx, p.Tenant, p.Subject, p.JTI, p.IssuerKey)
	switch watchword.CodeOf(err) {
	case "":
		if err := s.recompute(ctx, nil); err != nil {
			s.endLocked(err)
		}
		return nil
	case watchword.TokenRevoked, watchword.IssuerRevoked:
		s.endLocked(err)
		return nil
	}
	return err
}
