package policy_test

import (
	"slices"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

func parsed(t *testing.T, name, src string) *policy.Document {
	t.Helper()
	d, err := policy.Parse(name, []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// An owner is an operator whose role is owner. Nothing else makes one: no label, no other kind, no other role.
func TestOnlyTheRoleMakesAnOwner(t *testing.T) {
	set := policy.NewSet()
	for _, tc := range []struct {
		name   string
		kind   watchword.Kind
		role   string
		labels watchword.Labels
		owner  bool
	}{
		{"an operator with role owner", watchword.Operator, "owner", nil, true},
		{"with labels beside it", watchword.Operator, "owner", watchword.Labels{"role": "viewer", "site": "a"}, true},
		{"an operator without role", watchword.Operator, "", nil, false},
		{"an operator with the label role", watchword.Operator, "", watchword.Labels{"role": "owner"}, false},
		{"with another role", watchword.Operator, "auditor", nil, false},
		{"with a role that begins like it", watchword.Operator, "owners", nil, false},
		{"in capitals", watchword.Operator, "Owner", nil, false},
		{"a device", watchword.Device, "owner", watchword.Labels{"role": "owner"}, false},
		{"a service", watchword.Service, "owner", watchword.Labels{"role": "owner"}, false},
		{"a subject of no kind", "", "owner", watchword.Labels{"role": "owner"}, false},
	} {
		g := set.GrantFor(policy.Subject{ID: "owner", Kind: tc.kind, Role: tc.role, Labels: tc.labels})
		for what, d := range map[string]policy.Decision{
			"publish":   g.Publish("plant/lux"),
			"subscribe": g.Subscribe("#"),
			"call":      g.Call(policy.Target{ID: "lamp-1"}, "lamp.set", []byte("{}")),
			"read":      g.Request("GET", "/v1/devices"),
			"delete":    g.Request("DELETE", "/v1/devices/lamp-1"),
		} {
			if d.Allowed != tc.owner {
				t.Errorf("%s: %s is %v (%s), want %v", tc.name, what, d.Allowed, d.Why(), tc.owner)
			}
		}
		if wide := slices.ContainsFunc(g.Perm(), func(p watchword.Permission) bool { return p.Resource == "api:/#" }); wide != tc.owner {
			t.Errorf("%s: the token's claims are an owner's: %v", tc.name, wide)
		}
	}
}

// No document takes anything from an owner; it takes from every other role.
func TestDocumentsDenyNothingToOwners(t *testing.T) {
	all := parsed(t, "all", "for = {}\n[[deny]]\nget = [\"/#\"]\npublish = [\"#\"]\ncall = [\"*\"]\n")
	for role, allowed := range map[string]bool{"owner": true, "admin": false, "operator": false} {
		g := policy.NewSet(all).GrantFor(policy.Subject{ID: "x", Kind: watchword.Operator, Role: role})
		if got := g.Request("GET", "/v1/devices").Allowed; got != allowed {
			t.Errorf("%s: reading devices is %v", role, got)
		}
		if got := g.Call(policy.Target{ID: "lamp-1"}, "lamp.set", nil).Allowed; got != allowed {
			t.Errorf("%s: calling is %v", role, got)
		}
	}
}

// Every kind that a document names counts, whatever its place in the list.
func TestADocumentOfSeveralKindsIsForEachOfThem(t *testing.T) {
	all := []watchword.Kind{watchword.Device, watchword.Operator, watchword.Service}
	for kinds, want := range map[string][]watchword.Kind{
		`["device", "operator"]`:            {watchword.Device, watchword.Operator},
		`["operator", "device"]`:            {watchword.Device, watchword.Operator},
		`["service", "device"]`:             {watchword.Device, watchword.Service},
		`["operator"]`:                      {watchword.Operator},
		`["service", "operator", "device"]`: all,
		`[]`:                                nil,
	} {
		for _, whom := range []string{"for = {}", `for = { site = "a" }`, `subjects = ["x"]`} {
			d := parsed(t, "p", "kinds = "+kinds+"\n"+whom+"\n[[allow]]\npublish = [\"t\"]\n")
			for _, kind := range append(all, "") {
				w := policy.Subject{ID: "x", Kind: kind, Labels: watchword.Labels{"site": "a"}}
				must := slices.Contains(want, kind)
				if got := d.AppliesTo(w); got != must {
					t.Errorf("kinds = %s, %s: applies to %q: %v", kinds, whom, kind, got)
				}
				if got := policy.NewSet(d).GrantFor(w).Publish("t").Allowed; got != must {
					t.Errorf("kinds = %s, %s: allows %q: %v", kinds, whom, kind, got)
				}
			}
		}
	}
}

// A token cannot carry constraints. A token contains an allowed call with constraints without them, and policy enforces
// them; it does not contain a denied one, since without its constraints that would deny more.
func TestBoundsAndTheClaimsOfAToken(t *testing.T) {
	g := policy.NewSet(parsed(t, "p", lines(
		"for = {}",
		"[[allow]]", `call = ["lamp.*"]`,
		"[[allow]]", `call = ["door.open"]`, "args = { angle = { maximum = 80 } }",
		"[[deny]]", `call = ["lamp.set"]`, "args = { level = { minimum = 50 } }",
		"[[deny]]", `call = ["lamp.reset"]`,
	))).GrantFor(policy.Subject{ID: "x", Kind: watchword.Service})
	resources := func(ps []watchword.Permission) (out []string) {
		for _, p := range ps {
			out = append(out, p.Resource)
		}
		return out
	}
	if got, want := resources(g.Perm()), []string{"api:/v1/self/#", "fn:*/door.open", "fn:*/lamp.*"}; !slices.Equal(got, want) {
		t.Errorf("perm: got %q, want %q", got, want)
	}
	if got, want := resources(g.Deny()), []string{"fn:*/lamp.reset"}; !slices.Equal(got, want) {
		t.Errorf("deny: got %q, want %q", got, want)
	}
	token, err := policy.FromPermissions(g.Perm(), g.Deny())
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		function, args string
		today, token   bool
	}{
		{"lamp.set", `{"level":10}`, true, true},
		{"lamp.set", `{"level":90}`, false, true},
		{"lamp.reset", `{}`, false, false},
		{"door.open", `{"angle":80}`, true, true},
		{"door.open", `{"angle":81}`, false, true},
	} {
		if got := g.Call(policy.Target{ID: "d"}, tc.function, []byte(tc.args)).Allowed; got != tc.today {
			t.Errorf("policy: %s %s: %v", tc.function, tc.args, got)
		}
		if got := token.Call(policy.Target{ID: "d"}, tc.function, []byte(tc.args)).Allowed; got != tc.token {
			t.Errorf("token: %s %s: %v", tc.function, tc.args, got)
		}
	}
}

// Arguments that are no JSON object fit no bound: an allow rule with bounds gives nothing
// for them. Without arguments there is nothing that a bound could refuse.
func TestNonObjectArgumentsMatchNoBound(t *testing.T) {
	g := policy.NewSet(parsed(t, "p", lines(
		"for = {}", "[[allow]]", `call = ["f"]`, "args = { level = { maximum = 80 } }", "[[allow]]", `call = ["free"]`,
	))).GrantFor(policy.Subject{ID: "x", Kind: watchword.Service})
	for args, want := range map[string]bool{
		"": true, "{}": true, `{"level":80}`: true, `{"other":99}`: true,
		`{"level":81}`: false, "[]": false, `[{"level":1}]`: false, "99": false, `"level"`: false, "null": false, "true": false,
		"{": false, `{"level":1`: false, `{"level":1} x`: false, "x": false, `{"level":1}{"level":99}`: false,
	} {
		for range 2 { // parsed once, asked twice
			if got := g.Call(policy.Target{ID: "d"}, "f", []byte(args)).Allowed; got != want {
				t.Errorf("%s: allowed %v, want %v", args, got, want)
			}
		}
		if !g.Call(policy.Target{ID: "d"}, "free", []byte(args)).Allowed {
			t.Errorf("%s: refused by a rule without bounds", args)
		}
	}
	e := g.Explain("call", "fn:d/f", policy.Target{ID: "d"}, []byte("[]"))
	if want := "p:2: args.level is no JSON that its bound can read"; e.Allowed || e.Nearest != want {
		t.Errorf("explained as %q, want %q", e.Nearest, want)
	}
}
