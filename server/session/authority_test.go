package session_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// may is what an authority says to four questions: publish, subscribe, call, request.
func may(a *session.Authority) string {
	return fmt.Sprint(a.Publish("a/x").Allowed, a.Subscribe("a/#").Allowed, a.Call(policy.Target{ID: "d"}, "f", []byte(`{"level":5}`)).Allowed, a.Request("GET", "/v1/x").Allowed)
}

// Both token and policy must allow; an object without credentials is authorized by policy, and by the token with which it
// was created if it has one.
func TestAuthorityAllows(t *testing.T) {
	ctx := context.Background()
	const none, all = "[[allow]]\nput = [\"/nothing\"]\n", "[[allow]]\npublish = [\"a/#\"]\nsubscribe = [\"a/#\"]\ncall = [\"f\"]\nget = [\"/v1/#\"]\n"
	const bounded = "[[allow]]\npublish = [\"a/#\"]\nsubscribe = [\"a/#\"]\nget = [\"/v1/#\"]\n[[allow]]\ncall = [\"f\"]\nargs = { level = { maximum = 4 } }\n"
	wide := []watchword.Permission{
		{Resource: "topic:a/#", Actions: []string{"pub", "sub"}}, {Resource: "fn:*/f", Actions: []string{"call"}}, {Resource: "api:/v1/#", Actions: []string{"get"}},
	}
	for _, tc := range []struct {
		name, policy string
		token        []watchword.Permission
		live, absent string // the absent one without a token
	}{
		{"both allow", all, wide, "true true true true", "true true true true"},
		{"the token has nothing", all, []watchword.Permission{{Resource: "topic:b", Actions: []string{"pub"}}}, "false false false false", "true true true true"},
		{"policy has nothing", none, wide, "false false false false", "false false false false"},
		{"the token publishes alone", all, []watchword.Permission{{Resource: "topic:a/#", Actions: []string{"pub"}}}, "true false false false", "true true true true"},
		{"the token subscribes alone", all, wide[:0:0], "false false false false", "true true true true"},
		{"the token calls alone", all, wide[1:2], "false false true false", "true true true true"},
		{"the token requests alone", all, wide[2:], "false false false true", "true true true true"},
		{"a bound of policy", bounded, wide, "true true false true", "true true false true"},
	} {
		r := newDirectory(t)
		set := policy.NewSet(parse(t, "subjects = [\"lamp-7\"]\n"+tc.policy))
		r.edit(func(r *fakeDirectory) { r.set = set })
		g := session.NewGuard(r, session.GuardOptions{})
		p := credentials(t, time.Minute)
		var err error
		if p.Permissions, err = policy.FromPermissions(tc.token, nil); err != nil {
			t.Fatal(err)
		}
		a, err := g.Check(ctx, p)
		wantCode(t, err, "")
		if got := may(a); got != tc.live {
			t.Errorf("%s: live: %s, want %s", tc.name, got, tc.live)
		}
		if a.Token() != p.Permissions || a.Credentials().JTI != "t1" || a.JTI() != "t1" || a.Tenant() != watchword.DefaultTenant || a.Subject() != "lamp-7" || a.Key() != "k1" || a.KeyProved() || a.PolicySubject().Kind != watchword.Device {
			t.Errorf("%s: %+v", tc.name, a.Credentials())
		}
		if a, err = g.OfflineAuthority(ctx, watchword.DefaultTenant, "lamp-7", 1); err != nil {
			t.Fatal(err)
		}
		if got := may(a); got != tc.absent {
			t.Errorf("%s: absent: %s, want %s", tc.name, got, tc.absent)
		}
		for name, c := range map[string]struct {
			p    session.Credentials
			want string
		}{
			"left behind":                      {session.Credentials{Tenant: watchword.DefaultTenant, Subject: "lamp-7", Incarnation: 1}, tc.absent},
			"left behind under its token":      {p, tc.live},
			"left behind, without permissions": {session.Credentials{Tenant: watchword.DefaultTenant, Subject: "lamp-7", Incarnation: 1, Key: "k1"}, tc.absent},
		} {
			s := g.OpenOffline(ctx, c.p, session.Options{Withdrawn: func(err error) { t.Errorf("%s, %s: lapsed: %v", tc.name, name, err) }})
			if s.Authority() == nil {
				continue
			}
			if got := may(s.Authority()); got != c.want {
				t.Errorf("%s, %s: %s, want %s", tc.name, name, got, c.want)
			}
		}
		if _, err := g.OfflineAuthority(ctx, watchword.DefaultTenant, "lamp-7", 2); watchword.CodeOf(err) != watchword.TokenRevoked {
			t.Errorf("another life: %v", err)
		}
	}
}

