package token_test

import (
	"maps"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

func TestAccessTokenLabels(t *testing.T) {
	s := signer(t, jose.P256)
	for _, labels := range []watchword.Labels{nil, {"kind": "lamp"}, {"kind": "lamp", "site": "plant-1"}} {
		raw, err := token.SignAccess(s, token.Grant{
			Issuer: "https://w.example", Subject: watchword.Subject{ID: "lamp-1", Labels: labels}, Key: s.Public().ID(), JTI: "t",
			Issued: now, Expires: now.Add(time.Minute),
		})
		if err != nil {
			t.Fatal(err)
		}
		a, err := token.VerifyAccess(raw, token.NewKeySet(s.Public()), "https://w.example", "https://w.example", now, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := a.Labels(raw); err != nil || !maps.Equal(got, labels) {
			t.Errorf("got %v, %v, want %v", got, err, labels)
		}
	}
	for _, payload := range []string{`{"dev":{"labels":{"a/b":"c"}}}`, `{"dev":{"labels":{"a":1}}}`, `{"dev":{"labels":[]}}`, `{"dev":"lamp-1"}`} {
		bad, err := s.Sign(token.TypAccess, []byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := new(token.Access).Labels(bad); watchword.CodeOf(err) != watchword.TokenMalformed {
			t.Errorf("%s: %v", payload, err)
		}
	}
}
