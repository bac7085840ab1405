package jose

import (
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
)

func TestDualSignatureRoundTrip(t *testing.T) {
	const typ, max = "vnd.example+jwt", 4096
	first, second, other := newSigner(t, P256), newSigner(t, Ed), newSigner(t, P256)
	one := func(s *Signer, typ, payload string) string {
		raw, err := s.Sign(typ, []byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	list := func(ss ...string) string { return `["` + strings.Join(ss, `","`) + `"]` }
	a, b := one(first, typ, `{"a":1}`), one(second, typ, `{"a":1}`)
	ok, err := SignDual(first, second, typ, []byte(`{"a":1}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, raw string
		want      watchword.Code
	}{
		{"a good pair", ok, ""},
		{"with spaces", `[ "` + a + `" , "` + b + `" ]`, ""},
		{"swapped", list(b, a), watchword.AlgorithmInvalid},
		{"by the first alone", list(a), watchword.TokenMalformed},
		{"by the first twice", list(a, a), watchword.AlgorithmInvalid},
		{"by three", list(a, b, a), watchword.TokenMalformed},
		{"a third in a nested array", `["` + a + `",["` + b + `"]]`, watchword.TokenMalformed},
		{"by another in the first place", list(one(other, typ, `{"a":1}`), b), watchword.KeyUnknown},
		{"by another in the second place", list(a, one(other, typ, `{"a":1}`)), watchword.AlgorithmInvalid},
		{"two payloads", list(a, one(second, typ, `{"a":2}`)), watchword.TokenMalformed},
		{"the same members in other bytes", list(a, one(second, typ, `{"a": 1}`)), watchword.TokenMalformed},
		{"two kinds", list(a, one(second, "JWT", `{"a":1}`)), watchword.TokenMalformed},
		{"a compact token", a, watchword.TokenMalformed},
		{"nothing", ``, watchword.TokenMalformed},
		{"an empty array", `[]`, watchword.TokenMalformed},
		{"null", `[null,"` + a + `"]`, watchword.TokenMalformed},
		{"an object", `{"a":"` + a + `"}`, watchword.TokenMalformed},
		{"bytes after its end", ok + "x", watchword.TokenMalformed},
		{"a quote inside", `["` + a + `\"","` + b + `"]`, watchword.TokenMalformed},
		{"a broken token", list(a, b+"="), watchword.TokenMalformed},
		{"one too large", list(a, one(second, typ, strings.Repeat(" ", max))), watchword.TooLarge},
		{"too large before it is read", "[" + strings.Repeat(" ", 3*max) + ok[1:], watchword.TooLarge},
	} {
		p, err := ParseDual(tc.raw, max)
		var payload []byte
		if err == nil {
			payload, err = p.Verify(first.Public(), second.Public())
		}
		if watchword.CodeOf(err) != tc.want {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if err == nil && (string(payload) != `{"a":1}` || p.Typ() != typ || string(p.UnverifiedPayload()) != string(payload)) {
			t.Errorf("%s says %q %q", tc.name, p.Typ(), payload)
		}
	}
	p, err := ParseDual(list(a, a), max)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Verify(first.Public(), first.Public()); watchword.CodeOf(err) != watchword.KeyUnknown {
		t.Errorf("one key for both: %v", err)
	}
	if !LooksLikeDual(ok) || LooksLikeDual(a) {
		t.Error("a pair and a single token look alike")
	}
}

func FuzzParseDual(f *testing.F) {
	first, second := newSigner(f, P256), newSigner(f, Ed)
	ok, err := SignDual(first, second, "at+jwt", []byte(`{"a":1}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ok)
	f.Add(`["..",".."]`)
	f.Fuzz(func(t *testing.T, raw string) {
		p, err := ParseDual(raw, 4096)
		if err != nil {
			if watchword.CodeOf(err) == watchword.Internal {
				t.Errorf("%q: %v", raw, err)
			}
			return
		}
		if payload, err := p.Verify(first.Public(), second.Public()); err == nil && string(payload) != `{"a":1}` {
			t.Errorf("verifies: %q", raw)
		}
	})
}
