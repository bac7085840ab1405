package policy_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
	"github.com/watchword-iot/watchword/server/policy"
)

// diffActs is a world of concrete acts that shows each difference of randomRules: with names that no rule has, one level more than
// a rule has, and subscriptions to filters.
var diffActs = func() (all []diffAct) {
	names := []string{"a", "b", "c", "z", "$SYS", "v1"}
	last := []string{""}
	for range 4 {
		var next []string
		for _, l := range last {
			for _, n := range names {
				if l == "" || n != "$SYS" && n != "v1" {
					next = append(next, strings.TrimPrefix(l+"/"+n, "/"))
				}
			}
		}
		last = next
		for _, topic := range next {
			all = append(all, diffAct{"pub", "topic:" + topic, policy.Target{}, nil}, diffAct{"sub", "topic:" + topic, policy.Target{}, nil},
				diffAct{"get", "api:/" + topic, policy.Target{}, nil}, diffAct{"post", "api:/" + topic, policy.Target{}, nil})
		}
	}
	for _, path := range []string{"/none", "/v1/self", "/v1/self/a", "/v1/self/z", "/v1/self/z/a", "/v1/self/z/z"} {
		all = append(all, diffAct{"get", "api:" + path, policy.Target{}, nil}, diffAct{"post", "api:" + path, policy.Target{}, nil})
	}
	for _, f := range every([]string{"a", "b", "+", "#", "$SYS"}, 3, func(s string) bool { return policy.CheckFilter(s) == nil && strings.ContainsAny(s, "+#") }) {
		all = append(all, diffAct{"sub", "topic:" + f, policy.Target{}, nil})
	}
	for _, id := range []string{"a", "b", "c", "z"} {
		for _, labels := range []watchword.Labels{nil, {"site": "a"}, {"site": "b"}, {"site": "c"}, {"site": "z"}} {
			for _, fn := range []string{"f", "f.a", "f.z", "fz", "g", "z"} {
				for _, args := range []string{`{"n":1}`, `{"n":2}`, `{"n":3}`, `{"n":4}`, `{}`} {
					all = append(all, diffAct{"call", "fn:" + id + "/" + fn, policy.Target{ID: watchword.SubjectID(id), Labels: labels}, []byte(args)})
				}
			}
		}
	}
	return all
}()

type diffAct struct {
	action, resource string
	target           policy.Target
	args             []byte
}

func (a *diffAct) allowed(g *policy.Grant) bool {
	_, rest, _ := strings.Cut(a.resource, ":")
	switch a.action {
	case "pub":
		return g.Publish(rest).Allowed
	case "sub":
		return g.Subscribe(rest).Allowed
	case "call":
		_, fn, _ := strings.Cut(rest, "/")
		return g.Call(a.target, fn, a.args).Allowed
	default:
		return g.Request(a.action, rest).Allowed
	}
}

// fill replaces the variables of a listed resource as the test's documents use them.
func fill(s string, w policy.Subject) string {
	return strings.NewReplacer("${id}", string(w.ID), "${site}", w.Labels["site"]).Replace(s)
}

// within reports whether the act is one of the item's; bounds on arguments are not looked at.
func (a *diffAct) within(t *testing.T, item policy.Item, w policy.Subject) bool {
	if !slices.Contains(item.Actions, a.action) {
		return false
	}
	resource := fill(item.Resource, w)
	if f, ok := strings.CutPrefix(resource, "topic:"); ok { // also topics that start with $
		inner, ok := strings.CutPrefix(a.resource, "topic:")
		return ok && authz.Intersects(f, inner)
	}
	g, err := policy.FromPermissions([]watchword.Permission{{Resource: resource, Actions: item.Actions}}, nil)
	if err != nil {
		t.Fatalf("%s: %v", resource, err)
	}
	return a.allowed(g)
}

