package attack_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/token"
)

// sign makes a credential with any header kind and claims.
func sign(t testing.TB, s *jose.Signer, typ string, claims map[string]any) string {
	t.Helper()
	b, err := json.Marshal(claims)
	must(t, err)
	raw, err := s.Sign(typ, b)
	must(t, err)
	return raw
}

func claims(t testing.TB, raw string) map[string]any {
	t.Helper()
	u, err := jose.ParseJWS(raw, watchword.MaxBundle)
	must(t, err)
	var m map[string]any
	must(t, json.Unmarshal(u.UnverifiedPayload(), &m))
	for _, k := range []string{"iat", "exp", "nbf"} {
		if f, ok := m[k].(float64); ok {
			m[k] = int64(f)
		}
	}
	return m
}

// with returns m with changes; a nil value takes the claim away.
func with(m map[string]any, kv ...any) map[string]any {
	out := map[string]any{}
	for k, v := range m {
		out[k] = v
	}
	for i := 0; i < len(kv); i += 2 {
		if kv[i+1] == nil {
			delete(out, kv[i].(string))
		} else {
			out[kv[i].(string)] = kv[i+1]
		}
	}
	return out
}

// replaceHeader replaces the header of a compact JWS and keeps the rest.
func replaceHeader(raw, head string) string {
	_, rest, _ := strings.Cut(raw, ".")
	return base64.RawURLEncoding.EncodeToString([]byte(head)) + "." + rest
}

