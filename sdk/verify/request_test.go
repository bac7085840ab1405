package verify_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/verify"
	"github.com/watchword-iot/watchword/token"
)

// open answers 200 with the subject of the token.
var open = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, verify.FromContext(r.Context()).Subject)
})

func proof(t testing.TB, s *jose.Signer, method, uri, nonce, access string, at time.Time) string {
	t.Helper()
	raw, err := token.SignDPoP(s, method, uri, nonce, access, at)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

const (
	bearerOnly = `Bearer realm="https://api.example"`
	dpopOnly   = `DPoP realm="https://api.example", algs="ES256 Ed25519 EdDSA"`
)

func withError(challenge, name string, code watchword.Code) string {
	e := `, error="` + name + `", error_description="` + string(code) + `"`
	if before, ok := strings.CutSuffix(challenge, `, algs="ES256 Ed25519 EdDSA"`); ok {
		return before + e + `, algs="ES256 Ed25519 EdDSA"`
	}
	return challenge + e
}

func TestRefusalsSayWhatTheStandardsSay(t *testing.T) {
	key, lamp, thief := newSigner(t, jose.P256), newSigner(t, jose.Ed), newSigner(t, jose.P256)
	v, _ := static(t, jwks(key))
	h := v.Require("api:/readings", "post")(open)
	const uri = audience + "/readings"
	plain := signToken(t, key, noon, nil)
	tied := signToken(t, key, noon, bound(lamp))
	other := signToken(t, key, noon, bound(lamp))
	poor := signToken(t, key, noon, map[string]any{"perm": []any{}})
	poorTied := signToken(t, key, noon, map[string]any{"perm": []any{}, "cnf": bound(lamp)["cnf"]})
	dpop := func(access, p string) []string { return []string{"Authorization: DPoP " + access, "DPoP: " + p} }
	good := func() string { return proof(t, lamp, "POST", uri, "", tied, noon) }
	bearerWrong := func(name string, code watchword.Code) []string {
		return []string{withError(bearerOnly, name, code), dpopOnly}
	}
	dpopWrong := func(name string, code watchword.Code) []string {
		return []string{withError(dpopOnly, name, code), bearerOnly}
	}
	for _, tc := range []struct {
		name    string
		headers []string
		status  int
		code    watchword.Code
		www     []string
	}{
		{"a good bearer", []string{"Authorization: Bearer " + plain}, 200, "", nil},
		{"the scheme in capitals", []string{"Authorization: BEARER " + plain}, 200, "", nil},
		{"a good proof", dpop(tied, good()), 200, "", nil},
		{"a bearer beside a proof that was not requested", []string{"Authorization: Bearer " + plain, "DPoP: x"}, 200, "", nil},
		{"no token", nil, 401, watchword.Unauthenticated, []string{bearerOnly, dpopOnly}},
		{"a password", []string{"Authorization: Basic YTpi"}, 401, watchword.Unauthenticated, []string{bearerOnly, dpopOnly}},
		{"two tokens", []string{"Authorization: Bearer " + plain, "Authorization: Bearer " + plain}, 400, watchword.BadRequest, []string{withError(bearerOnly, "invalid_request", watchword.BadRequest)}},
		{"an empty token", []string{"Authorization: Bearer "}, 400, watchword.BadRequest, []string{withError(bearerOnly, "invalid_request", watchword.BadRequest)}},
		{"no space", []string{"Authorization: Bearer"}, 400, watchword.BadRequest, []string{withError(bearerOnly, "invalid_request", watchword.BadRequest)}},
		{"two in one", []string{"Authorization: Bearer a, Bearer b"}, 400, watchword.BadRequest, []string{withError(bearerOnly, "invalid_request", watchword.BadRequest)}},
		{"no token at all, as DPoP", []string{"Authorization: DPoP "}, 400, watchword.BadRequest, []string{withError(dpopOnly, "invalid_request", watchword.BadRequest)}},
		{"a bad token", []string{"Authorization: Bearer abc"}, 401, watchword.TokenMalformed, bearerWrong("invalid_token", watchword.TokenMalformed)},
		{"an old token", []string{"Authorization: Bearer " + signToken(t, key, noon.Add(-time.Hour), nil)}, 401, watchword.TokenExpired, bearerWrong("invalid_token", watchword.TokenExpired)},
		{"a poor token", []string{"Authorization: Bearer " + poor}, 403, watchword.Denied, []string{withError(bearerOnly, "insufficient_scope", watchword.Denied)}},
		{"a poor token with a proof", dpop(poorTied, proof(t, lamp, "POST", uri, "", poorTied, noon)), 403, watchword.Denied, []string{withError(dpopOnly, "insufficient_scope", watchword.Denied)}},
		{"a bound token as a bearer", []string{"Authorization: Bearer " + tied}, 401, watchword.ProofRequired, bearerWrong("invalid_token", watchword.ProofRequired)},
		{"a bound token as a bearer with its proof", []string{"Authorization: Bearer " + tied, "DPoP: " + good()}, 401, watchword.ProofRequired, bearerWrong("invalid_token", watchword.ProofRequired)},
		{"an unbound token with a proof", dpop(plain, proof(t, lamp, "POST", uri, "", plain, noon)), 401, watchword.DPoPInvalid, dpopWrong("invalid_token", watchword.DPoPInvalid)},
		{"a bad token with a proof", dpop("abc", good()), 401, watchword.TokenMalformed, dpopWrong("invalid_token", watchword.TokenMalformed)},
		{"no proof", []string{"Authorization: DPoP " + tied}, 401, watchword.DPoPInvalid, dpopWrong("invalid_dpop_proof", watchword.DPoPInvalid)},
		{"two proofs", append(dpop(tied, good()), "DPoP: "+good()), 401, watchword.DPoPInvalid, dpopWrong("invalid_dpop_proof", watchword.DPoPInvalid)},
		{"an invalid proof", dpop(tied, "abc"), 401, watchword.DPoPInvalid, dpopWrong("invalid_dpop_proof", watchword.DPoPInvalid)},
		{"the thief's own proof", dpop(tied, proof(t, thief, "POST", uri, "", tied, noon)), 401, watchword.DPoPInvalid, dpopWrong("invalid_token", watchword.DPoPInvalid)},
		{"a proof for another method", dpop(tied, proof(t, lamp, "GET", uri, "", tied, noon)), 401, watchword.DPoPInvalid, dpopWrong("invalid_dpop_proof", watchword.DPoPInvalid)},
		{"a proof for another path", dpop(tied, proof(t, lamp, "POST", uri+"/1", "", tied, noon)), 401, watchword.DPoPInvalid, dpopWrong("invalid_dpop_proof", watchword.DPoPInvalid)},
		{"a proof for the host that the request names", dpop(tied, proof(t, lamp, "POST", "http://example.com/readings", "", tied, noon)), 401, watchword.DPoPInvalid, dpopWrong("invalid_dpop_proof", watchword.DPoPInvalid)},
		{"a proof without TLS", dpop(tied, proof(t, lamp, "POST", "http://api.example/readings", "", tied, noon)), 401, watchword.DPoPInvalid, dpopWrong("invalid_dpop_proof", watchword.DPoPInvalid)},
		{"a proof for another token", dpop(tied, proof(t, lamp, "POST", uri, "", other, noon)), 401, watchword.DPoPInvalid, dpopWrong("invalid_dpop_proof", watchword.DPoPInvalid)},
		{"a proof for no token", dpop(tied, proof(t, lamp, "POST", uri, "", "", noon)), 401, watchword.DPoPInvalid, dpopWrong("invalid_dpop_proof", watchword.DPoPInvalid)},
		{"a proof of yesterday", dpop(tied, proof(t, lamp, "POST", uri, "", tied, noon.Add(-121*time.Second))), 401, watchword.DPoPInvalid, dpopWrong("invalid_dpop_proof", watchword.DPoPInvalid)},
		{"a proof of tomorrow", dpop(tied, proof(t, lamp, "POST", uri, "", tied, noon.Add(61*time.Second))), 401, watchword.DPoPInvalid, dpopWrong("invalid_dpop_proof", watchword.DPoPInvalid)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := ask(h, "POST", "/readings?when=now", tc.headers...)
			if w.Code != tc.status || strings.Join(w.Header().Values("WWW-Authenticate"), "\n") != strings.Join(tc.www, "\n") {
				t.Errorf("status %d, %q", w.Code, w.Header().Values("WWW-Authenticate"))
			}
			if tc.code == "" {
				if w.Body.String() != "lamp-1" || w.Header().Get("Cache-Control") != "" {
					t.Errorf("got %s, %v", w.Body, w.Header())
				}
				return
			}
			if got := codeIn(t, w); got != tc.code {
				t.Errorf("code %s: %s", got, w.Body)
			}
			for _, h := range tc.headers {
				if _, secret, _ := strings.Cut(h, " "); len(secret) > 40 && strings.Contains(w.Body.String()+fmt.Sprint(w.Header()), secret[len(secret)-40:]) {
					t.Errorf("the answer tells the token: %s", w.Body)
				}
			}
		})
	}
}

