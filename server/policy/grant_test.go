package policy_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
	"github.com/watchword-iot/watchword/server/policy"
)

// The reference: rules as they were drawn, judged one by one with nothing
// compiled, indexed or spared.

type refRule struct {
	deny               bool
	publish, subscribe []string
	get                []string
	call               []string
	onSite, level      string // "" for none
	whose              string // label kind, or "" for all
}

func (r refRule) toml() string {
	list := func(name string, ss []string) string {
		if len(ss) == 0 {
			return ""
		}
		return fmt.Sprintf("%s = [\"%s\"]\n", name, strings.Join(ss, `", "`))
	}
	head := "[[allow]]\n"
	if r.deny {
		head = "[[deny]]\n"
	}
	out := head + list("publish", r.publish) + list("subscribe", r.subscribe) + list("get", r.get) + list("call", r.call)
	if len(r.call) > 0 && r.onSite != "" {
		out += fmt.Sprintf("on = { site = %q }\n", r.onSite)
	}
	if len(r.call) > 0 && r.level != "" {
		out += fmt.Sprintf("args = { level = { maximum = %s } }\n", r.level)
	}
	return out
}

type refSubject struct {
	id     string
	labels watchword.Labels
}

func (s refSubject) fill(template string) (string, bool) {
	out := strings.ReplaceAll(template, "${id}", s.id)
	if strings.Contains(out, "${site}") {
		site, ok := s.labels["site"]
		if !ok {
			return "", false
		}
		out = strings.ReplaceAll(out, "${site}", site)
	}
	return out, true
}

func (s refSubject) any(templates []string, fits func(string) bool) bool {
	for _, t := range templates {
		if f, ok := s.fill(t); ok && fits(f) {
			return true
		}
	}
	return false
}

// decide is deny before allow, over all rules of all policies that apply.
func (s refSubject) decide(rules []refRule, fits func(r refRule) bool) bool {
	allowed := false
	for _, r := range rules {
		if r.whose != "" && s.labels["kind"] != r.whose || !fits(r) {
			continue
		}
		if r.deny {
			return false
		}
		allowed = true
	}
	return allowed
}

func TestCompiledGrantMatchesReference(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 11))
	pick := func(ss ...string) string { return ss[r.IntN(len(ss))] }
	some := func(n int, ss ...string) []string {
		var out []string
		for range r.IntN(n + 1) {
			out = append(out, pick(ss...))
		}
		return out
	}
	filters := []string{"a/+/b", "a/#", "#", "+/b", "p/${site}/#", "p/${id}/x", "p/+/x", "a/b", "$SYS/#", "p/${site}/x", "/a"}
	topics := []string{"a/b", "a/c/b", "a", "p/s1/x", "p/s2/x", "p/d1/x", "$SYS/up", "/a", "b", "x/b"}
	asked := append([]string{"#", "+/b", "a/#", "p/+/x", "p/s1/#", "$SYS/#", "a/+/b", "$share/g/a/b"}, topics...)
	paths := []string{"/r/${id}/#", "/r/+/x", "/r/#", "/v2/a", "/${site}/+"}
	requests := []string{"/r/d1/y", "/r/d2/x", "/v2/a", "/s1/q", "/v2", "/r", "/r/d1/../d2"}
	for round := range 3000 {
		var rules []refRule
		var docs []*policy.Document
		for i := range 1 + r.IntN(6) {
			owner := pick("", "", "lamp", "pump")
			src := "for = {}\n"
			if owner != "" {
				src = fmt.Sprintf("for = { kind = %q }\n", owner)
			}
			n := 0
			for range 1 + r.IntN(3) {
				rule := refRule{
					deny: r.IntN(4) == 0, whose: owner, publish: some(2, filters...), subscribe: some(2, filters...), get: some(2, paths...),
					call: some(2, "lamp.set", "lamp.*", "*", "fw.update"), onSite: pick("", "", "s1", "${site}"), level: pick("", "", "80", "10"),
				}
				if len(rule.publish)+len(rule.subscribe)+len(rule.get)+len(rule.call) == 0 {
					continue
				}
				rules = append(rules, rule)
				src += rule.toml()
				n++
			}
			if n == 0 {
				continue
			}
			d, err := policy.Parse(fmt.Sprintf("p%d", i), []byte(src))
			if err != nil {
				t.Fatalf("%v\n%s", err, src)
			}
			docs = append(docs, d)
		}
		s := refSubject{"d1", watchword.Labels{}}
		if k := pick("", "lamp", "pump"); k != "" {
			s.labels["kind"] = k
		}
		if k := pick("", "s1", "s2"); k != "" {
			s.labels["site"] = k
		}
		// A service has no built-in topics, so that the drawn rules alone decide.
		g := policy.NewSet(docs...).GrantFor(policy.Subject{ID: watchword.SubjectID(s.id), Kind: watchword.Service, Labels: s.labels})
		fail := func(what string, got bool) {
			t.Helper()
			t.Fatalf("round %d: %s: compiled says %v, subject %+v, rules:\n%+v", round, what, got, s, rules)
		}
		for _, topic := range topics {
			want := s.decide(rules, func(r refRule) bool { return s.any(r.publish, func(f string) bool { return matches(f, topic) }) })
			if got := g.Publish(topic).Allowed; got != want {
				fail("publish "+topic, got)
			}
		}
		for _, f := range asked {
			_, inner, _, err := policy.Share(f)
			if err != nil {
				t.Fatal(err)
			}
			want := s.decide(rules, func(r refRule) bool {
				return s.any(r.subscribe, func(rf string) bool {
					if r.deny {
						return authz.Intersects(rf, inner)
					}
					return policy.Contains(rf, inner)
				})
			})
			if got := g.Subscribe(f).Allowed; got != want {
				fail("subscribe "+f, got)
			}
		}
		for _, p := range requests {
			want := !strings.Contains(p, "..") && s.decide(rules, func(r refRule) bool { return s.any(r.get, func(f string) bool { return matches(f, p) }) })
			if got := g.Request("GET", p).Allowed; got != want {
				fail("get "+p, got)
			}
		}
		for _, site := range []string{"s1", "s2", ""} {
			target := policy.Target{ID: "d9", Labels: watchword.Labels{}}
			if site != "" {
				target.Labels["site"] = site
			}
			for _, fn := range []string{"lamp.set", "lamp.get", "fw.update", "other"} {
				for _, level := range []int{-1, 5, 50, 99} {
					args := []byte("{}")
					if level >= 0 {
						args = fmt.Appendf(nil, `{"level":%d}`, level)
					}
					want := s.decide(rules, func(r refRule) bool { return s.calls(r, fn, site, level) })
					if got := g.Call(target, fn, args).Allowed; got != want {
						fail(fmt.Sprintf("call %s on site %q level %d", fn, site, level), got)
					}
				}
			}
		}
		holdGrant(t, g, topics, asked, requests)
	}
}