// What policy gives and the token does not is withheld by the token, and by nothing else.
func TestTokenLacksPermission(t *testing.T) {
	ctx := context.Background()
	for _, tc := range []struct {
		name, policy        string
		token               watchword.Permission
		pub, sub            bool
		whole, any, whenOff bool // whether any topic is left; the last without a token
	}{
		{"nothing", "publish = [\"a\"]\nsubscribe = [\"a\"]", watchword.Permission{Resource: "topic:#", Actions: []string{"pub", "sub"}}, false, false, false, true, true},
		{"publishing", "publish = [\"a\"]\nsubscribe = [\"a\"]", watchword.Permission{Resource: "topic:a", Actions: []string{"sub"}}, true, false, false, true, true},
		{"subscribing", "publish = [\"a\"]\nsubscribe = [\"a\"]", watchword.Permission{Resource: "topic:a", Actions: []string{"pub"}}, false, true, false, true, true},
		{"what policy does not give either", "publish = [\"b\"]", watchword.Permission{Resource: "topic:c", Actions: []string{"pub"}}, false, false, false, false, true},
		{"all topics", "publish = [\"a\"]\nsubscribe = [\"a\"]", watchword.Permission{Resource: "api:/v1/#", Actions: []string{"get"}}, true, true, false, false, true},
	} {
		r := newDirectory(t)
		r.edit(func(r *fakeDirectory) { r.subject.Kind = watchword.Service }) // without topics of its own
		set := policy.NewSet(parse(t, "subjects = [\"lamp-7\"]\n[[allow]]\n"+tc.policy))
		r.edit(func(r *fakeDirectory) { r.set = set })
		g := session.NewGuard(r, session.GuardOptions{})
		p := credentials(t, time.Minute)
		var err error
		if p.Permissions, err = policy.FromPermissions([]watchword.Permission{tc.token}, nil); err != nil {
			t.Fatal(err)
		}
		a, err := g.Check(ctx, p)
		wantCode(t, err, "")
		if got := [...]bool{a.TokenLacksPublish("a"), a.TokenLacksSubscribe("a"), a.CoversPolicy(), a.AnyTopic()}; got != [...]bool{tc.pub, tc.sub, tc.whole, tc.any} {
			t.Errorf("%s: withholds publishing, subscribing; whole; any topic: %v", tc.name, got)
		}
		a, err = g.OfflineAuthority(ctx, watchword.DefaultTenant, "lamp-7", 1)
		wantCode(t, err, "")
		if a.TokenLacksPublish("a") || a.TokenLacksSubscribe("a") || !a.CoversPolicy() || a.AnyTopic() != tc.whenOff {
			t.Errorf("%s: without a token something is withheld", tc.name)
		}
		if p.Permissions, err = policy.FromPermissions(a.Policy().Perm(), a.Policy().Deny()); err != nil {
			t.Fatal(err)
		}
		if a, err = g.Check(ctx, p); err != nil || !a.CoversPolicy() {
			t.Errorf("%s: a token of all that policy gives is not whole: %v", tc.name, err)
		}
	}
	nothing := newDirectory(t)
	nothing.edit(func(r *fakeDirectory) {
		r.subject.Kind = watchword.Service
		r.set = policy.NewSet()
	})
	a, err := session.NewGuard(nothing, session.GuardOptions{}).OfflineAuthority(ctx, watchword.DefaultTenant, "lamp-7", 1)
	if err != nil || a.AnyTopic() {
		t.Errorf("one without any topic has one: %v", err)
	}
}