// Every decision that an edit changes is in the difference, for the side that it changes to, and each item of the difference has
// such a decision, over random documents and a slow reference.
func TestADifferenceIsWhatDecisionsSay(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 19))
	changed, equal, checked := 0, 0, 0
	for range 700 {
		rules := randomRules(r, 4, true)
		after := rules
		switch r.IntN(4) {
		case 0:
			after = randomRules(r, 4, true)
		case 1:
			after = rules + randomRules(r, 2, true)
		case 2:
			blocks := strings.Split(rules, "[[")[1:]
			i := r.IntN(len(blocks))
			if rest := slices.Delete(slices.Clone(blocks), i, i+1); len(rest) > 0 {
				after = "[[" + strings.Join(rest, "[[")
			}
		default: // one rule is replaced by another one
			blocks := strings.Split(rules, "[[")[1:]
			blocks[r.IntN(len(blocks))] = strings.TrimPrefix(randomRules(r, 1, true), "[[")
			after = "[[" + strings.Join(blocks, "[[")
		}
		others := randomRules(r, 2, true)
		other := parsed(t, "other", "for = {}\n"+others)
		before, now := policy.NewSet(other, parsed(t, "p", "for = { kind = \"x\" }\n"+rules)), policy.NewSet(other, parsed(t, "p", "for = { kind = \"x\" }\n"+after))
		w := randomSubject(r)
		w.Labels["kind"] = "x"
		was, is := before.GrantFor(w), now.GrantFor(w)
		d := policy.Compare(before, now, w, was, is)
		if d.IsZero() {
			equal++
		} else {
			changed++
		}
		if policy.Narrows(was, is) != (len(d.Lost) > 0) {
			t.Fatalf("Narrows says %v, and lost is %v", policy.Narrows(was, is), d.Lost)
		}
		show := func() string {
			return fmt.Sprintf("subject %+v\nother:\n%s\nbefore:\n%s\nafter:\n%s\ndifference %+v", w, others, rules, after, d)
		}
		shown := map[*policy.Item]bool{}
		for i := range diffActs {
			a := &diffActs[i]
			old, new := a.allowed(was), a.allowed(is)
			if old == new {
				continue
			}
			list := d.Gained
			if old {
				list = d.Lost
			}
			listed := false
			for k := range list {
				if a.within(t, list[k], w) {
					listed, shown[&list[k]] = true, true
				}
			}
			if !listed {
				t.Fatalf("%s %s %+v %s changes from %v to %v, and is not listed\n%s", a.action, a.resource, a.target, a.args, old, new, show())
			}
		}
		bounds := strings.Contains(others+rules+after, "args")
		for _, list := range [][]policy.Item{d.Gained, d.Lost} {
			for i := range list {
				if bounds && strings.HasPrefix(list[i].Resource, "fn:") {
					continue // several bounds together are not compared
				}
				if slices.Contains(list[i].Actions, "sub") && strings.HasSuffix(list[i].Resource, "#") {
					continue // nor are several rules for one subscription
				}
				if checked++; !shown[&list[i]] {
					t.Fatalf("%+v is listed, and no decision changes\n%s", list[i], show())
				}
			}
		}
	}
	if changed < 300 || equal < 50 || checked < 300 {
		t.Errorf("%d differ, %d do not, %d items checked: the worlds show nothing", changed, equal, checked)
	}
}

