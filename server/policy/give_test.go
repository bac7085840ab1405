package policy_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// What MayNotGive, Lacks and DocumentMayNotGive decide is held against a reference that knows no filters: it tries each
// concrete act of a small world with the grants themselves. An act that a subject can do after an edit, could not do before,
// and that the giver can neither do under its may_give nor give, must be refused.

// acts is every concrete act of the world.
var acts = func() (all []act) {
	names := []string{"a", "b", "c"}
	for _, x := range names {
		for _, topic := range []string{x, x + "/a", x + "/b", x + "/a/b", "$SYS/" + x} {
			all = append(all, act{"pub " + topic, func(g *policy.Grant) bool { return g.Publish(topic).Allowed }})
			all = append(all, act{"sub " + topic, func(g *policy.Grant) bool { return g.Subscribe(topic).Allowed }})
		}
		for _, path := range []string{"/" + x, "/" + x + "/a", "/v1/" + x} {
			for _, method := range []string{"GET", "POST"} {
				all = append(all, act{method + " " + path, func(g *policy.Grant) bool { return g.Request(method, path).Allowed }})
			}
		}
		for _, site := range names {
			target := policy.Target{ID: watchword.SubjectID(x), Labels: watchword.Labels{"site": site}}
			for _, fn := range []string{"f", "f.a", "g"} {
				for _, args := range []string{`{"n":1}`, `{"n":3}`, `{}`} {
					all = append(all, act{"call " + x + " of " + site + " " + fn + args, func(g *policy.Grant) bool { return g.Call(target, fn, []byte(args)).Allowed }})
				}
			}
		}
	}
	return all
}()

type act struct {
	name    string
	allowed func(*policy.Grant) bool
}

// giver is an operator, and a grant whose allow rules are what the operator may give: so the reference reads no may_give.
type giver struct {
	grant *policy.Grant // of the operator
	may   *policy.Grant // whatever it may give, as a grant
}

// randomRules writes up to n random rules of the world.
func randomRules(r *rand.Rand, n int, deny bool) string {
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	filter := func() string {
		levels := make([]string, 1+r.IntN(3))
		for i := range levels {
			levels[i] = pick("a", "b", "c", "+", "${site}", "${id}")
		}
		if r.IntN(4) == 0 {
			levels[len(levels)-1] = "#"
		}
		if r.IntN(12) == 0 {
			levels[0] = "$SYS"
		}
		return strings.Join(levels, "/")
	}
	var out strings.Builder
	for range r.IntN(n + 1) {
		if out.WriteString("[[allow]]\n"); deny && r.IntN(3) == 0 {
			out.Reset()
			out.WriteString("[[deny]]\n")
		}
		switch r.IntN(3) {
		case 0:
			fmt.Fprintf(&out, "%s = [%q]\n", pick("publish", "subscribe"), filter())
		case 1:
			fmt.Fprintf(&out, "%s = [%q]\n", pick("get", "post"), "/"+strings.ReplaceAll(filter(), "$SYS", "v1"))
		default:
			fmt.Fprintf(&out, "call = [%q]\n", pick("f", "f.a", "g", "f*", "*"))
			switch r.IntN(4) {
			case 0:
				fmt.Fprintf(&out, "devices = [%q]\n", pick("a", "b", "${id}"))
			case 1:
				fmt.Fprintf(&out, "on = { site = %q }\n", pick("a", "b", "${site}"))
			}
			if r.IntN(3) == 0 {
				fmt.Fprintf(&out, "args = { n = { maximum = %d } }\n", 1+r.IntN(3))
			}
		}
	}
	if out.Len() == 0 {
		return "[[deny]]\nget = [\"/none\"]\n"
	}
	return out.String()
}

