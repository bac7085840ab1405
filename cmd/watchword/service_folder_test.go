package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// The bundle of after a move of the address has the new address of MQTT, and service.json gets it. A bundle of before states none.
func TestServiceFileFollowsTheAddressOfMQTT(t *testing.T) {
	signer := func() *jose.Signer {
		k, err := jose.GenerateKey(jose.P256)
		if err != nil {
			t.Fatal(err)
		}
		s, err := k.Signer()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	root, other := signer(), signer()
	now := time.Now().Truncate(time.Second)
	trust := token.Trust{
		Issuer: "https://new.example:8443", Epoch: 1, Version: 1, Issued: now, Expires: now.Add(time.Hour), Roots: []*jose.PublicKey{root.Public()},
		Issuers: []*jose.PublicKey{other.Public()}, Command: []*jose.PublicKey{other.Public()}, Time: []*jose.PublicKey{other.Public()}, Log: []*jose.PublicKey{other.Public()},
	}
	d := serviceFolder(filepath.Join(t.TempDir(), "billing"))
	f := serviceFile{ID: "billing", HTTPS: "https://old.example:8443", MQTTS: "old.example:8883", Pin: token.TrustPin(root.Public())}
	for _, want := range []string{"old.example:8883", "new.example:8883"} {
		raw, err := token.SignTrust(trust, root)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.follow(f, raw); err != nil {
			t.Fatal(err)
		}
		got, err := d.read()
		if err != nil || got.MQTTS != want {
			t.Errorf("service.json names MQTT at %q, %v, want %q", got.MQTTS, err, want)
		}
		trust.History = []token.IssuerPeriod{{Issuer: "https://old.example:8443", Until: now.Add(time.Hour)}, {Issuer: trust.Issuer}}
		trust.MQTTS = "new.example:8883"
	}
}

// Two enrollments at once would give one folder the key of one and the name of the other.
func TestServiceEnrollLocksItsFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "billing")
	lock, err := serviceFolder(dir).lock()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	link := token.EnrollmentLink("https://127.0.0.1:1", strings.Repeat("A", 22), strings.Repeat("A", 43))
	var out, errs bytes.Buffer
	args := []string{"service", "enroll", link, "--dir", dir}
	if status := run(t.Context(), args, terminal.New(&out, false), terminal.New(&errs, false)); status != 4 || !strings.Contains(errs.String(), "is in use by another process") {
		t.Errorf("beside another enrollment: status %d, %s", status, errs.String())
	}
	if _, err := os.Lstat(filepath.Join(dir, serviceKeyFile)); err == nil {
		t.Error("it made a key")
	}
}