func TestAProofIsUsedOnce(t *testing.T) {
	key, lamp := newSigner(t, jose.P256), newSigner(t, jose.P256)
	v, c := static(t, jwks(key))
	h := v.RequireToken()(open)
	tied := signToken(t, key, noon, map[string]any{"cnf": bound(lamp)["cnf"], "exp": noon.Add(time.Hour).Unix()})
	p := proof(t, lamp, "GET", audience+"/", "", tied, noon.Add(token.Skew)) // by a clock that is ahead
	once := func() watchword.Code {
		w := ask(h, "GET", "/", "Authorization: DPoP "+tied, "DPoP: "+p)
		if w.Code == 200 {
			return ""
		}
		return codeIn(t, w)
	}
	if got := once(); got != "" {
		t.Fatalf("the first use: %s", got)
	}
	for _, at := range []time.Duration{0, time.Second, time.Minute, 2 * time.Minute, 3*time.Minute - 1, 3 * time.Minute, 3*time.Minute + 1, 10 * time.Minute} {
		c.set(noon.Add(at))
		if got := once(); got != watchword.DPoPInvalid {
			t.Errorf("after %s: %q", at, got)
		}
	}
}

func TestUsedProofsAreBounded(t *testing.T) {
	key, busy, quiet := newSigner(t, jose.P256), newSigner(t, jose.Ed), newSigner(t, jose.Ed)
	other := newSigner(t, jose.Ed)
	v, c := static(t, jwks(key), verify.Proofs(40))
	h := v.RequireToken()(open)
	long := func(s *jose.Signer, who string) string {
		return signToken(t, key, noon, map[string]any{"sub": who, "client_id": who, "cnf": bound(s)["cnf"], "exp": noon.Add(time.Hour).Unix()})
	}
	use := func(s *jose.Signer, access string) (*httptest.ResponseRecorder, string) {
		p := proof(t, s, "GET", audience+"/", "", access, c.now())
		return ask(h, "GET", "/", "Authorization: DPoP "+access, "DPoP: "+p), p
	}
	mine, theirs := long(busy, "lamp-1"), long(quiet, "lamp-2")
	first, p := use(busy, mine)
	if first.Code != 200 {
		t.Fatal(first.Body)
	}
	for range 9 {
		if w, _ := use(busy, mine); w.Code != 200 {
			t.Fatal(w.Body)
		}
	}
	w, _ := use(busy, mine)
	if w.Code != 429 || codeIn(t, w) != watchword.Busy || w.Header().Get("Retry-After") != "16" {
		t.Errorf("one subject beyond its quarter: %d %s", w.Code, w.Body)
	}
	if w, _ := use(other, long(other, "lamp-1")); w.Code != 429 {
		t.Errorf("the same with another key: %d %s", w.Code, w.Body)
	}
	if w, _ := use(quiet, theirs); w.Code != 200 {
		t.Errorf("another subject beside: %s", w.Body)
	}
	// A few of another; then new subjects find room until all is full, however much each of them takes.
	for range 3 {
		if w, _ := use(quiet, theirs); w.Code != 200 {
			t.Fatalf("another subject: %s", w.Body)
		}
	}
	full := 14
	for i := 0; full < 40; i++ {
		quiet := newSigner(t, jose.Ed)
		theirs := long(quiet, fmt.Sprint("flood-", i))
		had := full
		for w, _ := use(quiet, theirs); w.Code == 200; w, _ = use(quiet, theirs) {
			full++
		}
		if full == had {
			t.Fatalf("with %d of 40, one who has none has no room", full)
		}
	}
	last := newSigner(t, jose.Ed)
	if w, _ := use(last, long(last, "lamp-99")); w.Code != 429 {
		t.Errorf("beyond the bound: %d", w.Code)
	}
	if w := ask(h, "GET", "/", "Authorization: DPoP "+mine, "DPoP: "+p); codeIn(t, w) != watchword.DPoPInvalid {
		t.Errorf("a used proof while it is full: %s", w.Body)
	}
	c.set(noon.Add(token.DPoPLifetime + token.Skew + 17*time.Second))
	if w, _ := use(busy, mine); w.Code != 200 {
		t.Errorf("once their time is over: %s", w.Body)
	}
	if w := ask(h, "GET", "/", "Authorization: DPoP "+mine, "DPoP: "+p); codeIn(t, w) != watchword.DPoPInvalid {
		t.Errorf("a used proof then: %s", w.Body)
	}
}

