package attack_test

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

// send is ask with headers, which may be duplicate.
func (srv *testServer) send(method, path, body string, head http.Header) answer {
	srv.t.Helper()
	req, err := http.NewRequestWithContext(srv.t.Context(), method, srv.url+path, strings.NewReader(body))
	must(srv.t, err)
	req.Header = head
	res, err := srv.client().Do(req)
	must(srv.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	must(srv.t, err)
	a := answer{status: res.StatusCode, header: res.Header, body: string(b)}
	var p struct {
		Code  watchword.Code `json:"code"`
		Field string         `json:"field"`
		Error string         `json:"error"`
	}
	if len(b) > 0 && json.Unmarshal(b, &p) == nil {
		a.code, a.field, a.oauth = p.Code, p.Field, p.Error
	}
	return a
}

// post sends a form to an OAuth endpoint, with a client assertion of d if there is one.
func (srv *testServer) post(path string, d *device.Device, form url.Values, headers ...string) answer {
	srv.t.Helper()
	if d != nil {
		assertion, err := d.Assertion(time.Minute)
		must(srv.t, err)
		form = formWith(form, "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", assertion)
	}
	head := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	for _, line := range headers {
		k, v, _ := strings.Cut(line, ": ")
		head.Add(k, v)
	}
	return srv.send("POST", path, form.Encode(), head)
}

func formWith(form url.Values, kv ...string) url.Values {
	out := url.Values{}
	for k, v := range form {
		out[k] = v
	}
	for i := 0; i < len(kv); i += 2 {
		out.Set(kv[i], kv[i+1])
	}
	return out
}

var grant = url.Values{"grant_type": {"client_credentials"}}

func (a answer) member(t testing.TB, name string) string {
	t.Helper()
	var m map[string]any
	must(t, json.Unmarshal([]byte(a.body), &m))
	s, _ := m[name].(string)
	return s
}

func prove(t testing.TB, s *jose.Signer, method, uri, nonce, access string) string {
	t.Helper()
	raw, err := token.SignDPoP(s, method, uri, nonce, access, time.Now())
	must(t, err)
	return raw
}

// nonce requests a nonce from the server, as a client without one does.
func (srv *testServer) nonce() string {
	srv.t.Helper()
	_, s := newKey(srv.t, "P-256")
	a := srv.post("/oauth/token", nil, grant, "DPoP: "+prove(srv.t, s, "POST", srv.url+"/oauth/token", "", ""))
	n := a.header.Get("DPoP-Nonce")
	if n == "" {
		srv.t.Fatalf("no nonce: %d %s", a.status, a.body)
	}
	return n
}

// bound gets a token of d that is bound to the key of s.
func (srv *testServer) bound(d *device.Device, s *jose.Signer) string {
	srv.t.Helper()
	a := srv.post("/oauth/token", d, grant, "DPoP: "+prove(srv.t, s, "POST", srv.url+"/oauth/token", srv.nonce(), ""))
	if a.status != 200 || a.member(srv.t, "token_type") != "DPoP" {
		srv.t.Fatalf("no bound token: %d %s", a.status, a.body)
	}
	return a.member(srv.t, "access_token")
}

// waitForRefusalEntry waits for the refusal that an answer's trace id names: they are written beside.
func (srv *testServer) waitForRefusalEntry(trace string, code watchword.Code, actor watchword.SubjectID) {
	srv.t.Helper()
	for range 2000 {
		es, err := srv.admin.Entries(srv.t.Context(), 0, 10_000)
		must(srv.t, err)
		for _, e := range es {
			if e.Trace == trace && e.Kind == audit.RequestRefuse {
				if e.Code != code || e.Actor != actor {
					srv.t.Errorf("the entry says %q of %q, want %q of %q", e.Code, e.Actor, code, actor)
				}
				return
			}
		}
	}
	srv.t.Errorf("no entry for %s", code)
}

func TestDPoPAtTheTokenEndpoint(t *testing.T) {
	for _, curve := range []string{"P-256", "Ed25519"} {
		t.Run(curve, func(t *testing.T) { dpopAtTheTokenEndpoint(t, curve) })
	}
}

func dpopAtTheTokenEndpoint(t *testing.T, curve string) {
	h := serve(t, nil)
	d := h.enroll("lamp-1", device.Options{}, nil)
	key, s := newKey(t, curve)
	uri := h.url + "/oauth/token"
	nonce := h.nonce()
	now := time.Now().Unix()
	good := func() map[string]any {
		return map[string]any{"jti": watchword.NewNonce(), "htm": "POST", "htu": uri, "iat": time.Now().Unix(), "nonce": nonce}
	}
	proof := func(c map[string]any) string {
		b, err := json.Marshal(c)
		must(t, err)
		raw, err := s.SignProof(token.TypDPoP, b)
		must(t, err)
		return raw
	}
	kid := func(c map[string]any) string { return sign(t, s, token.TypDPoP, c) }
	head := func(h string) string { return replaceHeader(proof(good()), h) }
	jwk := string(s.Public().JWK())
	keyed := func(jwk string) string { // the signature holds
		b, err := json.Marshal(good())
		must(t, err)
		return forge(t, s, `{"alg":"`+s.Public().Alg()+`","typ":"dpop+jwt","jwk":`+jwk+`}`, string(b))
	}
	if a := h.post("/oauth/token", d, grant, "DPoP: "+keyed(put(`"ext":true,"use":"sig","key_ops":["verify"]`)(jwk))); a.status != 200 {
		t.Errorf("a key that is for signing: %d %s", a.status, a.body)
	}
	for _, tc := range []struct {
		name   string
		proofs []string
		code   watchword.Code
		oauth  string
	}{
		{"words", []string{"open sesame"}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"two headers", []string{proof(good()), proof(good())}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"two in one header", []string{proof(good()) + ", " + proof(good())}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"an empty header", []string{""}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"another method", []string{proof(with(good(), "htm", "GET"))}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"another path", []string{proof(with(good(), "htu", h.url+"/v1/self"))}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"another host", []string{proof(with(good(), "htu", "https://evil.example/oauth/token"))}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"without htu", []string{proof(with(good(), "htu", nil))}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"old", []string{proof(with(good(), "iat", now-300))}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"from the future", []string{proof(with(good(), "iat", now+300))}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"without iat", []string{proof(with(good(), "iat", nil))}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"without jti", []string{proof(with(good(), "jti", nil))}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"a jti without end", []string{proof(with(good(), "jti", strings.Repeat("x", 200)))}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"a name of the key instead of the key", []string{kid(good())}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"the private key in the header", []string{head(`{"alg":"` + s.Public().Alg() + `","typ":"dpop+jwt","jwk":` + string(key.JWK()) + `}`)}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"a key for sealing in the header", []string{keyed(put(`"use":"enc"`)(jwk))}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"a key that only signs in the header", []string{keyed(put(`"key_ops":["sign"]`)(jwk))}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"a symmetric member in the header", []string{keyed(put(`"k":"AAAA"`)(jwk))}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"alg none", []string{head(`{"alg":"none","typ":"dpop+jwt","jwk":` + jwk + `}`)}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"alg HS256", []string{head(`{"alg":"HS256","typ":"dpop+jwt","jwk":{"kty":"oct","k":"AAAA"}}`)}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"another kind", []string{head(`{"alg":"` + s.Public().Alg() + `","typ":"JWT","jwk":` + jwk + `}`)}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"another's signature", []string{proof(good())[:20] + proof(good())[20:len(proof(good()))-86] + strings.Repeat("A", 86)}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"no nonce", []string{proof(with(good(), "nonce", nil))}, watchword.DPoPNonce, "use_dpop_nonce"},
		{"a nonce of one's own", []string{proof(with(good(), "nonce", base64.RawURLEncoding.EncodeToString(make([]byte, 16))))}, watchword.DPoPNonce, "use_dpop_nonce"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := *h
			h.t = t
			nonce = h.nonce() // however slow this is
			assertion, err := d.Assertion(time.Minute)
			must(t, err)
			form := formWith(grant, "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", assertion)
			post := func(proofs ...string) answer {
				return h.send("POST", "/oauth/token", form.Encode(), http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "Dpop": proofs})
			}
			a := post(tc.proofs...)
			if a.status != 400 || a.code != tc.code || a.oauth != tc.oauth {
				t.Errorf("got %d %q %q: %s", a.status, a.code, a.oauth, a.body)
			}
			if a.header.Get("DPoP-Nonce") == "" && len(tc.proofs) == 1 {
				t.Error("no nonce for the next one")
			}
			if tc.code == watchword.DPoPInvalid {
				h.waitForRefusalEntry(a.member(t, "trace_id"), watchword.DPoPInvalid, "")
			}
			// What was refused for its proof spent no assertion.
			if a := post(proof(good())); a.status != 200 || a.member(t, "token_type") != "DPoP" {
				t.Errorf("the same assertion with a good proof: %d %s", a.status, a.body)
			}
			if a := post(proof(good())); a.code != watchword.TokenReplayed || a.oauth != "invalid_client" || a.status != 401 {
				t.Errorf("the assertion again: %d %s", a.status, a.body)
			}
		})
	}
	nonce = h.nonce()
	once := proof(good())
	if a := h.post("/oauth/token", d, grant, "DPoP: "+once); a.status != 200 {
		t.Fatalf("a good proof: %d %s", a.status, a.body)
	}
	if a := h.post("/oauth/token", d, grant, "DPoP: "+once); a.code != watchword.DPoPInvalid || a.status != 400 {
		t.Errorf("a proof again: %d %s", a.status, a.body)
	}
	for _, known := range []string{"https://127.0.0.1:" + port(t, h.dir), "HTTPS://LOCALHOST:" + port(t, h.dir)} {
		if a := h.post("/oauth/token", d, grant, "DPoP: "+proof(with(good(), "htu", known+"/oauth/token?a=b"))); a.status != 200 {
			t.Errorf("under its address %s: %d %s", known, a.status, a.body)
		}
	}
	c := claims(t, h.bound(d, s))
	if cnf, _ := c["cnf"].(map[string]any); cnf["jkt"] != string(s.Public().ID()) {
		t.Errorf("cnf is %v", c["cnf"])
	}
}

