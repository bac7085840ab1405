package token_test

import (
	"testing"

	"github.com/watchword-iot/watchword/internal/peers"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// A JWT that we accept is accepted by golang-jwt and jwx too: no check that they make is missing here. Tokens that they
// accept and we refuse violate a rule of their kind, and are in TestClaimsThatTheRightKeySignedAndNobodyTakes.
func oracled(t *testing.T, k kind, s *jose.Signer, what, raw string) {
	t.Helper()
	iss := map[string]string{"access token": issuer, "assertion": string(dev), "command": issuer, "config": issuer}[k.name]
	aud := map[string]string{"access token": issuer, "assertion": issuer, "command": string(dev), "config": string(dev)}[k.name]
	if iss == "" {
		return // no JWT of the ordinary kind
	}
	others := peers.Maybe(t)
	if others == nil {
		return
	}
	for _, lib := range []string{peers.GolangJWT, peers.JWX} {
		if err := others.VerifyJWT(t, lib, s.Public().Crypto(), raw, iss, aud, now.Unix()); err != nil {
			t.Errorf("%s, %s: we take it, %s does not: %v", k.name, what, lib, err)
		}
	}
}

// And what others sign, we take: each of the two makes an access token and an assertion.
func TestTokensOfGolangJWTAndJwx(t *testing.T) {
	others := peers.Find(t)
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	keys := token.NewKeySet(k.Public())
	accessToken := map[string]any{
		"iss": issuer, "sub": string(dev), "aud": issuer, "client_id": string(dev), "jti": "j", "iat": now.Unix(), "exp": now.Unix() + 600,
		"key": "k", "perm": [][]any{{"topic:a", []string{"pub"}}},
	}
	assertion := map[string]any{"iss": string(dev), "sub": string(dev), "aud": issuer, "jti": "j", "iat": now.Unix(), "exp": now.Unix() + 300}
	for _, name := range []string{peers.GolangJWT, peers.JWX} {
		by := func(typ string, claims map[string]any) (string, error) {
			return others.SignJWT(t, name, k.Crypto(), map[string]string{"typ": typ, "kid": string(k.Public().ID())}, claims)
		}
		raw, err := by(token.TypAccess, accessToken)
		if err != nil {
			t.Fatal(err)
		}
		a, err := token.VerifyAccess(raw, keys, issuer, issuer, now, 0)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if perm, _, err := a.Permissions(); err != nil || len(perm) != 1 || a.Subject != dev {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
		if raw, err = by(token.TypAssertion, assertion); err != nil {
			t.Fatal(err)
		}
		p, err := token.ParseAssertion(raw, false)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := p.CheckClaims(issuer, now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := p.Verify(keys); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