// A session that outlives its token has all rights to topics that policy gives: it accepts a token that has them all,
// whatever else the token has or lacks.
func TestATokenWithAllTopics(t *testing.T) {
	ctx := context.Background()
	r := newDirectory(t)
	set := policy.NewSet(parse(t, "subjects = [\"lamp-7\"]\n[[allow]]\npublish = [\"a/#\"]\nsubscribe = [\"a/#\"]\nget = [\"/v1/#\"]\n"))
	r.edit(func(r *fakeDirectory) { r.subject.Kind, r.set = watchword.Service, set })
	g := session.NewGuard(r, session.GuardOptions{})
	for _, tc := range []struct {
		resource      string
		actions       []string
		topics, whole bool
	}{
		{"topic:a/#", []string{"pub", "sub"}, true, false},
		{"topic:#", []string{"pub", "sub"}, true, false},
		{"topic:a/#", []string{"pub"}, false, false},
		{"topic:a/+", []string{"pub", "sub"}, false, false},
		{"api:/v1/#", []string{"get"}, false, false},
	} {
		p := credentials(t, time.Minute)
		var err error
		if p.Permissions, err = policy.FromPermissions([]watchword.Permission{{Resource: tc.resource, Actions: tc.actions}}, nil); err != nil {
			t.Fatal(err)
		}
		a, err := g.Check(ctx, p)
		wantCode(t, err, "")
		if a.CoversPolicyTopics() != tc.topics || a.CoversPolicy() != tc.whole {
			t.Errorf("%s %v: all topics %v, all rights %v", tc.resource, tc.actions, a.CoversPolicyTopics(), a.CoversPolicy())
		}
	}
	a, err := g.OfflineAuthority(ctx, watchword.DefaultTenant, "lamp-7", 1)
	wantCode(t, err, "")
	if !a.CoversPolicyTopics() {
		t.Error("without a token something is withheld")
	}
}

// Sessions that depend on an issuer's key end when that key is revoked, and no others do.
func TestRevokedIssuerKeyEndsSessions(t *testing.T) {
	ctx := context.Background()
	var mu sync.Mutex
	gone := map[watchword.KeyID]bool{}
	r := newDirectory(t)
	g := session.NewGuard(r, session.GuardOptions{Revoked: func(id watchword.KeyID) bool {
		mu.Lock()
		defer mu.Unlock()
		return gone[id]
	}})
	open := func(by watchword.KeyID) *session.Session {
		t.Helper()
		p := credentials(t, time.Minute)
		p.IssuerKey = by
		s, err := g.Open(ctx, p, session.Options{})
		wantCode(t, err, "")
		return s
	}
	one, two := open("i1"), open("i2")
	g.IssuerRevoked(ctx, "i2") // the keys turned, and none of these was revoked
	if one.Ended() || two.Ended() {
		t.Error("a turn of other keys ended a session")
	}
	mu.Lock()
	gone["i1"] = true
	mu.Unlock()
	g.IssuerRevoked(ctx, "i1")
	wantEnd(t, one, watchword.IssuerRevoked)
	if two.Ended() {
		t.Errorf("the other's session ended: %v", two.Cause())
	}
	p := credentials(t, time.Minute)
	p.IssuerKey = "i1"
	_, err := g.Check(ctx, p)
	wantCode(t, err, watchword.IssuerRevoked)
}

