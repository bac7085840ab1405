package policy_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// What a grant holds it allows, whatever of it is asked for: a token of the held
// permission alone never says yes where the grant, without its denials, says no.
func TestContainedPermissionIsAllowed(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 17))
	pick := func(ss ...string) string { return ss[r.IntN(len(ss))] }
	filter := func() string {
		return pick("a/b", "a/+", "a/#", "#", "+/b", "a/+/c", "a/b/c", "$x/#", "$x/b", "+/#", "/a", "/#", "/+")
	}
	line := func() watchword.Permission {
		switch r.IntN(3) {
		case 0:
			return watchword.Permission{Resource: "topic:" + filter(), Actions: [][]string{{"pub"}, {"sub"}, {"pub", "sub"}}[r.IntN(3)]}
		case 1:
			return watchword.Permission{Resource: "api:/" + strings.TrimPrefix(filter(), "/"), Actions: [][]string{{"get"}, {"get", "put"}, {"delete"}}[r.IntN(3)]}
		}
		return watchword.Permission{Resource: "fn:" + pick("*", "d1", "d2", "site=a", "kind=k,site=a", "site=b") + "/" + pick("*", "lamp.*", "lamp.set", "lamp.s*", "fw"), Actions: []string{"call"}}
	}
	topics := []string{"a", "a/b", "a/b/c", "a/x/c", "b", "x/b", "$x", "$x/b", "/a", "/a/b", "/", "/x"}
	targets := []policy.Target{
		{ID: "d1", Labels: watchword.Labels{"site": "a"}}, {ID: "d2", Labels: watchword.Labels{"site": "a", "kind": "k"}}, {ID: "d3", Labels: watchword.Labels{"site": "b"}}, {ID: "d4"},
	}
	held, left := 0, 0
	for range 40_000 {
		var lines []watchword.Permission
		for range 1 + r.IntN(4) {
			lines = append(lines, line())
		}
		g, err := policy.FromPermissions(lines, nil)
		if err != nil {
			continue // not a valid path
		}
		p := line()
		one, err := policy.FromPermissions([]watchword.Permission{p}, nil)
		if err != nil {
			continue
		}
		narrow := g.Narrow([]watchword.Permission{p})
		if whole := len(narrow) == 1 && len(narrow[0].Actions) == len(p.Actions); whole != g.Contains(p) {
			t.Fatalf("%v of %v: narrowed to %v, held %v", p, lines, narrow, g.Contains(p))
		}
		if !g.Contains(p) {
			left++
			continue
		}
		held++
		for _, topic := range topics {
			if one.Publish(topic).Allowed && !g.Publish(topic).Allowed || one.Subscribe(topic).Allowed && !g.Subscribe(topic).Allowed {
				t.Fatalf("%v holds %v and refuses topic %s", lines, p, topic)
			}
			for _, m := range []string{"get", "put", "delete"} {
				if one.Request(m, topic).Allowed && !g.Request(m, topic).Allowed {
					t.Fatalf("%v holds %v and refuses %s %s", lines, p, m, topic)
				}
			}
		}
		for _, d := range targets {
			for _, fn := range []string{"lamp.set", "lamp.get", "lamp.s", "fw", "x"} {
				if one.Call(d, fn, nil).Allowed && !g.Call(d, fn, nil).Allowed {
					t.Fatalf("%v holds %v and refuses %s on %s", lines, p, fn, d.ID)
				}
			}
		}
	}
	if held < 1000 || left < 1000 {
		t.Errorf("%d held and %d not: the test asks too little", held, left)
	}
}

func TestEveryPermissionContainsItself(t *testing.T) {
	perm := []watchword.Permission{
		{Resource: "topic:a/+/#", Actions: []string{"pub", "sub"}},
		{Resource: "api:/v1/self/#", Actions: []string{"get"}},
		{Resource: "fn:kind=k,site=a/lamp.*", Actions: []string{"call"}},
		{Resource: "fn:*/x", Actions: []string{"call"}},
	}
	g, err := policy.FromPermissions(perm, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range perm {
		if !g.Contains(p) {
			t.Errorf("%v", p)
		}
	}
	for _, bad := range []watchword.Permission{{}, {Resource: "topic:a"}, {Resource: "topic:a/b", Actions: []string{"call"}}, {Resource: "fn:x", Actions: []string{"call"}}} {
		if g.Contains(bad) || len(g.Narrow([]watchword.Permission{bad})) != 0 {
			t.Errorf("%v", bad)
		}
	}
}

func TestAPolicyMayRequireAProof(t *testing.T) {
	d, err := policy.Parse("proving", []byte("for = { site = \"a\" }\nproof = \"required\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	set := policy.NewSet(d)
	for site, want := range map[string]bool{"a": true, "b": false} {
		rule, required := set.GrantFor(policy.Subject{ID: "lamp-1", Kind: watchword.Device, Labels: watchword.Labels{"site": site}}).ProofRequired()
		if required != want || want && rule != "proving" {
			t.Errorf("site %s: %q %v", site, rule, required)
		}
	}
	_, err = policy.Parse("proving", []byte("for = {}\nproof = \"often\"\n"))
	if m := policy.Mistakes(err); len(m) != 1 || m[0].Line != 2 {
		t.Errorf("another word: %v", err)
	}
}

func TestATokenCoversAnotherThatIsNoWider(t *testing.T) {
	p := func(resource string, actions ...string) watchword.Permission {
		return watchword.Permission{Resource: resource, Actions: actions}
	}
	perm := []watchword.Permission{p("topic:a/#", "pub", "sub"), p("api:/v1/self/#", "get"), p("fn:*/lamp.*", "call")}
	g, err := policy.FromPermissions(perm, []watchword.Permission{p("topic:a/x", "pub", "sub")})
	if err != nil {
		t.Fatal(err)
	}
	both := []watchword.Permission{p("topic:a/x", "pub", "sub")}
	for _, tc := range []struct {
		name       string
		perm, deny []watchword.Permission
		want       bool
	}{
		{"the same", perm, both, true},
		{"nothing", nil, both, true},
		{"a part", []watchword.Permission{p("topic:a/b", "pub"), p("fn:lamp-1/lamp.set", "call")}, both, true},
		{"one topic more", append([]watchword.Permission{p("topic:b", "pub")}, perm...), both, false},
		{"one action more", []watchword.Permission{p("api:/v1/self", "get", "put")}, both, false},
		{"one function more", []watchword.Permission{p("fn:lamp-1/door.open", "call")}, both, false},
		{"with nothing denied", perm, nil, false},
		{"with less denied", perm, []watchword.Permission{p("topic:a/x", "pub")}, false},
		{"with more denied", perm, append([]watchword.Permission{p("topic:a/y", "pub")}, both...), true},
	} {
		if got := g.Covers(tc.perm, tc.deny); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}
