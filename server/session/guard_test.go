package session_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/clockjump"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

const (
	lux   = "plant/lux"
	scene = "plant/scene"
)

// fakeDirectory is a directory of one device, lamp-7, whose policy the test edits.
type fakeDirectory struct {
	mu      sync.Mutex
	subject watchword.Subject
	set     *policy.Set
	err     error
	renewed int
	asked   chan struct{} // if not nil, Today waits here first
}

func newDirectory(t *testing.T) *fakeDirectory {
	t.Helper()
	return &fakeDirectory{
		subject: watchword.Subject{
			Tenant: watchword.DefaultTenant, ID: "lamp-7", Kind: watchword.Device, State: watchword.Active, Incarnation: 1,
			Labels: watchword.Labels{"kind": "lamp", "site": "plant-1"},
			Keys:   []watchword.Key{{ID: "k1", Purpose: watchword.Sign, State: watchword.KeyActive}},
		},
		set: policies(t, `subscribe = ["plant/#"]`, `publish = ["plant/#"]`),
	}
}

// policies is one document for lamp-7 with an allow rule for each line.
func policies(t *testing.T, allow ...string) *policy.Set {
	t.Helper()
	src := "subjects = [\"lamp-7\"]\n"
	for _, a := range allow {
		src += "[[allow]]\n" + a + "\n"
	}
	return policy.NewSet(parse(t, src))
}