// A proof that was used is not valid any more, also where its entry went away because the clock ran
// ahead for a while.
func TestAUsedProofIsNotForgottenByAClockThatGoesBack(t *testing.T) {
	key, lamp := newSigner(t, jose.P256), newSigner(t, jose.P256)
	v, c := static(t, jwks(key))
	h := v.RequireToken()(open)
	tied := signToken(t, key, noon, map[string]any{"cnf": bound(lamp)["cnf"], "exp": noon.Add(time.Hour).Unix()})
	p := proof(t, lamp, "GET", audience+"/", "", tied, noon)
	use := func(p string) watchword.Code {
		w := ask(h, "GET", "/", "Authorization: DPoP "+tied, "DPoP: "+p)
		if w.Code == 200 {
			return ""
		}
		return codeIn(t, w)
	}
	if got := use(p); got != "" {
		t.Fatal(got)
	}
	c.set(noon.Add(30 * time.Minute))
	if got := use(proof(t, lamp, "GET", audience+"/", "", tied, c.now())); got != "" {
		t.Fatal(got)
	}
	c.set(noon)
	if got := use(p); got != watchword.DPoPInvalid {
		t.Errorf("the used proof: %q", got)
	}
	c.set(noon.Add(30 * time.Minute))
	if got := use(proof(t, lamp, "GET", audience+"/", "", tied, c.now())); got != "" {
		t.Errorf("once the clock is there again: %s", got)
	}
}

