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