// parse makes a document; one without rules gets one.
func parse(t *testing.T, src string) *policy.Document {
	t.Helper()
	if !strings.Contains(src, "[[") {
		src += "\n[[allow]]\npublish = [\"plant/lux\"]\n"
	}
	d, err := policy.Parse("test", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (r *fakeDirectory) Principal(_ context.Context, _ watchword.TenantID, id watchword.SubjectID) (*session.Principal, error) {
	if r.asked != nil {
		<-r.asked
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return nil, r.err
	}
	if id != r.subject.ID {
		return nil, watchword.Refuse(watchword.NotFound, "nobody")
	}
	s := r.subject
	return session.NewPrincipal(&s, r.set), nil
}

func (r *fakeDirectory) Refresh(context.Context, watchword.TenantID, watchword.SubjectID, string, watchword.KeyID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.renewed++
	return r.err
}

func (r *fakeDirectory) Policies(context.Context, watchword.TenantID) (*policy.Set, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.set, r.err
}

func (r *fakeDirectory) TokenSubject(context.Context, watchword.TenantID, string) (watchword.SubjectID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.subject.ID, r.err
}

func (r *fakeDirectory) edit(f func(*fakeDirectory)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

func credentials(t *testing.T, life time.Duration) session.Credentials {
	t.Helper()
	g, err := policy.FromPermissions([]watchword.Permission{{Resource: "topic:plant/#", Actions: []string{"pub", "sub"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	return session.Credentials{
		Tenant: watchword.DefaultTenant, Subject: "lamp-7", Incarnation: 1, Key: "k1", JTI: "t1",
		Issued: now, Expires: now.Add(life), Permissions: g,
	}
}

func wantCode(t *testing.T, err error, want watchword.Code) {
	t.Helper()
	if got := watchword.CodeOf(err); got != want {
		t.Errorf("code %q, want %q (%v)", got, want, err)
	}
}

// wantEnd waits for the session's end and holds its cause against want.
func wantEnd(t *testing.T, s *session.Session, want watchword.Code) {
	t.Helper()
	<-s.Done()
	wantCode(t, s.Cause(), want)
}

func TestOpenRefusesInvalidCredentials(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*fakeDirectory, *session.Credentials)
		want watchword.Code
	}{
		"expired credentials":            {func(_ *fakeDirectory, p *session.Credentials) { p.Expires = time.Now() }, watchword.TokenExpired},
		"a subject that never enrolled":  {func(r *fakeDirectory, _ *session.Credentials) { r.subject.State = watchword.New }, watchword.SubjectNew},
		"a suspended subject":            {func(r *fakeDirectory, _ *session.Credentials) { r.subject.State = watchword.Suspended }, watchword.SubjectSuspended},
		"a revoked subject":              {func(r *fakeDirectory, _ *session.Credentials) { r.subject.State = watchword.Revoked }, watchword.SubjectRevoked},
		"an earlier life of the subject": {func(r *fakeDirectory, _ *session.Credentials) { r.subject.Incarnation = 2 }, watchword.TokenRevoked},
		"a key that was retired":         {func(r *fakeDirectory, _ *session.Credentials) { r.subject.Keys[0].State = watchword.KeyRetired }, watchword.TokenRevoked},
		"an unknown subject":             {func(_ *fakeDirectory, p *session.Credentials) { p.Subject = "lamp-8" }, watchword.SubjectRevoked},
		"a store that cannot be asked": {func(r *fakeDirectory, _ *session.Credentials) {
			r.err = watchword.Refuse(watchword.Unavailable, "gone")
		}, watchword.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			r := newDirectory(t)
			g := session.NewGuard(r, session.GuardOptions{})
			p := credentials(t, time.Minute)
			c.edit(r, &p)
			_, err := g.Open(t.Context(), p, session.Options{})
			wantCode(t, err, c.want)
			if n := len(g.SessionPage(watchword.DefaultTenant, "", 1<<20)); n != 0 {
				t.Errorf("%d sessions left in the index", n)
			}
		})
	}
}

func TestASessionEndsAtTheExpOfItsTokenAndNotBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := session.NewGuard(newDirectory(t), session.GuardOptions{})
		s, err := g.Open(t.Context(), credentials(t, time.Minute), session.Options{})
		wantCode(t, err, "")
		time.Sleep(time.Minute - time.Nanosecond)
		synctest.Wait()
		if s.Cause() != nil {
			t.Fatalf("ended early: %v", s.Cause())
		}
		time.Sleep(time.Nanosecond)
		wantEnd(t, s, watchword.TokenExpired)
	})
}

func TestRefresh(t *testing.T) {
	t.Run("a newer token moves the end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := session.NewGuard(newDirectory(t), session.GuardOptions{})
			s, err := g.Open(t.Context(), credentials(t, time.Minute), session.Options{})
			wantCode(t, err, "")
			time.Sleep(50 * time.Second)
			wantCode(t, s.Refresh(t.Context(), credentials(t, time.Minute)), "")
			time.Sleep(59 * time.Second)
			synctest.Wait()
			if s.Cause() != nil {
				t.Fatalf("ended at the old exp: %v", s.Cause())
			}
			time.Sleep(time.Second)
			wantEnd(t, s, watchword.TokenExpired)
		})
	})
	t.Run("an older token changes nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := session.NewGuard(newDirectory(t), session.GuardOptions{})
			old := credentials(t, time.Second)
			s, err := g.Open(t.Context(), credentials(t, time.Minute), session.Options{})
			wantCode(t, err, "")
			wantCode(t, s.Refresh(t.Context(), old), "")
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if s.Cause() != nil {
				t.Fatalf("the older token's end took over: %v", s.Cause())
			}
			s.End(nil)
		})
	})
	t.Run("another key is refused", func(t *testing.T) {
		g := session.NewGuard(newDirectory(t), session.GuardOptions{})
		s, err := g.Open(t.Context(), credentials(t, time.Minute), session.Options{})
		wantCode(t, err, "")
		defer s.End(nil)
		p := credentials(t, time.Hour)
		p.Key = "k2"
		wantCode(t, s.Refresh(t.Context(), p), watchword.Denied)
	})
	t.Run("a session that has ended stays so", func(t *testing.T) {
		g := session.NewGuard(newDirectory(t), session.GuardOptions{})
		s, err := g.Open(t.Context(), credentials(t, time.Minute), session.Options{})
		wantCode(t, err, "")
		s.End(nil)
		wantCode(t, s.Refresh(t.Context(), credentials(t, time.Hour)), watchword.NotFound)
	})
}

