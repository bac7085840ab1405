package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/policy"
)

// the messages of more than one row below.
const (
	badLabel     = "a label's key and value must be 1 to 64 of A-Z a-z 0-9 . _ ~ -"
	badID        = "an id must be 1 to 64 of A-Z a-z 0-9 . _ ~ -"
	badVariable  = "a variable must be ${id} or ${LABEL}"
	badFunction  = "must be the name of a function: 1 to 64 of A-Z a-z 0-9 . _ ~ -, and may end in *"
	badWildcard  = "must have + and # only as a whole level"
	badEnd       = "must have # only as its last level"
	badLength    = "must have 1 to 1024 bytes"
	noSubjects   = `one of for, subjects and role is required: for = { label = "value" }, subjects = ["id"] or role = "name"; for = {} selects all subjects`
	bothSubjects = "only one of for, subjects and role must be given"
	noList       = `a policy must have at least one [[allow]] or [[deny]], or proof = "required"`
	noAction     = "a rule must have at least one of publish, subscribe, call, get, put, post, patch, delete"
	noTable      = "args must be a table: args = { level = { maximum = 80 } }"
)

// lines makes a document's text. Line 1 is the first.
func lines(ss ...string) string { return strings.Join(ss, "\n") + "\n" }

func TestMistakesHaveLineAndColumn(t *testing.T) {
	everybody := func(rule ...string) string { return lines(append([]string{"for = {}", "", "[[allow]]"}, rule...)...) }
	for _, tc := range []struct {
		name, src string
		want      []policy.Mistake
	}{
		// The document.
		{"no TOML", "for = {}\nallow = [\n", []policy.Mistake{{2, 10, "array is incomplete"}}},
		{"one key twice", lines("for = {}", "for = {}"), []policy.Mistake{{2, 1, "key for is already defined"}}},
		{"an unknown key", lines("for = {}", "colour = 1", "[[allow]]", `get = ["/"]`), []policy.Mistake{{2, 1, `unknown key "colour"`}}},
		{"a key that is nearly known", lines(`subject = ["a"]`, "for = {}", "[[allow]]", `get = ["/"]`), []policy.Mistake{{1, 1, `unknown key "subject"; did you mean "subjects"?`}}},
		{"a key in capitals", lines("for = {}", "[[Allow]]", `get = ["/"]`), []policy.Mistake{{1, 1, noList}, {2, 3, `unknown key "Allow"; did you mean "allow"?`}}},
		{"another name", lines(`name = "lamp"`, "for = {}", "[[allow]]", `get = ["/"]`), []policy.Mistake{{1, 1, `name is "lamp", and must be "lamps" as in the request`}}},
		{"a name of the wrong type", lines("for = {}", "name = 7", "[[allow]]", `get = ["/"]`), []policy.Mistake{{2, 1, "name must be 1 to 64 of A-Z a-z 0-9 . _ ~ -"}}},
		{"a name with a slash", lines(`name = "a/b"`, "for = {}", "[[allow]]", `get = ["/"]`), []policy.Mistake{{1, 1, "name must be 1 to 64 of A-Z a-z 0-9 . _ ~ -"}}},
		{"nobody", lines("# lamps", "[[allow]]", `get = ["/"]`), []policy.Mistake{{1, 1, noSubjects}}},
		{"both labels and subjects", lines(`subjects = ["lamp-7"]`, `for = { kind = "lamp" }`, "[[allow]]", `get = ["/"]`), []policy.Mistake{{2, 1, bothSubjects}}},
		{"no rule", lines("", "for = {}"), []policy.Mistake{{1, 1, noList}}},
		{"proof of the wrong type", lines("for = {}", "proof = true"), []policy.Mistake{{2, 1, `proof must be "required" or absent`}}},
		{"proof of another word", lines("for = {}", `proof = "optional"`), []policy.Mistake{{2, 1, `proof must be "required" or absent`}}},
		{"a table where there may be many", lines("for = {}", "[allow]", `get = ["/"]`), []policy.Mistake{{2, 2, "allow must be written as [[allow]], with two brackets"}}},
		{"a number where a rule belongs", lines("for = {}", "deny = [1]"), []policy.Mistake{{2, 9, "[[deny]] must be a table"}}},

		// Whom it is for.
		{"labels of the wrong type", lines(`for = "lamp"`, "[[allow]]", `get = ["/"]`), []policy.Mistake{{1, 1, `labels must be a table: { site = "plant-1" }`}}},
		{"a label with a slash in its value", lines(`for = { kind = "lamp", site = "a/b" }`, "[[allow]]", `get = ["/"]`), []policy.Mistake{{1, 24, badLabel}}},
		{"a label with a wildcard", lines(`for = { site = "+" }`, "[[allow]]", `get = ["/"]`), []policy.Mistake{{1, 9, badLabel}}},
		{"a label with an empty value", lines(`for = { site = "" }`, "[[allow]]", `get = ["/"]`), []policy.Mistake{{1, 9, badLabel}}},
		{"a label that is a number", lines("for = { site = 1 }", "[[allow]]", `get = ["/"]`), []policy.Mistake{{1, 9, badLabel}}},
		{"a label with a bad key", lines(`for = { "a b" = "c" }`, "[[allow]]", `get = ["/"]`), []policy.Mistake{{1, 9, badLabel}}},
		{"a label of 65 bytes", lines(`for = { site = "`+strings.Repeat("s", 65)+`" }`, "[[allow]]", `get = ["/"]`), []policy.Mistake{{1, 9, badLabel}}},
		{"a variable in whom it is for", lines(`for = { site = "${site}" }`, "[[allow]]", `get = ["/"]`), []policy.Mistake{{1, 9, badLabel}}},
		{"a label in a table of its own", lines("[for]", `site = "a/b"`, "[[allow]]", `get = ["/"]`), []policy.Mistake{{2, 1, badLabel}}},
		{"a subject that is no id", lines(`subjects = ["lamp-7", "lamp/8"]`, "[[allow]]", `get = ["/"]`), []policy.Mistake{{1, 23, badID}}},
		{"subjects as one text", lines(`subjects = "lamp-7"`, "[[allow]]", `get = ["/"]`), []policy.Mistake{{1, 1, `subjects must be a list of strings: ["…"]`}}},
		{"an unknown kind", lines("for = {}", `kinds = ["device", "lamp"]`, "[[allow]]", `get = ["/"]`), []policy.Mistake{{2, 20, `kinds must be "device", "operator" or "service"`}}},

		// Rules.
		{"an unknown key in a rule", everybody(`publsh = ["a"]`, `get = ["/"]`), []policy.Mistake{{4, 1, `unknown key "publsh"; did you mean "publish"?`}}},
		{"a key of the document in a rule", everybody(`kinds = ["device"]`, `get = ["/"]`), []policy.Mistake{{4, 1, `unknown key "kinds"`}}},
		{"an empty rule", lines("for = {}", "", "[[allow]]", `get = ["/"]`, "", "  [[deny]]"), []policy.Mistake{{6, 5, noAction}}},
		{"a rule that only aims", everybody(`on = { kind = "lamp" }`), []policy.Mistake{{3, 3, noAction}, {3, 3, "on and devices require call"}}},
		{"an empty list", everybody("publish = []"), []policy.Mistake{{4, 1, "publish must have at least one entry"}}},
		{"a number among filters", everybody(`publish = ["a", 7]`), []policy.Mistake{{4, 17, "publish must be a string"}}},
		{"on beside publish", everybody(`publish = ["a"]`, `on = { kind = "lamp" }`), []policy.Mistake{{3, 3, "on and devices require call"}}},
		{"args beside publish", everybody(`publish = ["a"]`, "args = { level = { maximum = 80 } }"), []policy.Mistake{{5, 1, "args requires call"}}},
		{"both on and devices", everybody(`call = ["f"]`, `on = { kind = "lamp" }`, `devices = ["lamp-8"]`), []policy.Mistake{{6, 1, "on and devices must not both be given"}}},

		// Filters, paths and functions.
		{"# before the end", everybody(`publish = ["ok", "a/#/b"]`), []policy.Mistake{{4, 18, "publish " + badEnd}}},
		{"# inside a level", everybody(`subscribe = ["a/b#"]`), []policy.Mistake{{4, 14, "subscribe " + badWildcard}}},
		{"+ inside a level", everybody(`subscribe = [`, `  "a/+",`, `  "a/+b",`, `]`), []policy.Mistake{{6, 3, "subscribe " + badWildcard}}},
		{"+ beside a variable", everybody(`publish = ["a/+${id}"]`), []policy.Mistake{{4, 12, "publish " + badWildcard}}},
		{"an empty filter", everybody(`publish = [""]`), []policy.Mistake{{4, 12, "publish " + badLength}}},
		{"a filter of 1025 bytes", everybody(`publish = ["` + strings.Repeat("a", 1025) + `"]`), []policy.Mistake{{4, 12, "publish " + badLength}}},
		{"a filter with a NUL", everybody(`publish = ["a\u0000"]`), []policy.Mistake{{4, 12, "publish must be UTF-8 without NUL"}}},
		{"a filter of 65 levels", everybody(`publish = ["` + strings.Repeat("a/", 64) + `a"]`), []policy.Mistake{{4, 12, "publish must have at most 64 levels"}}},
		{"a path without a slash", everybody(`get = ["readings/#"]`), []policy.Mistake{{4, 8, "get must begin with /"}}},
		{"a path that begins with a variable", everybody(`put = ["${id}/x"]`), []policy.Mistake{{4, 8, "put must begin with /"}}},
		{"a path with # before the end", everybody(`delete = ["/a/#/b"]`), []policy.Mistake{{4, 11, "delete " + badEnd}}},
		{"a function with a * inside", everybody(`call = ["lamp.set", "l*p"]`), []policy.Mistake{{4, 21, "call " + badFunction}}},
		{"a function with two *", everybody(`call = ["lamp.**"]`), []policy.Mistake{{4, 9, "call " + badFunction}}},
		{"a function with a slash", everybody(`call = ["lamp/set"]`), []policy.Mistake{{4, 9, "call " + badFunction}}},
		{"an empty function", everybody(`call = [""]`), []policy.Mistake{{4, 9, "call " + badFunction}}},

		// Variables.
		{"a variable that is no name", everybody(`publish = ["a/${un known}"]`), []policy.Mistake{{4, 12, badVariable}}},
		{"a variable without a name", everybody(`publish = ["a/${}"]`), []policy.Mistake{{4, 12, badVariable}}},
		{"a variable without an end", everybody(`publish = ["${id}/${site"]`), []policy.Mistake{{4, 12, badVariable}}},
		{"a variable inside a variable", everybody(`publish = ["${a${b}}"]`), []policy.Mistake{{4, 12, badVariable}}},
		{"a bad variable in on", everybody(`call = ["f"]`, `on = { kind = "lamp", site = "${a b}" }`), []policy.Mistake{{5, 23, badVariable}}},
		{"a bad variable in devices", everybody(`call = ["f"]`, `devices = ["x", "${a b}"]`), []policy.Mistake{{5, 17, badID}}},
		{"a bad variable in a function", everybody(`call = ["${a/b}"]`), []policy.Mistake{{4, 9, badVariable}}},

		// Whose device, and with what.
		{"a bad label in on", everybody(`call = ["f"]`, `on = { kind = "lamp", site = "a/b" }`), []policy.Mistake{{5, 23, badLabel}}},
		{"on of the wrong type", everybody(`call = ["f"]`, `on = "lamp-8"`), []policy.Mistake{{5, 1, `labels must be a table: { site = "plant-1" }`}}},
		{"a device that is a wildcard", everybody(`call = ["f"]`, `devices = ["*"]`), []policy.Mistake{{5, 12, badID}}},
		{"a bound that is no schema", everybody(`call = ["f"]`, `args = { mode = { enum = ["a"] }, level = { maximum = "80" } }`), []policy.Mistake{{5, 35, `args.level must be a JSON Schema (draft 2020-12)`}}},
		{"a bound that is a number", everybody(`call = ["f"]`, "args = { level = 80 }"), []policy.Mistake{{5, 10, `args.level must be a JSON Schema (draft 2020-12)`}}},
		{"a bound of a type that there is not", everybody(`call = ["f"]`, `args = { level = { type = "lamp" } }`), []policy.Mistake{{5, 10, `args.level must be a JSON Schema (draft 2020-12)`}}},
		{"a bound that is no pattern", everybody(`call = ["f"]`, `args = { mode = { pattern = "(" } }`), []policy.Mistake{{5, 10, `args.mode must be a JSON Schema (draft 2020-12)`}}},
		{"a bound that no JSON can say", everybody(`call = ["f"]`, "args = { level = { maximum = inf } }"), []policy.Mistake{{5, 10, `args.level must be a JSON Schema (draft 2020-12)`}}},
		{"a bound that reaches for a file", everybody(`call = ["f"]`, `args = { level = { "$ref" = "file:///etc/passwd" } }`), []policy.Mistake{{5, 10, `args.level must be a JSON Schema (draft 2020-12)`}}},
		{"a bound that reaches for the network", everybody(`call = ["f"]`, `args = { level = { "$ref" = "https://127.0.0.1:1/x" } }`), []policy.Mistake{{5, 10, `args.level must be a JSON Schema (draft 2020-12)`}}},
		{"a bound by dotted keys", everybody(`call = ["f"]`, `args.level.maximum = "80"`), []policy.Mistake{{5, 6, `args.level must be a JSON Schema (draft 2020-12)`}}},
		{"args of the wrong type", everybody(`call = ["f"]`, "args = 80"), []policy.Mistake{{5, 1, noTable}}},
		{"args of nothing", everybody(`call = ["f"]`, "args = {}"), []policy.Mistake{{5, 1, noTable}}},

		// Several at once, in the order of their lines.
		{"mistakes in three rules", lines(
			"for = {}", "[[allow]]", `publish = ["a/#/b"]`, "[[deny]]", `get = ["x"]`, "[[allow]]", `call = ["/"]`,
		), []policy.Mistake{{3, 12, "publish " + badEnd}, {5, 8, "get must begin with /"}, {7, 9, "call " + badFunction}}},
		{"lines end as on Windows", "for = {}\r\n[[allow]]\r\nget = [\"x\"]\r\n", []policy.Mistake{{3, 8, "get must begin with /"}}},
		{"rules inside a line", lines("for = {}", `allow = [{ publish = ["ok"] }, { publish = ["a/#/b"] }]`), []policy.Mistake{{2, 45, "publish " + badEnd}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := policy.Parse("lamps", []byte(tc.src))
			if d != nil || watchword.CodeOf(err) != watchword.PolicyInvalid {
				t.Fatalf("got %v, %v, want code %v", d, err, watchword.PolicyInvalid)
			}
			if got := policy.Mistakes(err); !slices.Equal(got, tc.want) {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
			for _, m := range tc.want {
				if line := fmt.Sprintf("lamps.toml:%d:%d: %s", m.Line, m.Column, m.Message); !strings.Contains(err.Error(), line) {
					t.Errorf("the error does not say %q: %v", line, err)
				}
			}
		})
	}
}

func TestADocumentNeedsAGoodName(t *testing.T) {
	const rule = "for = {}\n[[allow]]\nget = [\"/\"]\n"
	for _, tc := range []struct {
		name, as, src string
		want          []policy.Mistake
	}{
		{"the name may come from outside", "lamps", rule, nil},
		{"or from inside", "", "name = \"lamps\"\n" + rule, nil},
		{"or from both, if they agree", "lamps", "name = \"lamps\"\n" + rule, nil},
		{"but it must come", "", rule, []policy.Mistake{{1, 1, "name is required: 1 to 64 of A-Z a-z 0-9 . _ ~ -"}}},
		{"it must be a name", "a/b", rule, []policy.Mistake{{1, 1, "name is required: 1 to 64 of A-Z a-z 0-9 . _ ~ -"}}},
		{"self is built in", "self", rule, []policy.Mistake{{1, 1, `name must not be "self", which is a built-in policy`}}},
		{"owner is built in", "", "\nname = \"owner\"\n" + rule, []policy.Mistake{{2, 1, `name must not be "owner", which is a built-in policy`}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := policy.Parse(tc.as, []byte(tc.src))
			if got := policy.Mistakes(err); !slices.Equal(got, tc.want) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
			if tc.want == nil && (d == nil || d.Name != "lamps") {
				t.Errorf("got %+v, want the document lamps", d)
			}
		})
	}
}

func TestADocumentHasABound(t *testing.T) {
	src := []byte("for = {}\n[[allow]]\nget = [\"/\"]\n#")
	for len(src) < policy.MaxDocument {
		src = append(src, 'x')
	}
	if _, err := policy.Parse("p", src); err != nil {
		t.Errorf("64 KiB: got %v, want a document", err)
	}
	want := []policy.Mistake{{Message: "a policy must have at most 65536 bytes"}}
	for name, parse := range parsers {
		_, err := parse("p", append(src, 'x'))
		if got := policy.Mistakes(err); !slices.Equal(got, want) || watchword.CodeOf(err) != watchword.PolicyInvalid {
			t.Errorf("%s of 64 KiB and a byte: got %v, want %v", name, err, want)
		}
	}
}

var parsers = map[string]func(string, []byte) (*policy.Document, error){"TOML": policy.Parse, "JSON": policy.ParseJSON}

func TestAtMostTwentyMistakesAreReported(t *testing.T) {
	src := "for = {}\n" + strings.Repeat("[[allow]]\nget = [\"x\"]\n", 30)
	_, err := policy.Parse("p", []byte(src))
	got := policy.Mistakes(err)
	if len(got) != 20 {
		t.Fatalf("got %d mistakes, want 20", len(got))
	}
	for i, m := range got {
		if want := (policy.Mistake{Line: 3 + 2*i, Column: 8, Message: "get must begin with /"}); m != want {
			t.Errorf("mistake %d: got %+v, want %+v", i, m, want)
		}
	}
}

func TestMistakesOfAnotherErrorAreNone(t *testing.T) {
	for _, err := range []error{nil, watchword.Refuse(watchword.PolicyInvalid, "x")} {
		if got := policy.Mistakes(err); got != nil {
			t.Errorf("got %v of %v, want none", got, err)
		}
	}
}

// lampsTOML has every form that a rule can take, and lampsJSON is the same document.
const (
	lampsTOML = `name = "lamps"
for  = { kind = "lamp" }

[[allow]]
publish   = ["plant/${site}/lux"]
subscribe = ["plant/${site}/scene/#"]

[[allow]]
call = ["lamp.set"]
on   = { kind = "lamp", site = "${site}" }
args = { level = { maximum = 80 } }

[[allow]]
get = ["/readings/${id}/#"]

[[deny]]
call = ["firmware.*"]
`
	lampsJSON = `{
  "name": "lamps",
  "for": {"kind": "lamp"},
  "allow": [
    {"publish": ["plant/${site}/lux"], "subscribe": ["plant/${site}/scene/#"]},
    {"call": ["lamp.set"], "on": {"kind": "lamp", "site": "${site}"}, "args": {"level": {"maximum": 80}}},
    {"get": ["/readings/${id}/#"]}
  ],
  "deny": [{"call": ["firmware.*"]}]
}`
)

func lamp(id, site string) policy.Subject {
	labels := watchword.Labels{"kind": "lamp"}
	if site != "" {
		labels["site"] = site
	}
	return policy.Subject{ID: watchword.SubjectID(id), Kind: watchword.Device, Labels: labels}
}

func TestLampsExample(t *testing.T) {
	neighbour := policy.Target{ID: "lamp-2", Labels: watchword.Labels{"kind": "lamp", "site": "plant-1"}}
	abroad := policy.Target{ID: "lamp-3", Labels: watchword.Labels{"kind": "lamp", "site": "plant-2"}}
	pump := policy.Target{ID: "pump-1", Labels: watchword.Labels{"kind": "pump", "site": "plant-1"}}
	for name, src := range map[string]string{"TOML": lampsTOML, "JSON": lampsJSON} {
		t.Run(name, func(t *testing.T) {
			d, err := parsers[name]("lamps", []byte(src))
			if err != nil {
				t.Fatal(err)
			}
			rule := func(line string) string { // what JSON cannot say
				if name == "JSON" {
					return "lamps"
				}
				return "lamps:" + line
			}
			set := policy.NewSet(d)
			g := set.GrantFor(lamp("lamp-1", "plant-1"))
			homeless := set.GrantFor(lamp("lamp-9", ""))
			for _, tc := range []struct {
				name    string
				got     policy.Decision
				allowed bool
				rule    string
			}{
				{"its own site's light", g.Publish("plant/plant-1/lux"), true, rule("4")},
				{"not another's", g.Publish("plant/plant-2/lux"), false, ""},
				{"a scene below", g.Subscribe("plant/plant-1/scene/+/x"), true, rule("4")},
				{"not all scenes", g.Subscribe("plant/+/scene/#"), false, ""},
				{"what it may receive it may not send", g.Publish("plant/plant-1/scene/a"), false, ""},
				{"a neighbour within its bound", g.Call(neighbour, "lamp.set", []byte(`{"level":80}`)), true, rule("8")},
				{"a neighbour with no such argument", g.Call(neighbour, "lamp.set", nil), true, rule("8")},
				{"a neighbour beyond its bound", g.Call(neighbour, "lamp.set", []byte(`{"level":81}`)), false, ""},
				{"a lamp elsewhere", g.Call(abroad, "lamp.set", nil), false, ""},
				{"no lamp", g.Call(pump, "lamp.set", nil), false, ""},
				{"another function", g.Call(neighbour, "lamp.get", nil), false, ""},
				{"firmware, by the rule that denies", g.Call(neighbour, "firmware.update", nil), false, rule("16")},
				{"its readings", g.Request("GET", "/readings/lamp-1/today"), true, rule("13")},
				{"its readings as a whole", g.Request("get", "/readings/lamp-1"), true, rule("13")},
				{"their head", g.Request("HEAD", "/readings/lamp-1"), true, rule("13")},
				{"not to write them", g.Request("PUT", "/readings/lamp-1"), false, ""},
				{"not by another word", g.Request("Get", "/readings/lamp-1"), false, ""},
				{"not another's", g.Request("GET", "/readings/lamp-2"), false, ""},
				{"a lamp without a site publishes nowhere", homeless.Publish("plant//lux"), false, ""},
				{"nor at a site that is a template", homeless.Publish("plant/${site}/lux"), false, ""},
				{"nor calls all lamps", homeless.Call(neighbour, "lamp.set", nil), false, ""},
				{"but keeps its readings", homeless.Request("GET", "/readings/lamp-9"), true, rule("13")},
			} {
				if tc.got.Allowed != tc.allowed || tc.got.Rule() != tc.rule {
					t.Errorf("%s: got %v by %q, want %v by %q", tc.name, tc.got.Allowed, tc.got.Rule(), tc.allowed, tc.rule)
				}
				if (tc.got.Err() == nil) != tc.allowed {
					t.Errorf("%s: got error %v, want allowed %v", tc.name, tc.got.Err(), tc.allowed)
				}
				if !tc.allowed && watchword.CodeOf(tc.got.Err()) != watchword.Denied {
					t.Errorf("%s: got code %v, want %v", tc.name, watchword.CodeOf(tc.got.Err()), watchword.Denied)
				}
			}
		})
	}
}

func TestGoodDocuments(t *testing.T) {
	for _, tc := range []struct{ name, src string }{
		{"all subjects, by an empty table", lines("for = {}", "[[allow]]", `get = ["/"]`)},
		{"named subjects", lines(`subjects = ["lamp-7", "alice"]`, "[[deny]]", `publish = ["#"]`)},
		{"kinds beside labels", lines(`for = { site = "a" }`, `kinds = ["device", "operator", "service"]`, "[[allow]]", `get = ["/"]`)},
		{"only a proof", lines("for = {}", `proof = "required"`)},
		{"every action in one rule", lines("for = {}", "[[allow]]", `publish = ["a"]`, `subscribe = ["a"]`, `call = ["a"]`, `get = ["/"]`, `put = ["/"]`, `post = ["/"]`, `patch = ["/"]`, `delete = ["/"]`)},
		{"all functions", lines("for = {}", "[[allow]]", `call = ["*"]`)},
		{"a function of 64 bytes and a *", lines("for = {}", "[[allow]]", `call = ["`+strings.Repeat("f", 64)+`*"]`)},
		{"devices by variables", lines("for = {}", "[[allow]]", `call = ["f"]`, `devices = ["${id}", "lamp-${site}"]`)},
		{"a rule on every device, said aloud", lines("for = {}", "[[allow]]", `call = ["f"]`, "on = {}")},
		{"labels in a table of their own", lines("[for]", `kind = "lamp"`, "[[allow]]", `get = ["/"]`)},
		{"a label with a dot in its key", lines(`for = { "a.b" = "c" }`, "[[allow]]", `get = ["/"]`)},
		{"bounds of many kinds", lines("for = {}", "[[allow]]", `call = ["f"]`, `args = { a = { enum = [1, "x", true] }, b = { type = "array", items = { maximum = 3 } }, c = true, d = { pattern = "^x" } }`)},
		{"bounds in tables of their own", lines("for = {}", "[[allow]]", `call = ["f"]`, "[allow.args.level]", "maximum = 80")},
		{"rules inside a line", lines("for = {}", `allow = [{ publish = ["a"] }]`)},
		{"comments and blank lines", lines("# who", "", "for = {} # all", "", "[[allow]] # what", `get = ["/"]`)},
		{"filters that are edges", lines("for = {}", "[[allow]]", `publish = ["#", "+", "/", "+/#", "/#", "a//b", "$SYS/#", "é/ö", "a b"]`)},
		{"a lone dollar is no variable", lines("for = {}", "[[allow]]", `publish = ["$a", "a$", "{id}", "$"]`)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := policy.Parse("p", []byte(tc.src))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := d.Name, "p"; got != want {
				t.Errorf("name: got %q, want %q", got, want)
			}
			if got, want := d.ProofRequired, strings.Contains(tc.src, "proof"); got != want {
				t.Errorf("proof: got %v, want %v", got, want)
			}
		})
	}
}

