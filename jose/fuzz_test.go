package jose

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
)

func FuzzParseJWS(f *testing.F) {
	s := newSigner(f, P256)
	ok, err := s.Sign("at+jwt", []byte(`{"a":1}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ok)
	f.Add("..")
	f.Add(b64u(`{"alg":"ES256"}`) + ".e30." + strings.Repeat("A", 86))
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := ParseJWS(raw, 4096)
		if err != nil {
			if c := watchword.CodeOf(err); c == watchword.Internal {
				t.Errorf("%q: %v", raw, err)
			}
			return
		}
		// What verifies under a key that signed one token is that token, or its twin signature.
		if payload, err := u.Verify(s.Public()); err == nil && (string(payload) != `{"a":1}` || raw[:strings.LastIndexByte(raw, '.')] != ok[:strings.LastIndexByte(ok, '.')]) {
			t.Errorf("verifies: %q", raw)
		}
	})
}

// FuzzHeader signs a payload under any header: an accepted header has an alg of the key, also by the reference libraries,
// and no unsupported member.
func FuzzHeader(f *testing.F) {
	s := newSigner(f, P256)
	for _, tc := range headerCases(s) {
		f.Add(tc.header)
	}
	f.Fuzz(func(t *testing.T, header string) {
		raw := under(t, s, header, `{}`)
		_, err := verify(raw, s.Public())
		if err != nil {
			if watchword.CodeOf(err) == watchword.Internal {
				t.Errorf("%q: %v", header, err)
			}
			return
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(header), &m); err != nil || m["alg"] != ES256 {
			t.Errorf("%q is taken: %v, %v", header, m, err)
		}
		for name, v := range m {
			if s, ok := v.(string); !ok || s == "" || name != "alg" && name != "typ" && name != "kid" {
				t.Errorf("%q is taken with %s", header, name)
			}
		}
	})
}

func FuzzParseProof(f *testing.F) {
	s := newSigner(f, Ed)
	ok, err := s.SignProof("dpop+jwt", []byte(`{"a":1}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ok)
	f.Add(b64u(`{"alg":"ES256","jwk":{"kty":"OKP"}}`) + ".e30." + strings.Repeat("A", 86))
	f.Fuzz(func(t *testing.T, raw string) {
		u, k, err := ParseProof(raw, 4096)
		if err != nil {
			if watchword.CodeOf(err) == watchword.Internal {
				t.Errorf("%q: %v", raw, err)
			}
			return
		}
		if !k.CanSign() || u.Kid != "" {
			t.Errorf("%q: a key %s, kid %q", raw, k.JWK(), u.Kid)
		}
		if k.ID() == s.Public().ID() {
			if payload, err := u.Verify(k); err == nil && (raw != ok || string(payload) != `{"a":1}`) { // Ed25519 has one signature
				t.Errorf("verifies: %q", raw)
			}
		}
	})
}

func FuzzOpen(f *testing.F) {
	f.Add(true, "....")
	op, goodP := sealedFor(f, P256)
	ox, goodX := sealedFor(f, X25519)
	f.Add(true, goodP)
	f.Add(false, goodX)
	f.Fuzz(func(t *testing.T, p256 bool, raw string) {
		o, ok := ox, goodX
		if p256 {
			o, ok = op, goodP
		}
		if plain, _, err := o.Decrypt(raw, 4096); err == nil && raw != ok {
			t.Errorf("%q opens to %q", raw, plain)
		} else if err != nil && watchword.CodeOf(err) == watchword.Internal {
			t.Errorf("%q: %v", raw, err)
		}
	})
}

func sealedFor(f *testing.F, crv string) (*Decrypter, string) {
	k, err := GenerateKey(crv)
	if err != nil {
		f.Fatal(err)
	}
	o, err := k.Decrypter()
	if err != nil {
		f.Fatal(err)
	}
	ok, err := Encrypt(k.Public(), "JWT", []byte("x"))
	if err != nil {
		f.Fatal(err)
	}
	return o, ok
}

// FuzzSealHeader seals under any header, with EPK standing for the ephemeral key.
func FuzzSealHeader(f *testing.F) {
	k, err := GenerateKey(P256)
	if err != nil {
		f.Fatal(err)
	}
	o, err := k.Decrypter()
	if err != nil {
		f.Fatal(err)
	}
	for _, tc := range sealCases(f, P256, string(k.Public().ID())) {
		f.Add(tc.header("EPK"))
	}
	f.Fuzz(func(t *testing.T, header string) {
		raw := sealUnder(t, k.Public(), "", "", "x", func(epk string) string {
			header = strings.ReplaceAll(header, "EPK", epk)
			return header
		})
		if _, _, err := o.Decrypt(raw, 1<<20); err != nil {
			if watchword.CodeOf(err) == watchword.Internal {
				t.Errorf("%q: %v", header, err)
			}
			return
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(header), &m); err != nil || m["alg"] != algECDHES || m["enc"] != encA256GCM {
			t.Errorf("%q opens: %v", header, err)
		}
		for name := range m {
			if !strings.Contains(" alg enc epk kid cty typ ", " "+name+" ") {
				t.Errorf("%q opens with %s", header, name)
			}
		}
	})
}

func FuzzParsePrivateJWK(f *testing.F) {
	for _, crv := range []string{P256, Ed, X25519} {
		k, err := GenerateKey(crv)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(k.JWK())
		f.Add(k.Public().JWK())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := parsedPrivateAnyUse(raw)
		if err != nil {
			if watchword.CodeOf(err) != watchword.BadRequest {
				t.Errorf("%q: %v", raw, err)
			}
			var m map[string]any
			if json.Unmarshal(raw, &m) == nil {
				if d, ok := m["d"].(string); ok && len(d) > 16 && strings.Contains(err.Error(), d) {
					t.Errorf("the refusal repeats the key: %v", err)
				}
			}
			return
		}
		again, err := parsedPrivateAnyUse(k.JWK())
		if err != nil || again.Public().ID() != k.Public().ID() || !bytes.Equal(again.JWK(), k.JWK()) {
			t.Errorf("%q is not read back: %v", k.Public().JWK(), err)
		}
		if pub, err := parsedAnyUse(k.Public().JWK()); err != nil || pub.ID() != k.Public().ID() {
			t.Errorf("its public half %q: %v", k.Public().JWK(), err)
		}
		if _, err := parsedAnyUse(raw); err == nil {
			t.Error("a private key passes for a public one")
		}
	})
}

