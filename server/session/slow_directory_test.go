package session_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// slowDirectory is a directory of several devices. What it answers was read before its hook ran, so
// that a test can change the policy between a read and the use of what was read.
type slowDirectory struct {
	mu       sync.Mutex
	subjects map[watchword.SubjectID]watchword.Subject
	set      *policy.Set
	reads    map[watchword.SubjectID]int
	holder   watchword.SubjectID          // of every token; "": that is not known, and every session is looked at
	hook     func(id watchword.SubjectID) // called after the read, without the lock; nil: none
}

func newSlowDirectory(t *testing.T, ids ...watchword.SubjectID) *slowDirectory {
	t.Helper()
	r := &slowDirectory{subjects: map[watchword.SubjectID]watchword.Subject{}, reads: map[watchword.SubjectID]int{}, set: forSite(t, "plant-1", true)}
	if len(ids) > 0 {
		r.holder = ids[0]
	}
	for _, id := range ids {
		r.subjects[id] = watchword.Subject{
			Tenant: watchword.DefaultTenant, ID: id, Kind: watchword.Device, State: watchword.Active, Incarnation: 1,
			Labels: watchword.Labels{"site": "plant-1"},
			Keys:   []watchword.Key{{ID: "k1", Purpose: watchword.Sign, State: watchword.KeyActive}},
		}
	}
	return r
}

// document is a policy for the devices of one site, which may publish there or only listen.
func document(t *testing.T, site string, publish bool) *policy.Document {
	t.Helper()
	action := map[bool]string{true: "publish", false: "subscribe"}[publish]
	return parse(t, "for = { site = \""+site+"\" }\n[[allow]]\n"+action+" = [\"plant/#\"]\n")
}

func forSite(t *testing.T, site string, publish bool) *policy.Set {
	t.Helper()
	return policy.NewSet(document(t, site, publish))
}

func (r *slowDirectory) Refresh(context.Context, watchword.TenantID, watchword.SubjectID, string, watchword.KeyID) error {
	return nil
}

func (r *slowDirectory) Principal(_ context.Context, _ watchword.TenantID, id watchword.SubjectID) (*session.Principal, error) {
	r.mu.Lock()
	s, ok := r.subjects[id]
	set, hook := r.set, r.hook
	r.reads[id]++
	r.mu.Unlock()
	if !ok {
		return nil, watchword.Refuse(watchword.NotFound, "nobody")
	}
	p := session.NewPrincipal(&s, set)
	if hook != nil {
		hook(id)
	}
	return p, nil
}

func (r *slowDirectory) Policies(context.Context, watchword.TenantID) (*policy.Set, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.set, nil
}

func (r *slowDirectory) TokenSubject(context.Context, watchword.TenantID, string) (watchword.SubjectID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holder == "" {
		return "", watchword.Refuse(watchword.Unavailable, "slow")
	}
	return r.holder, nil
}

func (r *slowDirectory) edit(f func(*slowDirectory)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

func (r *slowDirectory) readsOf(id watchword.SubjectID) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reads[id]
}

func credentialsOf(t *testing.T, id watchword.SubjectID) session.Credentials {
	t.Helper()
	p := credentials(t, time.Hour)
	p.Subject = id
	return p
}

// within fails where what is awaited does not come.
func within(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatalf("10 s passed without %s", what)
	}
}

