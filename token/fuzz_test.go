package token_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Each kind's claims, signed by the right key, with anything in them: nothing
// panics, and what is taken is what encoding/json reads there too.

func seeds(f *testing.F, name string, s *jose.Signer) kind {
	f.Helper()
	for _, k := range kinds {
		if k.name != name {
			continue
		}
		raw, err := k.sign(s)
		if err != nil {
			f.Fatal(err)
		}
		p := payloadOf(claims(f, raw))
		f.Add(p)
		f.Add(p[:len(p)-1] + `,"x":{"a":[1,null]}}`)
		f.Add(strings.Replace(p, `"iat":`, `"iat":1`, 1))
		return k
	}
	f.Fatalf("there is no %s", name)
	return kind{}
}

// plain parses a payload with a generic parser; false if that is impossible.
func plain(t *testing.T, payload string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(payload), &m); err != nil {
		t.Fatalf("%q is taken, and encoding/json says %v", payload, err)
	}
	return m
}

func sound(t *testing.T, payload string, err error) bool {
	t.Helper()
	if watchword.CodeOf(err) == watchword.Internal {
		t.Errorf("%q: %v", payload, err)
	}
	return err == nil
}

func FuzzVerifyAccess(f *testing.F) {
	s := signer(f, jose.P256)
	k := seeds(f, "access token", s)
	f.Fuzz(func(t *testing.T, payload string) {
		a, err := token.VerifyAccess(k.resign(t, s, payload), token.NewKeySet(s.Public()), issuer, issuer, now, 0)
		if len(payload) > watchword.MaxToken || !sound(t, payload, err) {
			return
		}
		m := plain(t, payload)
		if m["iss"] != issuer || m["sub"] != string(a.Subject) || m["jti"] != a.JTI || m["key"] != string(a.Key) || int64(m["exp"].(float64)) != a.Expires.Unix() {
			t.Errorf("%q is read as %+v", payload, a)
		}
		perm, deny, err := a.Permissions()
		if !sound(t, payload, err) {
			return
		}
		var same struct{ Perm, Deny []watchword.Permission }
		if err := json.Unmarshal([]byte(payload), &same); err != nil || len(same.Perm) != len(perm) || len(same.Deny) != len(deny) {
			t.Errorf("%q: %d and %d permissions, encoding/json %+v, %v", payload, len(perm), len(deny), same, err)
		}
	})
}

func FuzzParseAssertion(f *testing.F) {
	s := signer(f, jose.Ed)
	k := seeds(f, "assertion", s)
	f.Fuzz(func(t *testing.T, payload string) {
		p, err := token.ParseAssertion(k.resign(t, s, payload), false)
		if len(payload) > watchword.MaxToken || !sound(t, payload, err) {
			return
		}
		m := plain(t, payload)
		if m["sub"] != string(p.Subject()) || m["iss"] != m["sub"] || !watchword.ValidName(string(p.Subject())) {
			t.Errorf("%q is of %q", payload, p.Subject())
		}
		if !sound(t, payload, p.CheckClaims(issuer, now)) {
			return
		}
		lifetime := m["exp"].(float64) - m["iat"].(float64)
		if lifetime <= 0 || lifetime > token.AssertionLifetime.Seconds() {
			t.Errorf("%q lives %v s", payload, lifetime)
		}
		if a, err := p.Verify(token.NewKeySet(s.Public())); err != nil || a.JTI != m["jti"] {
			t.Errorf("%q: %+v, %v", payload, a, err)
		}
	})
}

func FuzzVerifyDPoP(f *testing.F) {
	s := signer(f, jose.P256)
	k := seeds(f, dpop, s)
	f.Fuzz(func(t *testing.T, payload string) {
		raw := k.resign(t, s, payload)
		p, err := token.VerifyDPoP(raw, "POST", issuer+"/oauth/token", "", now)
		if err != nil {
			if watchword.CodeOf(err) != watchword.DPoPInvalid {
				t.Errorf("%q: %v", payload, err)
			}
			return
		}
		if m := plain(t, payload); m["htm"] != "POST" || m["jti"] != p.JTI || p.Key != s.Public().ID() {
			t.Errorf("%q is read as %+v", payload, p)
		}
		if _, err := token.VerifyDPoP(raw, "POST", issuer+"/oauth/revoke", "", now); err == nil {
			t.Errorf("%q holds for another address too", payload)
		}
	})
}