func TestOneProofManyTimesAtOncePassesOnce(t *testing.T) {
	key, lamp := newSigner(t, jose.P256), newSigner(t, jose.P256)
	v, _ := static(t, jwks(key))
	h := v.RequireToken()(open)
	tied := signToken(t, key, noon, bound(lamp))
	p := proof(t, lamp, "GET", audience+"/", "", tied, noon)
	var wg sync.WaitGroup
	var mu sync.Mutex
	passed := 0
	for range 16 {
		wg.Go(func() {
			if ask(h, "GET", "/", "Authorization: DPoP "+tied, "DPoP: "+p).Code == 200 {
				mu.Lock()
				defer mu.Unlock()
				passed++
			}
		})
	}
	wg.Wait()
	if passed != 1 {
		t.Errorf("passed %d times", passed)
	}
}

func TestAServiceMayAskForItsNonce(t *testing.T) {
	key, lamp := newSigner(t, jose.P256), newSigner(t, jose.P256)
	secret := []byte("one of 16 bytes!")
	v, c := static(t, jwks(key), verify.Nonces(secret))
	h := v.RequireToken()(open)
	tied := signToken(t, key, noon, map[string]any{"cnf": bound(lamp)["cnf"], "exp": noon.Add(time.Hour).Unix()})
	send := func(h http.Handler, nonce string) *httptest.ResponseRecorder {
		return ask(h, "GET", "/", "Authorization: DPoP "+tied, "DPoP: "+proof(t, lamp, "GET", audience+"/", nonce, tied, c.now()))
	}
	w := send(h, "")
	nonce := w.Header().Get("DPoP-Nonce")
	if w.Code != 401 || codeIn(t, w) != watchword.DPoPNonce || nonce == "" || w.Header().Get("Cache-Control") != "no-store" ||
		w.Header().Get("WWW-Authenticate") != withError(dpopOnly, "use_dpop_nonce", watchword.DPoPNonce) {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	if w := send(h, nonce); w.Code != 200 || w.Header().Get("DPoP-Nonce") != "" {
		t.Errorf("with the nonce: %d %v", w.Code, w.Header())
	}
	if w := send(h, strings.Repeat("A", len(nonce))); codeIn(t, w) != watchword.DPoPNonce {
		t.Errorf("with a nonce of its own: %s", w.Body)
	}
	elsewhere, _ := static(t, jwks(key), verify.Nonces(nil))
	if w := send(elsewhere.RequireToken()(open), nonce); codeIn(t, w) != watchword.DPoPNonce {
		t.Errorf("with another service's nonce: %s", w.Body)
	}
	sibling, _ := static(t, jwks(key), verify.Nonces(secret))
	if w := send(sibling.RequireToken()(open), nonce); w.Code != 200 {
		t.Errorf("at another instance: %s", w.Body)
	}
	c.set(noon.Add(2 * time.Minute))
	w = send(h, nonce)
	next := w.Header().Get("DPoP-Nonce")
	if w.Code != 200 || next == "" || next == nonce || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("when the next one is out: %d %v", w.Code, w.Header())
	}
	c.set(noon.Add(-time.Second))
	if w := send(h, next); codeIn(t, w) != watchword.DPoPNonce {
		t.Errorf("of an instance whose clock goes two minutes ahead: %s", w.Body)
	}
	c.set(noon)
	if w := send(h, next); w.Code != 200 {
		t.Errorf("of an instance whose clock goes a little ahead: %s", w.Body)
	}
	c.set(noon.Add(4 * time.Minute))
	if w := send(h, nonce); codeIn(t, w) != watchword.DPoPNonce {
		t.Errorf("when it has expired: %s", w.Body)
	}
	if w := send(h, next); w.Code != 200 {
		t.Errorf("with the next one: %s", w.Body)
	}
	if w := ask(h, "GET", "/", "Authorization: Bearer x"); w.Header().Get("DPoP-Nonce") != "" {
		t.Error("a bearer is given a nonce")
	}
}