func TestChangesReachLiveSessionsBeforeTheAnswer(t *testing.T) {
	ctx := t.Context()
	r := newDirectory(t)
	g := session.NewGuard(r, session.GuardOptions{})
	var told []*session.Authority
	s, err := g.Open(ctx, credentials(t, time.Minute), session.Options{Changed: func(a *session.Authority) { told = append(told, a) }})
	wantCode(t, err, "")
	if !s.Authority().Subscribe(lux).Allowed || !s.Authority().Publish(scene).Allowed {
		t.Fatal("a fresh session may not do what token and policy allow")
	}
	narrower := policies(t, `subscribe = ["plant/scene"]`)
	r.edit(func(r *fakeDirectory) { r.set = narrower })
	g.PolicyChanged(ctx, watchword.DefaultTenant, parse(t, `subjects = ["lamp-8"]`), parse(t, `for = { kind = "lamp", site = "plant-2" }`), parse(t, `for = { site = "plant-1", kind = "meter" }`))
	if !s.Authority().Subscribe(lux).Allowed {
		t.Error("a session that the policy does not touch was recomputed")
	}
	g.PolicyChanged(ctx, watchword.DefaultTenant, parse(t, `for = { kind = "lamp", site = "plant-1" }`))
	if s.Authority().Subscribe(lux).Allowed || s.Authority().Publish(scene).Allowed || !s.Authority().Subscribe(scene).Allowed {
		t.Error("the session does not follow the policy")
	}
	if len(told) != 1 || told[0] != s.Authority() {
		t.Errorf("the transport was told %d times, want once, with the new authority", len(told))
	}
	r.edit(func(r *fakeDirectory) { r.subject.State = watchword.Suspended })
	g.SubjectChanged(ctx, watchword.DefaultTenant, "lamp-7")
	select {
	case <-s.Done():
	default:
		t.Fatal("SubjectChanged returned while a suspended subject's session lives")
	}
	wantCode(t, s.Cause(), watchword.SubjectSuspended)
	if g.Session(watchword.DefaultTenant, s.ID()) != nil {
		t.Error("an ended session is still found")
	}
}

func TestTokenPermissionsNeverGrow(t *testing.T) {
	r := newDirectory(t)
	wider := policies(t, `publish = ["#"]`, `subscribe = ["#"]`)
	r.edit(func(r *fakeDirectory) { r.set = wider })
	a, err := session.NewGuard(r, session.GuardOptions{}).Check(t.Context(), credentials(t, time.Minute))
	wantCode(t, err, "")
	if a.Publish("elsewhere").Allowed || a.Subscribe("#").Allowed {
		t.Error("policy gave what the token does not carry")
	}
	if !a.Publish(lux).Allowed {
		t.Error("what both allow is refused")
	}
}

func TestChangeDuringOpenIsNotLost(t *testing.T) {
	r := newDirectory(t)
	r.asked = make(chan struct{})
	g := session.NewGuard(r, session.GuardOptions{})
	opened := make(chan *session.Session)
	go func() {
		s, err := g.Open(context.WithoutCancel(t.Context()), credentials(t, time.Minute), session.Options{})
		if err != nil {
			t.Error(err)
		}
		opened <- s
	}()
	r.asked <- struct{}{} // Open is in the index and reads the current state, before the edit or after
	s := <-opened
	r.edit(func(r *fakeDirectory) { r.subject.State = watchword.Revoked })
	go func() { r.asked <- struct{}{} }()
	g.SubjectChanged(t.Context(), watchword.DefaultTenant, "lamp-7")
	wantEnd(t, s, watchword.SubjectRevoked)
}

func TestSessionsAreBounded(t *testing.T) {
	g := session.NewGuard(newDirectory(t), session.GuardOptions{PerSubject: 2, Total: 3})
	p := credentials(t, time.Minute)
	a, err := g.Open(t.Context(), p, session.Options{})
	wantCode(t, err, "")
	_, err = g.Open(t.Context(), p, session.Options{})
	wantCode(t, err, "")
	_, err = g.Open(t.Context(), p, session.Options{})
	wantCode(t, err, watchword.Busy)
	a.End(nil)
	_, err = g.Open(t.Context(), p, session.Options{})
	wantCode(t, err, "")
}

