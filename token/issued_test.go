package token_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

func TestAccessTokenAudienceAndBinding(t *testing.T) {
	s := signer(t, "P-256")
	const issuer, elsewhere = "https://watchword.example", "https://api.example"
	sign := func(aud string, bound watchword.KeyID) string {
		raw, err := token.SignAccess(s, token.Grant{
			Issuer: issuer, Subject: watchword.Subject{ID: "lamp-7"}, Key: "k", JTI: "t", Issued: now, Expires: now.Add(time.Minute), Audience: aud, Bound: bound,
		})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	keys := token.NewKeySet(s.Public())
	for aud, want := range map[string]string{"": issuer, elsewhere: elsewhere} {
		raw := sign(aud, "jkt")
		a, err := token.VerifyIssued(raw, keys, issuer, now)
		if err != nil || len(a.Audience) != 1 || a.Audience[0] != want || a.Bound != "jkt" {
			t.Errorf("%q: %+v, %v", aud, a, err)
		}
		if _, err := token.VerifyAccess(raw, keys, issuer, want, now, 0); err != nil {
			t.Errorf("%q at its audience: %v", aud, err)
		}
		if _, err := token.VerifyIssued(raw, keys, "https://other.example", now); watchword.CodeOf(err) != watchword.IssuerMismatch {
			t.Errorf("%q of another issuer: %v", aud, err)
		}
		if _, err := token.VerifyIssued(raw, keys, issuer, now.Add(time.Minute)); watchword.CodeOf(err) != watchword.TokenExpired {
			t.Errorf("%q at its end: %v", aud, err)
		}
		if _, err := token.VerifyIssued(raw, token.NewKeySet(signer(t, jose.Ed).Public()), issuer, now); watchword.CodeOf(err) != watchword.KeyUnknown {
			t.Errorf("%q under another key: %v", aud, err)
		}
	}
	if _, err := token.VerifyAccess(sign(elsewhere, ""), keys, issuer, issuer, now, 0); watchword.CodeOf(err) != watchword.AudienceMismatch {
		t.Errorf("another's at its own endpoint: %v", err)
	}
	if _, err := token.VerifyIssued("open sesame", keys, issuer, now); watchword.CodeOf(err) != watchword.TokenMalformed {
		t.Errorf("words: %v", err)
	}
}

func TestOrigins(t *testing.T) {
	s := signer(t, "P-256")
	o := token.NewOrigins("https://hub.example", "https://127.0.0.1:8443", "https://[::1]:8443", "", "hub.local", "https://HUB.local:443/t/x")
	for uri, want := range map[string]bool{
		"https://hub.example/v1/self": true, "https://hub.example:443/v1/self": true, "HTTPS://Hub.Example/v1/self?x=y#z": true,
		"https://127.0.0.1:8443/v1/self": true, "https://[::1]:8443/v1/self": true, "https://hub.local/v1/self": true,
		"https://hub.example:8443/v1/self": false, "http://hub.example/v1/self": false, "https://evil.example/v1/self": false,
		"https://hub.example/v1/self/": false, "https://hub.example/v1//self": false, "https://hub.example/v1%2Fself": false,
		"https://hub.example@evil.example/v1/self": false, "https://x@hub.example/v1/self": false, "/v1/self": false, "https:/v1/self": false, "": false,
	} {
		raw, err := token.SignDPoP(s, "GET", uri, "n", "tok", now)
		if err != nil && want {
			t.Fatal(err)
		}
		if !want { // also what no signer of ours makes
			if raw, err = s.SignProof(token.TypDPoP, fmt.Appendf(nil, `{"jti":"j","htm":"GET","htu":%q,"iat":%d,"ath":%q}`, uri, now.Unix(), jose.HashString("tok"))); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := o.VerifyDPoP(raw, "GET", "/v1/self", "tok", now); (err == nil) != want {
			t.Errorf("%q: %v", uri, err)
		}
	}
}