func TestAServiceMayTakeProofsAlone(t *testing.T) {
	key, lamp := newSigner(t, jose.P256), newSigner(t, jose.P256)
	const meta = audience + "/.well-known/oauth-protected-resource"
	v, _ := static(t, jwks(key), verify.ProofRequired(), verify.ResourceMetadata(meta))
	h := v.RequireToken()(open)
	plain, tied := signToken(t, key, noon, nil), signToken(t, key, noon, bound(lamp))
	challenge := `DPoP realm="https://api.example", resource_metadata="` + meta + `", algs="ES256 Ed25519 EdDSA"`
	w := ask(h, "GET", "/")
	if got := w.Header().Values("WWW-Authenticate"); len(got) != 1 || got[0] != challenge {
		t.Errorf("without a token: %q", got)
	}
	w = ask(h, "GET", "/", "Authorization: Bearer "+plain)
	if got := w.Header().Values("WWW-Authenticate"); codeIn(t, w) != watchword.ProofRequired || len(got) != 1 || got[0] != withError(challenge, "invalid_token", watchword.ProofRequired) {
		t.Errorf("with a bearer: %q", got)
	}
	if _, err := v.Check(t.Context(), plain); watchword.CodeOf(err) != watchword.ProofRequired {
		t.Errorf("Check: %v", err)
	}
	if w := ask(h, "GET", "/", "Authorization: DPoP "+tied, "DPoP: "+proof(t, lamp, "GET", audience+"/", "", tied, noon)); w.Code != 200 {
		t.Errorf("with a proof: %s", w.Body)
	}
}