func (s refSubject) calls(r refRule, fn, site string, level int) bool {
	named := false
	for _, p := range r.call {
		prefix, wild := strings.CutSuffix(p, "*")
		named = named || p == fn || wild && strings.HasPrefix(fn, prefix)
	}
	if r.onSite != "" {
		on, ok := s.fill(r.onSite)
		named = named && ok && on == site
	}
	if r.level != "" && level >= 0 {
		var limit int
		if _, err := fmt.Sscan(r.level, &limit); err != nil {
			panic(err)
		}
		named = named && level <= limit
	}
	return named
}

// holdGrant compares the grant with what its own claims give in a token: the token may be wider only where it cannot carry
// a constraint on arguments, and calls are not compared here.
func holdGrant(t *testing.T, g *policy.Grant, topics, filters, paths []string) {
	t.Helper()
	tok, err := policy.FromPermissions(g.Perm(), g.Deny())
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range topics {
		if tok.Publish(topic).Allowed != g.Publish(topic).Allowed {
			t.Fatalf("publish %s differs through the token: %v %v", topic, g.Perm(), g.Deny())
		}
	}
	for _, f := range filters {
		if tok.Subscribe(f).Allowed != g.Subscribe(f).Allowed {
			t.Fatalf("subscribe %s differs through the token: %v %v", f, g.Perm(), g.Deny())
		}
	}
	for _, p := range paths {
		if tok.Request("GET", p).Allowed != g.Request("GET", p).Allowed {
			t.Fatalf("get %s differs through the token: %v %v", p, g.Perm(), g.Deny())
		}
	}
}