func TestHowADifferenceIsListed(t *testing.T) {
	const lux = "[[allow]]\npublish = [\"plant/${site}/lux\"]\n"
	for _, tc := range []struct {
		name, before, after, other string // documents for = {} but for the selector; other is in force before and after
		want                       string
	}{
		{"nothing", lux, lux, "", ""},
		{"another order of the rules", lux + "[[allow]]\npublish = [\"a\"]\n", "[[allow]]\npublish = [\"a\"]\n" + lux, "", ""},
		{"variables are not filled", "", lux, "", "+pub topic:plant/${site}/lux p:2"},
		{"two actions of one rule are one item", "", "[[allow]]\npublish = [\"a\"]\nsubscribe = [\"a\"]\n", "", "+pub,sub topic:a p:2"},
		{"a variable whose label is missing", "", "[[allow]]\npublish = [\"a/${room}\"]\n", "", ""},
		{"a narrower filter", "[[allow]]\npublish = [\"a/#\"]\n", "[[allow]]\npublish = [\"a/b\"]\n", "", "-pub topic:a/# p:2"},
		{"what another policy gives too", "", lux, "[[allow]]\npublish = [\"plant/#\"]\n", ""},
		{"a variable and its value are the same", "[[allow]]\npublish = [\"plant/plant-1/lux\"]\n", lux, "", ""},
		{"filters that cover one together", "[[allow]]\npublish = [\"a/#\"]\n", "[[allow]]\npublish = [\"a\", \"a/+/#\"]\n", "", ""},
		{"a filter that is allowed except for what was denied before", "[[allow]]\npublish = [\"a/#\"]\n[[deny]]\npublish = [\"a\"]\n", "[[allow]]\npublish = [\"a/+/#\"]\n", "", ""},
		{"a subscription that was denied", "[[allow]]\nsubscribe = [\"a\"]\n[[deny]]\nsubscribe = [\"a\"]\n", "[[allow]]\nsubscribe = [\"b\"]\n[[deny]]\nsubscribe = [\"b\"]\n", "", ""},
		{"which is not the same for a subscription", "[[allow]]\nsubscribe = [\"a/#\"]\n", "[[allow]]\nsubscribe = [\"a\", \"a/+/#\"]\n", "", "-sub topic:a/# p:2"},
		{"a deny rule takes what both rules match", "[[allow]]\npublish = [\"plant/${site}/#\"]\n", "[[allow]]\npublish = [\"plant/${site}/#\"]\n[[deny]]\npublish = [\"plant/+/secret/${id}\"]\n", "", "-pub topic:plant/${site}/secret/${id} p:2 p:4"},
		{"a deny rule that goes gives it back", "[[deny]]\npublish = [\"a/b\"]\n", "[[deny]]\npublish = [\"c\"]\n", "[[allow]]\npublish = [\"a/#\"]\n", "+pub topic:a/b other:2 p:2"},
		{"a deny rule on what is not allowed", "", "[[deny]]\npublish = [\"a/b\"]\n", "", ""},
		{"a lower limit", "[[allow]]\ncall = [\"f\"]\nargs = { n = { maximum = 80 } }\n", "[[allow]]\ncall = [\"f\"]\nargs = { n = { maximum = 60 } }\n", "", `-call fn:*/f n={"maximum":80,"type":"number"} p:2`},
		{"a higher limit", "[[allow]]\ncall = [\"f\"]\nargs = { n = { minimum = 2 } }\n", "[[allow]]\ncall = [\"f\"]\nargs = { n = { minimum = -1.5 } }\n", "", `+call fn:*/f n={"minimum":-1.5,"type":"number"} p:2`},
		{"one limit more", "[[allow]]\ncall = [\"f\"]\nargs = { n = { maximum = 80 } }\n", "[[allow]]\ncall = [\"f\"]\nargs = { n = { maximum = 80, minimum = 1 } }\n", "", `-call fn:*/f n={"maximum":80,"type":"number"} p:2`},
		{"a value less", "[[allow]]\ncall = [\"f\"]\nargs = { n = { enum = [1, 2] } }\n", "[[allow]]\ncall = [\"f\"]\nargs = { n = { enum = [2] } }\n", "", `-call fn:*/f n={"enum":[1,2]} p:2`},
		{"a value within a limit", "[[allow]]\ncall = [\"f\"]\nargs = { n = { maximum = 80 } }\n", "[[allow]]\ncall = [\"f\"]\nargs = { n = { maximum = 80 } }\n[[allow]]\ncall = [\"f\"]\nargs = { n = { enum = [3] } }\n", "", ""},
		{"a value outside a limit", "[[allow]]\ncall = [\"f\"]\nargs = { n = { maximum = 80 } }\n", "[[allow]]\ncall = [\"f\"]\nargs = { n = { maximum = 80 } }\n[[allow]]\ncall = [\"f\"]\nargs = { n = { enum = [90] } }\n", "", `+call fn:*/f n={"enum":[90]} p:5`},
		{"a long bound", "", "[[allow]]\ncall = [\"f\"]\nargs = { n = { enum = [\"" + strings.Repeat("x", 600) + "\"] } }\n", "", `+call fn:*/f n="(longer than 512 bytes)" p:2`},
		{"a deny rule with a bound", "[[allow]]\ncall = [\"f*\"]\non = { site = \"${site}\" }\n", "[[allow]]\ncall = [\"f*\"]\non = { site = \"${site}\" }\n[[deny]]\ncall = [\"f.x\"]\nargs = { n = { maximum = 1 } }\n", "", `-call fn:site=${site}/f.x n={"maximum":1} p:2 p:5`},
		{"a deny rule for one device", "[[allow]]\ncall = [\"f\"]\n", "[[allow]]\ncall = [\"f\"]\n[[deny]]\ncall = [\"*\"]\ndevices = [\"${id}\"]\n", "", "-call fn:${id}/f p:2 p:4"},
		{"what may be given alone", "[[allow]]\npublish = [\"a\"]\n", "may_give = []\n[[allow]]\npublish = [\"a\"]\n", "", "gives -pub topic:a p:2"},
		{"what may be given besides", lux, "may_give = [\"topic:b/#\", \"topic:plant/#\"]\n" + lux, "", "gives +pub,sub topic:b/# p:2; gives +pub,sub topic:plant/# p:2"},
		{"a proof", "[[allow]]\npublish = [\"a\"]\n", "proof = \"required\"\n[[allow]]\npublish = [\"a\"]\n", "", "proof false true"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			set := func(text string) *policy.Set {
				var docs []*policy.Document
				for name, rules := range map[string]string{"p": text, "other": tc.other} {
					if rules != "" {
						docs = append(docs, parsed(t, name, "for = {} \n"+rules))
					}
				}
				return policy.NewSet(docs...)
			}
			before, after := set(tc.before), set(tc.after)
			w := policy.Subject{ID: "lamp-1", Kind: watchword.Service, Labels: watchword.Labels{"site": "plant-1"}}
			d := policy.Compare(before, after, w, before.GrantFor(w), after.GrantFor(w))
			var got []string
			list := func(sign string, items []policy.Item) {
				for _, i := range items {
					line := []string{sign + strings.Join(i.Actions, ","), i.Resource}
					for k, v := range i.Args {
						line = append(line, k+"="+string(v))
					}
					if line = append(line, i.Rule); i.Deny != "" {
						line = append(line, i.Deny)
					}
					got = append(got, strings.Join(line, " "))
				}
			}
			list("+", d.Gained)
			list("-", d.Lost)
			list("gives +", d.GivesMore)
			list("gives -", d.GivesLess)
			if d.ProofBefore != d.ProofAfter {
				got = append(got, fmt.Sprint("proof ", d.ProofBefore, " ", d.ProofAfter))
			}
			if strings.Join(got, "; ") != tc.want {
				t.Errorf("got  %s\nwant %s", strings.Join(got, "; "), tc.want)
			}
		})
	}
}

