package policy_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// permissions writes permissions as "pub,sub topic:a".
func permissions(ps []watchword.Permission) (out []string) {
	for _, p := range ps {
		s := ""
		for i, a := range p.Actions {
			if i > 0 {
				s += ","
			}
			s += a
		}
		out = append(out, s+" "+p.Resource)
	}
	return out
}

// What a subject has without any policy, line by line.
func TestBuiltInSchemas(t *testing.T) {
	for _, tc := range []struct {
		kind watchword.Kind
		role string
		want []string
	}{
		{watchword.Device, "", []string{
			"get,put,post,patch,delete api:/v1/self/#",
			"sub topic:devices/x/commands", "sub topic:devices/x/config", "pub topic:devices/x/events/#",
			"pub topic:devices/x/receipts", "pub,sub topic:devices/x/state",
		}},
		{watchword.Service, "", []string{"get,put,post,patch,delete api:/v1/self/#"}},
		{watchword.Operator, "", []string{"get,put,post,patch,delete api:/v1/self/#"}},
		{watchword.Operator, policy.RoleOwner, []string{"get,put,post,patch,delete api:/#", "call fn:*/*", "pub,sub topic:#"}},
		{watchword.Operator, policy.RoleViewer, []string{
			"get api:/v1/commands/#", "get api:/v1/devices/#", "get api:/v1/enrollments/#", "get api:/v1/events/#", "post api:/v1/explain", "get api:/v1/labels/#", "get api:/v1/policies/#",
			"post api:/v1/policies/check", "post api:/v1/policies/diff", "get api:/v1/retained/#", "get,put,post,patch,delete api:/v1/self/#", "get api:/v1/services/#",
			"get api:/v1/sessions/#", "get api:/v1/totals/#", "sub topic:devices/+/events/#", "sub topic:devices/+/state",
		}},
		{watchword.Operator, policy.RoleAuditor, []string{"get api:/v1/audit/#", "get,put,post,patch,delete api:/v1/self/#"}},
	} {
		g := policy.NewSet().GrantFor(policy.Subject{ID: "x", Kind: tc.kind, Role: tc.role})
		if got := permissions(g.Perm()); !slices.Equal(got, tc.want) {
			t.Errorf("%s %s: got %q, want %q", tc.kind, tc.role, got, tc.want)
		}
		if got := g.Deny(); len(got) != 0 {
			t.Errorf("%s: denied %v", tc.kind, got)
		}
	}
}

