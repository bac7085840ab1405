package registry_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/registry"
	"github.com/watchword-iot/watchword/server/session"
)

func noSessions(watchword.TenantID, watchword.SubjectID) []*session.Session { return nil }

func (w *world) diff(by session.Actor, name, source string) (*registry.Diff, error) {
	var text []byte
	if source != "" {
		text = []byte(source)
	}
	return w.DiffPolicy(w.t.Context(), by, name, text, noSessions)
}

// What a diff says of an edit is what the edit does: it is refused with the same error, or applied, by each role; and the diff
// changes nothing.
func TestADiffAndTheEditAgree(outer *testing.T) {
	const rule = "[[allow]]\npublish = [\"plant/lux\"]\n"
	long := "for = { kind = \"lamp\" }\n[[allow]]\npublish = ["
	for i := range 200 {
		long += fmt.Sprintf("\"a/%d/%s\",", i, strings.Repeat("x", 30))
	}
	edits := map[string][2]string{
		"a new policy":                        {"more", "for = { kind = \"lamp\" }\n[[allow]]\npublish = [\"plant/more\"]\n"},
		"the same text":                       {"lamps", "for = { kind = \"lamp\" }\n" + rule},
		"a wider policy":                      {"lamps", "for = { kind = \"lamp\" }\n[[allow]]\npublish = [\"#\"]\n"},
		"a narrower policy":                   {"meters", "for = { kind = \"meter\" }\n[[deny]]\npublish = [\"meter/raw\"]\n"},
		"another selector":                    {"lamps", "for = { kind = \"meter\" }\n" + rule},
		"ids":                                 {"lamps", "subjects = [\"lamp-1\", \"no-such\"]\n" + rule},
		"a deletion":                          {"lamps", ""},
		"the deletion of a deny rule":         {"meters", ""},
		"a deny rule for operators":           {"no", "for = {}\nkinds = [\"operator\"]\n[[deny]]\nget = [\"/v1/devices/#\"]\n"},
		"a deny rule for all":                 {"no", "for = {}\n[[deny]]\npublish = [\"meter/power\"]\n"},
		"another role":                        {"installers", "role = \"installer\"\n[[allow]]\npost = [\"/v1/devices\"]\n"},
		"a proof":                             {"proof", "for = { kind = \"lamp\" }\nproof = \"required\"\n"},
		"a token that is too large":           {"long", long + "]\n"},
		"a policy for a subject without more": {"one", "subjects = [\"viewer\"]\n[[deny]]\nget = [\"/v1/devices/#\"]\n"},
	}
	agree := map[bool]int{}
	w := newWorld(outer)
	for name, e := range edits {
		for _, role := range []string{"server", "installer", policy.RoleOwner, policy.RoleAdmin, policy.RoleViewer} {
			outer.Run(name+" by the "+role, func(t *testing.T) {
				w.t = t
				by := server
				if role != "server" {
					by = w.actor(watchword.SubjectID(role))
				}
				grants := func() string {
					var all []string
					for _, id := range append([]string{"lamp-1", "meter-1", "installer"}, policy.BuiltInRoles...) {
						p, err := w.dir.Principal(t.Context(), here, watchword.SubjectID(id))
						if err != nil {
							t.Fatal(err)
						}
						_, proof := p.Grant.ProofRequired()
						text, err := json.Marshal([]any{id, p.Grant.Perm(), p.Grant.Deny(), proof})
						if err != nil {
							t.Fatal(err)
						}
						all = append(all, string(text))
					}
					return strings.Join(all, "\n")
				}
				before, entries := grants(), w.entries()
				d, err := w.diff(by, e[0], e[1])
				if err != nil {
					t.Fatal(err)
				}
				if grants() != before || w.entries() != entries {
					t.Error("the diff changed something")
				}
				stored, err := w.Policy(t.Context(), here, e[0])
				if want := stored.Version; d.Version != want {
					t.Errorf("version %d, want %d (%v)", d.Version, want, err)
				}
				err = w.edit(by, e[0], e[1])
				if large := name == "a token that is too large"; large && role != "viewer" && watchword.CodeOf(err) == "" || !large && watchword.CodeOf(err) == watchword.TokenTooLarge {
					t.Errorf("the size of tokens: %v", err)
				}
				if err == nil {
					defer func() { w = newWorld(outer) }() // a refused edit changes nothing
				}
				if agree[err == nil]++; watchword.CodeOf(err) != watchword.CodeOf(d.Refused) || watchword.DetailOf(orNone(err)) != watchword.DetailOf(orNone(d.Refused)) {
					t.Fatalf("the edit: %v; the diff: %v", err, d.Refused)
				}
				if changed := grants() != before; err == nil && changed != (d.Subjects > 0) {
					t.Errorf("%d subjects change, and what policy gives changes: %v", d.Subjects, changed)
				}
			})
		}
	}
	if agree[true] < 20 || agree[false] < 20 {
		outer.Errorf("%d edits pass, %d are refused: the table shows nothing", agree[true], agree[false])
	}
}

func orNone(err error) error {
	if err == nil {
		return watchword.Refuse(watchword.Internal, "none")
	}
	return err
}