func TestCloseEndsAllAndTakesNoMore(t *testing.T) {
	g := session.NewGuard(newDirectory(t), session.GuardOptions{})
	s, err := g.Open(t.Context(), credentials(t, time.Minute), session.Options{})
	wantCode(t, err, "")
	g.Close(watchword.Refuse(watchword.Unavailable, "going down"))
	wantEnd(t, s, watchword.Unavailable)
	_, err = g.Open(t.Context(), credentials(t, time.Minute), session.Options{})
	wantCode(t, err, watchword.Unavailable)
}

func TestManyChangesAtOnce(t *testing.T) {
	ctx := t.Context()
	r := newDirectory(t)
	g := session.NewGuard(r, session.GuardOptions{PerSubject: 100})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 20 {
				s, err := g.Open(ctx, credentials(t, time.Minute), session.Options{})
				if err != nil {
					t.Error(err)
					return
				}
				g.SubjectChanged(ctx, watchword.DefaultTenant, "lamp-7")
				s.End(nil)
			}
		})
	}
	wg.Wait()
	if n := len(g.SessionPage(watchword.DefaultTenant, "", 1<<20)); n != 0 {
		t.Errorf("%d sessions left", n)
	}
}

// Whatever the order, a change of policy finds the sessions that it concerns: by subject, by a label that was edited
// meanwhile, and while they are being opened.
func TestPolicyChangeFindsItsSessions(t *testing.T) {
	ctx := t.Context()
	for name, c := range map[string]struct {
		policy string
		edit   func(*fakeDirectory) // before the policy
	}{
		"by subject":               {policy: `subjects = ["lamp-7"]`},
		"by one label":             {policy: `for = { site = "plant-1" }`},
		"everybody":                {policy: `for = {}`},
		"by a label it has now":    {policy: `for = { site = "plant-2" }`, edit: func(r *fakeDirectory) { r.subject.Labels = watchword.Labels{"site": "plant-2"} }},
		"by a kind and all labels": {policy: "kinds = [\"device\"]\nfor = { site = \"plant-1\", kind = \"lamp\" }"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newDirectory(t)
			g := session.NewGuard(r, session.GuardOptions{})
			told := 0
			s, err := g.Open(ctx, credentials(t, time.Minute), session.Options{Changed: func(*session.Authority) { told++ }})
			wantCode(t, err, "")
			defer s.End(nil)
			if c.edit != nil {
				r.edit(c.edit)
				g.SubjectChanged(ctx, watchword.DefaultTenant, "lamp-7")
				told = 0
			}
			d := parse(t, c.policy)
			g.PolicyChanged(ctx, watchword.DefaultTenant, d)
			g.PolicyChanged(ctx, "other", d)
			if told != 1 {
				t.Errorf("told %d times, want once", told)
			}
			wantCode(t, s.Refresh(ctx, credentials(t, -time.Minute)), "")
			g.PolicyChanged(ctx, watchword.DefaultTenant, d)
			if told != 2 {
				t.Errorf("told %d times after a refresh that changes nothing", told)
			}
		})
	}
	t.Run("one that is being opened", func(t *testing.T) {
		r := newDirectory(t)
		r.asked = make(chan struct{})
		g := session.NewGuard(r, session.GuardOptions{})
		opened := make(chan *session.Session)
		go func() {
			s, err := g.Open(ctx, credentials(t, time.Minute), session.Options{})
			if err != nil {
				t.Error(err)
			}
			opened <- s
		}()
		r.asked <- struct{}{} // it reads the state before the edit, or after
		narrower := policies(t, `publish = ["plant/#"]`)
		r.edit(func(r *fakeDirectory) { r.set = narrower })
		go func() { r.asked <- struct{}{} }()
		g.PolicyChanged(ctx, watchword.DefaultTenant, parse(t, `for = { kind = "lamp" }`))
		if s := <-opened; s.Authority().Subscribe(lux).Allowed {
			t.Error("the session does not follow the policy")
		}
	})
}

func TestRequestsThatWaitHaveABoundOfTheirOwn(t *testing.T) {
	g := session.NewGuard(newDirectory(t), session.GuardOptions{PerSubject: 1, PerSubjectWaits: 2})
	p := credentials(t, time.Minute)
	for _, c := range []struct {
		request bool
		want    watchword.Code
	}{{false, ""}, {true, ""}, {true, ""}, {true, watchword.Busy}, {false, watchword.Busy}} {
		_, err := g.Open(t.Context(), p, session.Options{Class: map[bool]session.Class{true: session.ClassWait}[c.request]})
		wantCode(t, err, c.want)
	}
}

