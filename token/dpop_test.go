package token_test

import (
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// The proofs of RFC 9449, figures 2 and 12, at the moment that they were made.
func TestTheProofsOfRFC9449(t *testing.T) {
	const (
		atToken = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
		jkt     = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
	)
	at := time.Unix(1562262616, 0)
	p, err := token.VerifyDPoP(atToken, "POST", "https://server.example.com/token", "", at)
	if err != nil || p.Key != jkt || p.JTI != "-BwC3ESc6acc2lTc" {
		t.Errorf("got %+v, %v", p, err)
	}
	for name, c := range map[string]struct {
		method, uri string
		late        time.Duration
	}{
		"another method":  {"GET", "https://server.example.com/token", 0},
		"another address": {"POST", "https://server.example.com/token2", 0},
		"another host":    {"POST", "https://server.example.org/token", 0},
		"too old":         {"POST", "https://server.example.com/token", token.DPoPLifetime + token.Skew + 1},
		"early":           {"POST", "https://server.example.com/token", -token.Skew - 1},
	} {
		if _, err := token.VerifyDPoP(atToken, c.method, c.uri, "", at.Add(c.late)); watchword.CodeOf(err) != watchword.DPoPInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestADPoPProofIsForOneRequestAndOneToken(t *testing.T) {
	s := signer(t, jose.Ed)
	raw, err := token.SignDPoP(s, "GET", "HTTPS://API.example:443/a?b=c#d", "n-1", "the token", now)
	if err != nil {
		t.Fatal(err)
	}
	p, err := token.VerifyDPoP(raw, "GET", "https://api.example/a", "the token", now)
	if err != nil || p.Key != s.Public().ID() || p.Nonce != "n-1" {
		t.Errorf("got %+v, %v", p, err)
	}
	for _, other := range []string{"another token", "the toke"} {
		if _, err := token.VerifyDPoP(raw, "GET", "https://api.example/a", other, now); watchword.CodeOf(err) != watchword.DPoPInvalid {
			t.Errorf("%q: %v", other, err)
		}
	}
	bare, err := token.SignDPoP(s, "GET", "https://api.example/a", "", "", now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := token.VerifyDPoP(bare, "GET", "https://api.example/a", "the token", now); watchword.CodeOf(err) != watchword.DPoPInvalid {
		t.Errorf("a proof without ath beside a token: %v", err)
	}
}
