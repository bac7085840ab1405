package token_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// A device follows its server to another issuer if a root that it knows signed a bundle that names both, and no other.
func TestABundleNamesFormerIssuers(t *testing.T) {
	key := func() *jose.Signer {
		k, err := jose.GenerateKey(jose.P256)
		if err != nil {
			t.Fatal(err)
		}
		s, err := k.Signer()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	root, other := key(), key()
	now := time.Now().Truncate(time.Second)
	until := now.Add(time.Hour)
	period := func(iss string, ends bool) token.IssuerPeriod {
		if ends {
			return token.IssuerPeriod{Issuer: iss, Until: until}
		}
		return token.IssuerPeriod{Issuer: iss}
	}
	many := []token.IssuerPeriod{period("https://a", true), period("https://b", false)}
	for i := range token.MaxIssuers - 1 {
		many = append(many, period(fmt.Sprint("https://", i), true))
	}
	const a, b, c = "https://a", "https://b", "https://c"
	bundle := func(iss string, root *jose.Signer, version int64, history ...token.IssuerPeriod) token.Trust {
		return token.Trust{Issuer: iss, Version: version, Epoch: 1, Roots: []*jose.PublicKey{root.Public()}, History: history, MQTTS: "b:8883", Issued: now, Expires: now.Add(time.Hour)}
	}
	known := bundle(a, root, 3)
	for _, tc := range []struct {
		name  string
		next  token.Trust
		root  *jose.Signer
		known string
		want  watchword.Code
	}{
		{"the same issuer", bundle(a, root, 4), root, a, ""},
		{"another issuer that names the known one", bundle(b, root, 4, period(a, true), period(b, false)), root, a, ""},
		{"another issuer that does not", bundle(b, root, 4), root, a, watchword.BundleInvalid},
		{"another issuer that names a third one", bundle(b, root, 4, period(c, true), period(b, false)), root, a, watchword.BundleInvalid},
		{"two moves", bundle(c, root, 4, period(a, true), period(b, true), period(c, false)), root, a, ""},
		{"a move back", bundle(a, root, 4, period(a, false), period(b, true)), root, b, ""},
		{"a move that another root signs", bundle(b, other, 4, period(a, true), period(b, false)), other, a, watchword.KeyUnknown},
		{"an older bundle", bundle(b, root, 2, period(a, true), period(b, false)), root, a, watchword.BundleInvalid},
		{"a history without iss", bundle(b, root, 4, period(a, true), period(c, true)), root, a, watchword.TokenMalformed},
		{"a former issuer without an end", bundle(b, root, 4, period(a, false), period(b, false)), root, a, watchword.TokenMalformed},
		{"iss with an end", bundle(b, root, 4, period(a, true), period(b, true)), root, a, watchword.TokenMalformed},
		{"an issuer twice", bundle(b, root, 4, period(a, true), period(b, false), period(a, true)), root, a, watchword.TokenMalformed},
		{"a long issuer", bundle(b, root, 4, period(a, true), period(b, false), period("https://"+strings.Repeat("x", 512), true)), root, a, watchword.TokenMalformed},
		{"as many as allowed", bundle(b, root, 4, many[:token.MaxIssuers]...), root, a, ""},
		{"one more", bundle(b, root, 4, many...), root, a, watchword.TokenMalformed},
	} {
		before := known
		before.Issuer = tc.known
		got, err := token.VerifyNextTrust(signedAnyway(t, tc.next, tc.root), before, now)
		if watchword.CodeOf(err) != tc.want {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if err == nil && !slices.Equal(got.History, tc.next.History) {
			t.Errorf("%s: the history is %v", tc.name, got.History)
		}
		if err == nil && len(got.History) > 1 && (got.FirstIssuer() != a || got.MQTTS != "b:8883") {
			t.Errorf("%s: the first issuer is %s, MQTT is at %s", tc.name, got.FirstIssuer(), got.MQTTS)
		}
	}
	moved := bundle(b, root, 4, period(a, true), period(b, false))
	for claimed, want := range map[string]string{a: a, b: b, c: b, "": b} {
		if got := moved.NamedIssuer(claimed); got != want {
			t.Errorf("what names %q is expected to name %s, want %s", claimed, got, want)
		}
	}
}