func randomSubject(r *rand.Rand) policy.Subject {
	s := policy.Subject{ID: watchword.SubjectID([]string{"a", "b", "c"}[r.IntN(3)]), Kind: watchword.Service, Labels: watchword.Labels{}}
	if r.IntN(4) > 0 {
		s.Labels["site"] = []string{"a", "b", "c"}[r.IntN(3)]
	}
	if r.IntN(3) > 0 {
		s.Labels["kind"] = []string{"x", "y"}[r.IntN(2)]
	}
	return s
}

// newGiver makes an operator with a custom role, whose documents allow and deny at random, with or without may_give.
func newGiver(t *testing.T, r *rand.Rand) giver {
	t.Helper()
	w := policy.Subject{ID: "boss", Kind: watchword.Operator, Role: "boss", Labels: watchword.Labels{"site": "a"}}
	rules := randomRules(r, 8, true)
	own := parsed(t, "boss", "role = \"boss\"\n"+rules)
	g := giver{grant: policy.NewSet(own).GrantFor(w)}
	g.may = g.grant // by default what it may do
	if r.IntN(2) == 0 {
		given := randomGiven(r)
		stated := parsed(t, "boss", fmt.Sprintf("role = \"boss\"\nmay_give = [%s]\n%s", "\""+strings.Join(given, "\", \"")+"\"", rules))
		g.grant = policy.NewSet(stated).GrantFor(w)
		// The same resources as allow rules, with the deny rules of the document.
		var text strings.Builder
		text.WriteString("role = \"boss\"\n")
		for _, s := range given {
			prefix, rest, _ := strings.Cut(s, ":")
			switch prefix {
			case "topic":
				fmt.Fprintf(&text, "[[allow]]\npublish = [%q]\nsubscribe = [%q]\n", rest, rest)
			case "api":
				fmt.Fprintf(&text, "[[allow]]\nget = [%q]\npost = [%q]\n", rest, rest)
			default:
				device, fn, _ := strings.Cut(rest, "/")
				if fmt.Fprintf(&text, "[[allow]]\ncall = [%q]\n", fn); strings.HasPrefix(device, "site=") {
					fmt.Fprintf(&text, "on = { site = %q }\n", strings.TrimPrefix(device, "site="))
				} else if device != "*" {
					fmt.Fprintf(&text, "devices = [%q]\n", device)
				}
			}
		}
		for _, block := range strings.Split(rules, "[[")[1:] {
			if strings.HasPrefix(block, "deny") {
				text.WriteString("[[" + block)
			}
		}
		g.may = policy.NewSet(parsed(t, "boss", text.String())).GrantFor(w)
	}
	return g
}

func randomGiven(r *rand.Rand) []string {
	all := []string{"topic:#", "topic:a/#", "topic:+/a", "topic:$SYS/#", "fn:*/*", "fn:*/f*", "fn:a/f", "fn:site=a/*", "api:/#", "api:/a/#", "api:/v1/+"}
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:1+r.IntN(5)]
}

// gained returns what after allows and before does not.
func gained(before, after *policy.Grant) (out []act) {
	for _, a := range acts {
		if a.allowed(after) && (before == nil || !a.allowed(before)) {
			out = append(out, a)
		}
	}
	return out
}

func TestNothingIsGivenThatTheGiverMayNotGive(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 19))
	refused, passed := 0, 0
	for range 2500 {
		g := newGiver(t, r)
		doc := func(name string) *policy.Document {
			return parsed(t, name, "for = { kind = \""+[]string{"x", "y"}[r.IntN(2)]+"\" }\n"+randomRules(r, 3, true))
		}
		set := policy.NewSet(doc("p"), doc("q"))
		w := randomSubject(r)
		before := set.GrantFor(w)
		if r.IntN(3) == 0 {
			before = nil
		}
		w.Labels = randomSubject(r).Labels
		after := set.GrantFor(w)
		p, over := g.grant.MayNotGive(before, after)
		if over {
			refused++
			if p.Check() != nil {
				t.Fatalf("the permission is %v", p)
			}
			continue
		}
		passed++
		for _, a := range gained(before, after) {
			if !a.allowed(g.may) {
				t.Fatalf("passes %q, which the giver may not give: gives %v, denied %v; after %v denied %v", a.name, g.may.Perm(), g.may.Deny(), after.Perm(), after.Deny())
			}
		}
	}
	if refused < 300 || passed < 300 {
		t.Errorf("%d refused, %d passed: the worlds show nothing", refused, passed)
	}
}