// A list is cut, and says so.
func TestADifferenceIsCut(t *testing.T) {
	var many, long strings.Builder
	for i := range 300 {
		fmt.Fprintf(&many, "\"m/%d\",", i)
	}
	for i := range 140 {
		fmt.Fprintf(&long, "\"l/%s/%d\",", strings.Repeat("x", 400), i)
	}
	w := policy.Subject{ID: "lamp-1", Kind: watchword.Device}
	for name, text := range map[string]string{"many": many.String(), "long": long.String()} {
		before, after := policy.NewSet(), policy.NewSet(parsed(t, "p", "for = {}\n[[allow]]\npublish = ["+text+"]\n"))
		d := policy.Compare(before, after, w, before.GrantFor(w), after.GrantFor(w))
		bytes := 0
		for _, i := range d.Gained {
			bytes += len(i.Resource)
		}
		if !d.Cut || len(d.Gained) > policy.MaxItems || bytes > policy.MaxItemBytes || name == "many" && len(d.Gained) != policy.MaxItems || name == "long" && bytes < policy.MaxItemBytes/2 {
			t.Errorf("%s: %d items of %d bytes, cut %v", name, len(d.Gained), bytes, d.Cut)
		}
	}
}

// A session gains and loses the part that its token has.
func TestWhatATokenHasOfADifference(t *testing.T) {
	set := func(text string) *policy.Set { return policy.NewSet(parsed(t, "p", "for = {}\n"+text)) }
	before := set("[[allow]]\npublish = [\"lost/#\"]\nsubscribe = [\"lost/#\"]\nget = [\"/lost\"]\n[[allow]]\ncall = [\"lost.*\"]\non = { site = \"a\" }\n")
	after := set("[[allow]]\npublish = [\"gained\"]\n")
	w := policy.Subject{ID: "lamp-1", Kind: watchword.Service}
	d := policy.Compare(before, after, w, before.GrantFor(w), after.GrantFor(w))
	perm := func(resource string, actions ...string) []watchword.Permission {
		return []watchword.Permission{{Resource: resource, Actions: actions}}
	}
	for _, tc := range []struct {
		name         string
		perm, deny   []watchword.Permission
		gains, loses bool
	}{
		{"all topics", perm("topic:#", "pub"), nil, true, true},
		{"one of the topics", perm("topic:lost/a", "pub"), nil, false, true},
		{"another action", perm("topic:gained", "sub"), nil, false, false},
		{"denied by the token", perm("topic:#", "pub"), perm("topic:lost/#", "pub"), true, false},
		{"a part is denied", perm("topic:#", "pub"), perm("topic:lost/+", "pub"), true, true},
		{"a path", perm("api:/#", "get"), nil, false, true},
		{"another method", perm("api:/#", "post"), nil, false, false},
		{"a function", perm("fn:site=a/lost.x", "call"), nil, false, true},
		{"another function", perm("fn:*/f", "call"), nil, false, false},
		{"other labels", perm("fn:site=b/lost.x", "call"), nil, false, false},
		{"a function that the token denies", perm("fn:*/*", "call"), perm("fn:*/lost.*", "call"), false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g, err := policy.FromPermissions(tc.perm, tc.deny)
			if err != nil {
				t.Fatal(err)
			}
			if gains, loses := d.Concerns(g); gains != tc.gains || loses != tc.loses {
				t.Errorf("gains %v, loses %v; want %v, %v", gains, loses, tc.gains, tc.loses)
			}
		})
	}
}