// Sessions are listed by tenant, and distinguished by their transport.
func TestSessionList(t *testing.T) {
	ctx := context.Background()
	r := newSlowDirectory(t, "lamp-1", "lamp-2")
	var opened, ended []watchword.SessionID
	var causes []error
	g := session.NewGuard(r, session.GuardOptions{
		Total:  3,
		Opened: func(s *session.Session) { opened = append(opened, s.ID()) },
		Ended:  func(s *session.Session, cause error) { ended, causes = append(ended, s.ID()), append(causes, cause) },
	})
	open := func(id watchword.SubjectID, o session.Options) *session.Session {
		t.Helper()
		s, err := g.Open(ctx, credentialsOf(t, id), o)
		wantCode(t, err, "")
		return s
	}
	a := open("lamp-1", session.Options{Transport: "mqtt", Remote: "192.0.2.1:1"})
	b := open("lamp-2", session.Options{Transport: "poll"})
	c := open("lamp-2", session.Options{Transport: "sse", Class: session.ClassWait})
	_, err := g.Open(ctx, credentialsOf(t, "lamp-1"), session.Options{})
	wantCode(t, err, watchword.Busy) // of all
	if !a.IsConnection() || b.IsConnection() || c.IsConnection() || a.Transport() != "mqtt" || a.Remote() != "192.0.2.1:1" || a.Opened().IsZero() {
		t.Error("what a session says of itself")
	}
	for _, q := range []struct {
		tenant  watchword.TenantID
		subject watchword.SubjectID
		want    int
	}{{watchword.DefaultTenant, "", 3}, {watchword.DefaultTenant, "lamp-2", 2}, {watchword.DefaultTenant, "lamp-3", 0}, {"other", "", 0}, {"other", "lamp-1", 0}} {
		list := g.SessionPage(q.tenant, "", 10)
		if q.subject != "" {
			list = g.SubjectSessions(q.tenant, q.subject)
		}
		if got := len(list); got != q.want {
			t.Errorf("%q of %q: %d sessions, want %d", q.subject, q.tenant, got, q.want)
		}
	}
	all := []*session.Session{a, b, c}
	slices.SortFunc(all, func(x, y *session.Session) int { return cmp.Compare(x.ID(), y.ID()) })
	if got := g.SessionPage(watchword.DefaultTenant, "", 10); !slices.Equal(got, all) {
		t.Errorf("the sessions of a tenant: %v, want them in order of id: %v", got, all)
	}
	if got := g.SessionPage(watchword.DefaultTenant, all[1].ID(), 1); !slices.Equal(got, all[1:2]) {
		t.Errorf("a page of one session from the second one on: %v, want %v", got, all[1:2])
	}
	if g.Session(watchword.DefaultTenant, a.ID()) != a || g.Session("other", a.ID()) != nil || g.Session(watchword.DefaultTenant, "ses_x") != nil {
		t.Error("a session is not found by its tenant and id alone")
	}
	// One that takes the place of another is not counted beside it, in all and of its subject.
	next, err := g.Reserve(credentialsOf(t, "lamp-1"), session.Options{Replaces: a})
	wantCode(t, err, "")
	next.End(nil)
	reason := errors.New("why")
	b.End(reason)
	b.End(nil) // again: nothing
	if len(opened) != 3 || len(ended) != 1 || ended[0] != b.ID() || causes[0] != reason || b.Cause() != reason {
		t.Errorf("told of %d that opened and %v that ended for %v", len(opened), ended, causes)
	}
	select {
	case <-b.Done(): // asked for after the end
	default:
		t.Error("done is not closed after the end")
	}
	open("lamp-1", session.Options{})
}