// A session whose authority is being read has no labels yet, or the previous ones. A policy that is changed meanwhile must
// reach it nevertheless: its authority was read before the change, and would be based on an old policy.
func TestAChangeReachesASessionWhileItsAuthorityIsRead(t *testing.T) {
	for name, c := range map[string]struct {
		site  string // of the labels that are read, and of the policy that changes
		start func(t *testing.T, g *session.Guard, r *slowDirectory) (read func() *session.Session)
	}{
		"one that opens": {"plant-1", func(t *testing.T, g *session.Guard, _ *slowDirectory) func() *session.Session {
			return func() *session.Session {
				s, err := g.Open(context.Background(), credentialsOf(t, "slow"), session.Options{})
				if err != nil {
					t.Error(err)
				}
				return s
			}
		}},
		"one that is held without a connection": {"plant-1", func(_ *testing.T, g *session.Guard, _ *slowDirectory) func() *session.Session {
			return func() *session.Session {
				return g.OpenOffline(context.Background(), session.Credentials{Tenant: watchword.DefaultTenant, Subject: "slow", Incarnation: 1}, session.Options{Withdrawn: func(error) {}})
			}
		}},
		"one whose labels were edited": {"plant-2", func(t *testing.T, g *session.Guard, r *slowDirectory) func() *session.Session {
			s, err := g.Open(context.Background(), credentialsOf(t, "slow"), session.Options{})
			if err != nil {
				t.Fatal(err)
			}
			return func() *session.Session {
				g.SubjectChanged(context.Background(), watchword.DefaultTenant, "slow")
				return s
			}
		}},
		"one that is refreshed, whose labels were edited": {"plant-2", func(t *testing.T, g *session.Guard, r *slowDirectory) func() *session.Session {
			s, err := g.Open(context.Background(), credentialsOf(t, "slow"), session.Options{})
			if err != nil {
				t.Fatal(err)
			}
			return func() *session.Session {
				p := credentialsOf(t, "slow")
				p.Expires = p.Expires.Add(time.Hour)
				if err := s.Refresh(context.Background(), p); err != nil {
					t.Error(err)
				}
				return s
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			r := newSlowDirectory(t, "slow", "quick")
			g := session.NewGuard(r, session.GuardOptions{})
			read := c.start(t, g, r)
			r.edit(func(r *slowDirectory) {
				r.set = forSite(t, c.site, true)
				for id, s := range r.subjects {
					s.Labels = watchword.Labels{"site": c.site}
					r.subjects[id] = s
				}
			})
			if _, err := g.Open(ctx, credentialsOf(t, "quick"), session.Options{}); err != nil {
				t.Fatal(err)
			}
			inRead, release, chosen := make(chan struct{}), make(chan struct{}), make(chan struct{})
			var first, once sync.Once
			r.edit(func(r *slowDirectory) {
				r.hook = func(id watchword.SubjectID) {
					if id == "quick" { // the change has chosen its sessions, and reaches them
						once.Do(func() { close(chosen) })
						return
					}
					first.Do(func() {
						close(inRead)
						<-release
					})
				}
			})
			var s *session.Session
			opened, changed := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(opened)
				s = read()
			}()
			within(t, "the read of the authority", inRead)
			r.edit(func(r *slowDirectory) { r.set = forSite(t, c.site, false) })
			go func() {
				defer close(changed)
				g.PolicyChanged(ctx, watchword.DefaultTenant, document(t, c.site, true), document(t, c.site, false))
			}()
			// Sessions are reached in any order. If the slow one is first, the quick one waits behind it and reports
			// nothing: then the change has chosen the slow one, as it must.
			select {
			case <-chosen:
			case <-time.After(50 * time.Millisecond):
			}
			close(release)
			within(t, "the end of the read", opened)
			within(t, "the end of the change", changed)
			if s == nil {
				t.Fatal("no session")
			}
			if s.Authority().Publish("plant/lux").Allowed || !s.Authority().Policy().Subscribe("plant/lux").Allowed {
				t.Error("the session has the policy of before the change")
			}
		})
	}
}

// Once its authority is read, a session is under its labels alone: a change that does not
// speak of them does not read it again. So it is after a refresh that was refused.
func TestChangeDoesNotRecomputeUnaffectedSessions(t *testing.T) {
	ctx := context.Background()
	r := newSlowDirectory(t, "lamp-1", "lamp-2")
	g := session.NewGuard(r, session.GuardOptions{})
	s, err := g.Open(ctx, credentialsOf(t, "lamp-1"), session.Options{})
	if err != nil {
		t.Fatal(err)
	}
	held := g.OpenOffline(ctx, session.Credentials{Tenant: watchword.DefaultTenant, Subject: "lamp-2", Incarnation: 1}, session.Options{Withdrawn: func(error) {}})
	other := func(what string, want ...watchword.SubjectID) {
		t.Helper()
		before := map[watchword.SubjectID]int{"lamp-1": r.readsOf("lamp-1"), "lamp-2": r.readsOf("lamp-2")}
		g.PolicyChanged(ctx, watchword.DefaultTenant, document(t, "plant-2", true))
		for id, n := range before {
			must := 0
			for _, w := range want {
				if w == id {
					must = 1
				}
			}
			if got := r.readsOf(id) - n; got != must {
				t.Errorf("%s: %s was read %d times, want %d", what, id, got, must)
			}
		}
	}
	other("settled")
	p := credentialsOf(t, "lamp-1")
	p.Expires, p.Incarnation = p.Expires.Add(time.Hour), 2
	wantCode(t, s.Refresh(ctx, p), watchword.TokenRevoked)
	other("after a refused refresh")
	label := func(id watchword.SubjectID, site string) {
		r.edit(func(r *slowDirectory) {
			s := r.subjects[id]
			s.Labels = watchword.Labels{"site": site}
			r.subjects[id] = s
		})
		g.SubjectChanged(ctx, watchword.DefaultTenant, id)
	}
	label("lamp-1", "plant-2")
	other("under the label of now", "lamp-1")
	label("lamp-2", "plant-2")
	other("both", "lamp-1", "lamp-2")
	label("lamp-1", "plant-3")
	other("under the label of before", "lamp-2")
	held.End(nil)
	other("closed")
}