// The same for an edit of a document, over subjects with all labels of the world, whether they exist or not.
func TestNoDocumentGivesWhatItsWriterMayNotGive(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 19))
	var subjects []policy.Subject
	for range 200 {
		subjects = append(subjects, randomSubject(r))
	}
	refused, passed := 0, 0
	for range 2500 {
		g := newGiver(t, r)
		whom := []string{"for = {}\n", "for = { kind = \"x\" }\n", "for = { kind = \"x\", site = \"a\" }\n", "subjects = [\"a\"]\n", "subjects = [\"a\", \"b\"]\n", "for = {}\nkinds = [\"device\"]\n"}
		selector, rules := whom[r.IntN(len(whom))], randomRules(r, 4, true)
		var before, after *policy.Document
		if r.IntN(4) > 0 {
			before = parsed(t, "p", selector+rules)
		}
		switch r.IntN(5) {
		case 0: // deleted
		case 1: // another selector
			after = parsed(t, "p", whom[r.IntN(len(whom))]+rules)
		case 2: // more rules
			after = parsed(t, "p", selector+rules+randomRules(r, 1, true))
		case 3: // other rules
			after = parsed(t, "p", selector+randomRules(r, 2, true))
		default: // fewer rules
			blocks := strings.Split(rules, "[[")[1:]
			i := r.IntN(len(blocks))
			if rest := slices.Delete(slices.Clone(blocks), i, i+1); len(rest) > 0 {
				after = parsed(t, "p", selector+"[["+strings.Join(rest, "[["))
			}
		}
		if before == nil && after == nil {
			continue
		}
		other := parsed(t, "other", "for = {}\n"+randomRules(r, 3, false))
		if _, over := g.grant.DocumentMayNotGive(before, after); over {
			refused++
			continue
		}
		passed++
		with := func(d *policy.Document) *policy.Set {
			if d == nil {
				return policy.NewSet(other)
			}
			return policy.NewSet(other, d)
		}
		was, is := with(before), with(after)
		for _, w := range subjects {
			for _, a := range gained(was.GrantFor(w), is.GrantFor(w)) {
				if !a.allowed(g.may) {
					t.Fatalf("%s gains %q, which the writer may not give: gives %v, denied %v; before %+v, after %+v", w.ID, a.name, g.may.Perm(), g.may.Deny(), was.GrantFor(w).Perm(), is.GrantFor(w).Perm())
				}
			}
		}
	}
	if refused < 300 || passed < 100 {
		t.Errorf("%d refused, %d passed: the worlds show nothing", refused, passed)
	}
}

// A subject that lacks nothing of another can do, or give, everything that the other can do.
func TestWhoLacksNothingHasEverything(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 19))
	lacking, having := 0, 0
	for range 2500 {
		g, other := newGiver(t, r), newGiver(t, r)
		if r.IntN(3) == 0 {
			other.grant = policy.NewSet(parsed(t, "boss", "role = \"boss\"\n"+randomRules(r, 1, true))).GrantFor(policy.Subject{ID: "boss", Kind: watchword.Operator, Role: "boss"})
		}
		if _, lacks := g.grant.Lacks(other.grant); lacks {
			lacking++
			continue
		}
		having++
		for _, a := range acts {
			if a.allowed(other.grant) && !a.allowed(g.grant) && !a.allowed(g.may) {
				t.Fatalf("lacks %q: %v denied %v, gives %v; the other %v", a.name, g.grant.Perm(), g.grant.Deny(), g.may.Perm(), other.grant.Perm())
			}
		}
	}
	if lacking < 300 || having < 100 {
		t.Errorf("%d lack, %d have: the worlds show nothing", lacking, having)
	}
}