func TestTheBuiltInPolicies(t *testing.T) {
	set := policy.NewSet()
	dev := set.GrantFor(policy.Subject{ID: "lamp-1", Kind: watchword.Device, Labels: watchword.Labels{"role": "owner"}})
	op := set.GrantFor(policy.Subject{ID: "alice", Kind: watchword.Operator})
	owner := set.GrantFor(policy.Subject{ID: "root", Kind: watchword.Operator, Role: policy.RoleOwner})
	for _, tc := range []struct {
		name string
		got  policy.Decision
		want bool
	}{
		{"a device publishes its events", dev.Publish("devices/lamp-1/events/a/b"), true},
		{"and not another's", dev.Publish("devices/lamp-2/events/a"), false},
		{"a device receives its commands", dev.Subscribe("devices/lamp-1/commands"), true},
		{"and publishes none", dev.Publish("devices/lamp-1/commands"), false},
		{"and not those of other devices", dev.Subscribe("devices/+/commands"), false},
		{"nor everything", dev.Subscribe("#"), false},
		{"a device asks for itself", dev.Request("GET", "/v1/self/config"), true},
		{"and for nothing else", dev.Request("GET", "/v1/devices"), false},
		{"the label owner makes no device an owner", dev.Call(policy.Target{ID: "x"}, "f", nil), false},
		{"an operator may nothing by itself", op.Request("GET", "/v1/devices"), false},
		{"the owner everything", owner.Request("DELETE", "/v1/devices/x"), true},
		{"also call", owner.Call(policy.Target{ID: "x"}, "f", []byte(`{}`)), true},
		{"but no path that climbs", owner.Request("GET", "/v1/../x"), false},
		{"and $ topics are given to no subject", owner.Subscribe("$SYS/#"), false},
	} {
		if tc.got.Allowed != tc.want {
			t.Errorf("%s: %v (%s)", tc.name, tc.got.Allowed, tc.got.Why())
		}
	}
}

func TestExplainNamesTheRuleOrTheNearestMiss(t *testing.T) {
	d, err := policy.Parse("lamps", []byte(`for = { kind = "lamp" }

[[allow]]
publish = ["plant/${site}/lux"]

[[allow]]
call = ["lamp.set"]
on   = { site = "${site}" }
args = { level = { maximum = 80 } }

[[deny]]
call = ["lamp.reset"]
`))
	if err != nil {
		t.Fatal(err)
	}
	g := policy.NewSet(d).GrantFor(policy.Subject{ID: "lamp-1", Kind: watchword.Device, Labels: watchword.Labels{"kind": "lamp", "site": "a"}})
	near, far := policy.Target{ID: "lamp-2", Labels: watchword.Labels{"site": "a"}}, policy.Target{ID: "lamp-3", Labels: watchword.Labels{"site": "b"}}
	for _, tc := range []struct {
		action, resource string
		target           policy.Target
		args             string
		allowed          bool
		why, nearest     string
	}{
		{"pub", "topic:plant/a/lux", policy.Target{}, "", true, "allowed by lamps:3", ""},
		{"pub", "topic:plant/b/lux", policy.Target{}, "", false, "no rule allows this", "lamps:3: allows plant/a/lux"},
		{"call", "fn:lamp-2/lamp.set", near, `{"level":80}`, true, "allowed by lamps:6", ""},
		{"call", "fn:lamp-2/lamp.set", near, `{"level":99}`, false, "no rule allows this", "lamps:6: args.level 99 > maximum 80"},
		{"call", "fn:lamp-3/lamp.set", far, `{"level":1}`, false, "no rule allows this", "lamps:6: device lamp-3 has label site=b, not a"},
		{"call", "fn:lamp-2/lamp.get", near, "", false, "no rule allows this", "lamps:6: allows lamp.set"},
		{"call", "fn:lamp-2/lamp.reset", near, "", false, "denied by lamps:11", ""},
		{"get", "api:/v1/self/x", policy.Target{}, "", true, "allowed by self", ""},
		{"get", "api:/v1/devices", policy.Target{}, "", false, "no rule allows this", "self: allows get, put, post, patch, delete on /v1/self/#"},
	} {
		e := g.Explain(tc.action, tc.resource, tc.target, []byte(tc.args))
		if e.Allowed != tc.allowed || e.Why != tc.why || e.Nearest != tc.nearest {
			t.Errorf("%s %s %s: %+v", tc.action, tc.resource, tc.args, e)
		}
	}
}

func TestABoundIsOneForEveryKindOfValue(t *testing.T) {
	parse := func(rule string) *policy.Grant {
		d, err := policy.Parse("p", []byte("for = {}\n"+rule))
		if err != nil {
			t.Fatal(err)
		}
		return policy.NewSet(d).GrantFor(policy.Subject{ID: "x", Kind: watchword.Service})
	}
	allow := parse("[[allow]]\ncall = [\"f\"]\nargs = { level = { maximum = 80 }, mode = { pattern = \"^eco$\" } }\n")
	deny := parse("[[allow]]\ncall = [\"f\"]\n[[deny]]\ncall = [\"f\"]\nargs = { level = { minimum = 50 } }\n")
	for _, tc := range []struct {
		args            string
		allowed, spared bool
	}{
		{`{"level":80}`, true, false},
		{`{"level":81}`, false, false},
		{`{"level":"99"}`, false, false},
		{`{"level":null}`, false, false},
		{`{"level":[99]}`, false, false},
		{`{"level":10}`, true, true},
		{`{"mode":"eco","level":1}`, true, true},
		{`{"mode":7,"level":1}`, false, true},
	} {
		if got := allow.Call(policy.Target{ID: "d"}, "f", []byte(tc.args)).Allowed; got != tc.allowed {
			t.Errorf("allow with bounds, %s: %v", tc.args, got)
		}
		if got := deny.Call(policy.Target{ID: "d"}, "f", []byte(tc.args)).Allowed; got != tc.spared {
			t.Errorf("deny with a bound, %s: %v", tc.args, got)
		}
	}
}

