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
	if got := bundle(b, root, 4, period(a, true), period(b, false), period(c, true)).IssuerNames(); !slices.Equal(got, []string{b, a, c}) {
		t.Errorf("the names are %v", got)
	}
}

// The issuer that a verification expects is one that the token names, in iss or in aud, if it is accepted.
func TestClaimedIssuer(t *testing.T) {
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	by, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(typ, payload string) string {
		raw, err := by.Sign(typ, []byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	accepted := []string{"https://b", "https://a"}
	for payload, want := range map[string]string{
		`{"iss":"https://a"}`:                              "https://a",
		`{"iss":"lamp-1","aud":"https://a"}`:               "https://a",
		`{"iss":"lamp-1","aud":["https://x","https://a"]}`: "https://a",
		`{"iss":"https://b","aud":"https://a"}`:            "https://b",
		`{"aud":"https://a","iss":"https://b"}`:            "https://b",
		`{"iss":"https://c"}`:                              "https://b",
		`{"aud":7,"iss":"https://a"}`:                      "https://a",
		`{"aud":[7],"iss":"https://a"}`:                    "https://b",
		`{}`:                                               "https://b",
	} {
		if got := token.ClaimedIssuer(sign(token.TypReceipt, payload), accepted); got != want {
			t.Errorf("%s: %s, want %s", payload, got, want)
		}
	}
	if got := token.ClaimedIssuer("no token", accepted); got != "https://b" {
		t.Errorf("what is no token: %s", got)
	}
	if got := token.ClaimedIssuer(sign(token.TypReceipt, `{"iss":"https://a"}`), accepted[:1]); got != "https://b" {
		t.Errorf("one issuer alone: %s", got)
	}
}

// A bundle's host is that of its issuer, or of a former one until its end, whatever the port, the path and the form are.
func TestHasHost(t *testing.T) {
	now := time.Unix(1_790_000_000, 0)
	b := token.Trust{Issuer: "https://hub.example:8443/t/plant", History: []token.IssuerPeriod{
		{Issuer: "https://ended.example", Until: now}, {Issuer: "https://[2001:db8::1]", Until: now.Add(time.Second)}, {Issuer: "https://hub.example:8443/t/plant"},
	}}
	for host, want := range map[string]bool{
		"hub.example": true, "HUB.Example.": true, "2001:db8:0::1": true,
		"": false, "ended.example": false, "2001:db8::2": false, "a.hub.example": false, "hub.example.evil": false, "xhub.example": false, "example": false,
	} {
		if got := b.HasHost(host, now); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
	if (token.Trust{}).HasHost("", now) || (token.Trust{Issuer: "hub.example"}).HasHost("", now) {
		t.Error("an issuer without a host has the empty one")
	}
}
