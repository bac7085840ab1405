package session_test

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// recorder is a receiver that says in a common list what it received.
type recorder struct {
	name string
	got  *[]string
	err  error
}

func (r *recorder) HandleChange(ctx context.Context, c watchword.Change) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	*r.got = append(*r.got, r.name+" "+string(b))
	return r.err
}

func TestChangeGoesToHandlersInOrder(t *testing.T) {
	var got []string
	l := session.NewLive()
	l.Register(&recorder{"one", &got, nil}, &recorder{"two", &got, nil})
	gone, cancel := context.WithCancel(t.Context())
	cancel() // the caller has gone away
	if err := l.Apply(gone, watchword.Change{Tenant: "t", Kind: watchword.SubjectChanged, ID: "lamp", Version: 3}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`one {"tenant":"t","kind":"subject","id":"lamp","version":3}`,
		`two {"tenant":"t","kind":"subject","id":"lamp","version":3}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("received %q", got)
	}
}

func TestLateOlderVersionIsIgnored(t *testing.T) {
	var got []string
	l := session.NewLive()
	l.Register(&recorder{"r", &got, nil})
	for _, c := range []struct {
		name string
		watchword.Change
		received bool
	}{
		{"the first", watchword.Change{Tenant: "t", Kind: watchword.SubjectChanged, ID: "a", Version: 5}, true},
		{"an older one", watchword.Change{Tenant: "t", Kind: watchword.SubjectChanged, ID: "a", Version: 4}, false},
		{"the same again is read again", watchword.Change{Tenant: "t", Kind: watchword.SubjectChanged, ID: "a", Version: 5}, true},
		{"a later one, with others missing between", watchword.Change{Tenant: "t", Kind: watchword.SubjectChanged, ID: "a", Version: 9}, true},
		{"one that was missed, after it", watchword.Change{Tenant: "t", Kind: watchword.SubjectChanged, ID: "a", Version: 8}, false},
		{"of another object", watchword.Change{Tenant: "t", Kind: watchword.SubjectChanged, ID: "b", Version: 1}, true},
		{"of another kind", watchword.Change{Tenant: "t", Kind: watchword.SubjectDeleted, ID: "a", Version: 1}, true},
		{"of another tenant", watchword.Change{Tenant: "u", Kind: watchword.SubjectChanged, ID: "a", Version: 1}, true},
	} {
		got = nil
		if err := l.Apply(t.Context(), c.Change); err != nil {
			t.Fatal(err)
		}
		if received := len(got) > 0; received != c.received {
			t.Errorf("%s: received %v", c.name, received)
		}
	}
}

// If one receiver fails the others are called, the error is returned, and an older change is not treated as one that all
// have processed.
func TestFailingHandlerDoesNotBlockOthers(t *testing.T) {
	var got []string
	broken := &recorder{"broken", &got, errors.New("store")}
	l := session.NewLive()
	l.Register(broken, &recorder{"other", &got, nil})
	c := watchword.Change{Kind: watchword.PoliciesChanged, Version: 2}
	if err := l.Apply(t.Context(), c); err == nil || len(got) != 2 {
		t.Fatalf("%v; received %q", err, got)
	}
	broken.err, got = nil, nil
	c.Version = 1
	if err := l.Apply(t.Context(), c); err != nil || len(got) != 2 {
		t.Errorf("%v; received %q: no receiver was past version 2", err, got)
	}
}

// A change can be sent to another node: it has no pointers, and is unchanged after JSON encoding and decoding.
func TestAChangeIsPlainValues(t *testing.T) {
	for f := range reflect.TypeFor[watchword.Change]().Fields() {
		if k := f.Type.Kind(); k != reflect.String && k != reflect.Int64 || f.Tag.Get("json") == "" {
			t.Errorf("%s is a %s, under %q", f.Name, f.Type, f.Tag)
		}
	}
	c := watchword.SubjectChange(&watchword.Subject{Tenant: "t", ID: "lamp", Version: 3, AuthorityVersion: 7})
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var again watchword.Change
	if err := json.Unmarshal(b, &again); err != nil || again != c || c.Version != 7 {
		t.Errorf("%s: %+v, %v", b, again, err)
	}
}

func received(t *testing.T, g *session.Guard, kind watchword.ChangeKind, id string) {
	t.Helper()
	if err := g.HandleChange(t.Context(), watchword.Change{Tenant: watchword.DefaultTenant, Kind: kind, ID: id}); err != nil {
		t.Fatal(err)
	}
}

// A guard finds by itself which policies differ, also if it was not notified of a change between: what a session got from a
// policy that was applied and deleted meanwhile is removed.
func TestGuardCatchesUpOnMissedPolicyChange(t *testing.T) {
	r := newSlowDirectory(t, "a", "b")
	g := session.NewGuard(r, session.GuardOptions{})
	open := func(id watchword.SubjectID) *session.Session {
		t.Helper()
		s, err := g.Open(t.Context(), credentialsOf(t, id), session.Options{})
		wantCode(t, err, "")
		return s
	}
	none := policy.NewSet()
	r.edit(func(r *slowDirectory) { r.set = none })
	a := open("a")
	r.edit(func(r *slowDirectory) { r.set = none.With(document(t, "plant-1", true)) }) // without a notification
	b := open("b")
	if a.Authority().Publish("plant/x").Allowed || !b.Authority().Publish("plant/x").Allowed {
		t.Fatal("the test's policies do not tell the two apart")
	}
	r.edit(func(r *slowDirectory) { r.set = policy.NewSet() })
	received(t, g, watchword.PoliciesChanged, "")
	if b.Authority().Publish("plant/x").Allowed {
		t.Error("a session keeps what a policy gave it that is gone, since the guard was never told of that policy")
	}
	reads := r.readsOf("a") + r.readsOf("b")
	received(t, g, watchword.PoliciesChanged, "")
	if n := r.readsOf("a") + r.readsOf("b"); n != reads {
		t.Errorf("the same change again read authority %d times", n-reads)
	}
	r.edit(func(r *slowDirectory) { r.set = r.set.With(document(t, "plant-2", true)) })
	received(t, g, watchword.PoliciesChanged, "")
	if n := r.readsOf("a") + r.readsOf("b"); n != reads {
		t.Errorf("a policy of another site read authority %d times", n-reads)
	}
}

// After more missed changes than it remembers, a guard recomputes every session.
func TestGuardRecomputesAllAfterManyMissedChanges(t *testing.T) {
	r := newSlowDirectory(t, "a")
	g := session.NewGuard(r, session.GuardOptions{PerSubject: 100})
	var all []*session.Session
	for i := range 20 {
		set := policy.NewSet()
		if i%2 == 0 {
			set = set.With(document(t, "plant-1", true))
		}
		r.edit(func(r *slowDirectory) { r.set = set })
		s, err := g.Open(t.Context(), credentialsOf(t, "a"), session.Options{})
		wantCode(t, err, "")
		all = append(all, s)
	}
	r.edit(func(r *slowDirectory) { r.set = policy.NewSet() })
	received(t, g, watchword.PoliciesChanged, "")
	for i, s := range all {
		if s.Authority().Publish("plant/x").Allowed {
			t.Errorf("session %d keeps what no policy gives", i)
		}
	}
}

// A token's end is looked for among its subject's sessions alone; where its subject cannot be read, among all.
func TestTokenRevocationReachesSessions(t *testing.T) {
	for _, known := range []bool{true, false} {
		r := newSlowDirectory(t, "a", "b")
		g := session.NewGuard(r, session.GuardOptions{})
		open := func(id watchword.SubjectID, jti string) *session.Session {
			t.Helper()
			p := credentialsOf(t, id)
			p.JTI = jti
			s, err := g.Open(t.Context(), p, session.Options{})
			wantCode(t, err, "")
			return s
		}
		a, other, b := open("a", "t1"), open("a", "t2"), open("b", "t3")
		if !known {
			r.edit(func(r *slowDirectory) { r.holder = "" })
		}
		received(t, g, watchword.AccessTokenRevoked, "t1")
		wantEnd(t, a, watchword.TokenRevoked)
		if other.Ended() || b.Ended() {
			t.Errorf("known %v: the session of another token ended", known)
		}
	}
}