// A policy that names several labels finds the sessions that have them all.
func TestAPolicyOfSeveralLabels(t *testing.T) {
	ctx := context.Background()
	ids := []watchword.SubjectID{"both", "site", "kind", "none"}
	labels := []watchword.Labels{{"site": "a", "kind": "lamp"}, {"site": "a", "kind": "pump"}, {"site": "b", "kind": "lamp"}, {}}
	r := newSlowDirectory(t, ids...)
	g := session.NewGuard(r, session.GuardOptions{})
	for i, id := range ids {
		r.edit(func(r *slowDirectory) {
			s := r.subjects[id]
			s.Labels = labels[i]
			r.subjects[id] = s
		})
		for range i + 1 { // so that now one, now the other label has fewer sessions
			if _, err := g.Open(ctx, credentialsOf(t, id), session.Options{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 20 { // labels are walked through in any order
		before := map[watchword.SubjectID]int{}
		for _, id := range ids {
			before[id] = r.readsOf(id)
		}
		g.PolicyChanged(ctx, watchword.DefaultTenant, parse(t, "for = { site = \"a\", kind = \"lamp\" }"))
		for _, id := range ids {
			want := map[bool]int{true: 1}[id == "both"]
			if got := r.readsOf(id) - before[id]; got != want {
				t.Fatalf("%s was read %d times, want %d", id, got, want)
			}
		}
	}
}

// Settled returns once every change that was under way when it was called has reached all
// that it concerns.
func TestWaitForChangesWaits(t *testing.T) {
	ctx := context.Background()
	for name, change := range map[string]func(*session.Guard){
		"of a policy":  func(g *session.Guard) { g.PolicyChanged(ctx, watchword.DefaultTenant, document(t, "plant-1", true)) },
		"of a subject": func(g *session.Guard) { g.SubjectChanged(ctx, watchword.DefaultTenant, "slow") },
		"of an issuer key": func(g *session.Guard) {
			g.IssuerRevoked(ctx, "i1")
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSlowDirectory(t, "slow")
			var gone atomic.Bool
			g := session.NewGuard(r, session.GuardOptions{Revoked: func(watchword.KeyID) bool { return gone.Load() }})
			p := credentialsOf(t, "slow")
			p.IssuerKey = "i1"
			if _, err := g.Open(ctx, p, session.Options{}); err != nil {
				t.Fatal(err)
			}
			g.WaitForChanges() // with nothing under way it does not wait
			inRead, release := make(chan struct{}), make(chan struct{})
			r.edit(func(r *slowDirectory) {
				r.hook = func(watchword.SubjectID) {
					close(inRead)
					<-release
				}
			})
			changed, settled := make(chan struct{}), make(chan struct{})
			gone.Store(name == "of an issuer key")
			go func() {
				defer close(changed)
				change(g)
			}()
			within(t, "the change to begin", inRead)
			go func() {
				defer close(settled)
				g.WaitForChanges()
			}()
			select {
			case <-settled:
				t.Error("it returned while the change was under way")
			case <-time.After(30 * time.Millisecond):
			}
			close(release)
			within(t, "the end of the change", changed)
			within(t, "Settled to return", settled)
		})
	}
	t.Run("of a token", func(t *testing.T) {
		r := newSlowDirectory(t, "slow")
		ending, release := make(chan struct{}), make(chan struct{})
		g := session.NewGuard(r, session.GuardOptions{Ended: func(*session.Session, error) {
			close(ending)
			<-release
		}})
		if _, err := g.Open(ctx, credentialsOf(t, "slow"), session.Options{}); err != nil {
			t.Fatal(err)
		}
		settled := make(chan struct{})
		go g.TokenRevoked(watchword.DefaultTenant, "slow", "t1")
		within(t, "the end of the session", ending)
		go func() {
			defer close(settled)
			g.WaitForChanges()
		}()
		select {
		case <-settled:
			t.Error("it returned while the revocation was under way")
		case <-time.After(30 * time.Millisecond):
		}
		close(release)
		within(t, "Settled to return", settled)
	})
}

// A change that concerns all sessions may meet a session at any moment of its opening, also before its authority is read
// for the first time.
func TestChangeReachesOpeningSessions(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	r := newSlowDirectory(t, "lamp-1")
	g := session.NewGuard(r, session.GuardOptions{})
	everybody, one := parse(t, "for = {}"), parse(t, "subjects = [\"lamp-1\"]")
	var wg sync.WaitGroup
	for _, d := range []*policy.Document{everybody, everybody, one, one} {
		wg.Go(func() {
			for ctx.Err() == nil {
				g.PolicyChanged(ctx, watchword.DefaultTenant, d)
			}
		})
	}
	for range 3000 {
		s, err := g.Open(ctx, credentialsOf(t, "lamp-1"), session.Options{})
		if err != nil {
			t.Error(err)
			break
		}
		s.End(nil)
		g.OpenOffline(ctx, session.Credentials{Tenant: watchword.DefaultTenant, Subject: "lamp-1", Incarnation: 1}, session.Options{Withdrawn: func(error) {}}).End(nil)
	}
	cancel()
	testwait.All(t, "the end of the changes", &wg)
	if n := len(g.SessionPage(watchword.DefaultTenant, "", 1<<20)); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}
