package session_test

import (
	"errors"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/session"
)

// A session that was entered takes its place, and starts or not.
func TestReservationPrecedesSessionStart(t *testing.T) {
	r := newDirectory(t)
	g := session.NewGuard(r, session.GuardOptions{PerSubject: 1})
	changed, ended := 0, 0
	o := session.Options{Changed: func(*session.Authority) { changed++ }, Ended: func(error) { ended++ }}
	s, err := g.Reserve(credentials(t, time.Minute), o)
	if err != nil {
		t.Fatal(err)
	}
	_, err = g.Open(t.Context(), credentials(t, time.Minute), session.Options{})
	wantCode(t, err, watchword.Busy)
	g.SubjectChanged(t.Context(), watchword.DefaultTenant, "lamp-7")
	if changed > 0 || s.Ended() {
		t.Errorf("called %d times before it started; over: %v", changed, s.Ended())
	}
	wantCode(t, s.Refresh(t.Context(), credentials(t, time.Hour)), watchword.NotFound)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.SubjectChanged(t.Context(), watchword.DefaultTenant, "lamp-7")
	if changed != 1 {
		t.Errorf("called %d times, want once", changed)
	}
	// Another in its place is not counted beside it; two are.
	next, err := g.Reserve(credentials(t, time.Minute), session.Options{Replaces: s})
	if err != nil {
		t.Fatal(err)
	}
	_, err = g.Reserve(credentials(t, time.Minute), session.Options{Replaces: s})
	wantCode(t, err, watchword.Busy)
	s.End(nil)
	if ended != 1 {
		t.Errorf("ended %d times, want once", ended)
	}
	next.End(nil)
	wantCode(t, next.Start(t.Context()), watchword.NotFound)

	// One that ends before it starts returns the reason, and calls nothing.
	s, err = g.Reserve(credentials(t, time.Minute), o)
	if err != nil {
		t.Fatal(err)
	}
	r.edit(func(r *fakeDirectory) { r.subject.State = watchword.Suspended })
	g.SubjectChanged(t.Context(), watchword.DefaultTenant, "lamp-7")
	wantCode(t, s.Start(t.Context()), watchword.SubjectSuspended)
	if ended != 1 || len(g.SubjectSessions(watchword.DefaultTenant, "lamp-7")) != 0 {
		t.Errorf("ended %d times; %d are left", ended, len(g.SubjectSessions(watchword.DefaultTenant, "lamp-7")))
	}
}

// A refresh that the transport finds too narrow changes nothing.
func TestARefreshCoversWhatTheSessionHolds(t *testing.T) {
	g := session.NewGuard(newDirectory(t), session.GuardOptions{})
	narrow := watchword.Refuse(watchword.Denied, "too narrow")
	var says error
	s, err := g.Open(t.Context(), credentials(t, time.Minute), session.Options{Covers: func(a *session.Authority) error {
		if a == nil {
			t.Error("asked about nothing")
		}
		return says
	}})
	if err != nil {
		t.Fatal(err)
	}
	before, newer := s.Authority(), credentials(t, time.Hour)
	says = narrow
	for what, err := range map[string]error{"may": s.CheckRefresh(t.Context(), newer), "does": s.Refresh(t.Context(), newer)} {
		if !errors.Is(err, narrow) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if s.Authority() != before || s.Ended() {
		t.Error("a refused refresh changed something")
	}
	says = nil
	wantCode(t, s.CheckRefresh(t.Context(), newer), "")
	if s.Authority() != before {
		t.Error("a question changed something")
	}
	wantCode(t, s.Refresh(t.Context(), newer), "")
	if !s.Authority().Expires().Equal(newer.Expires) {
		t.Error("the refresh changed nothing")
	}
}
