package session_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/session"
)

// What a subject left behind is authorized by policy alone, and follows every change.
func TestOfflineSessionFollowsPolicyAndSubject(t *testing.T) {
	r := newDirectory(t)
	g := session.NewGuard(r, session.GuardOptions{PerSubject: 1, Opened: func(*session.Session) { t.Error("a session was opened") }, Ended: func(*session.Session, error) { t.Error("a session has ended") }})
	var told []string
	s := g.OpenOffline(t.Context(), session.Credentials{Tenant: watchword.DefaultTenant, Subject: "lamp-7", Incarnation: 1}, session.Options{
		Changed: func(a *session.Authority) {
			told = append(told, map[bool]string{true: "may", false: "may not"}[a.Subscribe("plant/lux").Allowed])
		},
		Withdrawn: func(cause error) { told = append(told, string(watchword.CodeOf(cause))) },
		Ended:     func(error) { t.Error("it has no connection that could end") },
	})
	subject := func(f func(*watchword.Subject)) {
		r.edit(func(r *fakeDirectory) { f(&r.subject) })
		g.SubjectChanged(context.Background(), watchword.DefaultTenant, "lamp-7")
	}
	edit := func(lines ...string) {
		set := policies(t, lines...)
		r.edit(func(r *fakeDirectory) { r.set = set })
		src := "subjects = [\"lamp-7\"]"
		g.PolicyChanged(context.Background(), watchword.DefaultTenant, parse(t, src))
	}
	edit(`publish = ["plant/#"]`)
	edit(`subscribe = ["plant/+"]`)
	subject(func(s *watchword.Subject) { s.State = watchword.Suspended })
	edit(`subscribe = ["plant/#"]`) // unsettled, it is asked whatever changes
	subject(func(s *watchword.Subject) { s.State = watchword.Active })
	subject(func(s *watchword.Subject) { s.Incarnation = 2 })
	if n := len(g.SubjectSessions(watchword.DefaultTenant, "lamp-7")); n != 0 {
		t.Errorf("%d sessions listed", n)
	}
	s.End(nil)
	edit(`publish = ["plant/#"]`)
	want := []string{"may", "may not", "may", string(watchword.SubjectSuspended), string(watchword.SubjectSuspended), "may", string(watchword.TokenRevoked)}
	if !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}

// What is held on a token lapses with the token's revocation and its keys', and not with its end.
func TestOfflineSessionEndsWithRevokedToken(t *testing.T) {
	for name, c := range map[string]struct {
		act  func(g *session.Guard, r *fakeDirectory, revoked map[watchword.KeyID]bool)
		want []string
	}{
		"its token is revoked": {func(g *session.Guard, _ *fakeDirectory, _ map[watchword.KeyID]bool) {
			g.TokenRevoked(watchword.DefaultTenant, "lamp-7", "t1")
		}, []string{"may", "token_revoked"}},
		"another token is revoked": {func(g *session.Guard, _ *fakeDirectory, _ map[watchword.KeyID]bool) {
			g.TokenRevoked(watchword.DefaultTenant, "lamp-7", "t2")
		}, []string{"may"}},
		"its issuer key is revoked": {func(g *session.Guard, _ *fakeDirectory, revoked map[watchword.KeyID]bool) {
			revoked["s1"] = true
			g.IssuerRevoked(context.Background(), "s1")
		}, []string{"may", "issuer_revoked"}},
		"its key is retired": {func(g *session.Guard, r *fakeDirectory, _ map[watchword.KeyID]bool) {
			r.edit(func(r *fakeDirectory) { r.subject.Keys = nil })
			g.SubjectChanged(context.Background(), watchword.DefaultTenant, "lamp-7")
		}, []string{"may", "token_revoked"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newDirectory(t)
			revoked := map[watchword.KeyID]bool{}
			g := session.NewGuard(r, session.GuardOptions{Revoked: func(id watchword.KeyID) bool { return revoked[id] }})
			p := credentials(t, -time.Minute) // over
			p.IssuerKey = "s1"
			var told []string
			s := g.OpenOffline(t.Context(), p, session.Options{
				Changed:   func(*session.Authority) { told = append(told, "may") },
				Withdrawn: func(cause error) { told = append(told, string(watchword.CodeOf(cause))) },
			})
			c.act(g, r, revoked)
			s.End(nil)
			g.TokenRevoked(watchword.DefaultTenant, "lamp-7", "t1")
			if !slices.Equal(told, c.want) {
				t.Errorf("told %q, want %q", told, c.want)
			}
		})
	}
}
