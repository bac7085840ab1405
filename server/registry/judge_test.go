package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// randomDocument has few names for everything, so that ids, labels and levels are often the same.
func randomDocument(t *testing.T, r *rand.Rand, name string) *policy.Document {
	t.Helper()
	pick := func(all ...string) string { return all[r.IntN(len(all))] }
	level := func() string {
		return pick("a", "b", "ab", "+", "${id}", "${id}", "x${id}", "${id}b", "${site}", "${site}${id}")
	}
	filter := func() string {
		f := level()
		for range r.IntN(3) {
			f += "/" + level()
		}
		return f + pick("", "", "/#")
	}
	text := pick("for = {}\n", "for = { site = \"a\" }\n", "for = { site = \"b\" }\n", "subjects = [\"a\", \"xa\"]\n") + pick("", "", "proof = \"required\"\n")
	for range 1 + r.IntN(4) {
		text += "[[" + pick("allow", "allow", "deny") + "]]\n"
		switch r.IntN(4) {
		case 0:
			text += fmt.Sprintf("subscribe = [%q]\n", filter())
		case 1:
			text += fmt.Sprintf("get = [%q]\n", "/"+pick(filter(), filter(), "path"))
		case 2:
			text += "call = [\"f\"]\n" + pick("devices = [\"${id}\", \"a\"]\n", "devices = [\"called\"]\n", "devices = [\"x${id}\"]\n", "on = { site = \"${id}\" }\n", "on = { site = \"target\" }\n", "on = { site = \"${site}\" }\n", "")
		default:
			text += fmt.Sprintf("publish = [%q, %q]\n", filter(), filter())
		}
	}
	d, err := policy.Parse(name, []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return d
}

// mostly is a document that allows everything but one name.
func mostly(t *testing.T, name string) *policy.Document {
	t.Helper()
	d, err := policy.Parse("mostly", fmt.Appendf(nil, "for = {}\n[[allow]]\npublish = [\"#\"]\nsubscribe = [\"#\"]\nget = [\"/#\"]\ncall = [\"*\"]\n[[deny]]\npublish = [\"+/%[1]s\", \"%[1]s\"]\nsubscribe = [\"+/%[1]s\"]\n", name))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A judge that decides once for alike subjects decides as one that decides for each: for ids and labels that rules name, too.
func TestAlikeSubjectsAreJudgedAsEachAlone(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	reg := New(nil, nil, nil, watchword.FixedIssuer("https://hub.example"))
	var subjects []watchword.Subject
	for _, id := range []watchword.SubjectID{"a", "b", "ab", "xa", "bb", "aab", "lamp", "called", "target", "path"} {
		for _, site := range []string{"", "a", "b", "x"} {
			s := watchword.Subject{ID: id, Kind: watchword.Device, State: watchword.Active}
			if site != "" {
				s.Labels = watchword.Labels{"site": site}
			}
			subjects = append(subjects, s)
		}
	}
	refused, passed := 0, 0
	for round := range 500 {
		old, edited := randomDocument(t, r, "edited"), randomDocument(t, r, "edited")
		before := policy.NewSet(old, randomDocument(t, r, "other"), randomDocument(t, r, "own"))
		c := &comparison{before: before, after: before.With(edited), old: old, doc: edited}
		actor := subjects[r.IntN(len(subjects))]
		c.by = session.Actor{Actor: audit.Actor{Subject: actor.ID, Versions: watchword.AuthorityVersions{Subject: actor.ID}}, Policy: before.GrantFor(session.PolicySubject(&actor))}
		if round%2 == 0 { // the actor has much, but for one name
			c.by.Policy = policy.NewSet(mostly(t, []string{"a", "bb", "called"}[r.IntN(3)])).GrantFor(session.PolicySubject(&actor))
		}
		j, diff := newJudge(reg, c), newJudge(reg, c)
		diff.compares = true
		for i := range subjects {
			s := &subjects[i]
			w := session.PolicySubject(s)
			want := reg.checkSubject(c, s, w, before.GrantFor(w), c.after.GrantFor(w))
			if !c.mayNarrow(s.ID) {
				want = reg.checkSubject(c, s, w, nil, c.after.GrantFor(w))
			}
			got := j.check(s)
			if watchword.CodeOf(got) != watchword.CodeOf(want) || got != nil && watchword.DetailOf(got) != watchword.DetailOf(want) {
				t.Fatalf("round %d, %s %s: %v, want %v", round, s.ID, s.Labels, got, want)
			}
			if v := diff.verdict(s); !diff.isApart(s, v) {
				got, err := json.Marshal(v.difference)
				one, oerr := json.Marshal(policy.Compare(c.before, c.after, w, before.GrantFor(w), c.after.GrantFor(w)))
				if string(got) != string(one) {
					t.Fatalf("round %d, %s %s: the difference is %s, want %s (%v)", round, s.ID, s.Labels, got, one, errors.Join(err, oerr))
				}
			}
			if want != nil {
				refused++
			} else {
				passed++
			}
		}
	}
	if refused < 200 || passed < 200 {
		t.Errorf("%d subjects were refused, %d passed: the documents show nothing", refused, passed)
	}
}

// Of alike subjects those with long ids may have a token that is too large, whichever is judged first.
func TestTheSizeOfATokenIsThatOfTheID(t *testing.T) {
	reg := New(nil, nil, nil, watchword.FixedIssuer("https://hub.example"))
	tooLarge, all := 0, 0
	for permissions := 20; permissions <= 40; permissions++ {
		text := "for = {}\n[[allow]]\npublish = ["
		for i := range permissions {
			text += fmt.Sprintf("\"plant/%d/${id}\",", i)
		}
		d, err := policy.Parse("long", []byte(text+"]\n"))
		if err != nil {
			t.Fatal(err)
		}
		set := policy.NewSet()
		j := newJudge(reg, &comparison{before: set, after: set.With(d), doc: d})
		for n := 1; n <= watchword.MaxName; n++ {
			s := watchword.Subject{ID: watchword.SubjectID(strings.Repeat("x", n)), Kind: watchword.Device}
			got, want := j.check(&s), reg.checkGrantSize(j.c.after.GrantFor(session.PolicySubject(&s)), &s)
			if watchword.CodeOf(got) != watchword.CodeOf(want) {
				t.Errorf("%d permissions, an id of %d bytes: %v, want %v", permissions, n, got, want)
			}
			all++
			if want != nil {
				tooLarge++
			}
		}
	}
	if tooLarge == 0 || tooLarge == all {
		t.Errorf("%d of the ids are too long: the documents show nothing", tooLarge)
	}
}
