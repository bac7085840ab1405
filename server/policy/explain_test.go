package policy_test

import (
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// The nearest miss is the rule that shares the most with the request; of two equal ones, the first. A rule that shares
// nothing does not count.
func TestNearestRuleIsExplained(t *testing.T) {
	d := parsed(t, "p", lines(
		`subjects = ["x"]`,
		"[[allow]]", `publish = ["a/b/c", "a/b/d", "a/+/x/y"]`, // line 2
		"[[allow]]", `subscribe = ["s/t/u"]`, // line 4
		"[[allow]]", `get = ["/r/one", "/r/two"]`, // line 6
		"[[allow]]", `put = ["/r/two/deep", "/q/#"]`, // line 8
		"[[allow]]", `call = ["lamp.set"]`, `on = { kind = "lamp", site = "a" }`, "args = { level = { minimum = 10 }, mode = { enum = [\"eco\"] } }", // line 10
		"[[allow]]", `call = ["door.open"]`, `devices = ["d1"]`, // line 14
		"[[deny]]", `subscribe = ["s/t/no"]`, // line 17
	))
	g := policy.NewSet(d).GrantFor(policy.Subject{ID: "x", Kind: watchword.Service})
	lamp := policy.Target{ID: "l1", Labels: watchword.Labels{"kind": "lamp", "site": "a"}}
	for _, tc := range []struct {
		action, resource string
		target           policy.Target
		args             string
		allowed          bool
		by, why, nearest string
	}{
		{"pub", "topic:a/b/c", policy.Target{}, "", true, "p:2", "allowed by p:2", ""},
		{"pub", "topic:a/b/q", policy.Target{}, "", false, "", "no rule allows this", "p:2: allows a/b/c"},
		{"pub", "topic:a/k/x", policy.Target{}, "", false, "", "no rule allows this", "p:2: allows a/+/x/y"},
		{"pub", "topic:zzz", policy.Target{}, "", false, "", "no rule allows this", "p:2: allows a/b/c"},
		{"sub", "topic:s/t/u", policy.Target{}, "", true, "p:4", "allowed by p:4", ""},
		{"sub", "topic:s/t/#", policy.Target{}, "", false, "p:17", "denied by p:17", ""},
		{"sub", "topic:s/x", policy.Target{}, "", false, "", "no rule allows this", "p:4: allows s/t/u"},
		{"get", "api:/r/two", policy.Target{}, "", true, "p:6", "allowed by p:6", ""},
		{"get", "api:/r/three", policy.Target{}, "", false, "", "no rule allows this", "p:6: allows get on /r/one"},
		{"put", "api:/r/one", policy.Target{}, "", false, "", "no rule allows this", "p:6: allows get on /r/one"},
		{"get", "api:/q/k", policy.Target{}, "", false, "", "no rule allows this", "p:8: allows put on /q/#"},
		{"get", "api:/v1/self/me", policy.Target{}, "", true, "self", "allowed by self", ""},
		{"call", "fn:l1/lamp.set", lamp, `{"level":10,"mode":"eco"}`, true, "p:10", "allowed by p:10", ""},
		{"call", "fn:l1/lamp.set", lamp, `{"level":9}`, false, "", "no rule allows this", "p:10: args.level 9 < minimum 10"},
		{"call", "fn:l1/lamp.set", lamp, `{"mode":"full"}`, false, "", "no rule allows this", "p:10: args.mode does not fit enum"},
		{"call", "fn:l2/lamp.set", policy.Target{ID: "l2", Labels: watchword.Labels{"kind": "lamp", "site": "b"}}, "", false, "", "no rule allows this", "p:10: device l2 has label site=b, not a"},
		{"call", "fn:l2/lamp.set", policy.Target{ID: "l2"}, "", false, "", "no rule allows this", "p:10: device l2 has label kind=, not lamp"},
		{"call", "fn:l1/lamp.get", lamp, "", false, "", "no rule allows this", "p:10: allows lamp.set"},
		{"call", "fn:d2/door.open", policy.Target{ID: "d2"}, "", false, "", "no rule allows this", "p:14: is about device d1"},
		{"call", "fn:d9/other", policy.Target{ID: "d9"}, "", false, "", "no rule allows this", ""},
	} {
		e := g.Explain(tc.action, tc.resource, tc.target, []byte(tc.args))
		name, line, _ := strings.Cut(tc.by, ":")
		if e.Allowed != tc.allowed || e.Why != tc.why || e.Nearest != tc.nearest || e.Policy != name || (line == "") != (e.Line == 0) {
			t.Errorf("%s %s %s: got %+v", tc.action, tc.resource, tc.args, e)
		}
		if tc.nearest != "" && e.Nearest == "" || tc.by != "" && e.Why != tc.why {
			t.Errorf("%s %s: got %+v", tc.action, tc.resource, e)
		}
	}
	e := policy.NewSet().GrantFor(policy.Subject{ID: "x", Kind: watchword.Operator, Role: policy.RoleOwner}).Explain("pub", "topic:$SYS/x", policy.Target{}, nil)
	if e.Nearest != "owner: allows #" {
		t.Errorf("got %+v", e)
	}
}

func TestAHintIsAWordWithinTwoEdits(t *testing.T) {
	for word, hint := range map[string]string{
		"publish": "", "publsh": "publish", "publis": "publish", "publi": "publish", "publ": "put", "pblsh": "publish", "pblh": "", "getx": "get", "gxt": "get", "ut": "put", "pos": "post",
		"subscrib": "subscribe", "dele": "delete", "xyz": "", strings.Repeat("x", 40): "",
	} {
		if word == "publish" {
			continue
		}
		_, err := policy.Parse("p", []byte(lines("for = {}", "[[allow]]", `get = ["/"]`, word+` = ["/"]`)))
		want := `unknown key "` + word + `"`
		if hint != "" {
			want += `; did you mean "` + hint + `"?`
		}
		if m := policy.Mistakes(err); len(m) != 1 || m[0].Message != want {
			t.Errorf("got %+v, want %s", m, want)
		}
	}
}

func TestADocumentInJSONHasTheSameBound(t *testing.T) {
	text := `{"for":{},"allow":[{"get":["/"]}]}`
	if _, err := policy.ParseJSON("p", []byte(text+strings.Repeat(" ", policy.MaxDocument-len(text)))); err != nil {
		t.Errorf("64 KiB: %v", err)
	}
	if _, err := policy.ParseJSON("p", []byte(text+strings.Repeat(" ", policy.MaxDocument-len(text)+1))); watchword.CodeOf(err) != watchword.PolicyInvalid {
		t.Errorf("a byte more: %v", err)
	}
}
