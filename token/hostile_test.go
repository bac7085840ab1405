package token_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Credentials that the right key signed, with claims that no honest signer writes. The
// signature holds in each, so that the reading of the claims alone refuses it.

type claim struct {
	name  string
	value string
}

// claims takes a credential apart; write puts it together again and signs it.
func claims(t testing.TB, raw string) []claim {
	t.Helper()
	payload := ""
	if u, err := jose.ParseJWS(raw, watchword.MaxBundle); err == nil {
		payload = string(u.UnverifiedPayload())
	} else if u, _, err := jose.ParseProof(raw, watchword.MaxBundle); err == nil {
		payload = string(u.UnverifiedPayload())
	} else {
		t.Fatal(err)
	}
	var out []claim
	if err := jose.Walk([]byte(payload), func(name string, v jsontext.Value) error {
		out = append(out, claim{name, string(v)})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func payloadOf(cs []claim) string {
	var b strings.Builder
	for i, c := range cs {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:%s", c.name, c.value)
	}
	return "{" + b.String() + "}"
}

func (k kind) typ(t testing.TB, s *jose.Signer) string {
	t.Helper()
	raw, err := k.sign(s)
	if err != nil {
		t.Fatal(err)
	}
	if u, err := jose.ParseJWS(raw, watchword.MaxBundle); err == nil {
		return u.Typ
	}
	return token.TypDPoP
}

func (k kind) resign(t testing.TB, s *jose.Signer, payload string) string {
	t.Helper()
	sign := s.Sign
	typ := k.typ(t, s)
	if k.name == dpop {
		sign = s.SignProof
	}
	raw, err := sign(typ, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// optional is the claims that each kind can do without.
var optional = map[string][]string{
	"assertion":    {},
	"access token": {"client_id", "dev"},
	"enrollment":   {},
	"command":      {"act"},
	"config":       {},
	"receipt":      {"iat"},                     // a device may have no clock
	"order":        {"iss", "cmd", "args_hash"}, // held against the command by Covers
	dpop:           {"nonce", "exp"},
	"trust bundle": {"tls"},
}

// passed is the claims that a kind does not look into.
var passed = map[string][]string{
	"access token": {"dev"},
}

func TestWellSignedInvalidClaimsAreRefused(t *testing.T) {
	s := signer(t, jose.P256)
	keys := token.NewKeySet(s.Public())
	for _, k := range kinds {
		if _, known := optional[k.name]; !known {
			continue
		}
		raw, err := k.sign(s)
		if err != nil {
			t.Fatal(err)
		}
		good := claims(t, raw)
		check := func(what, payload string, taken bool) {
			t.Helper()
			raw := k.resign(t, s, payload)
			err := k.check(raw, keys)
			if (err == nil) != taken || err != nil && watchword.CodeOf(err) == watchword.Internal {
				t.Errorf("%s, %s: %v", k.name, what, err)
			}
			if err == nil {
				oracled(t, k, s, what, raw)
			}
		}
		with := func(i int, value string) string {
			cs := slices.Clone(good)
			cs[i].value = value
			return payloadOf(cs)
		}
		beside := func(member string) string {
			p := payloadOf(good)
			return p[:len(p)-1] + "," + member + "}"
		}
		check("as it was", payloadOf(good), true)
		check("in another order", payloadOf(func() []claim { c := slices.Clone(good); slices.Reverse(c); return c }()), true)
		check("a claim that we do not know", beside(`"x":{"y":[1,2.5e300,null]}`), true)
		check("nested to eight", beside(`"x":[[[[[[[]]]]]]]`), true)
		check("brackets in a string", beside(`"x":"[[[[[[[[[[[["`), true)
		check("nested to nine", beside(`"x":[[[[[[[[]]]]]]]]`), false)
		check("a member twice in a claim that we pass over", beside(`"x":{"a":1,"a":1}`), false)
		check("a member twice, escaped, deep in a claim that we pass over", beside(`"x":[[{"a":1,"\u0061":1}]]`), false)
		check("half a surrogate in a claim that we pass over", beside(`"x":"\ud800"`), false)
		check("bad UTF-8 in a claim that we pass over", beside("\"x\":\"\xff\""), false)
		check("bytes behind", payloadOf(good)+"{}", false)
		check("a byte order mark", "\ufeff"+payloadOf(good), false)
		check("in an array", "["+payloadOf(good)+"]", false)
		check("null", "null", false)
		check("nothing", "", false)
		check("no claims", "{}", false)
		for i, c := range good {
			check(c.name+" twice", beside(fmt.Sprintf("%q:%s", c.name, c.value)), false)
			check(c.name+" twice, once escaped", beside(fmt.Sprintf(`"\u%04x%s":%s`, c.name[0], c.name[1:], c.value)), false)
			check(c.name+" left out", payloadOf(slices.Delete(slices.Clone(good), i, i+1)), slices.Contains(optional[k.name], c.name))
			ignored := slices.Contains(passed[k.name], c.name)
			check(c.name+" null", with(i, "null"), ignored)
			check(c.name+" true", with(i, "true"), ignored)
			check(c.name+" a fraction", with(i, "1.5"), ignored)
			switch c.name {
			case "iat", "exp":
				n := c.value
				for _, v := range []string{n + ".0", n + "e0", `"` + n + `"`, "[" + n + "]", "-" + n, "1e9", "9007199254740993", "99999999999999999999"} {
					if c.name == "iat" && k.name == "receipt" && v == "-"+n {
						continue // a device's clock may say what it likes
					}
					check(c.name+" "+v, with(i, v), false)
				}
			case "aud":
				check("aud as an array of one", with(i, "["+c.value+"]"), true)
				check("aud with another beside", with(i, "["+c.value+`,"https://evil.example"]`), k.name == "access token")
				check("aud with a null beside", with(i, "["+c.value+`,null]`), false)
				check("aud of no server", with(i, "[]"), false)
				check("aud empty", with(i, `""`), false)
				check("aud in arrays", with(i, "[["+c.value+"]]"), false)
				check("aud as an object", with(i, `{"a":`+c.value+`}`), false)
				check("aud with a slash", with(i, strings.TrimSuffix(c.value, `"`)+`/"`), false)
			case "jti":
				if !ignored {
					check("jti empty", with(i, `""`), false)
					check("jti of 128", with(i, `"`+strings.Repeat("j", 128)+`"`), true)
					check("jti of 129", with(i, `"`+strings.Repeat("j", 129)+`"`), false)
				}
			case "sub":
				check("sub with a slash", with(i, `"a/b"`), false)
				check("sub empty", with(i, `""`), false)
			case "epoch", "seq", "ver":
				check(c.name+" zero", with(i, "0"), false)
				check(c.name+" minus zero", with(i, "-0"), false)
				check(c.name+" minus one", with(i, "-1"), false)
			}
		}
	}
}

// A lifetime is compared in seconds: as a time.Duration, 2^64 nanoseconds overflow to zero.
func TestVeryLongLifetimesAreRefused(t *testing.T) {
	s := signer(t, jose.P256)
	keys := token.NewKeySet(s.Public())
	for _, k := range kinds {
		if k.name == dpop || k.name == "receipt" || k.name == "access token" {
			continue // which have no exp, or no bound on it
		}
		raw, err := k.sign(s)
		if err != nil {
			t.Fatal(err)
		}
		for _, lifetime := range []int64{9223372037, 18446744074, 18446744073 + 200, 1 << 52} {
			cs := claims(t, raw)
			for i := range cs {
				if cs[i].name == "exp" {
					cs[i].value = fmt.Sprint(now.Unix() + lifetime)
				}
			}
			want := watchword.TokenLifetime
			if k.name == "trust bundle" {
				want = watchword.BundleInvalid
			}
			if err := k.check(k.resign(t, s, payloadOf(cs)), keys); watchword.CodeOf(err) != want {
				t.Errorf("%s of %d s: %v", k.name, lifetime, err)
			}
		}
	}
}

func TestATypIsComparedInAsciiAlone(t *testing.T) {
	s := signer(t, jose.P256)
	for _, k := range kinds {
		raw, err := k.sign(s)
		if err != nil || k.name == dpop {
			continue
		}
		typ := k.typ(t, s)
		payload := payloadOf(claims(t, raw))
		for _, tc := range []struct {
			typ  string
			good bool
		}{
			{typ, true},
			{strings.ToUpper(typ), true},
			{"application/" + typ, true},
			{"Application/" + typ, true},
			{"application/application/" + typ, false},
			{typ + ";v=1", false},
			{typ + " ", false},
			{"JWT", false},
			{"jwt", false},
			{strings.NewReplacer("s", "\u017f", "k", "\u212a").Replace(typ), !strings.ContainsAny(typ, "sk")},
		} {
			raw, err := s.Sign(tc.typ, []byte(payload))
			if err != nil {
				t.Fatal(err)
			}
			if err := k.check(raw, token.NewKeySet(s.Public())); (err == nil) != tc.good || err != nil && watchword.CodeOf(err) != watchword.TokenKind {
				t.Errorf("%s with typ %q: %v", k.name, tc.typ, err)
			}
		}
	}
}

func TestUnknownConfirmationIsRefused(t *testing.T) {
	s := signer(t, jose.P256)
	accessToken := kinds[1]
	raw, err := accessToken.sign(s)
	if err != nil {
		t.Fatal(err)
	}
	p := payloadOf(claims(t, raw))
	jkt := string(s.Public().ID())
	for cnf, want := range map[string]watchword.KeyID{
		`{"jkt":"` + jkt + `"}`:          "taken",
		`{}`:                             "",
		`{"jkt":""}`:                     "",
		`{"jkt":null}`:                   "",
		`{"jkt":1}`:                      "",
		`null`:                           "",
		`"` + jkt + `"`:                  "",
		`[]`:                             "",
		`{"x5t#S256":"` + jkt + `"}`:     "",
		`{"jkt":"` + jkt + `","jwk":{}}`: "",
		`{"jkt":"` + jkt + `","jkt":"` + jkt + `"}`: "",
	} {
		a, err := token.VerifyAccess(accessToken.resign(t, s, p[:len(p)-1]+`,"cnf":`+cnf+"}"), token.NewKeySet(s.Public()), issuer, issuer, now, 0)
		if want == "" && watchword.CodeOf(err) != watchword.TokenMalformed || want != "" && (err != nil || string(a.Bound) != jkt) {
			t.Errorf("%s: %+v, %v", cnf, a, err)
		}
	}
}

func TestPermissionsHaveOneShape(t *testing.T) {
	s := signer(t, jose.P256)
	accessToken := kinds[1]
	raw, err := accessToken.sign(s)
	if err != nil {
		t.Fatal(err)
	}
	cs := claims(t, raw)
	read := func(perm, deny string) (int, int, error) {
		own := slices.Clone(cs)
		for i := range own {
			if own[i].name == "perm" {
				own[i].value = perm
			}
		}
		if deny != "" {
			own = append(own, claim{"deny", deny})
		}
		a, err := token.VerifyAccess(accessToken.resign(t, s, payloadOf(own)), token.NewKeySet(s.Public()), issuer, issuer, now, 0)
		if err != nil {
			return 0, 0, err
		}
		p, d, err := a.Permissions()
		if err == nil && p == nil {
			t.Errorf("%s: perm is nil", perm)
		}
		return len(p), len(d), err
	}
	for _, tc := range []struct {
		perm, deny string
		p, d       int
	}{
		{`[]`, ``, 0, 0},
		{`[]`, `[]`, 0, 0},
		{`[["topic:a/#",["pub","sub"]],["api:/v1/self/#",["get"]]]`, `[["fn:*/x",["call"]]]`, 2, 1},
		{`[["topic:\u0061",["\u0070ub"]]]`, ``, 1, 0},
	} {
		if p, d, err := read(tc.perm, tc.deny); err != nil || p != tc.p || d != tc.d {
			t.Errorf("%s %s: %d, %d, %v", tc.perm, tc.deny, p, d, err)
		}
	}
	for _, bad := range []string{
		`null`, `{}`, `""`, `0`, `[null]`, `[[]]`, `["topic:a"]`, `[["topic:a"]]`, `[["topic:a","pub"]]`, `[["topic:a",["pub"],1]]`, `[["topic:a",[]]]`,
		`[["topic:a",null]]`, `[["topic:a",[null]]]`, `[[null,["pub"]]]`, `[[1,["pub"]]]`, `[["topic:a",["PUB"]]]`, `[["topic:a",["pub","pub"]]]`,
		`[["TOPIC:a",["pub"]]]`, `[["topic:",["pub"]]]`, `[["topic:a",["call"]]]`, `[{"topic:a":["pub"]}]`, `[["topic:a",{"0":"pub"}]]`, `[["topic:a",["pub"]],null]`,
	} {
		if _, _, err := read(bad, ""); watchword.CodeOf(err) != watchword.TokenMalformed {
			t.Errorf("perm %s: %v", bad, err)
		}
		if _, _, err := read(`[]`, bad); watchword.CodeOf(err) != watchword.TokenMalformed {
			t.Errorf("deny %s: %v", bad, err)
		}
	}
}

// Without a kid each key is tried, and what is said does not hang on their order.
func TestAnAssertionWithoutAKid(t *testing.T) {
	p256, ed := signer(t, jose.P256), signer(t, jose.Ed)
	raw, err := token.SignAssertion(p256, dev, issuer, now, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	p, err := token.ParseAssertion(raw, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Verify(token.NewKeySet(ed.Public())); watchword.CodeOf(err) != watchword.KeyUnknown {
		t.Errorf("its kid is not there: %v", err)
	}
	if a, err := p.Verify(token.NewKeySet(ed.Public(), p256.Public())); err != nil || a.Key != p256.Public().ID() || a.Subject != dev {
		t.Errorf("%+v, %v", a, err)
	}
	// The same without kid, by a hand that is not ours: RFC 7515 A.3 has such a header.
	other := signer(t, jose.P256)
	bare := withoutKid(t, p256, raw)
	if p, err = token.ParseAssertion(bare, true); err != nil {
		t.Fatal(err)
	}
	for range 20 { // maps have no order
		if _, err := p.Verify(token.NewKeySet(ed.Public(), other.Public())); watchword.CodeOf(err) != watchword.SignatureInvalid {
			t.Errorf("another key of that alg: %v", err)
		}
	}
	if _, err := p.Verify(token.NewKeySet(ed.Public())); watchword.CodeOf(err) != watchword.AlgorithmInvalid {
		t.Errorf("no key of that alg: %v", err)
	}
	if _, err := p.Verify(nil); watchword.CodeOf(err) != watchword.KeyUnknown {
		t.Errorf("no key: %v", err)
	}
	if a, err := p.Verify(token.NewKeySet(ed.Public(), other.Public(), p256.Public())); err != nil || a.Key != p256.Public().ID() {
		t.Errorf("%+v, %v", a, err)
	}
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func withoutKid(t testing.TB, s *jose.Signer, raw string) string {
	t.Helper()
	in := b64(`{"alg":"ES256"}`) + "." + strings.Split(raw, ".")[1]
	sig, err := s.SignBytes([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	return in + "." + b64(string(sig))
}

func TestABundleIsReadStrictly(t *testing.T) {
	s := signer(t, jose.P256)
	dh, err := jose.GenerateKey(jose.X25519)
	if err != nil {
		t.Fatal(err)
	}
	key := string(s.Public().JWK())
	make := func(keys, tls string) error {
		payload, err := json.Marshal(map[string]any{
			"iss": issuer, "jti": "j", "iat": now.Unix(), "exp": now.Unix() + 60, "ver": 1, "epoch": 1, "keys": json.RawMessage(keys), "tls": json.RawMessage(tls),
		})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := s.Sign(token.TypTrust, payload)
		if err != nil {
			t.Fatal(err)
		}
		_, err = token.VerifyTrust(raw, token.TrustPin(s.Public()), now)
		return err
	}
	root := `"root":[` + key + `]`
	for keys, good := range map[string]bool{
		`{` + root + `}`:                                               true,
		`{` + root + `,"else":[{"kty":"RSA"}]}`:                        true,
		`{` + root + `,"command":[]}`:                                  true,
		`{` + root + `,"command":null}`:                                false,
		`{` + root + `,"command":{}}`:                                  false,
		`{` + root + `,"command":[null]}`:                              false,
		`{` + root + `,"command":[{"kty":"RSA"}]}`:                     false,
		`{` + root + `,"command":["` + "x" + `"]}`:                     false,
		`{` + root + `,` + root + `}`:                                  false,
		`{` + root + `,"command":[` + string(dh.Public().JWK()) + `]}`: false,
		`[]`: false,
	} {
		if err := make(keys, `{}`); (err == nil) != good || err != nil && watchword.CodeOf(err) != watchword.TokenMalformed {
			t.Errorf("keys %s: %v", keys, err)
		}
	}
	for tls, good := range map[string]bool{
		`{"ca":["AAAA"],"web_pki":true}`: true,
		`{"ca":[],"else":1}`:             true,
		`{"ca":["AAA"]}`:                 false,
		`{"ca":["AA\nAA"]}`:              false,
		`{"ca":["AA=="]}`:                true,
		`{"ca":["AB=="]}`:                false,
		`{"ca":["-_-_"]}`:                false,
		`{"ca":"AAAA"}`:                  false,
		`{"ca":[1]}`:                     false,
		`{"web_pki":1}`:                  false,
		`{"proxy":false}`:                true,
		`{"proxy":1}`:                    false,
		`{"web_pki":"true"}`:             false,
		`{"web_pki":null}`:               false,
	} {
		if err := make(`{`+root+`}`, tls); (err == nil) != good || err != nil && watchword.CodeOf(err) != watchword.TokenMalformed {
			t.Errorf("tls %s: %v", tls, err)
		}
	}
}