// The cases that a world of concrete acts does not show: proofs, roles, what may be given, and the built-in roles.
func TestWhatADocumentGives(t *testing.T) {
	const rule = "[[allow]]\npublish = [\"a/x\"]\n"
	doc := func(text string) *policy.Document {
		if text == "" {
			return nil
		}
		return parsed(t, "p", text)
	}
	boss := "role = \"boss\"\n"
	for _, tc := range []struct {
		name, giver, before, after, want string // want is the resource that may not be given; "" for none
	}{
		{"what one may do, one may give", "[[allow]]\npublish = [\"a/#\"]", "", "for = {}\n" + rule, ""},
		{"one action is not the other", "[[allow]]\nsubscribe = [\"a/#\"]", "", "for = {}\n" + rule, "topic:a/x"},
		{"an empty may_give is nothing", "may_give = []\n[[allow]]\npublish = [\"a/#\"]", "", "for = {}\n" + rule, "topic:a/x"},
		{"may_give without the right to do it", "may_give = [\"topic:a/#\"]", "", "for = {}\n" + rule, ""},
		{"may_give with a variable", "may_give = [\"topic:a/#\"]", "", "for = {}\n[[allow]]\npublish = [\"a/${site}\"]", ""},
		{"a variable is any level", "may_give = [\"topic:a/x\"]", "", "for = {}\n[[allow]]\npublish = [\"a/${site}\"]", "topic:a/+"},
		{"a variable inside a level", "may_give = [\"topic:a/x\"]", "", "for = {}\n[[allow]]\npublish = [\"a/x${site}\"]", "topic:a/+"},
		{"another variable is another rule", "may_give = [\"topic:a/x\"]", "for = {}\n[[allow]]\npublish = [\"a/${site}\"]", "for = {}\n[[allow]]\npublish = [\"a/${room}\"]", "topic:a/+"},
		{"the same variable is the same rule", "may_give = [\"topic:a/x\"]", "for = {}\n[[allow]]\npublish = [\"a/${site}\", \"b\"]", "for = {}\n[[allow]]\npublish = [\"a/${site}\"]", ""},
		{"a deny rule with a variable may deny nothing", "may_give = [\"topic:a/#\"]\n[[deny]]\npublish = [\"a/x\"]", "", "for = {}\n[[allow]]\npublish = [\"a/#\"]\n[[deny]]\npublish = [\"a/${site}\"]", "topic:a/#"},
		{"a deny rule that covers the writer's", "may_give = [\"topic:a/#\"]\n[[deny]]\npublish = [\"a/x\"]", "", "for = {}\n[[allow]]\npublish = [\"a/#\"]\n[[deny]]\npublish = [\"a/+\"]", ""},
		{"a deny rule with a variable that goes, where the writer denies a value of it", "may_give = [\"topic:#\"]\n[[deny]]\npublish = [\"a/x\"]", "for = {}\n" + rule + "[[deny]]\npublish = [\"a/${site}\"]", "for = {}\n" + rule, "topic:a/+"},
		{"a selector with a variable is any device", "may_give = [\"fn:site=a/*\"]", "", "for = {}\n[[allow]]\ncall = [\"f\"]\non = { site = \"${site}\" }", "fn:*/f"},
		{"a selector with more labels", "may_give = [\"fn:site=a/*\"]", "", "for = {}\n[[allow]]\ncall = [\"f\"]\non = { site = \"a\", kind = \"${kind}\" }", ""},
		{"a writer who may not call one kind", "may_give = [\"fn:*/*\"]\n[[deny]]\ncall = [\"f\"]\non = { kind = \"x\" }", "", "for = {}\n[[allow]]\ncall = [\"f\"]\non = { site = \"a\" }", "fn:site=a/f"},
		{"another value of that label", "may_give = [\"fn:*/*\"]\n[[deny]]\ncall = [\"f\"]\non = { kind = \"x\" }", "", "for = {}\n[[allow]]\ncall = [\"f\"]\non = { kind = \"y\" }", ""},
		{"a prefix that a denied prefix extends", "may_give = [\"fn:*/*\"]\n[[deny]]\ncall = [\"lamp.s*\"]", "", "for = {}\n[[allow]]\ncall = [\"lamp.*\"]", "fn:*/lamp.*"},
		{"a prefix that extends a denied prefix", "may_give = [\"fn:*/*\"]\n[[deny]]\ncall = [\"lamp.*\"]", "", "for = {}\n[[allow]]\ncall = [\"lamp.s*\"]", "fn:*/lamp.s*"},
		{"ids that have the label", "may_give = []", "for = { kind = \"lamp\" }\n" + rule, "subjects = [\"a\", \"b\"]\n" + rule, "topic:a/x"},
		{"a proof that is not required any more", "may_give = [\"topic:#\", \"fn:*/*\", \"api:/v1/self/#\"]", "for = {}\nproof = \"required\"", "", "api:/#"},
		{"a proof that fewer need", "may_give = [\"topic:#\", \"fn:*/*\", \"api:/v1/self/#\"]", "for = {}\nproof = \"required\"", "for = { kind = \"lamp\" }\nproof = \"required\"", "api:/#"},
		{"a proof that more need", "may_give = []", "for = { kind = \"lamp\" }\nproof = \"required\"", "for = {}\nproof = \"required\"", ""},
		{"a proof that more need, and who may give everything", "may_give = [\"topic:#\", \"fn:*/*\", \"api:/#\"]", "for = {}\nproof = \"required\"", "", ""},
		{"may_give itself is given", "may_give = [\"topic:a/#\"]", "", "role = \"r\"\nmay_give = [\"topic:b/#\"]", "topic:b/#"},
		{"and may be given by who may give it", "may_give = [\"topic:a/#\"]", "", "role = \"r\"\nmay_give = [\"topic:a/x\"]", ""},
		{"may_give that was there stays", "may_give = []", "role = \"r\"\nmay_give = [\"topic:b/#\", \"topic:c\"]", "role = \"r\"\nmay_give = [\"topic:b/#\"]", ""},
		{"another role", "may_give = []", "role = \"r\"\n" + rule, "role = \"s\"\n" + rule, "topic:a/x"},
		{"a role that becomes all subjects", "may_give = []", "role = \"r\"\n" + rule, "for = {}\n" + rule, "topic:a/x"},
		{"a kind more", "may_give = []", "for = {}\nkinds = [\"device\"]\n" + rule, "for = {}\nkinds = [\"device\", \"service\"]\n" + rule, "topic:a/x"},
		{"a kind fewer", "may_give = []", "for = {}\nkinds = [\"device\", \"service\"]\n" + rule, "for = {}\nkinds = [\"device\"]\n" + rule, ""},
		{"ids in place of a label", "may_give = []", "for = { kind = \"lamp\" }\n" + rule, "subjects = [\"lamp-1\"]\n" + rule, "topic:a/x"},
		{"ids in place of all subjects", "may_give = []", "for = {}\n" + rule, "subjects = [\"lamp-1\"]\n" + rule, ""},
		{"a label in place of ids", "may_give = []", "subjects = [\"lamp-1\"]\n" + rule, "for = { kind = \"lamp\" }\n" + rule, "topic:a/x"},
		{"a deny rule that fewer have", "may_give = []", "for = {}\n[[deny]]\npublish = [\"b\"]", "for = { kind = \"lamp\" }\n[[deny]]\npublish = [\"b\"]", "topic:b"},
		{"the same bound", "[[allow]]\ncall = [\"f\"]\nargs = { n = { maximum = 3 } }", "", "for = {}\n[[allow]]\ncall = [\"f\"]\nargs = { n = { maximum = 3 } }", ""},
		{"a bound of another argument", "[[allow]]\ncall = [\"f\"]\nargs = { n = { maximum = 3 } }", "", "for = {}\n[[allow]]\ncall = [\"f\"]\nargs = { m = { maximum = 3 } }", "fn:*/f"},
		{"one bound more", "[[allow]]\ncall = [\"f\"]\nargs = { n = { maximum = 3 } }", "", "for = {}\n[[allow]]\ncall = [\"f\"]\nargs = { n = { maximum = 3 }, m = { maximum = 1 } }", ""},
		{"a deny rule with a bound goes, its complement may be given", "[[allow]]\ncall = [\"f\"]\nargs = { n = { enum = [1] } }", "for = {}\n[[allow]]\npublish = [\"b\"]\n[[deny]]\ncall = [\"f\"]\nargs = { n = { enum = [1] } }", "for = {}\n[[allow]]\npublish = [\"b\"]", "fn:*/f"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := policy.NewSet(parsed(t, "boss", boss+tc.giver)).GrantFor(policy.Subject{ID: "boss", Kind: watchword.Operator, Role: "boss"})
			p, _ := g.DocumentMayNotGive(doc(tc.before), doc(tc.after))
			if p.Resource != tc.want {
				t.Errorf("got %q, want %q", p.Resource, tc.want)
			}
		})
	}
}

