package jose

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
)

func FuzzParseJWS(f *testing.F) {
	s := newSigner(f, P256)
	good, err := s.Sign("at+jwt", []byte(`{"a":1}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
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
		if payload, err := u.Verify(s.Public()); err == nil && (string(payload) != `{"a":1}` || raw[:strings.LastIndexByte(raw, '.')] != good[:strings.LastIndexByte(good, '.')]) {
			t.Errorf("verifies: %q", raw)
		}
	})
}

func FuzzOpen(f *testing.F) {
	k, err := GenerateKey(P256)
	if err != nil {
		f.Fatal(err)
	}
	o, err := k.Opener()
	if err != nil {
		f.Fatal(err)
	}
	good, err := Seal(k.Public(), "JWT", []byte("x"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add("....")
	f.Fuzz(func(t *testing.T, raw string) {
		if plain, _, err := o.Open(raw, 4096); err == nil && raw != good {
			t.Errorf("%q opens to %q", raw, plain)
		} else if err != nil && watchword.CodeOf(err) == watchword.Internal {
			t.Errorf("%q: %v", raw, err)
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
		k, err := ParseJWK(raw)
		if err != nil {
			if watchword.CodeOf(err) == watchword.Internal {
				t.Errorf("%q: %v", raw, err)
			}
			return
		}
		again, err := ParseJWK(k.JWK())
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
				t.Errorf("%q stands twice in %q", name, b)
			}
			seen[name] = true
			return nil
		})
		if err != nil {
			return
		}
		// What is taken is what the standard library reads, with the same members.
		var m map[string]json.RawMessage
		if err := json.Unmarshal(b, &m); err != nil || len(m) != len(seen) {
			t.Errorf("%q: %v, %d members instead of %d", b, err, len(m), len(seen))
		}
	})
}