func TestMistakesSayWhere(t *testing.T) {
	for _, tc := range []struct {
		name, src    string
		line, column int
		says         string
	}{
		{"no TOML", "for = {", 1, 0, ""},
		{"an unknown key", "fro = {}\n[[allow]]\nget = [\"/x\"]\n", 1, 1, `did you mean "for"`},
		{"an unknown key in a rule", "for = {}\n[[allow]]\npublsh = [\"x\"]\n", 3, 1, `did you mean "publish"`},
		{"no subject it is for", "[[allow]]\nget = [\"/x\"]\n", 0, 0, "one of for, subjects and role is required"},
		{"two ways to say whom", "for = {}\nsubjects = [\"a\"]\n[[allow]]\nget = [\"/x\"]\n", 1, 1, "only one of for, subjects and role must be given"},
		{"a label that escapes", "for = { kind = \"a/b\" }\n[[allow]]\nget = [\"/x\"]\n", 1, 0, ""},
		{"an invalid filter", "for = {}\n[[allow]]\npublish = [\"ok\", \"a/#/b\"]\n", 3, 18, "#"},
		{"an unknown variable", "for = {}\n[[allow]]\npublish = [\"a/${ id }\"]\n", 3, 12, ""},
		{"no rule", "for = {}\n", 0, 0, "at least one"},
		{"an empty rule", "for = {}\n[[allow]]\n", 2, 3, "at least one of"},
		{"one bracket", "for = {}\n[allow]\nget = [\"/x\"]\n", 2, 0, "[[allow]]"},
		{"a path without a slash", "for = {}\n[[allow]]\nget = [\"x\"]\n", 3, 8, ""},
		{"a bound that is no schema", "for = {}\n[[allow]]\ncall = [\"f\"]\nargs = { level = { maximum = \"x\" } }\n", 4, 0, ""},
		{"a name that is built in", "name = \"self\"\nfor = {}\n[[allow]]\nget = [\"/x\"]\n", 1, 1, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := policy.Parse("p", []byte(tc.src))
			if watchword.CodeOf(err) != watchword.PolicyInvalid {
				t.Fatalf("got %v", err)
			}
			ms := policy.Mistakes(err)
			if len(ms) == 0 {
				t.Fatal("no mistake is told")
			}
			for _, m := range ms {
				if (tc.line == 0 || m.Line == tc.line) && (tc.column == 0 || m.Column == tc.column) && strings.Contains(m.Message, tc.says) {
					return
				}
			}
			t.Errorf("got %+v, want %d:%d %s", ms, tc.line, tc.column, tc.says)
		})
	}
	if _, err := policy.Parse("p", []byte("for = {}\n# "+strings.Repeat("x", 64<<10))); watchword.CodeOf(err) != watchword.PolicyInvalid {
		t.Errorf("a document over 64 KiB: %v", err)
	}
	if _, err := policy.ParseJSON("p", []byte(`{"for":{"kind":"lamp"},"allow":[{"publish":["a/${id}"]}]}`)); err != nil {
		t.Errorf("JSON: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("for = { kind = \"lamp\" }\n[[allow]]\npublish = [\"plant/${site}/lux\"]\ncall = [\"a.*\"]\non = { site = \"${site}\" }\nargs = { level = { maximum = 80 } }\n"))
	f.Add([]byte("subjects = [\"a\"]\n[[deny]]\nget = [\"/x/#\"]\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		d, err := policy.Parse("p", src)
		if err != nil {
			if watchword.CodeOf(err) != watchword.PolicyInvalid || len(policy.Mistakes(err)) == 0 {
				t.Errorf("refused without a mistake: %v", err)
			}
			return
		}
		// Whatever was taken compiles, and its claims are good claims.
		g := policy.NewSet(d).GrantFor(policy.Subject{ID: "d1", Kind: watchword.Device, Labels: watchword.Labels{"kind": "lamp", "site": "s"}})
		if _, err := policy.FromPermissions(g.Perm(), g.Deny()); err != nil {
			t.Errorf("claims that no subject takes: %v: %v %v", err, g.Perm(), g.Deny())
		}
	})
}