// A token contains no line that another line covers, whatever sorts first; of two that cover each other one.
func TestATokenHasNoLineThatAnotherCovers(t *testing.T) {
	for _, tc := range []struct{ rules, want string }{
		{`publish = ["a/#", "a/!x", "a/b"]`, `["pub topic:a/#"]`},
		{`publish = ["#", "+/#"]`, `["pub topic:#"]`},
		{`publish = ["+/#", "#"]`, `["pub topic:#"]`},
		{`publish = ["/#", "/+/#"]`, `["pub topic:/#"]`},
		{"publish = [\"a/#\"]\nsubscribe = [\"a/b\"]", `["pub topic:a/#" "sub topic:a/b"]`},
		{"publish = [\"a/#\", \"a/b\"]\nsubscribe = [\"a/b\"]", `["pub topic:a/#" "sub topic:a/b"]`},
		{`call = ["lamp.*", "lamp.set", "lamp.s*", "lam"]`, `["call fn:*/lam" "call fn:*/lamp.*"]`},
		{`call = ["f", "g"]`, `["call fn:*/f" "call fn:*/g"]`},
	} {
		g := policy.NewSet(parsed(t, "p", "for = {}\n[[deny]]\n"+tc.rules+"\n")).GrantFor(policy.Subject{ID: "x", Kind: watchword.Service})
		if got := fmt.Sprintf("%q", permissions(g.Deny())); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.rules, got, tc.want)
		}
	}
	// A call of one device beside the same of any.
	g := policy.NewSet(parsed(t, "p", lines(
		"for = {}", "[[deny]]", `call = ["f", "g"]`, `devices = ["d1"]`, "[[deny]]", `call = ["f"]`, "[[deny]]", `call = ["h"]`, "on = {}", "[[deny]]", `call = ["h"]`, `on = { site = "a" }`,
	))).GrantFor(policy.Subject{ID: "x", Kind: watchword.Service})
	if got, want := permissions(g.Deny()), []string{"call fn:*/f", "call fn:*/h", "call fn:d1/g"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// on = {} chooses every device, as no on at all does.
func TestEmptyLabelsSelectEveryDevice(t *testing.T) {
	for _, on := range []string{"", "on = {}"} {
		g := policy.NewSet(parsed(t, "p", lines("for = {}", "[[allow]]", `call = ["f"]`, on))).GrantFor(policy.Subject{ID: "x", Kind: watchword.Service})
		for _, target := range []policy.Target{{ID: "d"}, {ID: "d", Labels: watchword.Labels{"site": "a"}}, {ID: "d", Unlabeled: true}} {
			if !g.Call(target, "f", nil).Allowed {
				t.Errorf("%q does not choose %+v", on, target)
			}
		}
	}
	// Devices by their ids, one of them the caller's own.
	g := policy.NewSet(parsed(t, "p", lines("for = {}", "[[allow]]", `call = ["f"]`, `devices = ["d1", "${id}"]`, "[[deny]]", `call = ["*"]`, `devices = ["d2"]`))).GrantFor(policy.Subject{ID: "x", Kind: watchword.Service})
	for id, want := range map[watchword.SubjectID]bool{"d1": true, "x": true, "d2": false, "d3": false} {
		if got := g.Call(policy.Target{ID: id}, "f", nil); got.Allowed != want || (id == "d2") != (got.Origin != nil && !want) {
			t.Errorf("a call of %s: %v (%s)", id, got.Allowed, got.Why())
		}
	}
	// A label that the caller does not have chooses none.
	g = policy.NewSet(parsed(t, "p", lines("for = {}", "[[allow]]", `call = ["f"]`, `on = { site = "${site}" }`, "[[allow]]", `call = ["f"]`, `devices = ["${site}"]`, "[[allow]]", `get = ["/${site}/#"]`, `publish = ["${site}"]`, `subscribe = ["${site}/#"]`))).
		GrantFor(policy.Subject{ID: "x", Kind: watchword.Service})
	if got := permissions(g.Perm()); len(got) != 1 {
		t.Errorf("without the label: %q", got)
	}
}

// Documents that do not require a proof neither require one nor hide those that do.
func TestProofRequiredNamesPolicy(t *testing.T) {
	plain, early, late := parsed(t, "m", lines("for = {}", "[[allow]]", `get = ["/"]`)), parsed(t, "a", "for = {}\nproof = \"required\"\n"), parsed(t, "z", "for = {}\nproof = \"required\"\n")
	for want, docs := range map[string][]*policy.Document{"": {plain}, "a": {late, plain, early}, "z": {plain, late}} {
		rule, required := policy.NewSet(docs...).GrantFor(policy.Subject{ID: "x", Kind: watchword.Service}).ProofRequired()
		if rule != want || required != (want != "") {
			t.Errorf("got %q, %v, want %q", rule, required, want)
		}
	}
}

func TestDocumentSubjects(t *testing.T) {
	ids, labels := parsed(t, "p", lines(`subjects = ["b", "a"]`, "[[allow]]", `get = ["/"]`)).SubjectSelector()
	slices.Sort(ids)
	if !slices.Equal(ids, []watchword.SubjectID{"a", "b"}) || labels != nil {
		t.Errorf("got %q and %v", ids, labels)
	}
	ids, labels = parsed(t, "p", lines(`for = { site = "a" }`, "[[allow]]", `get = ["/"]`)).SubjectSelector()
	if ids != nil || labels["site"] != "a" {
		t.Errorf("got %q and %v", ids, labels)
	}
	// An empty list of subjects is not a list of all.
	d := parsed(t, "p", lines("subjects = []", "[[allow]]", `get = ["/"]`))
	if ids, _ := d.SubjectSelector(); ids == nil || len(ids) != 0 || d.AppliesTo(policy.Subject{ID: "a"}) {
		t.Errorf("no subject: %q", ids)
	}
}

// One permission holds another if it speaks of all that the other speaks of.
func TestCallContainment(t *testing.T) {
	for _, tc := range []struct {
		outer, inner string
		want         bool
	}{
		{"fn:*/lamp.set", "fn:*/lamp.set", true},
		{"fn:*/lamp.set", "fn:*/lamp.set2", false},
		{"fn:*/lamp.set", "fn:*/lamp.set*", false},
		{"fn:*/lamp.set", "fn:*/lamp.*", false},
		{"fn:*/lamp.*", "fn:*/lamp.set", true},
		{"fn:*/lamp.*", "fn:*/lamp.s*", true},
		{"fn:*/lamp.*", "fn:*/lamp.*", true},
		{"fn:*/lamp.*", "fn:*/lam", false},
		{"fn:*/lamp.*", "fn:*/lam*", false},
		{"fn:*/*", "fn:*/x", true},
		{"fn:*/*", "fn:*/*", true},
		{"fn:*/f", "fn:d1/f", true},
		{"fn:*/f", "fn:site=a/f", true},
		{"fn:d1/f", "fn:*/f", false},
		{"fn:d1/f", "fn:d2/f", false},
		{"fn:d1/f", "fn:d1/f", true},
		{"fn:d1/f", "fn:site=a/f", false},
		{"fn:site=a/f", "fn:d1/f", false},
		{"fn:site=a/f", "fn:*/f", false},
		{"fn:site=a/f", "fn:site=a/f", true},
		{"fn:site=a/f", "fn:kind=k,site=a/f", true},
		{"fn:kind=k,site=a/f", "fn:site=a/f", false},
		{"fn:site=a/f", "fn:site=b/f", false},
	} {
		g, err := policy.FromPermissions([]watchword.Permission{{Resource: tc.outer, Actions: []string{"call"}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := g.Contains(watchword.Permission{Resource: tc.inner, Actions: []string{"call"}}); got != tc.want {
			t.Errorf("%s holds %s: %v", tc.outer, tc.inner, got)
		}
	}
	// Of several actions those alone that are held.
	g, err := policy.FromPermissions([]watchword.Permission{{Resource: "topic:a/#", Actions: []string{"pub"}}, {Resource: "api:/v1/#", Actions: []string{"get", "put"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := permissions(g.Narrow([]watchword.Permission{
		{Resource: "topic:a/b", Actions: []string{"pub", "sub"}},
		{Resource: "api:/v1/x", Actions: []string{"get", "delete"}},
		{Resource: "topic:b", Actions: []string{"pub"}},
		{Resource: "api:/v2", Actions: []string{"get"}},
		{Resource: "fn:*/f", Actions: []string{"call"}},
	}))
	if want := []string{"pub topic:a/b", "get api:/v1/x"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A set of a version is another value: what was decided under the one of before keeps its number.
func TestASetHasTheVersionThatItWasGiven(t *testing.T) {
	before := policy.NewSet(parsed(t, "p", lines("for = {}", "[[allow]]", `get = ["/x"]`)))
	after := before.WithVersion(7)
	if before.Version() != 0 || after.Version() != 7 || after.WithVersion(8).Version() != 8 || after.Version() != 7 {
		t.Errorf("versions %d and %d", before.Version(), after.Version())
	}
	if _, ok := after.Document("p"); !ok {
		t.Error("the documents are gone")
	}
}

// A policy for the lamps of a site is not examined for the lamps of other sites: it is found by the label that the fewest policies
// have.
func TestAPolicyIsFoundByItsRarestLabel(t *testing.T) {
	var docs []*policy.Document
	for i := range 50 {
		docs = append(docs, parsed(t, fmt.Sprint("p", i), lines(fmt.Sprintf("for = { kind = \"lamp\", site = \"s%d\" }", i), "[[allow]]", fmt.Sprintf("publish = [\"plant/%d\"]", i))))
	}
	docs = append(docs, parsed(t, "lamps", lines(`for = { kind = "lamp" }`, "[[allow]]", `publish = ["lamp"]`)))
	set := policy.NewSet(docs...)
	for site, want := range map[string]int{"s7": 2, "elsewhere": 1} {
		w := policy.Subject{ID: "lamp-1", Kind: watchword.Device, Labels: watchword.Labels{"kind": "lamp", "site": site}}
		if got := set.Examined(w); got != want {
			t.Errorf("site %s: %d policies are examined, want %d", site, got, want)
		}
	}
	g := set.GrantFor(policy.Subject{ID: "lamp-1", Kind: watchword.Device, Labels: watchword.Labels{"kind": "lamp", "site": "s7"}})
	if !g.Publish("plant/7").Allowed || !g.Publish("lamp").Allowed || g.Publish("plant/8").Allowed {
		t.Error("the policies of another site count")
	}
}
