package token_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// signedAnyway signs a bundle that its readers may refuse.
func signedAnyway(t *testing.T, b token.Trust, root *jose.Signer) string {
	t.Helper()
	payload, err := token.TrustPayload(b)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := root.Sign(token.TypTrust, payload)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestABundleNamesWitnesses(t *testing.T) {
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		witnesses int
		quorum    int64
		name      *string // of one more
		want      watchword.Code
	}{
		{0, 0, nil, ""},
		{1, 1, nil, ""},
		{16, 9, nil, ""},
		{17, 9, nil, watchword.TokenMalformed},
		{2, 3, nil, watchword.TokenMalformed},
		{2, -1, nil, watchword.TokenMalformed},
		{1, 1, new(strings.Repeat("w", 256)), ""},
		{1, 1, new(strings.Repeat("w", 257)), watchword.TokenMalformed},
		{1, 1, new(""), watchword.TokenMalformed},
	} {
		now := time.Now().Truncate(time.Second)
		b := token.Trust{Issuer: "https://w.example", Version: 1, Epoch: 1, Roots: []*jose.PublicKey{s.Public()}, Quorum: tc.quorum, Issued: now, Expires: now.Add(time.Hour)}
		for i := range tc.witnesses {
			b.Witnesses = append(b.Witnesses, fmt.Sprint("witness-", i))
		}
		if tc.name != nil {
			b.Witnesses = append(b.Witnesses, *tc.name)
		}
		got, err := token.VerifyTrust(signedAnyway(t, b, s), token.TrustPin(s.Public()), now)
		if watchword.CodeOf(err) != tc.want || tc.want == "" && (fmt.Sprint(got.Witnesses) != fmt.Sprint(b.Witnesses) || got.Quorum != tc.quorum) {
			t.Errorf("%d witnesses, quorum %d: %v %d, %v", tc.witnesses, tc.quorum, got.Witnesses, got.Quorum, err)
		}
	}
}

// A restored server starts its numbers again under a higher epoch: the epoch counts first.
func TestTheEpochOfABundleCountsBeforeItsNumber(t *testing.T) {
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	bundle := func(v token.BundleVersion) token.Trust {
		return token.Trust{Issuer: "https://w.example", Version: v.Number, Epoch: v.Epoch, Roots: []*jose.PublicKey{s.Public()}, Issued: now, Expires: now.Add(time.Hour)}
	}
	for _, tc := range []struct {
		known, next token.BundleVersion
		compare     int
	}{
		{token.BundleVersion{Epoch: 1, Number: 9}, token.BundleVersion{Epoch: 1, Number: 10}, 1},
		{token.BundleVersion{Epoch: 1, Number: 9}, token.BundleVersion{Epoch: 1, Number: 9}, 0},
		{token.BundleVersion{Epoch: 1, Number: 9}, token.BundleVersion{Epoch: 1, Number: 8}, -1},
		{token.BundleVersion{Epoch: 1, Number: 9}, token.BundleVersion{Epoch: 2, Number: 1}, 1},
		{token.BundleVersion{Epoch: 2, Number: 1}, token.BundleVersion{Epoch: 1, Number: 9}, -1},
	} {
		if got := tc.next.Compare(tc.known); got != tc.compare || tc.next.NewerThan(tc.known) != (got > 0) {
			t.Errorf("%s to %s: %d, want %d", tc.next, tc.known, got, tc.compare)
		}
		want := watchword.Code("")
		if tc.compare < 0 {
			want = watchword.BundleInvalid
		}
		if got, err := token.VerifyNextTrust(signedAnyway(t, bundle(tc.next), s), bundle(tc.known), now); watchword.CodeOf(err) != want || err == nil && got.BundleVersion() != tc.next {
			t.Errorf("%s after %s: %s, %v", tc.next, tc.known, got.BundleVersion(), err)
		}
	}
}

func TestABundleNamesTheOriginOfTheLog(t *testing.T) {
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	for _, tc := range []struct {
		origin, want string
		code         watchword.Code
	}{
		{"", "w.example/log", ""},
		{"w.example/log", "w.example/log", ""},
		{watchword.RestoredLogOrigin("https://w.example/t/blue", 44), "w.example/log/44", ""},
		{strings.Repeat("o", 512), strings.Repeat("o", 512), ""},
		{strings.Repeat("o", 513), "", watchword.TokenMalformed},
	} {
		b := token.Trust{Issuer: "https://w.example/t/blue", Version: 1, Epoch: 1, LogOrigin: tc.origin, Roots: []*jose.PublicKey{s.Public()}, Issued: now, Expires: now.Add(time.Hour)}
		got, err := token.VerifyTrust(signedAnyway(t, b, s), token.TrustPin(s.Public()), now)
		if watchword.CodeOf(err) != tc.code || err == nil && got.Origin() != tc.want {
			t.Errorf("%.20q: %.20q, %v", tc.origin, got.Origin(), err)
		}
	}
}

// What an offline root will sign is verified before it does.
func TestAPlannedBundleIsCheckedBeforeItIsSigned(t *testing.T) {
	signer := func() *jose.Signer {
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
	root, other := signer(), signer()
	now := time.Now().Truncate(time.Second)
	bundle := func(issuer string, epoch int64, certificate int, roots ...*jose.Signer) token.Trust {
		b := token.Trust{Issuer: issuer, Version: 1, Epoch: epoch, Issued: now, Expires: now.Add(time.Hour), CAs: [][]byte{make([]byte, certificate)}}
		for _, r := range roots {
			b.Roots = append(b.Roots, r.Public())
		}
		return b
	}
	const w = "https://w.example"
	known := bundle(w, 2, 1, root)
	for _, tc := range []struct {
		name string
		next token.Trust
		want watchword.Code
	}{
		{"a higher epoch", bundle(w, 3, 1, root), ""},
		{"the same root and another", bundle(w, 3, 1, root, other), ""},
		{"a lower epoch", bundle(w, 1, 1, root), watchword.BundleInvalid},
		{"another issuer", bundle("https://v.example", 3, 1, root), watchword.BundleInvalid},
		{"another root", bundle(w, 3, 1, other), watchword.KeyUnknown},
		{"a certificate that fits", bundle(w, 3, 34<<10, root), ""},
		{"a certificate that fits once and not twice", bundle(w, 3, 34<<10, root, other), watchword.TooLarge},
		{"a certificate that does not fit", bundle(w, 3, 40<<10, root), watchword.TooLarge},
		{"an epoch that readers refuse", bundle(w, 1<<53, 1, root), watchword.TokenMalformed},
	} {
		payload, err := token.TrustPayload(tc.next)
		if err != nil {
			t.Fatal(err)
		}
		if err := token.CheckTrustPayload(payload, known); watchword.CodeOf(err) != tc.want {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if tc.want == "" {
			signers := []*jose.Signer{root, other}[:len(tc.next.Roots)]
			if _, err := token.SignTrust(tc.next, signers...); err != nil {
				t.Errorf("%s cannot be signed: %v", tc.name, err)
			}
		}
	}
}
