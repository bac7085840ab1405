package session_test

import (
	"context"
	"slices"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/session"
)

// What a subject left behind stands under policy alone, and hears of every change.
func TestWhatIsHeldFollowsPolicyAndSubject(t *testing.T) {
	r := newRoll(t)
	g := session.NewGuard(r, session.GuardOptions{PerSubject: 1, Opened: func(*session.Session) { t.Error("nobody came") }, Ended: func(*session.Session, error) { t.Error("nobody went") }})
	var told []string
	s := g.Hold(t.Context(), session.Papers{Tenant: watchword.DefaultTenant, Subject: "lamp-7", Incarnation: 1}, session.Options{
		Changed: func(a *session.Authority) {
			told = append(told, map[bool]string{true: "may", false: "may not"}[a.Subscribe("plant/lux").Allowed])
		},
		Lapsed: func(cause error) { told = append(told, string(watchword.CodeOf(cause))) },
		Ended:  func(error) { t.Error("it has no connection that could end") },
	})
	subject := func(f func(*watchword.Subject)) {
		r.edit(func(r *fakeRoll) { f(&r.subject) })
		g.SubjectChanged(context.Background(), watchword.DefaultTenant, "lamp-7")
	}
	edit := func(lines ...string) {
		set := policies(t, lines...)
		r.edit(func(r *fakeRoll) { r.set = set })
		src := "subjects = [\"lamp-7\"]"
		g.PolicyChanged(context.Background(), watchword.DefaultTenant, parse(t, src))
	}
	edit(`publish = ["plant/#"]`)
	edit(`subscribe = ["plant/+"]`)
	subject(func(s *watchword.Subject) { s.State = watchword.Suspended })
	edit(`subscribe = ["plant/#"]`) // unsettled, it is asked whatever changes
	subject(func(s *watchword.Subject) { s.State = watchword.Active })
	subject(func(s *watchword.Subject) { s.Incarnation = 2 })
	if n := len(g.Sessions(watchword.DefaultTenant, "lamp-7")); n != 0 {
		t.Errorf("%d sessions listed", n)
	}
	s.Close(nil)
	edit(`publish = ["plant/#"]`)
	want := []string{"may", "may not", "may", string(watchword.SubjectSuspended), string(watchword.SubjectSuspended), "may", string(watchword.TokenRevoked)}
	if !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}
