package verify_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/verify"
	"github.com/watchword-iot/watchword/token"
)

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// reheaded is raw under another header, with its signature.
func reheaded(raw, header string) string { return b64(header) + raw[strings.IndexByte(raw, '.'):] }

// changed is raw with another byte in its signature.
func changed(raw string) string {
	b := []byte(raw)
	if at := &b[len(b)-10]; *at == 'A' {
		*at = 'B'
	} else {
		*at = 'A'
	}
	return string(b)
}

func TestInvalidTokens(t *testing.T) {
	key, other, ed := newSigner(t, jose.P256), newSigner(t, jose.P256), newSigner(t, jose.Ed)
	v, _ := static(t, jwks(key, ed))
	good := signToken(t, key, noon, nil)
	kid := string(key.Public().ID())
	kind := func(typ string) string {
		raw, err := key.Sign(typ, claims(noon, nil))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	with := func(name string, value any) string { return signToken(t, key, noon, map[string]any{name: value}) }
	for _, tc := range []struct {
		name, raw string
		code      watchword.Code
	}{
		{"a good one", good, ""},
		{"a good one by the other key", signToken(t, ed, noon, nil), ""},
		{"a good one for several audiences", with("aud", []string{"https://other.example", audience}), ""},
		{"nothing", "", watchword.TokenMalformed},
		{"no token", "abc", watchword.TokenMalformed},
		{"one over the bound", good + strings.Repeat("A", 4<<10), watchword.TokenMalformed},
		{"another issuer's", with("iss", "https://watchword.example.evil"), watchword.IssuerMismatch},
		{"another issuer's by a slash", with("iss", issuerID+"/"), watchword.IssuerMismatch},
		{"no issuer", with("iss", nil), watchword.IssuerMismatch},
		{"for another audience", with("aud", "https://other.example"), watchword.AudienceMismatch},
		{"for the issuer itself", with("aud", issuerID), watchword.AudienceMismatch},
		{"for an audience that begins alike", with("aud", audience+"/v1"), watchword.AudienceMismatch},
		{"for no audience", with("aud", []string{}), watchword.AudienceMismatch},
		{"without audience", with("aud", nil), watchword.AudienceMismatch},
		{"by a key that is not published", signToken(t, other, noon, nil), watchword.KeyUnknown},
		{"by another key in the name of a published one", reheaded(signToken(t, other, noon, nil), `{"alg":"ES256","typ":"at+jwt","kid":"`+kid+`"}`), watchword.SignatureInvalid},
		{"without kid", reheaded(good, `{"alg":"ES256","typ":"at+jwt"}`), watchword.KeyUnknown},
		{"alg none", reheaded(good, `{"alg":"none","typ":"at+jwt","kid":"`+kid+`"}`), watchword.AlgorithmInvalid},
		{"alg none, and no signature", reheaded(good[:strings.LastIndexByte(good, '.')+1], `{"alg":"none","typ":"at+jwt","kid":"`+kid+`"}`), watchword.AlgorithmInvalid},
		{"alg HS256", reheaded(good, `{"alg":"HS256","typ":"at+jwt","kid":"`+kid+`"}`), watchword.AlgorithmInvalid},
		{"another key's alg", reheaded(good, `{"alg":"Ed25519","typ":"at+jwt","kid":"`+kid+`"}`), watchword.AlgorithmInvalid},
		{"its own key in the header", reheaded(good, `{"alg":"ES256","typ":"at+jwt","jwk":`+jwk(other.Public())+`}`), watchword.TokenMalformed},
		{"a jku", reheaded(good, `{"alg":"ES256","typ":"at+jwt","kid":"`+kid+`","jku":"https://evil.example"}`), watchword.TokenMalformed},
		{"a client assertion", kind(token.TypAssertion), watchword.TokenKind},
		{"a plain JWT", kind("JWT"), watchword.TokenKind},
		{"a receipt", kind(token.TypReceipt), watchword.TokenKind},
		{"without exp", with("exp", nil), watchword.TokenMalformed},
		{"an exp with a fraction", with("exp", 1.8e9+0.5), watchword.TokenMalformed},
		{"without jti", with("jti", nil), watchword.TokenMalformed},
		{"without perm", with("perm", nil), watchword.TokenMalformed},
		{"an invalid perm", with("perm", "all"), watchword.TokenMalformed},
		{"a perm with an invalid filter", with("perm", [][]any{{"topic:a/#/b", []string{"pub"}}}), watchword.TokenMalformed},
		{"an invalid deny", with("deny", []any{"topic:#"}), watchword.TokenMalformed},
		{"invalid labels", with("dev", map[string]any{"labels": map[string]any{"a/b": "c"}}), watchword.TokenMalformed},
		{"bound to a key, as a bearer", signToken(t, key, noon, bound(other)), watchword.ProofRequired},
	} {
		for range 2 { // the second time from memory, if at all
			got, err := v.Check(t.Context(), tc.raw)
			wants(t, tc.name, err, tc.code)
			if (got != nil) != (tc.code == "") {
				t.Errorf("%s: got token %v", tc.name, got)
			}
			if err != nil && tc.raw != "" && strings.Contains(err.Error(), tc.raw) {
				t.Errorf("%s: the error tells the token", tc.name)
			}
		}
	}
}

func TestCheckedTokenFields(t *testing.T) {
	key := newSigner(t, jose.P256)
	v, _ := static(t, jwks(key))
	got, err := v.Check(t.Context(), signToken(t, key, noon, map[string]any{"jti": "tok_1"}))
	if err != nil {
		t.Fatal(err)
	}
	if got.Subject != "lamp-1" || got.Labels.String() != "site=plant-1" || got.ID != "tok_1" || got.Key != "the-key-of-lamp-1" || got.Bound != "" ||
		got.SignedBy != key.Public().ID() || got.Issuer != issuerID || len(got.Audience) != 1 || got.Audience[0] != audience ||
		!got.Issued.Equal(noon) || !got.Expires.Equal(noon.Add(10*time.Minute)) {
		t.Errorf("got %+v", got)
	}
}

func TestATokenEndsAfterItsSkewToTheSecond(t *testing.T) {
	key := newSigner(t, jose.P256)
	for _, remembered := range []int{0, 16} {
		v, c := static(t, jwks(key), verify.Remember(remembered))
		raw := signToken(t, key, noon, nil)
		end := noon.Add(10*time.Minute + token.Skew)
		for _, tc := range []struct {
			at   time.Time
			code watchword.Code
		}{
			{noon.Add(-token.Skew - time.Second), watchword.TokenEarly},
			{noon.Add(-token.Skew), ""},
			{noon, ""},
			{end.Add(-time.Second), ""},
			{end.Add(-1), ""},
			{end, watchword.TokenExpired},
			{end.Add(time.Second), watchword.TokenExpired},
			{noon.Add(-token.Skew - time.Second), watchword.TokenEarly}, // a clock that was set back
		} {
			c.set(tc.at)
			_, err := v.Check(t.Context(), raw)
			wants(t, fmt.Sprintf("remembering %d, at noon%+v", remembered, tc.at.Sub(noon)), err, tc.code)
		}
	}
}

func TestTokenAllows(t *testing.T) {
	key := newSigner(t, jose.P256)
	v, _ := static(t, jwks(key))
	tok, err := v.Check(t.Context(), signToken(t, key, noon, nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		resource, action string
		allowed          bool
	}{
		{"api:/readings", "post", true},
		{"api:/readings", "POST", true},
		{"api:/readings", "get", false},
		{"api:/readings/1", "post", false},
		{"api:/lamps/1", "head", true},
		{"api:/lamps/9/level", "get", true},
		{"api:/lamps/9/level", "put", false}, // deny first
		{"api:/lamps/../readings", "get", false},
		{"api:/lamps//1", "get", false},
		{"api:lamps/1", "get", false},
		{"topic:plant/1/lux", "pub", true},
		{"topic:plant/secret/lux", "pub", false},
		{"topic:plant/+", "pub", false}, // no topic
		{"topic:plant/1/+", "sub", true},
		{"topic:plant/#", "sub", false}, // it would reach what is denied
		{"topic:#", "sub", false},
		{"topic:plant/1/lux", "get", false},
		{"fn:lamp-2/lamp.set", "call", false}, // its labels are unknown
		{"fn:lamp-2", "call", false},
		{"fn:lamp-2/lamp.set", "pub", false},
		{"secret:plant", "pub", false},
		{"", "", false},
	} {
		d := tok.Allows(tc.resource, tc.action)
		if d.Allowed != tc.allowed {
			t.Errorf("%s on %s: allowed %v", tc.action, tc.resource, d.Allowed)
		}
		if err := d.Err(); (err == nil) != tc.allowed || err != nil && watchword.CodeOf(err) != watchword.Denied {
			t.Errorf("%s on %s: %v", tc.action, tc.resource, err)
		}
	}
	if !tok.AllowsCall("lamp-2", watchword.Labels{"kind": "lamp"}, "lamp.set").Allowed {
		t.Error("a lamp whose labels are known cannot be called")
	}
	for name, d := range map[string]verify.Decision{
		"an endpoint":                 tok.AllowsCall("door-2", watchword.Labels{"kind": "door"}, "lamp.set"),
		"another function":            tok.AllowsCall("lamp-2", nil, "door.open"),
		"a pattern for a function":    tok.AllowsCall("lamp-2", nil, "lamp.*"),
		"a wildcard for the device":   tok.AllowsCall("*", nil, "lamp.set"),
		"an id that none can have":    tok.AllowsCall("a/b", nil, "lamp.set"),
		"a function that none can be": tok.AllowsCall("lamp-2", nil, ""),
	} {
		if d.Allowed {
			t.Errorf("%s may be called", name)
		}
	}
}

func TestTheKeysOfASetAreStrict(t *testing.T) {
	a, b, ed := newSigner(t, jose.P256), newSigner(t, jose.P256), newSigner(t, jose.Ed)
	x, err := jose.GenerateKey(jose.X25519)
	if err != nil {
		t.Fatal(err)
	}
	private, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	one, nameless := jwk(a.Public()), string(a.Public().JWK())
	many := strings.TrimSuffix(strings.Repeat(`{"kty":"RSA"},`, 65), ",")
	set := func(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }
	for _, tc := range []struct {
		name, set string
		good      bool
		counts    []*jose.Signer
	}{
		{"two keys", set(one, jwk(ed.Public())), true, []*jose.Signer{a, ed}},
		{"no key: then none counts", set(), true, nil},
		{"kinds of tomorrow are passed over", set(`{"kty":"RSA","kid":"r","n":"AQAB","e":"AQAB"}`, `{"kty":"AKP","alg":"ML-DSA-44","kid":"m","pub":"AA"}`, `{"kty":"EC","crv":"P-384","kid":"c"}`, one), true, []*jose.Signer{a}},
		{"keys that seal are passed over", set(strings.Replace(jwk(b.Public()), `"use":"sig","alg":"ES256"`, `"use":"enc"`, 1), strings.Replace(jwk(b.Public()), `"use":"sig","alg":"ES256"`, `"alg":"ECDH-ES"`, 1), string(x.Public().JWK()), one), true, []*jose.Signer{a}},
		{"a key for key agreement by what it does", set(strings.Replace(jwk(b.Public()), `"use":"sig","alg":"ES256"`, `"key_ops":["deriveBits"],"alg":"ECDH-ES+A256KW"`, 1), one), true, []*jose.Signer{a}},
		{"a key that seals with ES256", set(strings.Replace(one, `"use":"sig"`, `"use":"enc"`, 1)), false, nil},
		{"a key that signs with ECDH", set(strings.Replace(one, `"alg":"ES256"`, `"alg":"ECDH-ES"`, 1)), false, nil},
		{"a key that is for signing and derives", set(strings.Replace(one, `"alg":"ES256"`, `"key_ops":["deriveKey"]`, 1)), false, nil},
		{"a symmetric key beside", set(`{"kty":"oct","k":"AAAA"}`, one), false, nil},
		{"a private key of another kind beside", set(`{"kty":"RSA","n":"AQAB","e":"AQAB","d":"AQAB"}`, one), false, nil},
		{"members of tomorrow are passed over", set(strings.TrimSuffix(one, "}") + `,"exp":1900000000,"x5c":["AA"]}`), true, []*jose.Signer{a}},
		{"members beside keys are passed over", `{"fetched":1,"keys":[` + one + `]}`, true, []*jose.Signer{a}},
		{"a key without kid", set(nameless), false, nil},
		{"a kid that is not the thumbprint", set(strings.Replace(one, string(a.Public().ID()), string(b.Public().ID()), 1)), false, nil},
		{"a key twice", set(one, one), false, nil},
		{"a private key", set(strings.TrimSuffix(string(private.JWK()), "}") + `,"kid":"` + string(private.Public().ID()) + `"}`), false, nil},
		{"a member twice", set(strings.TrimSuffix(one, "}") + `,"kid":"x"}`), false, nil},
		{"a point off the curve", set(`{"kty":"EC","crv":"P-256","kid":"x","x":"` + b64(strings.Repeat("a", 32)) + `","y":"` + b64(strings.Repeat("b", 32)) + `"}`), false, nil},
		{"65 keys", set(many), false, nil},
		{"a key that is no object", set(`"key"`), false, nil},
		{"keys that are no array", `{"keys":{}}`, false, nil},
		{"keys that are null", `{"keys":null}`, false, nil},
		{"no keys", `{}`, false, nil},
		{"no JSON", `<html>`, false, nil},
		{"nothing", ``, false, nil},
	} {
		c := &clock{t: noon}
		v, err := verify.New(t.Context(), issuerID, verify.Keys([]byte(tc.set)), verify.Audience(audience), verify.Now(c.now))
		if (err == nil) != tc.good || err != nil && watchword.CodeOf(err) != watchword.KeyDamaged {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		for _, s := range []*jose.Signer{a, b, ed} {
			if err != nil {
				break
			}
			want := watchword.KeyUnknown
			for _, k := range tc.counts {
				if k == s {
					want = ""
				}
			}
			_, err := v.Check(t.Context(), signToken(t, s, noon, nil))
			wants(t, tc.name, err, want)
		}
	}
}

func TestManyAtOnceGetTheSameAnswer(t *testing.T) {
	key := newSigner(t, jose.P256)
	v, _ := static(t, jwks(key), verify.Remember(8)) // forgetting while others read
	var tokens []string
	for range 40 {
		tokens = append(tokens, signToken(t, key, noon, nil))
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				raw := tokens[(i*7+g)%len(tokens)]
				tok, err := v.Check(t.Context(), raw)
				if err != nil || tok.Subject != "lamp-1" || !tok.Allows("api:/readings", "post").Allowed {
					t.Errorf("got %v, %v", tok, err)
				}
				if _, err := v.Check(t.Context(), changed(raw)); watchword.CodeOf(err) != watchword.SignatureInvalid {
					t.Error("a changed token passes")
				}
			}
		})
	}
	wg.Wait()
}