func TestADiffIsGrouped(t *testing.T) {
	w := newWorld(t)
	for i := range 9 {
		w.add(watchword.SubjectID(fmt.Sprint("lamp-a", i)), watchword.Device, "", watchword.Labels{"kind": "lamp", "site": fmt.Sprint("s", i), "floor": "1"})
	}
	w.add("bulb", watchword.Device, "", watchword.Labels{"kind": "bulb", "site": "s"})
	w.add("gone", watchword.Device, "", watchword.Labels{"kind": "lamp", "site": "s"})
	if _, err := w.Revoke(t.Context(), server, "gone", "", w.now); err != nil {
		t.Fatal(err)
	}
	d, err := w.diff(server, "lamps", "for = { kind = \"lamp\" }\n[[allow]]\npublish = [\"plant/${site}/${id}\"]\n")
	if err != nil {
		t.Fatal(err)
	}
	type group struct {
		what     string
		subjects int
		examples string
		labels   string
	}
	got := map[group]bool{}
	for _, g := range d.Groups {
		what := ""
		for _, i := range g.Gained {
			what += "+" + i.Resource
		}
		for _, i := range g.Lost {
			what += "-" + i.Resource
		}
		got[group{what, g.Subjects, fmt.Sprint(g.Examples), g.Labels.String()}] = true
	}
	for _, g := range []group{
		{"+topic:plant/${site}/${id}-topic:plant/lux", 9, "[lamp-a0 lamp-a1 lamp-a2 lamp-a3 lamp-a4]", "floor=1,kind=lamp"},
		{"-topic:plant/lux", 1, "[lamp-1]", "kind=lamp"}, // it has no site
	} {
		if !got[g] {
			t.Errorf("%+v is not among %+v", g, got)
		}
	}
	if d.Subjects != 10 || len(d.Groups) != 2 || d.MoreSubjects != 0 || d.Version != 1 || d.Refused != nil {
		t.Errorf("got %+v", d)
	}
	if d, err = w.diff(server, "lamps", "for = { kind = \"bulb\" }\n[[allow]]\npublish = [\"plant/lux\"]\n"); err != nil || d.Subjects != 11 {
		t.Errorf("another selector: %d subjects, %v", d.Subjects, err)
	}
	if _, err := w.diff(server, "no-such", ""); watchword.CodeOf(err) != watchword.NotFound {
		t.Errorf("the deletion of no policy: %v", err)
	}
	if _, err := w.diff(server, "lamps", "for = 7"); watchword.CodeOf(err) != watchword.PolicyInvalid {
		t.Errorf("an invalid policy: %v", err)
	}
}

func TestTheAnswerOfADiffIsBounded(t *testing.T) {
	w := newWorld(t)
	for i := range 260 {
		w.add(watchword.SubjectID(fmt.Sprint("d", i)), watchword.Device, "", watchword.Labels{"kind": fmt.Sprint("k", i), "site": "a"})
		if i < 60 { // of one subject each, and long
			w.apply(fmt.Sprint("long", i), fmt.Sprintf("subjects = [\"d%d\"]\n[[allow]]\npublish = [\"%d/%s\", \"%d/+/%s\"]\n", i, i, strings.Repeat("x", 900), i, strings.Repeat("y", 900)))
		}
	}
	// Every subject keeps something else of its own.
	for i := range 260 {
		if i%2 == 0 {
			w.apply(fmt.Sprint("own", i), fmt.Sprintf("subjects = [\"d%d\"]\n[[allow]]\npublish = [\"own/%d\"]\n", i, i))
		}
	}
	deny, err := w.diff(server, "no", "for = {}\nkinds = [\"device\"]\n[[deny]]\npublish = [\"#\"]\n")
	if err != nil {
		t.Fatal(err)
	}
	listed := 0
	for _, g := range deny.Groups {
		listed += g.Subjects
	}
	text, err := json.Marshal(deny.Groups)
	if err != nil {
		t.Fatal(err)
	}
	if listed+deny.MoreSubjects != deny.Subjects || deny.Subjects != 262 || len(text) > 600<<10 {
		t.Errorf("%d groups of %d subjects, %d more, %d in all, %d bytes", len(deny.Groups), listed, deny.MoreSubjects, deny.Subjects, len(text))
	}
	if len(deny.Groups) > 200 || len(deny.Groups) < 100 {
		t.Errorf("%d groups", len(deny.Groups))
	}
}

// A diff is not made from a text and a version that do not belong together: another node has changed the policies.
func TestADiffOfPoliciesThatChangedIsMadeAgain(t *testing.T) {
	w := newWorld(t)
	dir := registry.NewDirectory(w.store)
	other := &world{Registry: registry.New(w.store, dir, receiver{dir}, watchword.FixedIssuer("https://hub.example")), t: t, store: w.store, dir: dir, now: w.now}
	other.apply("lamps", "for = { kind = \"lamp\" }\n[[allow]]\npublish = [\"plant/other\"]\n")
	if _, err := w.diff(server, "lamps", ""); !errors.Is(err, watchword.ErrAuthorityChanged) {
		t.Errorf("got %v", err)
	}
	if d, err := other.diff(server, "lamps", ""); err != nil || d.Version != 2 {
		t.Errorf("got %+v, %v", d, err)
	}
}