func TestAServiceThatDoesNotKnowItsAddressTakesNoProofs(t *testing.T) {
	key, lamp := newSigner(t, jose.P256), newSigner(t, jose.P256)
	c := &clock{t: noon}
	v, err := verify.New(t.Context(), issuerID, verify.Keys(jwks(key)), verify.Now(c.now), quiet())
	if err != nil {
		t.Fatal(err)
	}
	h := v.RequireToken()(open)
	own := signToken(t, key, noon, map[string]any{"aud": issuerID})
	if w := ask(h, "GET", "/", "Authorization: Bearer "+own); w.Code != 200 {
		t.Errorf("the issuer's own audience is the default: %s", w.Body)
	}
	tied := signToken(t, key, noon, map[string]any{"aud": issuerID, "cnf": bound(lamp)["cnf"]})
	w := ask(h, "GET", "/", "Authorization: DPoP "+tied, "DPoP: "+proof(t, lamp, "GET", "http://example.com/", "", tied, noon))
	if got := w.Header().Values("WWW-Authenticate"); codeIn(t, w) != watchword.DPoPInvalid || len(got) != 1 || !strings.HasPrefix(got[0], "Bearer ") {
		t.Errorf("%d %q", w.Code, got)
	}
}

func TestAProofIsForTheAddressThatClientsKnow(t *testing.T) {
	key, lamp := newSigner(t, jose.P256), newSigner(t, jose.Ed)
	tied := signToken(t, key, noon, bound(lamp))
	v, _ := static(t, jwks(key), verify.PublicURL("https://one.example/api/", "HTTPS://two.example:443"))
	mux := http.NewServeMux()
	mux.Handle("/", v.RequireToken()(open))
	mux.Handle("/inner/", http.StripPrefix("/inner", v.RequireToken()(open)))
	for _, tc := range []struct {
		target, htu string
		good        bool
	}{
		{"/readings", "https://one.example/api/readings", true},
		{"/readings?a=b", "https://two.example/readings", true},
		{"/readings", "https://api.example/readings", false},
		{"/readings", "https://one.example/readings", false},
		{"/inner/readings", "https://two.example/inner/readings", true}, // the request line, not what a mux left of it
		{"/inner/readings", "https://two.example/readings", false},
		{"/a%2Fb", "https://two.example/a%2Fb", true},
		{"/a%2Fb", "https://two.example/a/b", false},
		{"http://elsewhere.example/readings", "https://two.example/readings", true}, // a proxy's form
	} {
		w := ask(mux, "GET", tc.target, "Authorization: DPoP "+tied, "DPoP: "+proof(t, lamp, "GET", tc.htu, "", tied, noon))
		if (w.Code == 200) != tc.good {
			t.Errorf("%s with a proof for %s: %d", tc.target, tc.htu, w.Code)
		}
	}
}

func TestCheckRequestIsTheMiddlewareForOtherRouters(t *testing.T) {
	key := newSigner(t, jose.P256)
	v, _ := static(t, jwks(key))
	r := httptest.NewRequest("GET", "/", nil)
	_, err := v.CheckRequest(r)
	wants(t, "without a token", err, watchword.Unauthenticated)
	w := httptest.NewRecorder()
	v.Refuse(w, r, err)
	if w.Code != 401 || codeIn(t, w) != watchword.Unauthenticated {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	r.Header.Set("Authorization", "Bearer "+signToken(t, key, noon, nil))
	tok, err := v.CheckRequest(r)
	if err != nil || tok.Subject != "lamp-1" {
		t.Errorf("got %v, %v", tok, err)
	}
	if verify.FromContext(context.Background()) != nil || verify.FromContext(verify.NewContext(context.Background(), tok)) != tok {
		t.Error("a context does not carry what was put in")
	}
	w = httptest.NewRecorder()
	v.Refuse(w, r, fmt.Errorf("the service's own trouble with %s", "secrets"))
	if w.Code != 500 || codeIn(t, w) != watchword.Internal || strings.Contains(w.Body.String(), "secrets") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}