func TestAccessTokensOverHTTP(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	other := srv.enroll("lamp-2", device.Options{}, nil)
	good := srv.token(d)
	ring := srv.stealKeys()
	issuer := ring.Signer(keyring.Issuer)
	_, unknown := newKey(t, "P-256")
	c := claims(t, good)
	now := time.Now().Unix()
	assertion, err := d.Assertion(time.Minute)
	must(t, err)
	parts := strings.Split(good, ".")
	kid := fmt.Sprintf(`"kid":%q`, issuer.Public().ID())

	if a := srv.request("GET", "/v1/self", good, ""); a.status != 200 {
		t.Fatalf("a good token: %d %s", a.status, a.body)
	}
	for _, tc := range []struct {
		name, token string
		want        watchword.Code
	}{
		{"none", "", watchword.Unauthenticated},
		{"words", "open sesame", watchword.TokenMalformed},
		{"two parts", parts[0] + "." + parts[1], watchword.TokenMalformed},
		{"four parts", good + ".AA", watchword.TokenMalformed},
		{"cut off", good[:len(good)-3], watchword.TokenMalformed},
		{"padded", good + "=", watchword.TokenMalformed},
		{"the payload encoded anew, with trailing bits", parts[0] + "." + parts[1] + "B." + parts[2], watchword.TokenMalformed},
		{"oversize", parts[0] + "." + strings.Repeat("A", 5000) + "." + parts[2], watchword.TooLarge},
		{"alg none", replaceHeader(good, `{"alg":"none","typ":"at+jwt",`+kid+`}`), watchword.AlgorithmInvalid},
		{"alg HS256", replaceHeader(good, `{"alg":"HS256","typ":"at+jwt",`+kid+`}`), watchword.AlgorithmInvalid},
		{"alg Ed25519 with the issuer's P-256 key", replaceHeader(good, `{"alg":"Ed25519","typ":"at+jwt",`+kid+`}`), watchword.AlgorithmInvalid},
		{"a key of one's own in the header", replaceHeader(good, `{"alg":"ES256","typ":"at+jwt",`+kid+`,"jwk":{}}`), watchword.TokenMalformed},
		{"a key from afar", replaceHeader(good, `{"alg":"ES256","typ":"at+jwt",`+kid+`,"jku":"https://evil.example/jwks"}`), watchword.TokenMalformed},
		{"crit", replaceHeader(good, `{"alg":"ES256","typ":"at+jwt",`+kid+`,"crit":["exp"]}`), watchword.TokenMalformed},
		{"a header member twice", replaceHeader(good, `{"alg":"ES256","alg":"ES256","typ":"at+jwt",`+kid+`}`), watchword.TokenMalformed},
		{"no kid", replaceHeader(good, `{"alg":"ES256","typ":"at+jwt"}`), watchword.KeyUnknown},
		{"kid of no key", replaceHeader(good, `{"alg":"ES256","typ":"at+jwt","kid":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`), watchword.KeyUnknown},
		{"typ JWT", replaceHeader(good, `{"alg":"ES256","typ":"JWT",`+kid+`}`), watchword.TokenKind},
		{"another signature", parts[0] + "." + parts[1] + "." + strings.Split(srv.token(other), ".")[2], watchword.SignatureInvalid},
		{"signed by a foreign key", sign(t, unknown, token.TypAccess, c), watchword.KeyUnknown},
		{"an assertion", assertion, watchword.TokenKind},
		{"another issuer's", sign(t, issuer, token.TypAccess, with(c, "iss", "https://evil.example")), watchword.IssuerMismatch},
		{"for another audience", sign(t, issuer, token.TypAccess, with(c, "aud", "https://api.example")), watchword.AudienceMismatch},
		{"expired", sign(t, issuer, token.TypAccess, with(c, "iat", now-700, "exp", now-100)), watchword.TokenExpired},
		{"from the future", sign(t, issuer, token.TypAccess, with(c, "iat", now+600, "exp", now+900)), watchword.TokenEarly},
		{"without exp", sign(t, issuer, token.TypAccess, with(c, "exp", nil)), watchword.TokenMalformed},
		{"without perm", sign(t, issuer, token.TypAccess, with(c, "perm", nil)), watchword.TokenMalformed},
		{"exp as a text", sign(t, issuer, token.TypAccess, with(c, "exp", "soon")), watchword.TokenMalformed},
		{"exp with a fraction", sign(t, issuer, token.TypAccess, with(c, "exp", 1e9+0.5)), watchword.TokenMalformed},
		{"a stolen issuer key, a jti of its own", sign(t, issuer, token.TypAccess, with(c, "jti", "tok_stolen")), watchword.TokenUnrecorded},
		{"a stolen issuer key, another's jti", sign(t, issuer, token.TypAccess, with(c, "sub", "lamp-2", "client_id", "lamp-2")), watchword.TokenUnrecorded},
		{"a stolen issuer key, longer life", sign(t, issuer, token.TypAccess, with(c, "exp", now+86400)), watchword.TokenUnrecorded},
		{"the command key instead of the issuer's", sign(t, ring.Signer(keyring.Command), token.TypAccess, c), watchword.KeyUnknown},
		{"a stolen issuer key, bound to a key", sign(t, issuer, token.TypAccess, with(c, "cnf", map[string]any{"jkt": "x"})), watchword.TokenUnrecorded},
		{"a stolen issuer key, more power", sign(t, issuer, token.TypAccess, with(c, "perm", []any{[]any{"api:/#", []string{"get"}}})), watchword.TokenUnrecorded},
		{"a stolen issuer key, without what it may not", sign(t, issuer, token.TypAccess, with(c, "deny", []any{[]any{"api:/v1/none", []string{"get"}}})), watchword.TokenUnrecorded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := *srv
			srv.t = t
			a := srv.request("GET", "/v1/self", tc.token, "")
			if a.code != tc.want || a.status != 401 && a.code != watchword.TooLarge {
				t.Errorf("got %d %q, want %q: %s", a.status, a.code, tc.want, a.body)
			}
			if a.header.Get("WWW-Authenticate") == "" && a.status == 401 {
				t.Error("a 401 without WWW-Authenticate")
			}
		})
	}

	t.Run("more power than was issued, by a stolen issuer key", func(t *testing.T) {
		srv := *srv
		srv.t = t
		raw := sign(t, issuer, token.TypAccess, with(c, "perm", []any{[]any{"api:/#", []string{"get"}}}))
		if a := srv.request("GET", "/v1/devices", raw, ""); a.status < 400 {
			t.Errorf("opened: %s", a.body)
		}
	})

	t.Run("each refusal is in the log, with its code", func(t *testing.T) {
		srv.stop()
		st, err := sqlite.Open(t.Context(), filepath.Join(srv.dir, "watchword.db"), sqlite.Options{})
		must(t, err)
		defer st.Close()
		es, err := audit.Entries(t.Context(), st, 0, 10_000)
		must(t, err)
		seen := map[watchword.Code]int{}
		for _, e := range es {
			if e.Kind == audit.RequestRefuse {
				seen[e.Code]++
			}
		}
		for _, code := range []watchword.Code{
			watchword.Unauthenticated, watchword.TokenMalformed, watchword.TokenKind, watchword.AlgorithmInvalid, watchword.KeyUnknown, watchword.SignatureInvalid,
			watchword.TokenExpired, watchword.TokenEarly, watchword.IssuerMismatch, watchword.AudienceMismatch, watchword.TokenUnrecorded,
		} {
			if seen[code] == 0 {
				t.Errorf("no entry with code %s", code)
			}
		}
		for _, secret := range []string{good, strings.Split(good, ".")[2], assertion} {
			if strings.Contains(srv.log.String(), secret) {
				t.Error("a token is in the log")
			}
		}
	})
}

