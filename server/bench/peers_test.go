package bench_test

import (
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// peers/testdata/tokens.json has the tokens that the benchmarks of the module peers check: they are those of an
// ordinary device.
func TestPeersCheckAnOrdinaryDevicesTokens(t *testing.T) {
	b, err := os.ReadFile("../../peers/testdata/tokens.json")
	if err != nil {
		t.Fatal(err)
	}
	var in struct {
		Now               int64
		Access, Assertion struct {
			JWK json.RawMessage
			Raw string
		}
	}
	if err := json.Unmarshal(b, &in); err != nil {
		t.Fatal(err)
	}
	keys := func(jwk json.RawMessage) token.KeySet {
		k, err := jose.ParseJWK(jwk, jose.ForSigning)
		if err != nil {
			t.Fatal(err)
		}
		return token.NewKeySet(k)
	}
	now := time.Unix(in.Now, 0)
	a, err := token.VerifyAccess(in.Access.Raw, keys(in.Access.JWK), issuer, issuer, now, 0)
	if err != nil {
		t.Fatal(err)
	}
	if ours := benchToken(t).raw; len(in.Access.Raw) < len(ours)-40 || len(in.Access.Raw) > len(ours)+40 {
		t.Errorf("the token has %d bytes, one of today %d", len(in.Access.Raw), len(ours))
	}
	if _, _, err := a.Permissions(); err != nil {
		t.Error(err)
	}
	p, err := token.ParseAssertion(in.Assertion.Raw, false)
	if err == nil {
		err = p.CheckClaims(issuer, now)
	}
	if err == nil {
		_, err = p.Verify(keys(in.Assertion.JWK))
	}
	if err != nil {
		t.Error(err)
	}
}