// What a token allows ends at a time of day: timers, which count monotonic time, do not advance while a machine is paused.
func TestSessionsEndThoughTheirTimersStoodStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var paused atomic.Int64
		now := func() time.Time { return time.Now().Add(time.Duration(paused.Load())) }
		r := newDirectory(t)
		g := session.NewGuard(r, session.GuardOptions{Now: now})
		open := func(life time.Duration) *session.Session {
			t.Helper()
			p := credentials(t, life)
			p.Expires = now().Add(life)
			s, err := g.Open(t.Context(), p, session.Options{Transport: "mqtt", Ended: func(error) {}})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		short, long, refreshed := open(10*time.Minute), open(4*time.Hour), open(10*time.Minute)
		newer := credentials(t, 4*time.Hour)
		if err := refreshed.Refresh(t.Context(), newer); err != nil {
			t.Fatal(err)
		}
		paused.Add(int64(3 * time.Hour))
		time.Sleep(clockjump.Late)
		synctest.Wait()
		if !short.Ended() {
			t.Error("a token that expired three hours ago still counts")
		}
		wantCode(t, short.Cause(), watchword.TokenExpired)
		for name, s := range map[string]*session.Session{"a longer token": long, "a newer token": refreshed} {
			if s.Ended() {
				t.Errorf("%s: ended with %v", name, s.Cause())
			}
		}
		time.Sleep(time.Hour - 2*clockjump.Late)
		synctest.Wait()
		if long.Ended() || refreshed.Ended() {
			t.Error("ended before their hour was over")
		}
		time.Sleep(2 * clockjump.Late)
		synctest.Wait()
		if !long.Ended() || !refreshed.Ended() {
			t.Error("the timers still wait for the three hours that were lost")
		}
		again := open(time.Minute) // the guard was empty, and watches again
		paused.Add(int64(time.Hour))
		time.Sleep(clockjump.Late)
		synctest.Wait()
		if !again.Ended() {
			t.Error("a session that came when there was none outlives its token")
		}
	})
}

// What was issued by a clock that was ahead ends once the clock has gone back, and opens nothing.
func TestSessionsOfTheFutureEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var off atomic.Int64
		now := func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
		g := session.NewGuard(newDirectory(t), session.GuardOptions{Now: now})
		of := func() session.Credentials {
			p := credentials(t, time.Hour)
			p.Issued, p.Expires = now(), now().Add(time.Hour)
			return p
		}
		open := func() *session.Session {
			t.Helper()
			s, err := g.Open(t.Context(), of(), session.Options{Transport: "mqtt", Ended: func(error) {}})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		off.Store(int64(time.Minute))
		little := open()
		time.Sleep(clockjump.Late)
		off.Store(int64(20 * time.Minute))
		ahead, p := open(), of()
		time.Sleep(clockjump.Late)
		off.Store(int64(clockjump.Late))
		time.Sleep(clockjump.Late)
		synctest.Wait()
		if !ahead.Ended() {
			t.Fatal("a session of the future goes on")
		}
		wantCode(t, ahead.Cause(), watchword.TokenEarly)
		if little.Ended() {
			t.Errorf("a session within the skew ended: %v", little.Cause())
		}
		_, err := g.Check(t.Context(), p)
		wantCode(t, err, watchword.TokenEarly)
		_, err = g.Open(t.Context(), p, session.Options{Transport: "mqtt", Ended: func(error) {}})
		wantCode(t, err, watchword.TokenEarly)
		g.Close(nil)
	})
}

