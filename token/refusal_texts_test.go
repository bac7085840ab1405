package token_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Each refusal that the developer of a client can meet names the member at fault, the expected value where it is public, and
// docs/errors.md.
func TestRefusalsNameTheMemberAndTheExpectedValue(t *testing.T) {
	const issuer, aud = "https://hub.example", "https://api.example"
	now := time.Unix(1_760_000_000, 0)
	key, err := jose.GenerateKey("P-256")
	if err != nil {
		t.Fatal(err)
	}
	s, err := key.Signer()
	if err != nil {
		t.Fatal(err)
	}
	keys := token.NewKeySet(s.Public())
	jws := func(typ string, claims map[string]any) string {
		b, err := json.Marshal(claims)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := s.Sign(typ, b)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	with := func(base map[string]any, name string, v any) map[string]any {
		out := map[string]any{}
		for k, x := range base {
			out[k] = x
		}
		if out[name] = v; v == nil {
			delete(out, name)
		}
		return out
	}
	assertion := map[string]any{"iss": "lamp-1", "sub": "lamp-1", "aud": issuer, "jti": "j", "iat": now.Unix(), "exp": now.Unix() + 60}
	checkAssertion := func(typ string, claims map[string]any) error {
		a, err := token.ParseAssertion(jws(typ, claims), false)
		if err != nil {
			return err
		}
		if err := a.CheckClaims(issuer, now); err != nil {
			return err
		}
		_, err = a.Verify(keys)
		return err
	}
	access := map[string]any{
		"iss": issuer, "sub": "lamp-1", "aud": aud, "client_id": "lamp-1", "jti": "j", "iat": now.Unix(), "exp": now.Unix() + 600, "key": string(s.Public().ID()),
		"dev": map[string]any{"kind": "device"}, "perm": []any{}, "deny": []any{},
	}
	checkAccess := func(typ string, claims map[string]any) error {
		_, err := token.VerifyAccess(jws(typ, claims), keys, issuer, aud, now, 0)
		return err
	}
	dpop := map[string]any{"jti": "j", "htm": "GET", "htu": aud + "/x", "iat": now.Unix()}
	checkDPoP := func(typ string, claims map[string]any) error {
		b, err := json.Marshal(claims)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := s.SignProof(typ, b)
		if err != nil {
			t.Fatal(err)
		}
		_, err = token.VerifyDPoP(raw, "GET", aud+"/x", "", now)
		return err
	}
	order := map[string]any{
		"iss": "alice", "aud": "lamp-1", "server": "https://hub.example", "cmd": "lamp.set", "args_hash": strings.Repeat("A", 43), "jti": "j", "iat": now.Unix(), "exp": now.Unix() + 60,
	}
	checkOrder := func(typ string, claims map[string]any) error {
		_, err := token.VerifyOrder(jws(typ, claims), keys, func(server string) bool { return server == "https://hub.example" }, "lamp-1", now)
		return err
	}
	for _, tc := range []struct {
		check        func(typ string, claims map[string]any) error
		typ          string
		base         map[string]any
		member       string
		value        any
		code         watchword.Code
		says, expect string
	}{
		{checkAssertion, "at+jwt", assertion, "jti", "j", watchword.TokenKind, "typ", `"client-authentication+jwt"`},
		{checkAssertion, token.TypAssertion, assertion, "aud", "https://other.example", watchword.AudienceMismatch, "aud", `"` + issuer + `"`},
		{checkAssertion, token.TypAssertion, assertion, "aud", []string{issuer, "https://other.example"}, watchword.AudienceMismatch, "aud", "exactly"},
		{checkAssertion, token.TypAssertion, assertion, "iss", "lamp-2", watchword.IssuerMismatch, "iss and sub", "client's id"},
		{checkAssertion, token.TypAssertion, assertion, "exp", now.Unix() + 301, watchword.TokenLifetime, "exp", "300 seconds"},
		{checkAssertion, token.TypAssertion, assertion, "exp", nil, watchword.TokenMalformed, "iat and exp", "required"},
		{checkAssertion, token.TypAssertion, with(assertion, "iat", now.Unix()-200), "exp", now.Unix() - 61, watchword.TokenExpired, "exp", "60 seconds"},
		{checkAssertion, token.TypAssertion, with(assertion, "exp", now.Unix()+200), "iat", now.Unix() + 61, watchword.TokenEarly, "iat or nbf", "60 seconds"},
		{checkAssertion, token.TypAssertion, assertion, "nbf", now.Unix() + 61, watchword.TokenEarly, "iat or nbf", "60 seconds"},
		{checkAssertion, token.TypAssertion, assertion, "jti", nil, watchword.TokenMalformed, "jti", "128 bytes"},
		{checkAccess, token.TypAssertion, access, "jti", "j", watchword.TokenKind, "typ", `"at+jwt"`},
		{checkAccess, token.TypAccess, access, "iss", "https://other.example", watchword.IssuerMismatch, "iss", `"` + issuer + `"`},
		{checkAccess, token.TypAccess, access, "aud", issuer, watchword.AudienceMismatch, "aud", `"` + aud + `"`},
		{checkAccess, token.TypAccess, access, "key", nil, watchword.TokenMalformed, "key", "required"},
		{checkAccess, token.TypAccess, access, "cnf", map[string]any{"jkt": ""}, watchword.TokenMalformed, "cnf.jkt", "thumbprint"},
		{checkDPoP, token.TypAccess, dpop, "jti", "j", watchword.DPoPInvalid, "typ", `"dpop+jwt"`},
		{checkDPoP, token.TypDPoP, dpop, "htm", "POST", watchword.DPoPInvalid, "htm", `"GET"`},
		{checkDPoP, token.TypDPoP, dpop, "htu", aud + "/y", watchword.DPoPInvalid, "htu", "URL of the request"},
		{checkDPoP, token.TypDPoP, dpop, "iat", now.Unix() - 121, watchword.DPoPInvalid, "iat", "120 seconds"},
		{checkDPoP, token.TypDPoP, dpop, "iat", now.Unix() + 61, watchword.DPoPInvalid, "iat", "60 seconds"},
		{checkDPoP, token.TypDPoP, dpop, "jti", nil, watchword.DPoPInvalid, "jti", "128 bytes"},
		{checkOrder, token.TypAccess, order, "jti", "j", watchword.TokenKind, "typ", `"` + token.TypOrder + `"`},
		{checkOrder, token.TypOrder, order, "aud", "lamp-2", watchword.AudienceMismatch, "aud", `"lamp-1"`},
		{checkOrder, token.TypOrder, order, "server", "https://hub.example/t/other", watchword.OrderInvalid, "server", "the issuer of the server"},
		{checkOrder, token.TypOrder, order, "exp", now.Unix() + 86401, watchword.TokenLifetime, "exp", "86400 seconds"},
	} {
		err := tc.check(tc.typ, with(tc.base, tc.member, tc.value))
		e, ok := errors.AsType[*watchword.Error](err)
		if !ok || e.Code != tc.code {
			t.Errorf("%s %v with typ %s: got %v, want %s", tc.member, tc.value, tc.typ, err, tc.code)
			continue
		}
		for _, part := range []string{tc.says, tc.expect, "docs/errors.md"} {
			if !strings.Contains(e.Detail, part) {
				t.Errorf("%s: %q does not say %q", tc.code, e.Detail, part)
			}
		}
	}
	for _, base := range []struct {
		what  string
		check func(string, map[string]any) error
		typ   string
		c     map[string]any
	}{{"assertion", checkAssertion, token.TypAssertion, assertion}, {"access token", checkAccess, token.TypAccess, access}, {"proof", checkDPoP, token.TypDPoP, dpop}, {"order", checkOrder, token.TypOrder, order}} {
		if err := base.check(base.typ, base.c); err != nil {
			t.Errorf("the unchanged %s is refused: %v", base.what, err)
		}
	}
}