func TestDPoPAtEndpoints(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	_, s := newKey(t, "P-256")
	_, attacker := newKey(t, "P-256")
	tok, second := srv.bound(d, s), srv.bound(d, s)
	bearer := srv.token(d)
	uri := srv.url + "/v1/self"
	nonce := srv.nonce()
	ask := func(tok string, proofs ...string) answer {
		return srv.send("GET", "/v1/self", "", http.Header{"Authorization": {"DPoP " + tok}, "Dpop": proofs})
	}
	a := ask(tok, prove(t, s, "GET", uri, nonce, tok))
	if a.status != 200 || a.header.Get("DPoP-Nonce") == "" || a.header.Get("Cache-Control") != "no-store" { // RFC 9449 §8.2
		t.Fatalf("a good proof: %d %v %s", a.status, a.header, a.body)
	}
	old, err := token.SignDPoP(s, "GET", uri, nonce, tok, time.Now().Add(-5*time.Minute))
	must(t, err)
	for _, tc := range []struct {
		name   string
		tok    string
		proofs []string
		code   watchword.Code
		want   string
	}{
		{"no proof", tok, nil, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"two proofs", tok, []string{prove(t, s, "GET", uri, nonce, tok), prove(t, s, "GET", uri, nonce, tok)}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"another method", tok, []string{prove(t, s, "POST", uri, nonce, tok)}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"another path", tok, []string{prove(t, s, "GET", uri+"/sessions", nonce, tok)}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"another host", tok, []string{prove(t, s, "GET", "https://evil.example/v1/self", nonce, tok)}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"another token's hash", tok, []string{prove(t, s, "GET", uri, nonce, second)}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"no hash", tok, []string{prove(t, s, "GET", uri, nonce, "")}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"another key", tok, []string{prove(t, attacker, "GET", uri, nonce, tok)}, watchword.DPoPInvalid, "invalid_token"},
		{"old", tok, []string{old}, watchword.DPoPInvalid, "invalid_dpop_proof"},
		{"no nonce", tok, []string{prove(t, s, "GET", uri, "", tok)}, watchword.DPoPNonce, "use_dpop_nonce"},
		{"another nonce", tok, []string{prove(t, s, "GET", uri, watchword.NewNonce(), tok)}, watchword.DPoPNonce, "use_dpop_nonce"},
		{"a bearer token", bearer, []string{prove(t, s, "GET", uri, nonce, bearer)}, watchword.TokenKind, "invalid_token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := *srv
			srv.t = t
			a := ask(tc.tok, tc.proofs...)
			challenge := a.header.Get("WWW-Authenticate")
			if a.status != 401 || a.code != tc.code || !strings.HasPrefix(challenge, "DPoP algs=") || !strings.Contains(challenge, `error="`+tc.want+`"`) ||
				!strings.Contains(challenge, `resource_metadata="`+srv.url+`/.well-known/oauth-protected-resource"`) || a.header.Get("DPoP-Nonce") == "" {
				t.Errorf("got %d %q, %q: %s", a.status, a.code, challenge, a.body)
			}
			if tc.code != watchword.DPoPNonce {
				srv.waitForRefusalEntry(a.member(t, "trace_id"), tc.code, "")
			}
		})
	}
	nonce = srv.nonce() // however slow that was
	t.Run("a bound token as Bearer", func(t *testing.T) {
		for _, extra := range []http.Header{{}, {"Dpop": {prove(t, s, "GET", uri, nonce, tok)}}} {
			extra.Set("Authorization", "Bearer "+tok)
			a := srv.send("GET", "/v1/self", "", extra)
			if c := a.header.Values("WWW-Authenticate"); a.status != 401 || a.code != watchword.TokenKind || len(c) != 2 || !strings.Contains(c[0], `error="invalid_token"`) || !strings.HasPrefix(c[1], "DPoP algs=") {
				t.Errorf("got %d %q %q", a.status, a.code, c)
			}
		}
	})
	t.Run("one proof on many sockets at once", func(t *testing.T) {
		once := prove(t, s, "GET", uri, nonce, tok)
		var mu sync.Mutex
		var wg sync.WaitGroup
		got := map[watchword.Code]int{}
		for range 8 {
			c := srv.client() // a connection of its own
			wg.Go(func() {
				req, err := http.NewRequestWithContext(t.Context(), "GET", uri, nil)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Authorization", "DPoP "+tok)
				req.Header.Set("DPoP", once)
				res, err := c.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				defer res.Body.Close()
				var p struct{ Code watchword.Code }
				if err := json.NewDecoder(res.Body).Decode(&p); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				got[p.Code]++
			})
		}
		wg.Wait()
		if got[""] != 1 || got[watchword.DPoPInvalid] != 7 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("the error does not name both ways", func(t *testing.T) {
		a := srv.request("GET", "/v1/self", "", "")
		if c := a.header.Values("WWW-Authenticate"); len(c) != 2 || !strings.HasPrefix(c[0], "Bearer ") || !strings.HasPrefix(c[1], "DPoP ") || strings.Contains(strings.Join(c, ""), "error=") {
			t.Errorf("got %q", c)
		}
	})
	t.Run("a session that proved its key is refreshed by a proof alone", func(t *testing.T) {
		req, err := http.NewRequestWithContext(t.Context(), "GET", srv.url+"/v1/self/commands", nil)
		must(t, err)
		req.Header = http.Header{"Accept": {"text/event-stream"}, "Authorization": {"DPoP " + tok}, "Dpop": {prove(t, s, "GET", srv.url+"/v1/self/commands", nonce, tok)}}
		res, err := srv.client().Do(req)
		must(t, err)
		defer res.Body.Close()
		if res.StatusCode != 200 {
			t.Fatal(res.Status)
		}
		list, err := srv.admin.Sessions(t.Context(), "lamp-1")
		must(t, err)
		path := "/v1/self/sessions/" + string(list[0].ID)
		if a := srv.request("PUT", path, srv.token(d), ""); a.code != watchword.ProofRequired || a.status != 401 {
			t.Errorf("by a bearer token: %d %s", a.status, a.body)
		}
		newer := srv.bound(d, s)
		if a := srv.send("PUT", path, "", http.Header{"Authorization": {"DPoP " + newer}, "Dpop": {prove(t, s, "PUT", srv.url+path, nonce, newer)}}); a.status != 200 {
			t.Errorf("by a proof: %d %s", a.status, a.body)
		}
	})
	// A restart kills every proof that was made before.
	late := prove(t, s, "GET", uri, srv.nonce(), second)
	srv.stop()
	srv = serveOn(t, srv.dir, onPort(portOf(t, srv.url)))
	if a := ask(second, late); a.code != watchword.DPoPNonce {
		t.Errorf("a proof from before the restart: %d %s", a.status, a.body)
	}
}

func portOf(t testing.TB, s string) string {
	t.Helper()
	u, err := url.Parse(s)
	must(t, err)
	return u.Port()
}
