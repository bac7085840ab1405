package session_test

import (
	"context"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/session"
)

// mayPublish is what an act of these tests must be allowed.
func mayPublish(a *session.Authority) error { return a.Publish(lux).Err() }

func TestActIsDecidedAgainAfterAuthorityChange(t *testing.T) {
	r := newDirectory(t)
	g := session.NewGuard(r, session.GuardOptions{})
	s, err := g.Open(t.Context(), credentials(t, time.Minute), session.Options{})
	wantCode(t, err, "")
	defer s.End(nil)
	var seen []int64
	err = s.RunAuthorized(t.Context(), mayPublish, func(_ context.Context, a *session.Authority) error {
		seen = append(seen, a.Versions().SubjectVersion)
		if len(seen) == 1 { // an edit commits before the act does; the session is not notified yet
			r.edit(func(r *fakeDirectory) { r.subject.AuthorityVersion = 7 })
			return watchword.ErrAuthorityChanged
		}
		return nil
	})
	wantCode(t, err, "")
	if len(seen) != 2 || seen[0] != 0 || seen[1] != 7 || r.renewed != 1 {
		t.Errorf("decided on %v, renewed %d times; want the old version, then 7", seen, r.renewed)
	}
	if got := s.Authority().Versions(); got != (watchword.AuthorityVersions{Subject: "lamp-7", SubjectVersion: 7}) {
		t.Errorf("the session's basis is %+v", got)
	}
}

func TestActIsRefusedWhenAuthorityIsLost(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*fakeDirectory)
		want watchword.Code
	}{
		"the policy changed":        {func(r *fakeDirectory) { r.set = policies(t, `subscribe = ["plant/#"]`) }, watchword.Denied},
		"the subject is revoked":    {func(r *fakeDirectory) { r.subject.State = watchword.Revoked }, watchword.SubjectRevoked},
		"the key is retired":        {func(r *fakeDirectory) { r.subject.Keys[0].State = watchword.KeyRetired }, watchword.TokenRevoked},
		"the token is revoked":      {func(r *fakeDirectory) { r.err = watchword.Refuse(watchword.TokenRevoked, "revoked") }, watchword.TokenRevoked},
		"the issuer key is":         {func(r *fakeDirectory) { r.err = watchword.Refuse(watchword.IssuerRevoked, "revoked") }, watchword.IssuerRevoked},
		"the store cannot be asked": {func(r *fakeDirectory) { r.err = watchword.Refuse(watchword.Unavailable, "gone") }, watchword.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			r := newDirectory(t)
			s, err := session.NewGuard(r, session.GuardOptions{}).Open(t.Context(), credentials(t, time.Minute), session.Options{})
			wantCode(t, err, "")
			defer s.End(nil)
			ran := 0
			err = s.RunAuthorized(t.Context(), mayPublish, func(context.Context, *session.Authority) error {
				ran++
				r.edit(c.edit)
				return watchword.ErrAuthorityChanged
			})
			wantCode(t, err, c.want)
			if ran != 1 {
				t.Errorf("the act ran %d times, want once", ran)
			}
		})
	}
}

func TestEndedSessionCannotAct(t *testing.T) {
	s, err := session.NewGuard(newDirectory(t), session.GuardOptions{}).Open(t.Context(), credentials(t, time.Minute), session.Options{})
	wantCode(t, err, "")
	s.End(watchword.Refuse(watchword.SessionClosed, "closed"))
	err = s.RunAuthorized(t.Context(), nil, func(context.Context, *session.Authority) error { t.Error("it ran"); return nil })
	wantCode(t, err, watchword.SessionClosed)
}

func TestRepeatedDecisionsAreBounded(t *testing.T) {
	s, err := session.NewGuard(newDirectory(t), session.GuardOptions{}).Open(t.Context(), credentials(t, time.Minute), session.Options{})
	wantCode(t, err, "")
	defer s.End(nil)
	ran := 0
	err = s.RunAuthorized(t.Context(), nil, func(context.Context, *session.Authority) error { ran++; return watchword.ErrAuthorityChanged })
	wantCode(t, err, watchword.Busy)
	if ran < 2 || ran > 1000 {
		t.Errorf("it ran %d times", ran)
	}
}

