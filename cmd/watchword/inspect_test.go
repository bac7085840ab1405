package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Whatever it is given, inspect says something that can be printed; and what it
// calls good, the real reader takes: the lenient reading never decides.
func FuzzInspect(f *testing.F) {
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		f.Fatal(err)
	}
	s, err := k.Signer()
	if err != nil {
		f.Fatal(err)
	}
	now := time.Unix(1_790_000_000, 0)
	good, err := token.SignAssertion(s, "lamp-1", "https://localhost:8443", now, time.Minute)
	if err != nil {
		f.Fatal(err)
	}
	proof, err := token.SignDPoP(s, "GET", "https://x/", "", "", now)
	if err != nil {
		f.Fatal(err)
	}
	sealed, err := jose.Encrypt(k.Public(), "JWT", []byte("x"))
	if err != nil {
		f.Fatal(err)
	}
	for _, raw := range []string{good, proof, sealed, `["` + good + `","` + good + `"]`, "[", "{}", "", "..", "....", good + "=", strings.ToUpper(good)} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		p := inspect(raw, now)
		if _, err := json.Marshal(p); err != nil {
			t.Errorf("%q: %v", raw, err)
		}
		var b strings.Builder
		p.write(terminal.New(&b, false), "")
		for _, r := range b.String() {
			if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
				t.Errorf("%q prints %q", raw, r)
			}
		}
		if !p.Good || p.kind == nil {
			return
		}
		if _, err := jose.ParseJWS(raw, watchword.MaxBundle); err != nil {
			if _, _, err := jose.ParseProof(raw, watchword.MaxToken); err != nil {
				t.Errorf("%q is called good, and refused: %v", raw, err)
			}
		}
	})
}

func TestInspectValidToken(t *testing.T) {
	k, err := jose.GenerateKey(jose.Ed)
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_790_000_000, 0)
	sign := func(raw string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	const issuer = "https://localhost:8443"
	for name, raw := range map[string]string{
		"client assertion": sign(token.SignAssertion(s, "lamp-1", issuer, now, token.AssertionLifetime)),
		"access token": sign(token.SignAccess(s, token.Grant{
			Issuer: issuer, Subject: watchword.Subject{ID: "lamp-1"}, Key: k.Public().ID(), JTI: "tok_1", Issued: now, Expires: now.Add(10 * time.Minute),
		})),
		"DPoP proof":       sign(token.SignDPoP(s, "GET", issuer, "", "the token", now)),
		"enrollment proof": sign(token.SignEnrollment(s, issuer, "hash", k.Public().ID(), now)),
		"command": sign(token.SignCommand(s, token.Command{
			Issuer: issuer, Device: "lamp-1", ID: "cmd_1", Epoch: 1, Seq: 1, Function: "f", Args: []byte(`{}`), By: "alice", Issued: now, Expires: now.Add(time.Minute),
		})),
		"configuration": sign(token.SignConfig(s, token.Config{Issuer: issuer, Device: "lamp-1", Version: 1, Document: []byte(`{}`), Issued: now})),
		"receipt": sign(token.SignReceipt(s, token.Receipt{
			Device: "lamp-1", Issuer: issuer, Epoch: 1, Seq: 1, Command: "cmd_1", Hash: strings.Repeat("h", 43), Status: watchword.StatusDone, At: now,
		})),
		"order":        sign(token.SignOrder(s, token.Order{By: "alice", Server: "https://hub.example", Device: "lamp-1", Function: "f", ArgsHash: "h", Issued: now, Expires: now.Add(time.Minute)})),
		"trust bundle": sign(token.SignTrust(token.Trust{Issuer: issuer, Version: 1, Epoch: 1, Roots: []*jose.PublicKey{k.Public()}, Issued: now, Expires: now.Add(time.Hour)}, s)),
	} {
		p := inspect(raw, now)
		if !p.Good || p.Kind != name {
			t.Errorf("a good %s is called %s: %+v", name, p.Kind, p.Checks)
		}
		for _, h := range append(p.Header, p.Claims...) {
			if h.Meaning == "" {
				t.Errorf("%s: no text says what %s means", name, h.Name)
			}
		}
		if late := inspect(raw, now.Add(200*24*time.Hour)); late.Good && name != "receipt" {
			t.Errorf("an old %s is called good", name)
		}
	}
}