func FuzzVerifyReceipt(f *testing.F) {
	s := signer(f, jose.P256)
	k := seeds(f, "receipt", s)
	f.Fuzz(func(t *testing.T, payload string) {
		raw := k.resign(t, s, payload)
		r, key, err := token.VerifyReceipt(raw, token.NewKeySet(s.Public()), dev, issuer)
		if !sound(t, payload, err) {
			return
		}
		if m := plain(t, payload); m["cid"] != string(r.Command) || m["ch"] != r.Hash || m["st"] != string(r.Status) || int64(m["seq"].(float64)) != r.Seq || key != s.Public().ID() {
			t.Errorf("%q is read as %+v", payload, r)
		}
		if again, err := token.ReceiptResult(raw); err != nil || string(again) != string(r.Result) || r.Result != nil && !json.Valid(r.Result) {
			t.Errorf("%q: the result is %q and %q, %v", payload, r.Result, again, err)
		}
	})
}

func FuzzVerifyCommand(f *testing.F) {
	s := signer(f, jose.P256)
	k := seeds(f, "command", s)
	f.Fuzz(func(t *testing.T, payload string) {
		c, err := token.VerifyCommand(k.resign(t, s, payload), token.NewKeySet(s.Public()), issuer, dev, now, "")
		if !sound(t, payload, err) {
			return
		}
		m := plain(t, payload)
		var args map[string]any
		if m["jti"] != string(c.ID) || int64(m["seq"].(float64)) != c.Seq || json.Unmarshal(c.Args, &args) != nil || !strings.Contains(payload, string(c.Args)) {
			t.Errorf("%q is read as %+v", payload, c)
		}
	})
}

func FuzzVerifyTrust(f *testing.F) {
	s := signer(f, jose.P256)
	k := seeds(f, "trust bundle", s)
	f.Fuzz(func(t *testing.T, payload string) {
		b, err := token.VerifyTrust(k.resign(t, s, payload), token.TrustPin(s.Public()), now)
		if !sound(t, payload, err) {
			return
		}
		if m := plain(t, payload); m["iss"] != b.Issuer || int64(m["ver"].(float64)) != b.Version {
			t.Errorf("%q is read as %+v", payload, b)
		}
		// Printed and read again it is the same.
		raw, err := token.SignTrust(b, s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := token.VerifyNextTrust(raw, b, now)
		if err != nil || again.Issuer != b.Issuer || again.Version != b.Version || again.Epoch != b.Epoch || len(again.Roots) != len(b.Roots) ||
			len(again.Command) != len(b.Command) || len(again.CAs) != len(b.CAs) || again.WebPKI != b.WebPKI || again.TLSProxy != b.TLSProxy || !again.Expires.Equal(b.Expires) {
			t.Errorf("%q is %+v, and then %+v, %v", payload, b, again, err)
		}
	})
}

// FuzzVerifiers gives any bytes to every verifier: what one takes is the credential that
// the key signed, or, of ES256, its twin; and no other takes it.
func FuzzVerifiers(f *testing.F) {
	s := signer(f, jose.P256)
	signed := map[string]bool{} // by header and payload, without the signature
	for _, k := range kinds {
		raw, err := k.sign(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		signed[raw[:strings.LastIndexByte(raw, '.')]] = true
	}
	f.Fuzz(func(t *testing.T, raw string) {
		taken := 0
		for _, k := range kinds {
			if sound(t, raw, k.check(raw, token.NewKeySet(s.Public()))) {
				taken++
				if !signed[raw[:strings.LastIndexByte(raw, '.')]] {
					t.Errorf("%s takes %q", k.name, raw)
				}
			}
		}
		if taken > 1 {
			t.Errorf("%d kinds take %q", taken, raw)
		}
	})
}

func FuzzParseLink(f *testing.F) {
	code, pin := watchword.NewNonce(), strings.Repeat("p", 42)+"k"
	for _, l := range []string{
		token.EnrollmentLink("https://hub.local:8443", code, pin), token.EnrollmentLink("https://[::1]:8443/a%20b", code, pin), "https://x@hub/e#code=" + code + "&pin=" + pin,
		"https://hub/e?x=1#code=" + code + "&pin=" + pin, "https://hub/e#code=" + code + "&pin=" + pin + "&pin=" + pin, "HTTPS://hub//e#pin=" + pin + "&code=" + code,
	} {
		f.Add(l)
	}
	f.Fuzz(func(t *testing.T, link string) {
		server, code, pin, err := token.ParseEnrollmentLink(link)
		if err != nil {
			if watchword.CodeOf(err) != watchword.BadRequest {
				t.Errorf("%q: %v", link, err)
			}
			return
		}
		s2, c2, p2, err := token.ParseEnrollmentLink(token.EnrollmentLink(server, code, pin))
		if err != nil || s2 != server || c2 != code || p2 != pin {
			t.Errorf("%q is %q %q %q, and then %q %q %q, %v", link, server, code, pin, s2, c2, p2, err)
		}
	})
}