// One session whose authority is being read holds up no other's end.
func TestSlowStoreDoesNotDelayClose(t *testing.T) {
	var paused atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(paused.Load())) }
	r := &stalledDirectory{fakeDirectory: newDirectory(t), reads: make(chan struct{}), answers: make(chan struct{})}
	g := session.NewGuard(r, session.GuardOptions{Now: now})
	defer g.Close(nil)
	over := func(s *session.Session, done <-chan struct{}) {
		t.Helper()
		select {
		case <-done:
			wantCode(t, s.Cause(), watchword.TokenExpired)
		case <-time.After(20 * time.Second):
			t.Fatal("a session whose token is over did not end")
		}
	}
	var all []*session.Session
	var ends []<-chan struct{}
	for range 8 {
		s, err := g.Open(t.Context(), credentials(t, time.Hour), session.Options{})
		if err != nil {
			t.Fatal(err)
		}
		all, ends = append(all, s), append(ends, s.Done())
	}
	r.slow.Store(true)
	go all[3].Recompute(t.Context())
	testwait.For(t, "the read of the authority", r.reads)
	paused.Add(int64(2 * time.Hour))
	for i, s := range all {
		if i != 3 {
			over(s, ends[i])
		}
	}
	close(r.answers)
	over(all[3], ends[3])
}

// stalledDirectory is a directory whose store, once slow, signals when it is read and answers on request.
type stalledDirectory struct {
	*fakeDirectory
	slow           atomic.Bool
	reads, answers chan struct{}
}

func (r *stalledDirectory) Principal(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (*session.Principal, error) {
	if r.slow.Load() {
		r.reads <- struct{}{}
		<-r.answers
	}
	return r.fakeDirectory.Principal(ctx, t, id)
}

// Every change of authority cuts what its sessions are doing, all at the same time and with none of them locked.
func TestAffectedSessionsAreAbortedConcurrently(t *testing.T) {
	for name, change := range map[string]func(g *session.Guard, ss []*session.Session){
		"subject": func(g *session.Guard, _ []*session.Session) {
			g.SubjectChanged(t.Context(), watchword.DefaultTenant, "lamp-7")
		},
		"policy": func(g *session.Guard, _ []*session.Session) {
			g.PolicyChanged(t.Context(), watchword.DefaultTenant, parse(t, `subjects = ["lamp-7"]`))
		},
		"token":  func(g *session.Guard, _ []*session.Session) { g.TokenRevoked(watchword.DefaultTenant, "lamp-7", "t1") },
		"issuer": func(g *session.Guard, _ []*session.Session) { g.IssuerRevoked(t.Context(), "") },
		"server": func(g *session.Guard, _ []*session.Session) {
			g.Close(watchword.Refuse(watchword.Unavailable, "the server is shutting down"))
		},
		"close": func(_ *session.Guard, ss []*session.Session) {
			var wg sync.WaitGroup
			for _, s := range ss {
				wg.Go(func() { s.End(watchword.Refuse(watchword.SessionClosed, "closed")) })
			}
			wg.Wait()
		},
		"time": func(*session.Guard, []*session.Session) { time.Sleep(2 * time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var gone atomic.Bool
				g := session.NewGuard(newDirectory(t), session.GuardOptions{Revoked: func(watchword.KeyID) bool { return gone.Load() }})
				const many = 5
				var cut atomic.Int32
				together := make(chan struct{})
				ss := make([]*session.Session, many)
				for i := range ss {
					var s *session.Session
					o := session.Options{Class: session.ClassAnswer, Abort: func() {
						_ = s.Cause() // takes its lock
						if cut.Add(1) == many {
							close(together)
						}
						<-together
					}}
					var err error
					if s, err = g.Open(t.Context(), credentials(t, time.Hour), o); err != nil {
						t.Fatal(err)
					}
					ss[i] = s
				}
				gone.Store(name == "issuer")
				change(g, ss)
				if n := cut.Load(); n < many {
					t.Errorf("%d were cut, want %d", n, many)
				}
				for _, s := range ss {
					s.End(nil)
				}
			})
		})
	}
}

func TestRequestsThatAreBeingAnsweredAreNotCounted(t *testing.T) {
	g := session.NewGuard(newDirectory(t), session.GuardOptions{})
	for class, want := range []int{1, 2, 2} {
		s, err := g.Open(t.Context(), credentials(t, time.Hour), session.Options{Class: session.Class(class)})
		if err != nil {
			t.Fatal(err)
		}
		defer s.End(nil)
		if n := g.Count(); n != want {
			t.Errorf("after one of class %d: %d are counted, want %d", class, n, want)
		}
	}
}