// What a subject may give counts as what it has: it may not be given by a subject without it, and a subject with less may
// not act on it.
func TestMayGiveCounts(t *testing.T) {
	set := policy.NewSet(
		parsed(t, "plain", "role = \"plain\"\nmay_give = []\n[[allow]]\npublish = [\"a\"]\n"),
		parsed(t, "giver", "role = \"giver\"\nmay_give = [\"topic:b\"]\n[[allow]]\npublish = [\"a\"]\n"),
		parsed(t, "maker", "role = \"maker\"\nmay_give = [\"topic:a\"]\n"))
	role := func(name string) *policy.Grant {
		return set.GrantFor(policy.Subject{ID: "x", Kind: watchword.Operator, Role: name})
	}
	if p, over := role("maker").MayNotGive(nil, role("plain")); over {
		t.Errorf("what may be given gives %v", p)
	}
	if p, over := role("maker").MayNotGive(nil, role("giver")); !over || p.Resource != "topic:b" {
		t.Errorf("the right to give topic:b: got %v, %v", p, over)
	}
	if p, lacks := role("plain").Lacks(role("giver")); !lacks || p.Resource != "topic:b" {
		t.Errorf("who may not give topic:b lacks %v, %v", p, lacks)
	}
	if p, lacks := role("giver").Lacks(role("plain")); lacks {
		t.Errorf("who has more lacks %v", p)
	}
	for _, w := range []policy.Subject{
		{ID: "x", Kind: watchword.Operator, Role: "other"},
		{ID: "x", Kind: watchword.Operator},
		{ID: "plain", Kind: watchword.Operator, Labels: watchword.Labels{"role": "plain"}},
		{ID: "x", Kind: watchword.Device, Role: "plain"},
		{ID: "x", Kind: watchword.Service, Role: "plain"},
	} {
		if d := set.GrantFor(w).Publish("a"); d.Allowed {
			t.Errorf("%+v has the role's permissions", w)
		}
		if d, _ := set.Document("plain"); d.AppliesTo(w) {
			t.Errorf("the role's document applies to %+v", w)
		}
	}
	if !set.HasRole("plain") || !set.HasRole("auditor") || set.HasRole("other") {
		t.Error("HasRole does not tell documents' and built-in roles from others")
	}
}

