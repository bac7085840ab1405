package token_test

import (
	"crypto"
	"fmt"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jws"
	jwxt "github.com/lestrrat-go/jwx/v3/jwt"

	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// jwtOracles is what others say of the same paper, for one issuer and audience at one time.
func jwtOracles(raw string, key crypto.PublicKey, iss, aud string) error {
	p := jwt.NewParser(jwt.WithValidMethods([]string{"ES256"}), jwt.WithIssuer(iss), jwt.WithAudience(aud), jwt.WithExpirationRequired(), jwt.WithIssuedAt(),
		jwt.WithTimeFunc(func() time.Time { return now }))
	if _, err := p.Parse(raw, func(*jwt.Token) (any, error) { return key, nil }); err != nil {
		return fmt.Errorf("golang-jwt: %w", err)
	}
	_, err := jwxt.Parse([]byte(raw), jwxt.WithKey(jwa.ES256(), key), jwxt.WithIssuer(iss), jwxt.WithAudience(aud), jwxt.WithClock(jwxt.ClockFunc(func() time.Time { return now })))
	if err != nil {
		return fmt.Errorf("jwx: %w", err)
	}
	return nil
}

// What we take as a JWT, golang-jwt and jwx take too: nothing that they know of
// is passed over here. What they take and we refuse is each kind's own rule, and
// stands in TestClaimsThatTheRightKeySignedAndNobodyTakes.
func oracled(t *testing.T, k kind, s *jose.Signer, what, raw string) {
	t.Helper()
	iss := map[string]string{"access token": issuer, "assertion": string(dev), "command": issuer, "config": issuer}[k.name]
	aud := map[string]string{"access token": issuer, "assertion": issuer, "command": string(dev), "config": string(dev)}[k.name]
	if iss == "" {
		return // no JWT of the ordinary kind
	}
	if err := jwtOracles(raw, s.Public().Crypto(), iss, aud); err != nil {
		t.Errorf("%s, %s: we take it, others do not: %v", k.name, what, err)
	}
}

// And what others sign, we take: each of the two makes an access token and an assertion.
func TestPapersOfGolangJWTAndJwx(t *testing.T) {
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	keys := token.NewKeySet(k.Public())
	access := jwt.MapClaims{
		"iss": issuer, "sub": string(dev), "aud": issuer, "client_id": string(dev), "jti": "j", "iat": now.Unix(), "exp": now.Unix() + 600,
		"key": "k", "perm": [][]any{{"topic:a", []string{"pub"}}},
	}
	assertion := jwt.MapClaims{"iss": string(dev), "sub": string(dev), "aud": issuer, "jti": "j", "iat": now.Unix(), "exp": now.Unix() + 300}
	sign := map[string]func(typ string, c jwt.MapClaims) (string, error){
		"golang-jwt": func(typ string, c jwt.MapClaims) (string, error) {
			tok := jwt.NewWithClaims(jwt.SigningMethodES256, c)
			tok.Header["typ"], tok.Header["kid"] = typ, string(k.Public().ID())
			return tok.SignedString(k.Crypto())
		},
		"jwx": func(typ string, c jwt.MapClaims) (string, error) {
			tok := jwxt.New()
			for name, v := range c {
				if err := tok.Set(name, v); err != nil {
					return "", err
				}
			}
			h := jws.NewHeaders()
			for name, v := range map[string]string{"typ": typ, "kid": string(k.Public().ID())} {
				if err := h.Set(name, v); err != nil {
					return "", err
				}
			}
			b, err := jwxt.Sign(tok, jwxt.WithKey(jwa.ES256(), k.Crypto(), jws.WithProtectedHeaders(h)))
			return string(b), err
		},
	}
	for name, by := range sign {
		raw, err := by(token.TypAccess, access)
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
		if err := p.Precheck(issuer, now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := p.Check(keys); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
