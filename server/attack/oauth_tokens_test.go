package attack_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
)

// introspection is what introspection answers.
type introspection struct {
	Active   bool                   `json:"active"`
	Sub      string                 `json:"sub"`
	ClientID string                 `json:"client_id"`
	Iss      string                 `json:"iss"`
	Aud      string                 `json:"aud"`
	JTI      string                 `json:"jti"`
	Type     string                 `json:"token_type"`
	Exp      int64                  `json:"exp"`
	Key      string                 `json:"key"`
	Cnf      map[string]string      `json:"cnf"`
	Dev      struct{ ID string }    `json:"dev"`
	Perm     []watchword.Permission `json:"perm"`
	Deny     []watchword.Permission `json:"deny"`
}

const inspectors = `subjects = ["gate-1"]
[[allow]]
post = ["/oauth/introspect"]
`

func (srv *testServer) introspect(d *device.Device, tok string) (introspection, answer) {
	srv.t.Helper()
	a := srv.post("/oauth/introspect", d, url.Values{"token": {tok}, "token_type_hint": {"whatever"}})
	var c introspection
	if a.status == 200 {
		must(srv.t, json.Unmarshal([]byte(a.body), &c))
	}
	return c, a
}

func TestIntrospection(t *testing.T) {
	srv := serve(t, nil)
	gate := srv.enroll("gate-1", device.Options{}, nil)
	d := srv.enroll("lamp-1", device.Options{}, watchword.Labels{"site": "a"})
	tok := srv.token(d)
	const path = "/oauth/introspect"
	if _, a := srv.introspect(gate, tok); a.status != 400 || a.oauth != "unauthorized_client" || a.code != watchword.Denied {
		t.Errorf("a client that policy does not let: %d %s", a.status, a.body)
	} else {
		srv.waitForRefusalEntry(a.member(t, "trace_id"), watchword.Denied, "gate-1")
	}
	_, err := srv.admin.ApplyPolicy(t.Context(), "inspectors", []byte(inspectors), 0)
	must(t, err)

	c, a := srv.introspect(gate, tok)
	if !c.Active || c.Sub != "lamp-1" || c.ClientID != "lamp-1" || c.Iss != srv.url || c.Aud != srv.url || c.JTI == "" || c.Type != "Bearer" || c.Exp == 0 || c.Key == "" || c.Dev.ID != "lamp-1" || len(c.Perm) == 0 || len(c.Deny) != 0 {
		t.Errorf("got %s", a.body)
	}
	if a.header.Get("Cache-Control") != "no-store" {
		t.Errorf("Cache-Control %q", a.header.Get("Cache-Control"))
	}
	_, s := newKey(t, "Ed25519")
	if c, a := srv.introspect(gate, srv.bound(d, s)); !c.Active || c.Type != "DPoP" || c.Cnf["jkt"] != string(s.Public().ID()) {
		t.Errorf("a bound token: %s", a.body)
	}
	elsewhere := srv.post("/oauth/token", d, formWith(grant, "resource", "https://api.example/readings")).member(t, "access_token")
	if c, a := srv.introspect(gate, elsewhere); !c.Active || c.Aud != "https://api.example/readings" {
		t.Errorf("a token for another audience: %s", a.body)
	}
	byToken := func(tok string) answer {
		return srv.post(path, nil, url.Values{"token": {elsewhere}}, "Authorization: Bearer "+tok)
	}
	if a := byToken(srv.token(gate)); a.status != 200 || !strings.Contains(a.body, `"active":true`) {
		t.Errorf("asked by a token: %d %s", a.status, a.body)
	}
	if a := byToken(srv.token(d)); a.status != 403 || a.oauth != "insufficient_scope" || !strings.Contains(a.header.Get("WWW-Authenticate"), "insufficient_scope") {
		t.Errorf("asked by a token that may not: %d %s", a.status, a.body)
	}
	if a := byToken("open sesame"); a.status != 401 || a.oauth != "invalid_token" || a.header.Get("WWW-Authenticate") == "" {
		t.Errorf("asked by words: %d %s", a.status, a.body)
	}
	if a := srv.post(path, nil, url.Values{"token": {tok}}); a.status != 401 || a.oauth != "invalid_client" {
		t.Errorf("asked without a credential: %d %s", a.status, a.body)
	} else {
		srv.waitForRefusalEntry(a.member(t, "trace_id"), watchword.ClientInvalid, "")
	}
	if a := srv.post(path, gate, nil); a.status != 400 || a.oauth != "invalid_request" || a.field != "" && a.field != "token" {
		t.Errorf("no token: %d %s", a.status, a.body)
	}
	if a := srv.post(path+"?token="+tok, gate, nil); a.status != 400 {
		t.Errorf("in the URL: %d %s", a.status, a.body)
	}
	assertion, err := gate.Assertion(time.Minute)
	must(t, err)
	again := url.Values{"token": {tok}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {assertion}}
	if a := srv.post(path, nil, again); a.status != 200 {
		t.Errorf("an assertion: %d %s", a.status, a.body)
	}
	for _, p := range []string{path, "/oauth/token"} {
		if a := srv.post(p, nil, formWith(again, "grant_type", "client_credentials")); a.status != 401 || a.code != watchword.TokenReplayed {
			t.Errorf("the assertion again at %s: %d %s", p, a.status, a.body)
		}
	}
	for name, bad := range map[string]string{
		"words": "open sesame", "an assertion": assertion, "forged": tok[:len(tok)-8] + "AAAAAAAA", "oversize": strings.Repeat("A", 9000),
	} {
		if _, a := srv.introspect(gate, bad); strings.TrimSpace(a.body) != `{"active":false}` || a.status != 200 {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}

	// A subject that must prove its key uses a bound token: an assertion is no proof for one request.
	_, err = srv.admin.SetProof(t.Context(), "gate-1", watchword.RequireProof)
	must(t, err)
	if _, a := srv.introspect(gate, tok); a.status != 400 || a.oauth != "invalid_dpop_proof" || a.code != watchword.ProofRequired {
		t.Errorf("by an assertion alone: %d %s", a.status, a.body)
	}
	mine := deviceSigner(t, gate)
	bound := srv.bound(gate, mine)
	proof := prove(t, mine, "POST", srv.url+path, srv.nonce(), bound)
	if a := srv.post(path, nil, url.Values{"token": {tok}}, "Authorization: DPoP "+bound, "DPoP: "+proof); a.status != 200 || !strings.Contains(a.body, `"active":true`) || a.header.Get("DPoP-Nonce") == "" {
		t.Errorf("by a bound token: %d %s", a.status, a.body)
	}
	if a := srv.post(path, nil, url.Values{"token": {tok}}, "Authorization: DPoP "+bound, "DPoP: "+proof); a.status != 401 || a.oauth != "invalid_dpop_proof" {
		t.Errorf("by the same proof again: %d %s", a.status, a.body)
	}
	if a := srv.post("/oauth/revoke", nil, url.Values{"token": {bound}}, "Authorization: DPoP "+bound, "DPoP: "+prove(t, mine, "POST", srv.url+"/oauth/revoke", srv.nonce(), bound)); a.status != 200 {
		t.Errorf("revoked by itself: %d %s", a.status, a.body)
	}
	_, err = srv.admin.SetProof(t.Context(), "gate-1", "")
	must(t, err)
	if c, a := srv.introspect(gate, bound); c.Active {
		t.Errorf("what revoked itself: %s", a.body)
	}

	// Permissions that policy removes are not in the answer; those that it denies are in deny.
	_, err = srv.admin.ApplyPolicy(t.Context(), "lux", []byte("for = { site = \"a\" }\n[[allow]]\npublish = [\"plant/#\"]\n"), 0)
	must(t, err)
	wide := srv.token(d)
	if c, a := srv.introspect(gate, wide); !has(c.Perm, "topic:plant/#") {
		t.Errorf("got %s", a.body)
	}
	_, err = srv.admin.ApplyPolicy(t.Context(), "lux", []byte("for = { site = \"a\" }\n[[allow]]\npublish = [\"plant/a/#\"]\n[[deny]]\nget = [\"/v1/self/config\"]\n"), -1)
	must(t, err)
	if c, a := srv.introspect(gate, wide); !c.Active || has(c.Perm, "topic:plant/#") || !has(c.Perm, "api:/v1/self/#") || !has(c.Deny, "api:/v1/self/config") {
		t.Errorf("got %s", a.body)
	}
	_, err = srv.admin.Suspend(t.Context(), "lamp-1", "test")
	must(t, err)
	if c, a := srv.introspect(gate, elsewhere); c.Active || strings.TrimSpace(a.body) != `{"active":false}` {
		t.Errorf("a suspended one's: %s", a.body)
	}
	_, err = srv.admin.Revoke(t.Context(), "lamp-1", "test")
	must(t, err)
	if c, a := srv.introspect(gate, wide); c.Active {
		t.Errorf("a revoked one's: %s", a.body)
	}
}

func has(ps []watchword.Permission, resource string) bool {
	for _, p := range ps {
		if p.Resource == resource {
			return true
		}
	}
	return false
}

func TestRevocation(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	other := srv.enroll("lamp-2", device.Options{}, nil)
	const path = "/oauth/revoke"
	jti := func(tok string) string { return claims(t, tok)["jti"].(string) }
	alive := func(tok string) bool { return srv.request("GET", "/v1/self", tok, "").status == 200 }
	entry := func(outcome audit.Outcome, jti string) (n int) {
		es, err := srv.admin.Entries(t.Context(), 0, 10_000)
		must(t, err)
		for _, e := range es {
			if e.Kind == audit.TokenRevoke && e.Outcome == string(outcome) && e.Object == jti {
				n++
			}
		}
		return n
	}
	mine, kept := srv.token(d), srv.token(d)
	w, err := dialPaho(t, d, "lamp-1/a", mine)
	must(t, err)
	still, err := dialPaho(t, d, "lamp-1/b", kept)
	must(t, err)
	if !alive(mine) || !alive(kept) {
		t.Fatal("they do not count")
	}
	if a := srv.post(path, other, url.Values{"token": {mine}}); a.status != 200 || !alive(mine) {
		t.Errorf("another's token: %d %s, alive %v", a.status, a.body, alive(mine))
	}
	refused := 0
	for range 2000 { // it is written beside
		if refused = entry(audit.Refused, jti(mine)); refused > 0 {
			break
		}
	}
	if refused != 1 {
		t.Errorf("%d entries of the refusal", refused)
	}
	for name, tok := range map[string]string{"words": "open sesame", "forged": mine[:len(mine)-8] + "AAAAAAAA", "oversize": strings.Repeat("A", 9000)} {
		if a := srv.post(path, d, url.Values{"token": {tok}}); a.status != 200 {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if a := srv.post(path, nil, url.Values{"token": {mine}}); a.status != 401 || a.oauth != "invalid_client" {
		t.Errorf("without a credential: %d %s", a.status, a.body)
	}
	if a := srv.post(path, d, url.Values{}); a.status != 400 || a.oauth != "invalid_request" {
		t.Errorf("no token: %d %s", a.status, a.body)
	}
	if a := srv.post(path, d, url.Values{"token": {mine}, "token_type_hint": {"refresh_token"}}); a.status != 200 || a.body != "" {
		t.Errorf("one's own: %d %s", a.status, a.body)
	}
	if p := <-w.ended; p.ReasonCode != 0x87 || p.Properties == nil || !strings.HasPrefix(p.Properties.ReasonString, "token_revoked") {
		t.Errorf("its connection ended with %#x %+v", p.ReasonCode, p.Properties)
	}
	if a := srv.request("GET", "/v1/self", mine, ""); a.code != watchword.TokenRevoked {
		t.Errorf("a revoked token: %d %s", a.status, a.body)
	}
	if a := srv.post(path, d, url.Values{"token": {mine}}); a.status != 200 || entry(audit.Done, jti(mine)) != 1 {
		t.Errorf("again: %d %s, %d entries", a.status, a.body, entry(audit.Done, jti(mine)))
	}
	if _, err := dialPaho(t, d, "lamp-1/c", mine); err == nil {
		t.Error("a revoked token opened a connection")
	}
	if !alive(kept) || len(still.ended) != 0 {
		t.Error("another token of the same device went with it")
	}
	// By a token in the header, and by an operator.
	third := srv.token(d)
	if a := srv.post(path, nil, url.Values{"token": {third}}, "Authorization: Bearer "+kept); a.status != 200 || alive(third) {
		t.Errorf("by one's token: %d %s, alive %v", a.status, a.body, alive(third))
	}
	must(t, srv.admin.RevokeToken(t.Context(), jti(kept)))
	if p := <-still.ended; p.ReasonCode != 0x87 || alive(kept) {
		t.Errorf("by an operator: %#x", p.ReasonCode)
	}
	wants(t, "nobody's", srv.admin.RevokeToken(t.Context(), "tok_none"), watchword.NotFound)
	if a := srv.request("DELETE", "/v1/tokens/"+jti(kept), srv.token(other), ""); a.code != watchword.Denied {
		t.Errorf("by a device: %d %s", a.status, a.body)
	}
}

func TestScopeAndResourceOnlyReducePermissions(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, watchword.Labels{"site": "a"})
	_, err := srv.admin.ApplyPolicy(t.Context(), "lamps", []byte(`for = { site = "a" }
[[allow]]
publish = ["plant/a/#"]
subscribe = ["plant/+/lux"]
[[allow]]
call = ["lamp.*"]
on = { site = "a" }
[[deny]]
publish = ["plant/a/secret"]
`), 0)
	must(t, err)
	ask := func(kv ...string) answer { return srv.post("/oauth/token", d, formWith(grant, kv...)) }
	for _, scope := range []string{
		"pub:topic:plant/a/lux",
		"pub:topic:plant/a/#",
		"sub:topic:plant/b/lux",
		"pub,sub:topic:plant/a/lux",
		"get:api:/v1/self/#",
		"get,put:api:/v1/self/config pub:topic:devices/lamp-1/events/lux",
		"call:fn:site=a/lamp.set",
		"call:fn:kind=lamp,site=a/lamp.s*",
	} {
		a := ask("scope", scope)
		if a.status != 200 || a.member(t, "scope") != scope {
			t.Errorf("%s: %d %s", scope, a.status, a.body)
			continue
		}
		perm, err := json.Marshal(claims(t, a.member(t, "access_token"))["perm"])
		must(t, err)
		var got []watchword.Permission
		must(t, json.Unmarshal(perm, &got))
		if watchword.FormatScope(got) != scope {
			t.Errorf("%s: the token gives %s", scope, perm)
		}
	}
	many := strings.TrimSpace(strings.Repeat("get:api:/v1/self ", 65))
	for name, scope := range map[string]string{
		"wider by a filter":         "pub:topic:plant/#",
		"wider by a level":          "sub:topic:plant/+/+",
		"wider by an action":        "sub:topic:plant/a/#",
		"everything":                "pub,sub:topic:#",
		"another's topics":          "pub:topic:devices/lamp-2/events/lux",
		"one good and one not":      "get:api:/v1/self/# get:api:/v1/devices",
		"every function":            "call:fn:site=a/*",
		"every device":              "call:fn:*/lamp.set",
		"a device by its id":        "call:fn:lamp-1/lamp.set", // which site it is of tomorrow is not known
		"another label":             "call:fn:kind=lamp/lamp.set",
		"OpenID's":                  "openid",
		"an action of another kind": "call:topic:plant/a/lux",
		"no action":                 ":topic:plant/a/lux",
		"an action twice":           "pub,pub:topic:plant/a/lux",
		"an invalid filter":         "pub:topic:plant/a#",
		"a path that climbs":        "get:api:v1/self",
		"two spaces":                "get:api:/v1/self  get:api:/v1/self",
		"a quote":                   `get:api:/v1/self"`,
		"a line break":              "get:api:/v1/self\r\nX-Evil: 1",
		"a script":                  "get:api:/v1/self/<script>é",
		"a NUL":                     "get:api:/v1/self\x00",
		"too many":                  many,
		"too long":                  "get:api:/v1/self/" + strings.Repeat("x", 4096),
	} {
		a := ask("scope", scope)
		if a.status != 400 || a.oauth != "invalid_scope" || a.code != watchword.ScopeInvalid || strings.Contains(a.body, "<script") || a.header.Get("X-Evil") != "" {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	a := ask("scope", "pub,sub:topic:#")
	srv.waitForRefusalEntry(a.member(t, "trace_id"), watchword.ScopeInvalid, "lamp-1")

	// The token has the requested permissions, and deny has what policy denies.
	tok := ask("scope", "pub:topic:plant/a/# get:api:/v1/self/sessions").member(t, "access_token")
	if c := claims(t, tok); c["deny"] == nil {
		t.Error("a narrow token lost its deny")
	}
	if a := srv.request("GET", "/v1/self/sessions", tok, ""); a.status != 200 {
		t.Errorf("what was asked for: %d %s", a.status, a.body)
	}
	for _, path := range []string{"/v1/self", "/v1/self/config", "/v1/devices"} {
		if a := srv.request("GET", path, tok, ""); a.status != 403 || a.code != watchword.Denied {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}

	for name, resource := range map[string][]string{
		"two":            {"https://api.example", "https://other.example"},
		"the same twice": {"https://api.example", "https://api.example"},
		"a fragment":     {"https://api.example/#x"},
		"an empty one":   {"https://api.example/#"},
		"relative":       {"/readings"},
		"no URI":         {"readings"},
		"no host":        {"https://"},
		"a space":        {"https://api.example/a b"},
		"a line break":   {"https://api.example/\r\nX-Evil: 1"},
		"a quote":        {`https://api.example/"`},
		"too long":       {"https://api.example/" + strings.Repeat("x", 256)},
		"not ASCII":      {"https://api.exämple/"},
	} {
		form := formWith(grant)
		form["resource"] = resource
		if a := srv.post("/oauth/token", d, form); a.status != 400 || a.oauth != "invalid_target" || a.code != watchword.TargetInvalid {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if a := ask("audience", "https://api.example"); a.status != 400 || a.oauth != "invalid_target" {
		t.Errorf("audience: %d %s", a.status, a.body)
	}
	for resource, aud := range map[string]string{"https://api.example/r?a=b": "https://api.example/r?a=b", "urn:example:plant": "urn:example:plant", srv.url: srv.url, "": srv.url} {
		a := ask("resource", resource)
		if a.status != 200 {
			t.Errorf("%s: %d %s", resource, a.status, a.body)
			continue
		}
		tok := a.member(t, "access_token")
		if got := claims(t, tok)["aud"]; got != aud {
			t.Errorf("%s: aud is %v", resource, got)
		}
		if a := srv.request("GET", "/v1/self", tok, ""); (a.status == 200) != (aud == srv.url) || aud != srv.url && a.code != watchword.AudienceMismatch {
			t.Errorf("%s at its own endpoint: %d %s", resource, a.status, a.body)
		}
	}
}

// A token for another resource has no permissions on this server's topics and functions, unless they were requested.
func TestTokenForAnotherResourceHasPathPermissionsOnly(t *testing.T) {
	srv := serve(t, nil)
	_, err := srv.admin.ApplyPolicy(t.Context(), "plant", []byte(`subjects = ["lamp-1"]
[[allow]]
publish = ["plant/#"]
[[allow]]
get = ["/readings/#"]
[[allow]]
call = ["lamp.set"]
on = { site = "a" }
[[deny]]
publish = ["plant/secret"]
[[deny]]
get = ["/readings/secret"]
`), 0)
	must(t, err)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	const elsewhere = "https://api.example"
	kinds := func(tok, claim string) map[string]bool {
		b, err := json.Marshal(claims(t, tok)[claim])
		must(t, err)
		var ps []watchword.Permission
		must(t, json.Unmarshal(b, &ps))
		out := map[string]bool{}
		for _, p := range ps {
			kind, _, _ := strings.Cut(p.Resource, ":")
			out[kind] = true
		}
		return out
	}
	for name, tc := range map[string]struct {
		form   []string
		whole  bool
		scopes string // header of the answer
	}{
		"no resource":                  {nil, true, ""},
		"the issuer":                   {[]string{"resource", srv.url}, true, ""},
		"another":                      {[]string{"resource", elsewhere}, false, ""},
		"another, and everything":      {[]string{"resource", elsewhere, "scope", "*"}, true, "*"},
		"everything":                   {[]string{"scope", "*"}, true, "*"},
		"another, with a scope of all": {[]string{"resource", elsewhere, "scope", "pub:topic:plant/# get:api:/readings/# call:fn:site=a/lamp.set"}, true, "pub:topic:plant/# get:api:/readings/# call:fn:site=a/lamp.set"},
	} {
		a := srv.post("/oauth/token", d, formWith(grant, tc.form...))
		if a.status != 200 {
			t.Errorf("%s: %d %s", name, a.status, a.body)
			continue
		}
		tok := a.member(t, "access_token")
		perm, deny := kinds(tok, "perm"), kinds(tok, "deny")
		if !perm["api"] || perm["topic"] != tc.whole || perm["fn"] != tc.whole {
			t.Errorf("%s: perm is of %v", name, perm)
		}
		if !deny["api"] || deny["topic"] != tc.whole {
			t.Errorf("%s: deny is of %v", name, deny)
		}
		var said struct{ Scope string }
		must(t, json.Unmarshal([]byte(a.body), &said))
		if said.Scope != tc.scopes {
			t.Errorf("%s: scope %q", name, said.Scope)
		}
	}
	for _, scope := range []string{"* get:api:/readings/#", "get:api:/readings/# *", "**", " *"} {
		if a := srv.post("/oauth/token", d, formWith(grant, "scope", scope)); a.code != watchword.ScopeInvalid {
			t.Errorf("scope %q: %d %s", scope, a.status, a.body)
		}
	}
}

// Whatever says how long a token lives says the same.
func TestTokenLifetimesAgree(t *testing.T) {
	off := func() time.Time { return time.Now().Truncate(time.Second).Add(987 * time.Millisecond) } // no whole second
	srv := serveAt(t, filepath.Join(t.TempDir(), "data"), off, nil)
	gate := srv.enroll("gate-1", device.Options{}, nil)
	_, err := srv.admin.ApplyPolicy(t.Context(), "inspectors", []byte(inspectors), 0)
	must(t, err)
	_, s := newKey(t, "Ed25519")
	for name, a := range map[string]answer{
		"bearer":   srv.post("/oauth/token", gate, grant),
		"narrow":   srv.post("/oauth/token", gate, formWith(grant, "scope", "get:api:/v1/self")),
		"resource": srv.post("/oauth/token", gate, formWith(grant, "resource", "urn:example:plant")),
		"bound":    srv.post("/oauth/token", gate, grant, "DPoP: "+prove(t, s, "POST", srv.url+"/oauth/token", srv.nonce(), "")),
		"paired":   srv.paired(t, off),
	} {
		var said struct {
			In    int64  `json:"expires_in"`
			Token string `json:"access_token"`
		}
		must(t, json.Unmarshal([]byte(a.body), &said))
		if said.Token == "" {
			t.Errorf("%s: %d %s", name, a.status, a.body)
			continue
		}
		c := claims(t, said.Token)
		exp, iat := seconds(t, c["exp"]), seconds(t, c["iat"])
		if said.In != exp-iat || said.In != 600 {
			t.Errorf("%s: expires_in %v, and the token lives from %v to %v", name, said.In, iat, exp)
		}
		if seen, _ := srv.introspect(gate, said.Token); seen.Exp != exp {
			t.Errorf("%s: introspection says exp %v, the token %v", name, seen.Exp, exp)
		}
	}
	tok := srv.token(gate)
	w, err := dialPaho(t, gate, "gate-1", tok)
	must(t, err)
	exp := seconds(t, claims(t, tok)["exp"])
	if want := time.Unix(exp, 0).UTC().Format(time.RFC3339); w.ack.Properties.User.Get("expires_at") != want {
		t.Errorf("CONNACK says %q, the token %s", w.ack.Properties.User.Get("expires_at"), want)
	}
	events := srv.stream("/v1/self/commands", tok)
	var opened struct {
		At time.Time `json:"expires_at"`
	}
	must(t, json.Unmarshal([]byte(next(t, events, "session").Data), &opened))
	if opened.At.Unix() != exp {
		t.Errorf("the stream says %s, the token %v", opened.At, exp)
	}
	asked := srv.form("/oauth/device_authorization", srv.newUnenrolled("lamp-9", off).askForm())
	var p struct {
		In float64 `json:"expires_in"`
	}
	must(t, json.Unmarshal([]byte(asked.body), &p))
	if want := server.Defaults().Pairing.Lifetime.Duration.Seconds(); p.In != want {
		t.Errorf("a pairing says %v, its life is %v", p.In, want)
	}
}

func seconds(t testing.TB, v any) int64 {
	t.Helper()
	n, ok := v.(int64)
	if !ok {
		t.Fatalf("%v is no number", v)
	}
	return n
}

// paired approves a new device and returns the answer to its poll.
func (srv *testServer) paired(t *testing.T, now func() time.Time) answer {
	t.Helper()
	s := srv.newUnenrolled("lamp-8", now).ask()
	_, err := srv.admin.ApprovePairing(t.Context(), s.user, s.sign.Public().ID(), "lamp-8", nil)
	must(t, err)
	return s.poll()
}

func TestMetadata(t *testing.T) {
	srv := serve(t, nil)
	var as, rs map[string]any
	must(t, json.Unmarshal([]byte(srv.request("GET", "/.well-known/oauth-authorization-server", "", "").body), &as))
	must(t, json.Unmarshal([]byte(srv.request("GET", "/.well-known/oauth-protected-resource", "", "").body), &rs))
	for _, name := range []string{"token_endpoint", "introspection_endpoint", "revocation_endpoint"} {
		u, _ := as[name].(string)
		if a := srv.send("POST", strings.TrimPrefix(u, srv.url), "", http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}); a.oauth == "" {
			t.Errorf("%s %s: %d %s", name, u, a.status, a.body)
		}
		want := []any{"private_key_jwt"}
		if name == "introspection_endpoint" {
			want = []any{"Bearer", "DPoP", "private_key_jwt"} // RFC 8414 §2: types of access tokens too
		}
		if m, _ := as[name+"_auth_methods_supported"].([]any); !slices.Equal(m, want) {
			t.Errorf("%s: %v", name, m)
		}
	}
	if as["issuer"] != srv.url || rs["resource"] != srv.url || as["dpop_signing_alg_values_supported"] == nil || rs["dpop_signing_alg_values_supported"] == nil {
		t.Errorf("%v\n%v", as, rs)
	}
}