func FuzzParseJWK(f *testing.F) {
	for _, crv := range []string{P256, Ed, X25519} {
		k, err := GenerateKey(crv)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(k.Public().JWK())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := parsedAnyUse(raw)
		if err != nil {
			if watchword.CodeOf(err) == watchword.Internal {
				t.Errorf("%q: %v", raw, err)
			}
			return
		}
		again, err := parsedAnyUse(k.JWK())
		var plain map[string]any
		if jerr := json.Unmarshal(raw, &plain); jerr != nil || plain["d"] != nil || plain["k"] != nil || plain["p"] != nil {
			t.Errorf("%q is taken: %v", raw, jerr)
		}
		if err != nil || again.ID() != k.ID() || !bytes.Equal(again.JWK(), k.JWK()) {
			t.Errorf("%q reads as %q, and that as %v", raw, k.JWK(), err)
		}
	})
}

func FuzzWalk(f *testing.F) {
	f.Add([]byte(`{"a":{"b":[1,2,{"c":null}]},"d":"\u00e9"}`))
	f.Add([]byte(`{"a":1,"a":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		seen := map[string]bool{}
		err := Walk(b, func(name string, v jsontext.Value) error {
			if seen[name] {
				t.Errorf("%q is twice in %q", name, b)
			}
			seen[name] = true
			return nil
		})
		if err != nil {
			return
		}
		// What Walk takes, Each takes in an array and Decode too; and so does the standard library, with the same members.
		var decoded map[string]any
		if err := Decode(b, &decoded); err != nil || len(decoded) != len(seen) {
			t.Errorf("%q: Decode says %v", b, err)
		}
		items := 0
		deep := Each(append(append([]byte("["), b...), ']'), func(v jsontext.Value) error {
			items++
			return nil
		})
		if deep == nil && items != 1 || deep != nil && Walk([]byte(`{"a":`+string(b)+`}`), func(string, jsontext.Value) error { return nil }) == nil {
			t.Errorf("%q: Each gives %d items, %v", b, items, deep)
		}
		var m map[string]json.RawMessage
		if err := json.Unmarshal(b, &m); err != nil || len(m) != len(seen) {
			t.Errorf("%q: %v, %d members instead of %d", b, err, len(m), len(seen))
		}
	})
}

// FuzzSignType: for any requested typ and cty, the signed and encrypted result is read back unchanged, or there is an
// error.
func FuzzSignType(f *testing.F) {
	signers := []*Signer{newSigner(f, P256), newSigner(f, Ed)}
	k, err := GenerateKey(X25519)
	if err != nil {
		f.Fatal(err)
	}
	o, err := k.Decrypter()
	if err != nil {
		f.Fatal(err)
	}
	for _, typ := range []string{"", "JWT", "\x00", "\a\x7f\u0085", `a"b\c`, "</script>", "ä\U0001f600", "\u2028", "\ufffd", "\xff", "a\xc0\xaf", strings.Repeat("x", 5000)} {
		f.Add(typ, []byte(`{"a":1}`))
	}
	f.Fuzz(func(t *testing.T, typ string, payload []byte) {
		ok := func(what string, err error) bool {
			if utf8.ValidString(typ) != (err == nil) || err != nil && watchword.CodeOf(err) != watchword.BadRequest {
				t.Errorf("%s with %q: %v", what, typ, err)
			}
			return err == nil
		}
		for _, s := range signers {
			raw, err := s.Sign(typ, payload)
			if ok("signing", err) {
				u, err := ParseJWS(raw, 1<<24)
				if err != nil || u.Typ != typ || u.Kid != string(s.Public().ID()) || u.Alg != s.Public().Alg() {
					t.Fatalf("%q is not read back: %+v, %v", typ, u, err)
				}
				if got, err := u.Verify(s.Public()); err != nil || !bytes.Equal(got, payload) {
					t.Errorf("%q: %q, %v", typ, got, err)
				}
			}
			raw, err = s.SignProof(typ, payload)
			if ok("proving", err) {
				u, pub, err := ParseProof(raw, 1<<24)
				if err != nil || u.Typ != typ || pub.ID() != s.Public().ID() {
					t.Fatalf("a proof with %q is not read back: %v", typ, err)
				}
			}
		}
		raw, err := Encrypt(k.Public(), typ, payload)
		if ok("sealing", err) {
			if got, cty, err := o.Decrypt(raw, 1<<24); err != nil || cty != typ || !bytes.Equal(got, payload) {
				t.Errorf("sealed as %q: %q, %q, %v", typ, cty, got, err)
			}
		}
	})
}