// What a session left behind acts under policy alone, for the life of its subject.
func TestOfflineActsUnderCurrentPolicy(t *testing.T) {
	r := newDirectory(t)
	g := session.NewGuard(r, session.GuardOptions{})
	s, err := g.Open(t.Context(), credentials(t, time.Minute), session.Options{})
	wantCode(t, err, "")
	a := s.Authority()
	s.End(nil)
	ran := 0
	act := func() error {
		return g.RunAuthorized(t.Context(), a, mayPublish, func(_ context.Context, now *session.Authority) error {
			if ran++; ran == 1 {
				r.edit(func(r *fakeDirectory) { r.subject.AuthorityVersion++ })
				return watchword.ErrAuthorityChanged
			}
			if now.Versions().SubjectVersion != 1 {
				t.Errorf("acts on version %d", now.Versions().SubjectVersion)
			}
			return nil
		})
	}
	wantCode(t, act(), "")
	if ran != 2 {
		t.Errorf("ran %d times, want twice", ran)
	}
	r.edit(func(r *fakeDirectory) { r.subject.Incarnation++ })
	wantCode(t, act(), watchword.TokenRevoked)
	r.edit(func(r *fakeDirectory) { r.subject.Incarnation--; r.subject.State = watchword.Suspended })
	wantCode(t, act(), watchword.SubjectSuspended)
}

// A request of a client that proved a key by an assertion is authorized while that key is valid.
func TestKeyCredentialsFollowTheKey(t *testing.T) {
	ctx := t.Context()
	r := newDirectory(t)
	g := session.NewGuard(r, session.GuardOptions{})
	token, byKey, held := credentials(t, time.Minute), session.KeyCredentials(watchword.DefaultTenant, "lamp-7", 1, "k1"), session.Credentials{}
	if token.WithoutToken() || !byKey.WithoutToken() || held.WithoutToken() {
		t.Errorf("by key: a token's credentials %v, those of a key %v, none %v", token.WithoutToken(), byKey.WithoutToken(), held.WithoutToken())
	}
	_, err := g.Open(ctx, session.KeyCredentials(watchword.DefaultTenant, "lamp-7", 1, "k2"), session.Options{})
	wantCode(t, err, watchword.TokenRevoked)
	s, err := g.Open(ctx, session.KeyCredentials(watchword.DefaultTenant, "lamp-7", 1, "k1"), session.Options{Class: session.ClassAnswer})
	wantCode(t, err, "")
	if !s.Authority().Publish(lux).Allowed || s.Authority().Publish("elsewhere").Allowed {
		t.Error("policy alone counts")
	}
	r.edit(func(r *fakeDirectory) { r.subject.Keys[0].State = watchword.KeyRevoked })
	g.SubjectChanged(ctx, watchword.DefaultTenant, "lamp-7")
	wantEnd(t, s, watchword.TokenRevoked)
}

// Requests in progress have a limit of their own, and take no place of other sessions.
func TestAnsweredRequestsHaveOwnLimit(t *testing.T) {
	g := session.NewGuard(newDirectory(t), session.GuardOptions{Total: 1, PerSubject: 1, PerSubjectAnswers: 2})
	p := credentials(t, time.Minute)
	open := func(class session.Class, want watchword.Code) *session.Session {
		t.Helper()
		s, err := g.Open(t.Context(), p, session.Options{Class: class})
		wantCode(t, err, want)
		return s
	}
	one := open(session.ClassAnswer, "")
	open(session.ClassAnswer, "")
	open(session.ClassAnswer, watchword.Busy)
	open(session.ClassConnection, "") // though two answers are there and one session in all is the bound
	open(session.ClassWait, watchword.Busy)
	one.End(nil)
	one.End(nil)
	open(session.ClassAnswer, "")
	open(session.ClassAnswer, watchword.Busy)
	open(session.ClassWait, watchword.Busy)
}
