package token_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

func TestSignedTimeMatchesItsNonce(t *testing.T) {
	s := signer(t, jose.P256)
	keys := token.NewKeySet(s.Public())
	raw, err := token.SignTime(s, issuer, nonce, now.Add(999*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := token.VerifyTime(raw, keys, issuer, nonce); err != nil || !got.Equal(now) {
		t.Errorf("got %s, %v", got, err)
	}
	claims := func(change func(map[string]any)) string {
		m := map[string]any{"iss": issuer, "jti": "j", "iat": now.Unix(), "exp": now.Unix() + 60, "nonce": nonce}
		change(m)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := s.Sign(token.TypTime, b)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for _, tc := range []struct {
		name, raw, nonce string
		want             watchword.Code
	}{
		{"another question's", raw, strings.Repeat("B", 22), watchword.NonceMismatch},
		{"where none was requested", claims(func(m map[string]any) { m["nonce"] = "" }), "", watchword.NonceMismatch},
		{"another issuer's", claims(func(m map[string]any) { m["iss"] = "https://evil.example" }), nonce, watchword.IssuerMismatch},
		{"living for an hour", claims(func(m map[string]any) { m["exp"] = now.Unix() + 3600 }), nonce, watchword.TokenLifetime},
		{"without iat", claims(func(m map[string]any) { delete(m, "iat") }), nonce, watchword.TokenMalformed},
		{"with a fraction", claims(func(m map[string]any) { m["iat"] = 1e9 + 0.5 }), nonce, watchword.TokenMalformed},
		{"without jti", claims(func(m map[string]any) { delete(m, "jti") }), nonce, watchword.TokenMalformed},
	} {
		if _, err := token.VerifyTime(tc.raw, keys, issuer, tc.nonce); watchword.CodeOf(err) != tc.want {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	for n, good := range map[string]bool{
		nonce: true, strings.Repeat("-", 64): true, strings.Repeat("a", 21): false, strings.Repeat("a", 65): false, "": false, strings.Repeat("a", 21) + "=": false, strings.Repeat("é", 12): false,
	} {
		if err := token.CheckTimeNonce(n); (err == nil) != good {
			t.Errorf("nonce %q: %v", n, err)
		}
	}
}

func TestAKeyChangeIsSignedByOldAndNew(t *testing.T) {
	from, to, other := signer(t, jose.P256), signer(t, jose.Ed), signer(t, jose.Ed)
	make := func(a, b *jose.Signer) string {
		raw, err := token.SignRekey(a, b, dev, issuer, "seal", now)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for _, tc := range []struct {
		name, raw string
		at        time.Duration
		sub       watchword.SubjectID
		issuer    string
		want      watchword.Code
	}{
		{"a good one", make(from, to), 0, dev, issuer, ""},
		{"to the last", make(from, to), token.RekeyLifetime + token.Skew - 1, dev, issuer, ""},
		{"over", make(from, to), token.RekeyLifetime + token.Skew, dev, issuer, watchword.TokenExpired},
		{"early", make(from, to), -token.Skew - time.Second, dev, issuer, watchword.TokenEarly},
		{"another device's", make(from, to), 0, "lamp-2", issuer, watchword.IssuerMismatch},
		{"for another server", make(from, to), 0, dev, "https://evil.example", watchword.AudienceMismatch},
		{"by the old key alone", make(from, from), 0, dev, issuer, watchword.TokenMalformed},
		{"by the new key alone", make(to, to), 0, dev, issuer, watchword.TokenMalformed},
		{"to another key", make(from, other), 0, dev, issuer, watchword.KeyUnknown},
		{"from another key", make(other, to), 0, dev, issuer, watchword.AlgorithmInvalid},
		{"swapped", make(to, from), 0, dev, issuer, watchword.AlgorithmInvalid},
	} {
		r, err := token.VerifyRekey(tc.raw, from.Public(), to.Public(), tc.sub, tc.issuer, now.Add(tc.at))
		if watchword.CodeOf(err) != tc.want {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if err == nil && (r.Sign != to.Public().ID() || r.Seal != "seal" || r.JTI == "" || !r.Expires.Equal(now.Add(token.RekeyLifetime))) {
			t.Errorf("%s: %+v", tc.name, r)
		}
	}
	if _, err := token.VerifyRekey(make(from, to), from.Public(), from.Public(), dev, issuer, now); watchword.CodeOf(err) != watchword.TokenMalformed {
		t.Errorf("two signatures where the key stays: %v", err)
	}
}
