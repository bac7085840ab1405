package verify

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
)

// A key of an accepted set can sign, is named by its thumbprint, and is unchanged after the cache was written and read.
func FuzzKeySet(f *testing.F) {
	f.Add([]byte(`{"keys":[]}`))
	f.Add([]byte(`{"keys":[{"crv":"Ed25519","kty":"OKP","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k","use":"sig"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"RSA","kid":"a"},{"kty":"EC","crv":"P-256","use":"enc"}],"more":1}`))
	now := time.Unix(1_800_000_000, 0)
	path := filepath.Join(f.TempDir(), "keys.json")
	f.Fuzz(func(t *testing.T, b []byte) {
		set, err := parseJWKS(b)
		if err != nil {
			if watchword.CodeOf(err) != watchword.KeyDamaged {
				t.Fatal(err)
			}
			return
		}
		for id, k := range set {
			if k.ID() != id || !k.CanSign() {
				t.Errorf("key %s is taken", id)
			}
		}
		if err := saveKeys(path, "https://w.example", &keySet{set, now}); err != nil {
			t.Fatal(err)
		}
		back, err := loadKeys(path, "https://w.example", now)
		if err != nil || !sameKeys(back.keys, set) || !back.fetched.Equal(now) {
			t.Errorf("came back as %v, %v", back, err)
		}
	})
}

// Whatever a path holds, it fills one level and no wildcard.
func FuzzFill(f *testing.F) {
	f.Add("api:/a/{x}/b", "c")
	f.Add("fn:{x}/{x}", "..")
	f.Add("topic:{x", "a/b")
	f.Fuzz(func(t *testing.T, resource, value string) {
		got, ok := fillPattern(resource, func(string) string { return value })
		if !ok {
			return
		}
		plain, ok := fillPattern(resource, func(string) string { return "x" })
		if !ok {
			t.Fatalf("%q takes %q and not x", resource, value)
		}
		for _, c := range []byte("/+#\x00") {
			if count(got, c) != count(plain, c) {
				t.Errorf("%q with %q has another %q: %q", resource, value, c, got)
			}
		}
	})
}

func count(s string, c byte) (n int) {
	for i := range len(s) {
		if s[i] == c {
			n++
		}
	}
	return n
}