func TestCheckingCostsHardlyMoreThanTheSignature(t *testing.T) {
	key := newSigner(t, jose.P256)
	raw := signToken(t, key, noon, nil)
	for name, tc := range map[string]struct {
		remembered int
		most       float64
	}{
		"a token that was good before": {16, 1},
		"a token never seen":           {0, 250}, // and a fifth more time: perm and deny are read and compiled
	} {
		v, _ := static(t, jwks(key), verify.Remember(tc.remembered))
		got := testing.AllocsPerRun(100, func() {
			tok, err := v.Check(t.Context(), raw)
			if err != nil || !tok.Allows("api:/readings", "post").Allowed {
				t.Fatal(err)
			}
		})
		t.Logf("%s: %v allocations", name, got)
		if got > tc.most {
			t.Errorf("%s: %v allocations, want at most %v", name, got, tc.most)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	key := newSigner(b, jose.P256)
	raw := signToken(b, key, noon, nil)
	keys := token.NewKeySet(key.Public())
	b.Run("token.VerifyAccess", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := token.VerifyAccess(raw, keys, issuerID, audience, noon, token.Skew); err != nil {
				b.Fatal(err)
			}
		}
	})
	for name, remembered := range map[string]int{"never seen": 0, "seen": 16} {
		v, _ := static(b, jwks(key), verify.Remember(remembered))
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				tok, err := v.Check(b.Context(), raw)
				if err != nil || !tok.Allows("api:/readings", "post").Allowed {
					b.Fatal(err)
				}
			}
		})
	}
}
