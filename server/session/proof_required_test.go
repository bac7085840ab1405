package session_test

import (
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

func TestAProofIsRequiredFromTheEditOn(t *testing.T) {
	ways := map[string]func(*fakeDirectory){
		"by the subject": func(r *fakeDirectory) { r.subject.Proof = watchword.RequireProof },
		"by a policy": func(r *fakeDirectory) {
			r.set = policy.NewSet(parse(t, "subjects = [\"lamp-7\"]\nproof = \"required\"\n[[allow]]\npublish = [\"plant/#\"]\n"))
		},
	}
	for name, require := range ways {
		t.Run(name, func(t *testing.T) {
			r := newDirectory(t)
			g := session.NewGuard(r, session.GuardOptions{})
			proved := credentials(t, time.Minute)
			proved.KeyProved = true
			with, err := g.Open(t.Context(), proved, session.Options{})
			if err != nil {
				t.Fatal(err)
			}
			without, err := g.Open(t.Context(), credentials(t, time.Minute), session.Options{})
			if err != nil {
				t.Fatal(err)
			}
			r.edit(require)
			g.SubjectChanged(t.Context(), watchword.DefaultTenant, "lamp-7")
			wantEnd(t, without, watchword.ProofRequired)
			if with.Ended() {
				t.Errorf("the one with a proof ended: %v", with.Cause())
			}
			_, err = g.Check(t.Context(), credentials(t, time.Minute))
			wantCode(t, err, watchword.ProofRequired)
		})
	}
}

func TestProvedSessionRefusesUnprovedCredentials(t *testing.T) {
	g := session.NewGuard(newDirectory(t), session.GuardOptions{})
	proved, newer := credentials(t, time.Minute), credentials(t, time.Hour)
	proved.KeyProved = true
	s, err := g.Open(t.Context(), proved, session.Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.Refresh(t.Context(), newer), watchword.ProofRequired)
	newer.KeyProved = true
	wantCode(t, s.Refresh(t.Context(), newer), "")
	if !s.Authority().KeyProved() || !s.Authority().Expires().Equal(newer.Expires) {
		t.Error("the refresh changed nothing")
	}
	plain, err := g.Open(t.Context(), credentials(t, time.Minute), session.Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, plain.Refresh(t.Context(), newer), "")
	if plain.Authority().KeyProved() {
		t.Error("a refresh proves nothing of the connection that it is for")
	}
}

func TestRevokedTokenEndsOnlyItsSessions(t *testing.T) {
	r := newDirectory(t)
	g := session.NewGuard(r, session.GuardOptions{})
	one, two := credentials(t, time.Minute), credentials(t, time.Hour)
	two.JTI = "t2"
	open := func(p session.Credentials) *session.Session {
		s, err := g.Open(t.Context(), p, session.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	gone, moved, kept := open(one), open(one), open(two)
	wantCode(t, moved.Refresh(t.Context(), two), "")

	// One more is on its way in, with credentials that were good when they were read.
	r.asked = make(chan struct{})
	late := make(chan error, 1)
	go func() {
		_, err := g.Open(t.Context(), one, session.Options{})
		late <- err
	}()
	revoked := make(chan struct{})
	go func() {
		g.TokenRevoked(watchword.DefaultTenant, "lamp-7", "t1")
		close(revoked)
	}()
	wantEnd(t, gone, watchword.TokenRevoked)
	close(r.asked)
	<-revoked
	if err := <-late; err != nil {
		wantCode(t, err, watchword.TokenRevoked)
	}
	if moved.Ended() || kept.Ended() {
		t.Error("a session on another token went with it")
	}
	for _, s := range g.SubjectSessions(watchword.DefaultTenant, "lamp-7") {
		if s != moved && s != kept {
			t.Errorf("one is left on the revoked token: over %v", s.Ended())
		}
	}
	r.asked = nil
	_, err := g.Check(t.Context(), one)
	wantCode(t, err, watchword.TokenRevoked)
	wantCode(t, kept.Refresh(t.Context(), session.Credentials{
		Tenant: one.Tenant, Subject: one.Subject, Key: one.Key, JTI: "t1", Incarnation: 1, Expires: two.Expires.Add(time.Hour), Permissions: one.Permissions,
	}), watchword.TokenRevoked)
	if kept.Ended() {
		t.Error("a refused refresh ended the session")
	}
}
