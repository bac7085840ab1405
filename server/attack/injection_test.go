package attack_test

import (
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/sdk/device"
)

// noNames is what is no name here, and might mean something elsewhere.
var noNames = []string{
	"", "a/b", "/", "+", "#", "a/+/#", "$SYS", "$watchword", "${id}", "${site}", "a%2Fb", "a:b", "a=b", "a,b", "a b", " a", "a ", "a\x00b", "a\nb", "a\r\nX: y", "\t", "*", "a*", "?", "[a]", "(a)", "a|b", "a;b", "a&b", "a'b", `a"b`, `a\b`, "<a>",
	"é", "а", "ａ", "a\u200bb", "\u202ea", "a\u0301", "\ufeffa", "🔑", "a@b", "a!b", "{a}", "^", "`id`", "$(id)", strings.Repeat("a", 65),
}

// No name of a thing, and no label, says more than itself: not to a topic, a path,
// a selector, a policy, or a line of the log.
func TestHostileNames(t *testing.T) {
	ep := newEndpoints(t, newClock().now)
	op := mustValue(ep.admin.Tokens().Get(t.Context()))(t)
	as := headers("Authorization", "Bearer "+op, "Content-Type", "application/json")
	for _, name := range noNames {
		for _, tc := range []struct{ what, method, path, body, field string }{
			{"a device's id", "POST", "/v1/devices", object("id", name), "id"},
			{"a label's key", "POST", "/v1/devices", object("id", "x", "labels", map[string]string{name: "v"}), "labels"},
			{"a label's value", "POST", "/v1/devices", object("id", "x", "labels", map[string]string{"site": name}), "labels"},
			{"a label's value, changed", "PUT", "/v1/devices/lamp-1/labels", object("labels", map[string]string{"site": name}), "labels"},
			{"a function", "POST", "/v1/commands", object("device", "lamp-1", "function", name), "function"},
		} {
			if name == "" && tc.what != "a device's id" && tc.what != "a function" && tc.what != "a label's key" {
				continue
			}
			a := ep.requestOnce(tc.method, tc.path, tc.body, as)
			if a.code != watchword.BadRequest || !strings.Contains(a.body, `"field":"`+tc.field) {
				t.Errorf("%s %q: %d %s", tc.what, name, a.status, a.body)
			}
			if name != "" && strings.ContainsAny(name, "\r\n\x00") && strings.Contains(ep.log.String(), name) {
				t.Errorf("%s %q is in the log as it is", tc.what, name)
			}
		}
	}
	d := mustValue(ep.admin.Device(t.Context(), "lamp-1"))(t)
	if len(d.Labels) != 0 {
		t.Errorf("it has labels: %v", d.Labels)
	}
}