func TestMistakesInJSONHaveNoPlace(t *testing.T) {
	for _, tc := range []struct {
		name, src string
		want      []string
	}{
		{"no JSON", "{", []string{"the document must be a JSON object"}},
		{"nothing", "", []string{"the document must be a JSON object"}},
		{"a list", "[]", []string{"the document must be a JSON object"}},
		{"more than one", "{} {}", []string{"the document must be a JSON object"}},
		{"TOML", lampsTOML, []string{"the document must be a JSON object"}},
		{"null", "null", []string{noSubjects, noList}},
		{"an empty object", "{}", []string{noSubjects, noList}},
		{"an unknown key", `{"for":{},"allow":[{"publsh":["a"],"get":["/"]}]}`, []string{`unknown key "publsh"; did you mean "publish"?`}},
		{"an invalid filter", `{"for":{},"allow":[{"publish":["a/#/b"]}]}`, []string{"publish " + badEnd}},
		{"both labels and subjects", `{"for":{},"subjects":["a"],"allow":[{"get":["/"]}]}`, []string{bothSubjects}},
		{"a bad label", `{"for":{"site":"+"},"allow":[{"get":["/"]}]}`, []string{badLabel}},
		{"a bad schema", `{"for":{},"allow":[{"call":["f"],"args":{"level":{"maximum":"80"}}}]}`, []string{`args.level must be a JSON Schema (draft 2020-12)`}},
		{"a bad variable", `{"for":{},"allow":[{"publish":["${a b}"]}]}`, []string{badVariable}},
		{"a rule that is no list", `{"for":{},"allow":{"get":["/"]}}`, []string{"allow must be written as [[allow]], with two brackets"}},
		{"an empty rule", `{"for":{},"allow":[{}]}`, []string{noAction}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := policy.ParseJSON("p", []byte(tc.src))
			if watchword.CodeOf(err) != watchword.PolicyInvalid {
				t.Fatalf("got %v, want code %v", err, watchword.PolicyInvalid)
			}
			var want []policy.Mistake
			for _, s := range tc.want {
				want = append(want, policy.Mistake{Message: s})
			}
			if got := policy.Mistakes(err); !slices.Equal(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestASetIsWhatWasPutIn(t *testing.T) {
	doc := func(name, topic string) *policy.Document {
		t.Helper()
		d, err := policy.Parse(name, []byte("for = {}\n[[allow]]\npublish = [\""+topic+"\"]\n"))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	may := func(s *policy.Set, topic string) bool {
		return s.GrantFor(policy.Subject{ID: "x", Kind: watchword.Service}).Publish(topic).Allowed
	}
	one := policy.NewSet(doc("p", "a"), doc("p", "b"))
	two := one.With(doc("q", "c"))
	swapped := two.With(doc("p", "d"))
	without := swapped.Without("q")
	for _, tc := range []struct {
		name string
		set  *policy.Set
		want string // of a b c d
	}{
		{"the later of two with one name counts", one, "b"},
		{"With adds", two, "bc"},
		{"With replaces", swapped, "cd"},
		{"Without removes", without, "d"},
		{"Without a name that is not there changes nothing", without.Without("z"), "d"},
	} {
		got := ""
		for _, topic := range []string{"a", "b", "c", "d"} {
			if may(tc.set, topic) {
				got += topic
			}
		}
		if got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
	if d, ok := two.Document("q"); !ok || d.Name != "q" {
		t.Errorf("got %v, %v, want the document q", d, ok)
	}
	if _, ok := without.Document("q"); ok {
		t.Error("got a document that was removed")
	}
}

func TestABoundThatCouldTakeTooLongIsAMistake(t *testing.T) {
	var levels strings.Builder
	for i := range 24 {
		fmt.Fprintf(&levels, `d%d = { allOf = [{ "$ref" = "#/$defs/d%d" }, { "$ref" = "#/$defs/d%d" }] }, `, i, i+1, i+1)
	}
	fanOut := `{ "$ref" = "#/$defs/d0", "$defs" = { ` + levels.String() + `d24 = {} } }`
	for _, tc := range []struct{ bound, want string }{
		{fanOut, `args.level is not accepted: at /`},
		{`{ pattern = "(x{400}){4}" }`, `args.level is not accepted: a pattern must have at most 512 bytes`},
		{`{ maximum = 1e300 }`, ""},
	} {
		for _, effect := range []string{"allow", "deny"} {
			text := "for = { kind = \"lamp\" }\n[[allow]]\npublish = [\"x\"]\n[[" + effect + "]]\ncall = [\"f\"]\ndevices = [\"d\"]\nargs = { level = " + tc.bound + " }\n"
			_, err := policy.Parse("p", []byte(text))
			got := ""
			if m := policy.Mistakes(err); len(m) > 0 {
				got = m[0].Message
			}
			if !strings.HasPrefix(got, tc.want) || (err == nil) != (tc.want == "") {
				t.Errorf("%s %.40s: %v", effect, tc.bound, err)
			}
			if tc.want == "" {
				continue
			}
			// A store may have it from before: then the call is refused, whichever the rule is.
			doc, unread, err := policy.ParseStored("p", []byte(text))
			if err != nil || !slices.Equal(unread, []string{"level"}) {
				t.Fatalf("stored: %v, %v", unread, err)
			}
			all, err := policy.Parse("q", []byte("for = { kind = \"lamp\" }\n[[allow]]\ncall = [\"f\"]\ndevices = [\"d\"]\n"))
			if err != nil {
				t.Fatal(err)
			}
			docs := []*policy.Document{doc}
			if effect == "deny" {
				docs = append(docs, all)
			}
			g := policy.NewSet(docs...).GrantFor(policy.Subject{ID: "x", Kind: watchword.Device, Labels: watchword.Labels{"kind": "lamp"}})
			if d := g.Call(policy.Target{ID: "d"}, "f", []byte(`{"level":1}`)); d.Err() == nil {
				t.Errorf("stored, %s: the call passes", effect)
			}
		}
	}
}

// A number that no schema is held against must not pass a rule that denies by it.
func TestANumberBeyondTheBoundsIsDenied(t *testing.T) {
	doc, err := policy.Parse("p", []byte("for = { kind = \"lamp\" }\n[[allow]]\ncall = [\"f\"]\ndevices = [\"d\"]\n[[deny]]\ncall = [\"f\"]\ndevices = [\"d\"]\nargs = { level = { minimum = 80 } }\n"))
	if err != nil {
		t.Fatal(err)
	}
	g := policy.NewSet(doc).GrantFor(policy.Subject{ID: "x", Kind: watchword.Device, Labels: watchword.Labels{"kind": "lamp"}})
	for args, allowed := range map[string]bool{
		`{"level":79}`: true, `{"level":80}`: false, `{"level":1e400}`: false, `{"level":1e401}`: false, `{"level":` + strings.Repeat("9", 65) + `}`: false, `{"level":1e-9}`: true,
	} {
		if got := g.Call(policy.Target{ID: "d"}, "f", []byte(args)).Err() == nil; got != allowed {
			t.Errorf("%.30s: allowed %v", args, got)
		}
	}
}
