package jose

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
)

func b64u(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func newSigner(t testing.TB, crv string) *Signer {
	t.Helper()
	k, err := GenerateKey(crv)
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMalformedJWS(t *testing.T) {
	s := newSigner(t, P256)
	ed := newSigner(t, Ed)
	ok, err := s.Sign("at+jwt", []byte(`{"a":1}`))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := verify(ok, s.Public()); err != nil || string(got) != `{"a":1}` {
		t.Fatalf("a good one: %q, %v", got, err)
	}
	parts := strings.Split(ok, ".")
	kid := fmt.Sprintf(`"kid":%q`, s.Public().ID())
	with := func(header string) string { return b64u(header) + "." + parts[1] + "." + parts[2] }
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, raw string
		want      watchword.Code
	}{
		{"alg none", with(`{"alg":"none",` + kid + `}`), watchword.AlgorithmInvalid},
		{"alg None", with(`{"alg":"None",` + kid + `}`), watchword.AlgorithmInvalid},
		{"alg HS256", with(`{"alg":"HS256",` + kid + `}`), watchword.AlgorithmInvalid},
		{"alg RS256", with(`{"alg":"RS256",` + kid + `}`), watchword.AlgorithmInvalid},
		{"alg of another kind of key", with(`{"alg":"Ed25519",` + kid + `}`), watchword.AlgorithmInvalid},
		{"no alg", with(`{` + kid + `}`), watchword.AlgorithmInvalid},
		{"jwk", with(`{"alg":"ES256","jwk":{"kty":"EC"}}`), watchword.TokenMalformed},
		{"jku", with(`{"alg":"ES256","jku":"https://x"}`), watchword.TokenMalformed},
		{"x5u", with(`{"alg":"ES256","x5u":"https://x"}`), watchword.TokenMalformed},
		{"x5c", with(`{"alg":"ES256","x5c":[]}`), watchword.TokenMalformed},
		{"crit", with(`{"alg":"ES256","crit":["b64"],"b64":false}`), watchword.TokenMalformed},
		{"b64", with(`{"alg":"ES256","b64":false}`), watchword.TokenMalformed},
		{"zip", with(`{"alg":"ES256","zip":"DEF"}`), watchword.TokenMalformed},
		{"an unknown member", with(`{"alg":"ES256","x":1}`), watchword.TokenMalformed},
		{"a member twice", with(`{"alg":"ES256","alg":"ES256"}`), watchword.TokenMalformed},
		{"a member twice, once escaped", with("{\"alg\":\"ES256\",\"\\u0061lg\":\"ES256\"}"), watchword.TokenMalformed},
		{"bad UTF-8 in the header", with("{\"alg\":\"ES256\",\"kid\":\"\xff\"}"), watchword.TokenMalformed},
		{"a header that is no object", with(`["ES256"]`), watchword.TokenMalformed},
		{"bytes after the header", with(`{"alg":"ES256"} {}`), watchword.TokenMalformed},
		{"alg as a number", with(`{"alg":7}`), watchword.TokenMalformed},
		{"a header too deep", with(`{"alg":"ES256","x":` + strings.Repeat("[", 9) + strings.Repeat("]", 9) + `}`), watchword.TokenMalformed},
		{"a kid too long", with(`{"alg":"ES256","kid":"` + strings.Repeat("a", 129) + `"}`), watchword.TokenMalformed},
		{"another kid", with(`{"alg":"ES256","kid":"x"}`), watchword.KeyUnknown},
		{"two parts", parts[0] + "." + parts[1], watchword.TokenMalformed},
		{"four parts", ok + ".", watchword.TokenMalformed},
		{"a JWE", ok + "." + parts[0] + "." + parts[1], watchword.TokenMalformed},
		{"nothing", "", watchword.TokenMalformed},
		{"dots", "..", watchword.TokenMalformed},
		{"padding", parts[0] + "." + parts[1] + "." + parts[2] + "==", watchword.TokenMalformed},
		{"a line break", parts[0] + "\n." + parts[1] + "." + parts[2], watchword.TokenMalformed},
		{"a line break inside the payload", parts[0] + "." + parts[1][:4] + "\r\n" + parts[1][4:] + "." + parts[2], watchword.TokenMalformed},
		{"trailing bits", parts[0] + "." + parts[1] + "." + parts[2][:len(parts[2])-1] + "B", watchword.TokenMalformed},
		{"the other alphabet", parts[0] + "." + parts[1] + "." + strings.Repeat("+/", 43), watchword.TokenMalformed},
		{"a signature too short", parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(sig[:63]), watchword.TokenMalformed},
		{"a signature as DER", parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(derSignature(nil, (*[64]byte)(sig))), watchword.TokenMalformed},
		{"a signature of zeros", parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64)), watchword.SignatureInvalid},
		{"another payload", parts[0] + "." + b64u(`{"a":2}`) + "." + parts[2], watchword.SignatureInvalid},
		{"another header", b64u(`{"alg":"ES256"}`) + "." + parts[1] + "." + parts[2], watchword.SignatureInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := verify(tc.raw, s.Public()); watchword.CodeOf(err) != tc.want {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
	if _, err := ParseJWS(ok, len(ok)-1); watchword.CodeOf(err) != watchword.TooLarge {
		t.Errorf("one byte too many: %v", err)
	}
	if _, err := verify(ok, ed.Public()); watchword.CodeOf(err) != watchword.AlgorithmInvalid {
		t.Errorf("under a key of another kind: %v", err)
	}
}

// Of every byte of a token, changed in every way that matters, none leaves a
// token that verifies, unless it is the twin signature that ES256 cannot avoid.
func TestAChangedByteNeverVerifies(t *testing.T) {
	for _, crv := range []string{P256, Ed} {
		s := newSigner(t, crv)
		ok, err := s.Sign("at+jwt", []byte(`{"iss":"x","n":12345}`))
		if err != nil {
			t.Fatal(err)
		}
		for i := range len(ok) {
			for _, c := range []byte("A_9.=") {
				if ok[i] == c {
					continue
				}
				bad := ok[:i] + string(c) + ok[i+1:]
				if _, err := verify(bad, s.Public()); err == nil {
					t.Fatalf("%s: byte %d changed to %q verifies", crv, i, c)
				}
			}
		}
	}
}

func TestMalformedJWE(t *testing.T) {
	for _, crv := range []string{P256, X25519} {
		t.Run(crv, func(t *testing.T) {
			k, err := GenerateKey(crv)
			if err != nil {
				t.Fatal(err)
			}
			o, err := k.Decrypter()
			if err != nil {
				t.Fatal(err)
			}
			ok, err := Encrypt(k.Public(), "JWT", []byte("the order of the day"))
			if err != nil {
				t.Fatal(err)
			}
			if plain, cty, err := o.Decrypt(ok, 4096); err != nil || string(plain) != "the order of the day" || cty != "JWT" {
				t.Fatalf("a good one: %q %q %v", plain, cty, err)
			}
			parts := strings.Split(ok, ".")
			head, err := base64.RawURLEncoding.DecodeString(parts[0])
			if err != nil {
				t.Fatal(err)
			}
			edit := func(old, now string) string {
				if !strings.Contains(string(head), old) {
					t.Fatalf("the header %s has no %s", head, old)
				}
				return b64u(strings.Replace(string(head), old, now, 1)) + "." + strings.Join(parts[1:], ".")
			}
			other, err := GenerateKey(crv)
			if err != nil {
				t.Fatal(err)
			}
			oo, err := other.Decrypter()
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := oo.Decrypt(ok, 4096); watchword.CodeOf(err) != watchword.KeyUnknown {
				t.Errorf("with another's key: %v", err)
			}
			for name, raw := range map[string]string{
				"alg dir":              edit(`"ECDH-ES"`, `"dir"`),
				"alg RSA":              edit(`"ECDH-ES"`, `"RSA-OAEP"`),
				"enc CBC":              edit(`"A256GCM"`, `"A128CBC-HS256"`),
				"zip":                  edit(`"cty":"JWT"`, `"cty":"JWT","zip":"DEF"`),
				"apu":                  edit(`"cty":"JWT"`, `"cty":"JWT","apu":"QQ"`),
				"crit":                 edit(`"cty":"JWT"`, `"cty":"JWT","crit":["x"]`),
				"another cty":          edit(`"cty":"JWT"`, `"cty":"JWS"`),
				"epk that is none":     edit(`"epk":{`, `"epk":{"q":1,`),
				"an encrypted key":     parts[0] + ".AAAA." + strings.Join(parts[2:], "."),
				"a short iv":           parts[0] + ".." + parts[2][:4] + "." + parts[3] + "." + parts[4],
				"a short tag":          strings.Join(parts[:4], ".") + "." + parts[4][:8],
				"no text":              strings.Join(parts[:3], ".") + ".." + parts[4],
				"four parts":           strings.Join(parts[:4], "."),
				"six parts":            ok + ".AA",
				"a JWS":                strings.Join(parts[:3], "."),
				"padding":              ok + "=",
				"nothing":              "",
				"epk of zeros, X25519": b64u(`{"alg":"ECDH-ES","enc":"A256GCM","epk":{"kty":"OKP","crv":"X25519","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}}`) + "." + strings.Join(parts[1:], "."),
				"epk off the curve":    b64u(`{"alg":"ECDH-ES","enc":"A256GCM","epk":{"kty":"EC","crv":"P-256","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE","y":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"}}`) + "." + strings.Join(parts[1:], "."),
			} {
				if plain, _, err := o.Decrypt(raw, 4096); err == nil || watchword.CodeOf(err) == watchword.Internal {
					t.Errorf("%s: %q %v", name, plain, err)
				}
			}
			if _, _, err := o.Decrypt(ok, len(ok)-1); watchword.CodeOf(err) != watchword.TooLarge {
				t.Errorf("one byte too many: %v", err)
			}
			for i := range len(ok) {
				for _, c := range []byte("A_9") {
					if ok[i] == c {
						continue
					}
					if _, _, err := o.Decrypt(ok[:i]+string(c)+ok[i+1:], 4096); err == nil {
						t.Fatalf("byte %d changed to %q opens", i, c)
					}
				}
			}
		})
	}
}

func TestMalformedPublicKeys(t *testing.T) {
	const x, y = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"
	for name, raw := range map[string]string{
		"a private key":          `{"kty":"EC","crv":"P-256","x":"` + x + `","y":"` + y + `","d":"jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"}`,
		"a point off the curve":  `{"kty":"EC","crv":"P-256","x":"` + y + `","y":"` + x + `"}`,
		"the wrong curve":        `{"kty":"EC","crv":"P-384","x":"` + x + `","y":"` + y + `"}`,
		"secp256k1":              `{"kty":"EC","crv":"secp256k1","x":"` + x + `","y":"` + y + `"}`,
		"RSA":                    `{"kty":"RSA","n":"AQAB","e":"AQAB"}`,
		"a shared secret":        `{"kty":"oct","k":"AAAA"}`,
		"kty and crv at odds":    `{"kty":"OKP","crv":"P-256","x":"` + x + `"}`,
		"no y":                   `{"kty":"EC","crv":"P-256","x":"` + x + `"}`,
		"a short x":              `{"kty":"OKP","crv":"Ed25519","x":"AAAA"}`,
		"X25519 of low order":    `{"kty":"OKP","crv":"X25519","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`,
		"Ed25519 of order one":   `{"kty":"OKP","crv":"Ed25519","x":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`,
		"Ed25519 of order eight": `{"kty":"OKP","crv":"Ed25519","x":"JuiVj8KyJ7BFw_SJ8u-Y8NXfrAXTxjM5sTgCiG1T_AU"}`,
		"a kid that is not it":   `{"kty":"EC","crv":"P-256","x":"` + x + `","y":"` + y + `","kid":"mine"}`,
		"an alg of another kind": `{"kty":"EC","crv":"P-256","x":"` + x + `","y":"` + y + `","alg":"RS256"}`,
		"a member twice":         `{"kty":"EC","kty":"EC","crv":"P-256","x":"` + x + `","y":"` + y + `"}`,
		"padding":                `{"kty":"EC","crv":"P-256","x":"` + x + `=","y":"` + y + `"}`,
		"bytes after it":         `{"kty":"EC","crv":"P-256","x":"` + x + `","y":"` + y + `"}{}`,
		"no object":              `"key"`,
		"nothing":                ``,
	} {
		if _, err := parsedAnyUse([]byte(raw)); watchword.CodeOf(err) != watchword.BadRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAPrivateKeyNeverPrints(t *testing.T) {
	k, err := GenerateKey(P256)
	if err != nil {
		t.Fatal(err)
	}
	d := string(k.JWK())[strings.Index(string(k.JWK()), `"d":"`)+5:][:20]
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		if out := fmt.Sprintf(verb, k); strings.Contains(out, d) || strings.Contains(out, fmt.Sprintf("%x", d)) {
			t.Errorf("%s prints it: %s", verb, out)
		}
	}
	back, err := parsedPrivateAnyUse(k.JWK())
	if err != nil || back.Public().ID() != k.Public().ID() {
		t.Errorf("read back: %v", err)
	}
}