func TestAssertionsAtTheTokenEndpoint(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	ed := srv.enroll("lamp-2", device.Options{SignCurve: "Ed25519", SealCurve: "X25519"}, nil)
	s, es := deviceSigner(t, d), deviceSigner(t, ed)
	_, unknown := newKey(t, "P-256")
	iss := srv.stealKeys().Issuer()
	now := time.Now().Unix()
	base := func() map[string]any {
		return map[string]any{"iss": "lamp-1", "sub": "lamp-1", "aud": iss, "jti": watchword.NewNonce(), "iat": now, "exp": now + 60}
	}
	used := sign(t, s, token.TypAssertion, base())
	if a := srv.exchangeAssertion(used); a.status != 200 {
		t.Fatalf("a good assertion: %s", a.body)
	}
	access := srv.token(d)
	for _, tc := range []struct {
		name, assertion string
		ok              bool
		want            watchword.Code
	}{
		{"without typ JWT", sign(t, s, "JWT", base()), true, ""},
		{"Ed25519", sign(t, es, token.TypAssertion, with(base(), "iss", "lamp-2", "sub", "lamp-2")), true, ""},
		{"used before", used, false, watchword.TokenReplayed},
		{"an access token", access, false, watchword.TokenKind},
		{"another kind", sign(t, s, token.TypReceipt, base()), false, watchword.TokenKind},
		{"for the token endpoint's URL instead of the issuer", sign(t, s, token.TypAssertion, with(base(), "aud", iss+"/oauth/token")), false, watchword.AudienceMismatch},
		{"for two audiences", sign(t, s, token.TypAssertion, with(base(), "aud", []string{iss, "https://evil.example"})), false, watchword.AudienceMismatch},
		{"iss is not sub", sign(t, s, token.TypAssertion, with(base(), "iss", "lamp-2")), false, watchword.IssuerMismatch},
		{"expired", sign(t, s, token.TypAssertion, with(base(), "iat", now-300, "exp", now-120)), false, watchword.TokenExpired},
		{"early", sign(t, s, token.TypAssertion, with(base(), "iat", now+200, "exp", now+300)), false, watchword.TokenEarly},
		{"too long a life", sign(t, s, token.TypAssertion, with(base(), "exp", now+301)), false, watchword.TokenLifetime},
		{"without jti", sign(t, s, token.TypAssertion, with(base(), "jti", nil)), false, watchword.TokenMalformed},
		{"signed by another device", sign(t, es, token.TypAssertion, base()), false, watchword.ClientInvalid},
		{"signed by a foreign key", sign(t, unknown, token.TypAssertion, base()), false, watchword.ClientInvalid},
		{"of no subject", sign(t, s, token.TypAssertion, with(base(), "iss", "ghost", "sub", "ghost")), false, watchword.ClientInvalid},
		{"an id that tries to escape", sign(t, s, token.TypAssertion, with(base(), "iss", "../lamp-1", "sub", "../lamp-1")), false, watchword.IssuerMismatch},
		{"words", "open sesame", false, watchword.TokenMalformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := *srv
			srv.t = t
			a := srv.exchangeAssertion(tc.assertion)
			if tc.ok != (a.status == 200) || a.code != tc.want {
				t.Errorf("got %d %q, want %q: %s", a.status, a.code, tc.want, a.body)
			}
			if !tc.ok && a.oauth != "invalid_client" {
				t.Errorf("OAuth error %q", a.oauth)
			}
		})
	}
	t.Run("an unknown subject and a wrong key get the same answer", func(t *testing.T) {
		srv := *srv
		srv.t = t
		ghost := srv.exchangeAssertion(sign(t, unknown, token.TypAssertion, with(base(), "iss", "ghost", "sub", "ghost")))
		wrong := srv.exchangeAssertion(sign(t, unknown, token.TypAssertion, base()))
		strip := func(a answer) string {
			var m map[string]any
			must(t, json.Unmarshal([]byte(a.body), &m))
			delete(m, "trace_id")
			return fmt.Sprint(a.status, m)
		}
		if g, w := strip(ghost), strip(wrong); g != w {
			t.Errorf("the difference tells who exists:\n%s\n%s", g, w)
		}
	})
	t.Run("spent across a restart", func(t *testing.T) {
		once := sign(t, s, token.TypAssertion, base())
		if a := srv.exchangeAssertion(once); a.status != 200 {
			t.Fatal(a.body)
		}
		_, port, _ := strings.Cut(strings.TrimPrefix(srv.url, "https://"), ":")
		srv.stop()
		again := serveOn(t, srv.dir, onPort(port))
		if a := again.exchangeAssertion(once); a.code != watchword.TokenReplayed {
			t.Errorf("after a restart: %d %q", a.status, a.code)
		}
	})
}