// A revoked token is remembered for its tenant alone.
func TestATokenIsRevokedInItsTenant(t *testing.T) {
	ctx := context.Background()
	r := newDirectory(t)
	g := session.NewGuard(r, session.GuardOptions{})
	g.TokenRevoked("other", "lamp-7", "t1")
	_, err := g.Check(ctx, credentials(t, time.Minute))
	wantCode(t, err, "")
	g.TokenRevoked(watchword.DefaultTenant, "lamp-7", "t2")
	_, err = g.Check(ctx, credentials(t, time.Minute))
	wantCode(t, err, "")
	g.TokenRevoked(watchword.DefaultTenant, "lamp-7", "t1")
	_, err = g.Check(ctx, credentials(t, time.Minute))
	wantCode(t, err, watchword.TokenRevoked)
}

// What was left behind is reached by every way in which a policy can speak of it.
func TestPolicyChangeReachesOfflineSessions(t *testing.T) {
	ctx := context.Background()
	for _, src := range []string{`subjects = ["lamp-7"]`, `for = { site = "plant-1" }`, `for = {}`} {
		r := newDirectory(t)
		g := session.NewGuard(r, session.GuardOptions{})
		told := 0
		s := g.OpenOffline(ctx, session.Credentials{Tenant: watchword.DefaultTenant, Subject: "lamp-7", Incarnation: 1}, session.Options{
			Changed: func(*session.Authority) { told++ }, Withdrawn: func(err error) { t.Error(err) },
		})
		told = 0
		d := parse(t, src)
		g.PolicyChanged(ctx, watchword.DefaultTenant, d)
		g.PolicyChanged(ctx, "other", d)
		if told != 1 {
			t.Errorf("%s: told %d times, want once", src, told)
		}
		s.End(nil)
		g.PolicyChanged(ctx, watchword.DefaultTenant, d)
		g.SubjectChanged(ctx, watchword.DefaultTenant, "lamp-7")
		if told != 1 {
			t.Errorf("%s: told after it ended", src)
		}
	}
}

func TestTheBoundsUnlessToldOtherwise(t *testing.T) {
	ctx := context.Background()
	r := newSlowDirectory(t, "lamp-1", "lamp-2")
	g := session.NewGuard(r, session.GuardOptions{})
	fill := func(class session.Class, limit int) {
		t.Helper()
		for i := range limit {
			if _, err := g.Reserve(credentialsOf(t, "lamp-1"), session.Options{Class: class}); err != nil {
				t.Fatalf("number %d: %v", i+1, err)
			}
		}
		_, err := g.Reserve(credentialsOf(t, "lamp-1"), session.Options{Class: class})
		wantCode(t, err, watchword.Busy)
	}
	fill(session.ClassConnection, 8)
	fill(session.ClassWait, 1024)
	_, err := g.Open(ctx, credentialsOf(t, "lamp-2"), session.Options{})
	wantCode(t, err, "")
}

