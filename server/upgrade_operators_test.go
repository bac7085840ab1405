package server_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
)

// key is the private key that a file of an archive has.
func (u *upgraded) key(pattern string) *jose.PrivateKey {
	u.t.Helper()
	files, err := filepath.Glob(filepath.Join(u.dir, pattern))
	check(u.t, err)
	if len(files) != 1 {
		u.t.Fatalf("%d files are %s", len(files), pattern)
	}
	b, err := os.ReadFile(files[0])
	check(u.t, err)
	k, err := jose.ParsePrivateJWK(b, jose.ForSigning)
	check(u.t, err)
	return k
}

// client is one of another subject than the first operator.
func (u *upgraded) client(id watchword.SubjectID, key string) *admin.Client {
	u.t.Helper()
	c, err := admin.New(admin.Options{
		URL: u.info.URL, Dial: u.info.HTTPS, Issuer: u.info.Issuer, CA: u.read("data/tls/ca.pem"), Subject: id, Key: u.key(key), Now: u.now,
	})
	check(u.t, err)
	return c
}

// Operators keep their roles, states and every key of theirs, a custom role what it may give, and a service its key.
func (u *upgraded) testOperators(t *testing.T) {
	u = u.in(t)
	if u.made < "2026-11-28d" {
		return // the build of that archive had one operator, and testPolicies looks at it
	}
	ctx := t.Context()
	var got []string
	row := func(s api.Subject) error {
		got = append(got, string(s.ID)+" "+s.Role+" "+string(s.State)+" "+s.Labels["site"])
		return nil
	}
	check(t, u.admin.Operators().List(ctx, nil, "", row))
	check(t, u.admin.Services().List(ctx, nil, "", row))
	equal(t, "operators and services", got, []string{
		"alice admin active ", "ines installer active ", "operator owner active ", "rob operator revoked ", "vera viewer new ", "billing  active a",
	})
	for _, machine := range []string{"laptop", "desktop"} {
		alice := u.client("alice", "homes/alice-"+machine+"/.config/watchword/keys/*.jwk")
		if _, err := alice.Device(ctx, "lamp-1"); err != nil {
			t.Errorf("alice on her %s: %v", machine, err)
		}
		if _, err := alice.CreateOperator(ctx, "eve", "viewer", time.Hour); watchword.CodeOf(err) != watchword.Denied {
			t.Errorf("alice on her %s, who is an admin, invites an operator: %v", machine, err)
		}
	}
	ines := u.client("ines", "homes/ines-tablet/.config/watchword/keys/*.jwk")
	if _, err := ines.Device(ctx, "lamp-1"); err != nil {
		t.Errorf("ines: %v", err)
	}
	if _, err := ines.Operators().Get(ctx, "alice"); watchword.CodeOf(err) != watchword.Denied {
		t.Errorf("ines reads operators: %v", err)
	}
	rob := u.client("rob", "homes/rob-laptop/.config/watchword/keys/*.jwk")
	if _, err := rob.Device(ctx, "lamp-1"); watchword.CodeOf(err) != watchword.ClientInvalid {
		t.Errorf("rob, who is revoked: %v", err)
	}
	billing := u.client("billing", "billing/key.jwk")
	keys, err := billing.OwnKeys(ctx)
	check(t, err)
	if len(keys) != 1 || keys[0].State != watchword.KeyActive {
		b, err := json.Marshal(keys)
		check(t, err)
		t.Errorf("the keys of billing: %s", b)
	}
	// The admin is revoked, and both machines are cut off with a token that they have.
	laptop := u.client("alice", "homes/alice-laptop/.config/watchword/keys/*.jwk")
	_, err = laptop.Device(ctx, "lamp-1")
	check(t, err)
	_, err = u.admin.Operators().Revoke(ctx, "alice", "left")
	check(t, err)
	if _, err := laptop.Device(ctx, "lamp-1"); watchword.CodeOf(err) != watchword.SubjectRevoked {
		t.Errorf("alice after the revocation: %v", err)
	}
}