// Owners and admins give topics that start with $, which # does not match; a subject that gives # does not.
func TestTopicsThatStartWithADollarSign(t *testing.T) {
	stats := parsed(t, "stats", "for = {}\n[[allow]]\npublish = [\"$stats/#\"]\n")
	set := policy.NewSet(parsed(t, "boss", "role = \"boss\"\nmay_give = [\"topic:#\", \"fn:*/*\", \"api:/#\"]\n"))
	for role, may := range map[string]bool{"owner": true, "admin": true, "operator": false, "boss": false} {
		g := set.GrantFor(policy.Subject{ID: "x", Kind: watchword.Operator, Role: role})
		if p, over := g.DocumentMayNotGive(nil, stats); over == may {
			t.Errorf("%s: may not give %v: %v", role, p, over)
		}
	}
	boss, admin := set.GrantFor(policy.Subject{ID: "x", Kind: watchword.Operator, Role: "boss"}), set.GrantFor(policy.Subject{ID: "x", Kind: watchword.Operator, Role: "admin"})
	if p, over := boss.MayNotGive(nil, admin); !over || p.Resource != "topic:#" {
		t.Errorf("who gives no $ topics makes one who does: %v, %v", p, over)
	}
	if p, lacks := boss.Lacks(admin); !lacks || p.Resource != "topic:#" {
		t.Errorf("who gives no $ topics lacks nothing of one who does: %v, %v", p, lacks)
	}
}