// A refresh can be asked for before anything is spent on it: the answer is that of the
// refresh, and nothing changes.
func TestMayRefresh(t *testing.T) {
	ctx := context.Background()
	uncovered := watchword.Refuse(watchword.Denied, "it does not cover what is held")
	for name, c := range map[string]struct {
		edit  func(r *fakeDirectory, p *session.Credentials)
		cover error
		code  watchword.Code
	}{
		"a newer token":          {},
		"an older one":           {edit: func(_ *fakeDirectory, p *session.Credentials) { p.Expires = time.Now().Add(time.Second) }},
		"one that has expired":   {edit: func(_ *fakeDirectory, p *session.Credentials) { p.Expires = time.Now().Add(-time.Second) }, code: watchword.TokenExpired},
		"another subject's":      {edit: func(_ *fakeDirectory, p *session.Credentials) { p.Subject = "lamp-8" }, code: watchword.Denied},
		"another key's":          {edit: func(_ *fakeDirectory, p *session.Credentials) { p.Key = "k2" }, code: watchword.Denied},
		"another tenant's":       {edit: func(_ *fakeDirectory, p *session.Credentials) { p.Tenant = "other" }, code: watchword.Denied},
		"of a suspended subject": {edit: func(r *fakeDirectory, _ *session.Credentials) { r.subject.State = watchword.Suspended }, code: watchword.SubjectSuspended},
		"one that covers less":   {cover: uncovered, code: watchword.Denied},
	} {
		r := newDirectory(t)
		g := session.NewGuard(r, session.GuardOptions{})
		var cover error
		s, err := g.Open(ctx, credentials(t, time.Minute), session.Options{Covers: func(a *session.Authority) error {
			if a == nil {
				t.Errorf("%s: asked without an authority", name)
			}
			return cover
		}})
		wantCode(t, err, "")
		before := s.Authority()
		p := credentials(t, time.Hour)
		p.JTI = "t2"
		if c.edit != nil {
			r.edit(func(r *fakeDirectory) { c.edit(r, &p) })
		}
		cover = c.cover
		wantCode(t, s.CheckRefresh(ctx, p), c.code)
		if s.Authority() != before {
			t.Errorf("%s: asking changed something", name)
		}
		err = s.Refresh(ctx, p)
		if c.code == watchword.TokenExpired || name == "an older one" { // older credentials change nothing and are no error
			wantCode(t, err, "")
		} else {
			wantCode(t, err, c.code)
		}
		if refreshed := s.Authority().JTI() == "t2"; refreshed != (c.code == "" && name == "a newer token") {
			t.Errorf("%s: refreshed: %v", name, refreshed)
		}
		// An older token that does not cover is refused as a newer one is.
		if c.cover != nil {
			p.Expires = time.Now().Add(time.Second)
			wantCode(t, s.Refresh(ctx, p), c.code)
		}
		s.End(nil)
		if c.code != watchword.Denied {
			wantCode(t, s.CheckRefresh(ctx, p), watchword.NotFound)
		}
	}
}

// However a session ends, the guard keeps nothing of it.
func TestEndedSessionsReleaseMemory(t *testing.T) {
	ctx := context.Background()
	r := newSlowDirectory(t, "lamp-1", "lamp-2")
	g := session.NewGuard(r, session.GuardOptions{})
	open := func(id watchword.SubjectID) *session.Session {
		t.Helper()
		s, err := g.Open(ctx, credentialsOf(t, id), session.Options{})
		wantCode(t, err, "")
		return s
	}
	a, b, c := open("lamp-1"), open("lamp-1"), open("lamp-2")
	held := g.OpenOffline(ctx, session.Credentials{Tenant: watchword.DefaultTenant, Subject: "lamp-1", Incarnation: 1}, session.Options{Withdrawn: func(error) {}})
	if got, want := fmt.Sprint(g.OfflineCount()), "map[absent:1 held:1 labels:1 sessions:3 subjects:2 under:1 unsettled:0]"; got != want {
		t.Errorf("while they live: %s, want %s", got, want)
	}
	a.End(nil)
	if got := len(g.SubjectSessions(watchword.DefaultTenant, "lamp-1")); got != 1 {
		t.Errorf("%d sessions of the subject are left, want the other", got)
	}
	g.TokenRevoked(watchword.DefaultTenant, "lamp-1", "t1")
	if !b.Ended() || c.Ended() {
		t.Error("a revoked token ends the sessions of its subject")
	}
	r.edit(func(r *slowDirectory) {
		s := r.subjects["lamp-2"]
		s.State = watchword.Revoked
		r.subjects["lamp-2"] = s
	})
	g.SubjectChanged(ctx, watchword.DefaultTenant, "lamp-2")
	p := credentialsOf(t, "lamp-2")
	p.JTI = "t2"
	_, err := g.Open(ctx, p, session.Options{})
	wantCode(t, err, watchword.SubjectRevoked)
	held.End(nil)
	p.Subject = "lamp-1"
	over, err := g.Open(ctx, p, session.Options{})
	wantCode(t, err, "")
	over.End(nil)
	over.Recompute(ctx) // of an ended one: nothing
	for what, n := range g.OfflineCount() {
		if n != 0 {
			t.Errorf("%d %s are kept", n, what)
		}
	}
}