// A policy has one meaning: no expansion widens it, and no feature of TOML shows another meaning to a reader.
func TestHostilePolicies(t *testing.T) {
	ep := newEndpoints(t, newClock().now)
	bad := map[string]string{}
	for _, topic := range []string{
		"${", "${}", "${id", "${id}${", "${nope/#}", "${id/#}", "${ id }", "${${id}}", "${id:+#}", "plant/#/x", "plant/x#", "plant/+x", "#/", "plant/\\u0000", "", "${a b}", "${é}", "a${",
	} {
		bad["publish "+topic] = "for = {}\n[[allow]]\npublish = [\"" + topic + "\"]\n"
		bad["subscribe "+topic] = "for = {}\n[[allow]]\nsubscribe = [\"" + topic + "\"]\n"
	}
	for _, path := range []string{"", "x", "/a/#/b", "/a#", "/${", "/a b${", "/${id", "//${}", "/\\u0000"} {
		bad["get "+path] = "for = {}\n[[allow]]\nget = [\"" + path + "\"]\n"
	}
	for _, f := range []string{"", "lamp/set", "*.set", "l*p", "lamp.**", "lamp set", "#", "+", "${id}/x"} {
		bad["call "+f] = "for = {}\n[[allow]]\ncall = [\"" + f + "\"]\non = {}\n"
	}
	for name, text := range map[string]string{
		"a key twice":             "for = {}\nfor = { kind = \"x\" }\n",
		"a table twice":           "for = {}\n[for]\nkind = \"x\"\n",
		"a dotted key over it":    "for = {}\nfor.kind = \"x\"\n",
		"allow as a table":        "for = {}\n[allow]\npublish = [\"#\"]\n",
		"allow twice":             "for = {}\nallow = []\n[[allow]]\npublish = [\"#\"]\n",
		"an unknown key":          "for = {}\nadmin = true\n",
		"an unknown key in allow": "for = {}\n[[allow]]\npublish = [\"a\"]\nroot = true\n",
		"another case":            "For = {}\n",
		"no such subject":         "[[allow]]\npublish = [\"a\"]\n",
		"a selector with a comma": "for = { site = \"a,kind=b\" }\n",
		"a selector that is any":  "for = { site = \"*\" }\n",
		"a selector that expands": "for = { site = \"${site}\" }\n",
		"a selector with a slash": "for = { \"a/b\" = \"c\" }\n",
		"subjects that are any":   "subjects = [\"*\"]\n",
		"subjects that climb":     "subjects = [\"../operator\"]\n",
		"an unknown kind":         "for = {}\nkinds = [\"god\"]\n",
		"a number for a topic":    "for = {}\n[[allow]]\npublish = [1]\n",
		"a text for topics":       "for = {}\n[[allow]]\npublish = \"#\"\n",
		"topics in topics":        "for = {}\n[[allow]]\npublish = [[\"#\"]]\n",
		"a date":                  "for = 1979-05-27\n",
		"bad UTF-8":               "for = {}\n# \xff\n",
		"a NUL":                   "for = {}\n# \x00\n",
		"no end of a text":        "for = {}\n[[allow]]\npublish = [\"\"\"#]\n",
		"no TOML":                 "{\"for\": {}}",
		"a proof of another word": "for = {}\nproof = \"maybe\"\n",
		"depth":                   "for = {}\nx = " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "\n",
		"an invalid schema":       "for = {}\n[[allow]]\ncall = [\"a\"]\non = {}\nargs = { level = { maximum = \"x\" } }\n",
		"a schema from afar":      "for = {}\n[[allow]]\ncall = [\"a\"]\non = {}\nargs = { level = { \"$ref\" = \"https://evil.example\" } }\n",
	} {
		bad[name] = text
	}
	op := mustValue(ep.admin.Tokens().Get(t.Context()))(t)
	for name, text := range bad {
		a := ep.requestOnce("PUT", "/v1/policies/games", text, headers("Authorization", "Bearer "+op, "Content-Type", "application/toml"))
		if a.code != watchword.PolicyInvalid || a.status != 422 {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if list := mustValue(ep.admin.Policies(t.Context()))(t); len(list) != 0 {
		for _, p := range list {
			if p.Name == "games" {
				t.Errorf("a policy was left: %+v", p)
			}
		}
	}
	for _, name := range noNames[1:] {
		a := ep.requestOnce("PUT", "/v1/policies/"+escapeAll(name), "for = {}\n", headers("Authorization", "Bearer "+op, "Content-Type", "application/toml"))
		if a.status != 404 && a.code != watchword.BadRequest {
			t.Errorf("a policy called %q: %d %s", name, a.status, a.body)
		}
	}
}

func escapeAll(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		b.WriteByte('%')
		b.WriteByte(hex[s[i]>>4])
		b.WriteByte(hex[s[i]&15])
	}
	return b.String()
}

// A device without the label has nothing of what the label would give, and what
// expands expands to itself alone.
func TestTemplateExpansionStaysValid(t *testing.T) {
	srv := serve(t, nil)
	_, err := srv.admin.ApplyPolicy(t.Context(), "sites", []byte("for = {}\n[[allow]]\npublish = [\"plant/${site}/lux\", \"own/${id}/#\"]\n"), 0)
	must(t, err)
	srv.enroll("lamp-1", device.Options{}, watchword.Labels{"site": "a.b~c-d_e"})
	srv.enroll("lamp-2", device.Options{}, nil)
	for _, tc := range []struct {
		id    watchword.SubjectID
		topic string
		want  bool
	}{
		{"lamp-1", "plant/a.b~c-d_e/lux", true},
		{"lamp-1", "plant/axb~c-d_e/lux", false},
		{"lamp-1", "plant/${site}/lux", false},
		{"lamp-1", "plant//lux", false},
		{"lamp-2", "plant//lux", false},
		{"lamp-2", "plant/${site}/lux", false},
		{"lamp-2", "plant/+/lux", false},
		{"lamp-2", "own/lamp-2/x/y", true},
		{"lamp-2", "own/lamp-1/x", false},
	} {
		e, err := srv.admin.Explain(t.Context(), tc.id, "pub", "topic:"+tc.topic, nil)
		if err == nil && e.Allowed != tc.want || err != nil && tc.want {
			t.Errorf("%s on %s: %+v %v", tc.id, tc.topic, e, err)
		}
	}
}

// The tool hands on what it was given, and what is no name is refused there too.
func TestHostileNamesInCLI(t *testing.T) {
	srv := serve(t, nil)
	for _, name := range []string{"a/b", "#", "${id}", "a b", "a%2Fb", "é", "a\nb", "../x"} {
		for _, args := range [][]string{{"device", "create", "--", name}, {"device", "show", "--", name}, {"device", "revoke", "--yes", "--reason", "x", "--", name}, {"policy", "delete", "--yes", "--", name}} {
			if out, status := command(t, srv.dir, "", args...); status == 0 {
				t.Errorf("%q: %s", args, out)
			}
		}
	}
	n := 0
	must(t, srv.admin.Devices(t.Context(), nil, "", func(api.Device) error { n++; return nil }))
	if n != 0 {
		t.Errorf("%d devices were made", n)
	}
}

// Other tenants have no endpoint yet: no path, no header and no issuer leads to them, and their existence is not disclosed.
func TestRequestsCannotReachAnotherTenant(t *testing.T) {
	ep := newEndpoints(t, newClock().now)
	for _, path := range []string{"/t/default/v1/self", "/t/evil/v1/self", "/t//v1/self", "/t/evil/oauth/token", "/t/evil/.well-known/jwks.json", "/t/%2e%2e/v1/self", "/v1/self/t/evil", "/v1/t/evil/self"} {
		for _, head := range []map[string]string{{}, {"X-Tenant": "evil"}, {"X-Original-URL": "/v1/self"}, {"X-Rewrite-URL": "/v1/self"}, {"X-HTTP-Method-Override": "GET"}} {
			h := headers("Authorization", "Bearer "+ep.token)
			for k, v := range head {
				h.Set(k, v)
			}
			if a := ep.requestOnce("GET", path, "", h); a.status != 404 || a.code != watchword.NotFound {
				t.Errorf("%s %v: %d %s", path, head, a.status, a.body)
			}
		}
	}
	own := ep.requestOnce("GET", "/v1/self", "", headers("Authorization", "Bearer "+ep.token)).body
	if a := ep.requestOnce("GET", "/v1/self", "", headers("Authorization", "Bearer "+ep.token, "X-Tenant", "evil", "X-Forwarded-Host", "evil.example")); a.status != 200 || a.body != own {
		t.Errorf("by a header: %d %s", a.status, a.body)
	}
}