// A requirement of a proof is part of a subject's authority: losing it gives everything that the subject has without.
func TestLosingAProofGivesEverything(t *testing.T) {
	proof := parsed(t, "proof", "for = { site = \"a\" }\nproof = \"required\"\n")
	lux := parsed(t, "lux", "for = {}\n[[allow]]\npublish = [\"lux\"]\n")
	set := policy.NewSet(proof, lux)
	w := policy.Subject{ID: "lamp-1", Kind: watchword.Device, Labels: watchword.Labels{"site": "a"}}
	before := set.GrantFor(w)
	w.Labels = nil
	none := policy.NewSet().GrantFor(policy.Subject{ID: "x", Kind: watchword.Operator, Role: policy.RoleOperator})
	if p, over := none.MayNotGive(before, set.GrantFor(w)); !over || p.Resource != "topic:lux" {
		t.Errorf("got %v, %v", p, over)
	}
	if p, over := none.MayNotGive(before, before); over {
		t.Errorf("what stays as it is gives %v", p)
	}
}

// Which subjects may act on which, and create which, by built-in roles.
func TestBuiltInRolesGiveAndLack(t *testing.T) {
	grants := map[string]*policy.Grant{"device": policy.NewSet(parsed(t, "lamps", "for = {}\nkinds = [\"device\"]\n[[allow]]\npublish = [\"plant/${id}\"]\ncall = [\"*\"]\n")).GrantFor(policy.Subject{ID: "lamp-1", Kind: watchword.Device})}
	order := append(slices.Clone(policy.BuiltInRoles), "device")
	for _, role := range policy.BuiltInRoles {
		grants[role] = policy.NewSet().GrantFor(policy.Subject{ID: "x", Kind: watchword.Operator, Role: role})
	}
	for _, tc := range []struct{ who, gives, reaches string }{
		{"owner", "owner admin operator viewer auditor device", "owner admin operator viewer auditor device"},
		{"admin", "device", "admin operator viewer auditor device"},
		{"operator", "", "operator viewer"},
		{"viewer", "", "viewer"},
		{"auditor", "", "auditor"},
		{"device", "", "device"},
	} {
		var gives, reaches []string
		for _, whom := range order {
			if _, over := grants[tc.who].MayNotGive(nil, grants[whom]); !over {
				gives = append(gives, whom)
			}
			if _, lacks := grants[tc.who].Lacks(grants[whom]); !lacks {
				reaches = append(reaches, whom)
			}
		}
		if got := strings.Join(gives, " "); tc.who != "device" && got != tc.gives {
			t.Errorf("%s may make %q, want %q", tc.who, got, tc.gives)
		}
		if got := strings.Join(reaches, " "); got != tc.reaches {
			t.Errorf("%s may act on %q, want %q", tc.who, got, tc.reaches)
		}
	}
}
