package attack_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

// running lets d obey, and returns when it is connected over MQTT. done stops it.
func running(t *testing.T, srv *testServer, id watchword.SubjectID, functions map[string]device.Handler) (d *device.Device, connected <-chan string) {
	t.Helper()
	up := make(chan string, 64)
	d = srv.enroll(id, device.Options{Connected: func(over string) {
		select {
		case up <- over:
		default:
		}
	}}, nil)
	for name, f := range functions {
		d.Handle(name, f)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("%s: %v", id, err)
		}
	})
	if over := <-up; over != "mqtt" {
		t.Fatalf("%s runs over %s", id, over)
	}
	return d, up
}

// obeyed orders f from id and waits for its receipt.
func obeyed(t *testing.T, srv *testServer, id watchword.SubjectID) {
	t.Helper()
	c, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: id, Function: "f", WaitReceipt: 30 * time.Second})
	must(t, err)
	if c.State != watchword.Done {
		t.Errorf("%s: the command is %s", id, c.State)
	}
}

var obey = map[string]device.Handler{"f": func(context.Context, *device.Command) (any, error) { return nil, nil }}

// The signing keys are rotated repeatedly and without notice, while clients authenticate, read and order: no request is
// lost, and every command is executed.
func TestKeyRotationUnderLoad(t *testing.T) {
	srv := serve(t, nil)
	running(t, srv, "lamp-1", obey)
	d := srv.enroll("lamp-2", device.Options{}, nil)
	s := deviceSigner(t, d)
	ctx, stop := context.WithCancel(t.Context())
	var asked, ordered atomic.Int64
	did := make(chan struct{}) // something was done; read only if needed
	done := func(n *atomic.Int64) {
		n.Add(1)
		select {
		case did <- struct{}{}:
		default:
		}
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				assertion, err := token.SignAssertion(s, "lamp-2", srv.url, time.Now(), time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				a := srv.exchangeAssertion(assertion)
				var out struct {
					Token string `json:"access_token"`
				}
				if err := json.Unmarshal([]byte(a.body), &out); err != nil || a.status != 200 {
					t.Errorf("token endpoint: %d %s", a.status, a.body)
					return
				}
				for range 3 { // the token's key may be retiring by now
					if a := srv.request("GET", "/v1/self", out.Token, ""); a.status != 200 {
						t.Errorf("a token of this moment: %d %s", a.status, a.body)
						return
					}
				}
				done(&asked)
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			c, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "f", WaitReceipt: 30 * time.Second})
			if err != nil || c.State != watchword.Done {
				t.Errorf("command: %v, %s", err, c.State)
				return
			}
			done(&ordered)
		}
	})
	for round := range 3 {
		for _, role := range []string{"issuer", "command", "time"} {
			_, err := srv.admin.RotateKey(t.Context(), role, true)
			must(t, err)
			for range 4 { // some under each key
				select {
				case <-did:
				case <-time.After(30 * time.Second):
					t.Fatal("nothing is done any more")
				}
			}
		}
		if round == 0 {
			_, err := srv.admin.RotateKey(t.Context(), "root", true)
			must(t, err)
		}
	}
	stop()
	wg.Wait()
	ks, err := srv.admin.ServerKeys(t.Context())
	must(t, err)
	t.Logf("%d keys, bundle %d; %d rounds of requests, %d commands", len(ks.Keys), ks.Bundle.Version, asked.Load(), ordered.Load())
}

// A stolen issuer key: once revoked, every session of its tokens ends with that reason, on every endpoint; its tokens are
// refused with that code; holders of a private key reconnect.
func TestRevokingTheIssuerKeyEndsEverySession(t *testing.T) {
	srv := serve(t, nil)
	_, up := running(t, srv, "lamp-1", obey)
	stock := srv.enroll("lamp-2", device.Options{}, nil)
	tok := srv.token(stock)
	c, err := dialPaho(t, stock, "lamp-2", tok)
	must(t, err)
	stolen := srv.stealKeys().IssuerSigner()
	forged := sign(t, stolen, token.TypAccess, with(claims(t, tok), "jti", "tok_forged"))

	ks, err := srv.admin.ServerKeys(t.Context())
	must(t, err)
	var issuer watchword.KeyID
	for _, k := range ks.Keys {
		if k.Role == "issuer" && k.State == "active" {
			issuer = k.ID
		}
	}
	_, err = srv.admin.RevokeKey(t.Context(), issuer, "stolen")
	must(t, err)

	if a := srv.request("GET", "/v1/self", tok, ""); a.code != watchword.IssuerRevoked || a.status != 401 {
		t.Errorf("a token of the revoked key: %d %q", a.status, a.code)
	}
	if a := srv.request("GET", "/v1/self", forged, ""); a.code != watchword.IssuerRevoked {
		t.Errorf("a forged token: %d %q", a.status, a.code)
	}
	end := <-c.ended
	if end.ReasonCode != 0x87 || !strings.HasPrefix(end.Properties.ReasonString, "issuer_revoked") {
		t.Errorf("the stock client was told %#x %q", end.ReasonCode, end.Properties.ReasonString)
	}
	if over := <-up; over != "mqtt" {
		t.Errorf("the device came back over %s", over)
	}
	obeyed(t, srv, "lamp-1")
	if a := srv.request("GET", "/v1/self", srv.token(stock), ""); a.status != 200 {
		t.Errorf("a new token: %d %s", a.status, a.body)
	}
	if a := srv.request("GET", "/.well-known/jwks.json", "", ""); strings.Contains(a.body, string(issuer)) {
		t.Error("the JWK set still names the key")
	}
}

// A stolen command key: revoked, connected devices learn of it at once, and obey
// nothing that it signed; what had been handed over and not begun is signed anew.
func TestRevokingTheCommandKey(t *testing.T) {
	srv := serve(t, nil)
	d, _ := running(t, srv, "lamp-1", obey)
	obeyed(t, srv, "lamp-1")
	ring := srv.stealKeys()
	stolen := ring.CommandSigner()
	_, err := srv.admin.RevokeKey(t.Context(), stolen.Public().ID(), "stolen")
	must(t, err)
	obeyed(t, srv, "lamp-1") // under the new key, of the bundle that the device fetched
	epoch, seq := d.Position()
	_, seal := d.Keys()
	order := token.Command{
		Issuer: srv.url, Device: "lamp-1", ID: "cmd_forged", Epoch: epoch, Seq: seq + 1, Function: "f", Args: []byte("{}"), By: "operator",
		Issued: time.Now(), Expires: time.Now().Add(time.Minute),
	}
	raw, err := token.SignCommand(stolen, order)
	must(t, err)
	jwe, err := jose.Encrypt(seal, "JWT", []byte(raw))
	must(t, err)
	_, err = d.Execute(t.Context(), jwe)
	wants(t, "a command by the revoked key", err, watchword.KeyUnknown)
}

// A command that was handed over and not answered, whose key is revoked: the next
// hand-over is signed anew.
func TestHandoverOfRevokedKeyIsResigned(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	_, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "f"})
	must(t, err)
	tok := srv.token(d)
	if a := srv.request("GET", "/v1/self/commands?wait=10s", tok, ""); a.status != 200 {
		t.Fatal(a.body)
	}
	_, err = srv.admin.RevokeKey(t.Context(), srv.stealKeys().CommandSigner().Public().ID(), "stolen")
	must(t, err)
	a := srv.request("GET", "/v1/self/commands?wait=10s", tok, "")
	var out struct {
		Commands []struct {
			JWE string `json:"jwe"`
		} `json:"commands"`
	}
	must(t, json.Unmarshal([]byte(a.body), &out))
	if len(out.Commands) != 1 {
		t.Fatalf("handed over %s", a.body)
	}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(d.CAFile()), "seal.jwk"))
	must(t, err)
	k, err := jose.ParsePrivateJWK(b, jose.ForSigning)
	must(t, err)
	o, err := k.Decrypter()
	must(t, err)
	jws, _, err := o.Decrypt(out.Commands[0].JWE, watchword.MaxDocument)
	must(t, err)
	u, err := jose.ParseJWS(string(jws), watchword.MaxDocument)
	must(t, err)
	if want := srv.stealKeys().CommandSigner().Public().ID(); u.Kid != string(want) {
		t.Errorf("signed by %s, and %s signs now", u.Kid, want)
	}
}

// A device that was offline while root, authority and command key were rotated reconnects by the root's signatures alone,
// also after a restart of the device.
func TestOfflineDeviceFollowsRootRotation(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	dir := strings.TrimSuffix(d.CAFile(), "/ca.pem")
	for _, role := range []string{"root", "ca", "command"} {
		_, err := srv.admin.RotateKey(t.Context(), role, true)
		must(t, err)
	}
	ks, err := srv.admin.ServerKeys(t.Context())
	must(t, err)
	for _, k := range ks.Keys { // the authority that the device knows is dead
		if k.Role == "ca" && k.State == "retiring" {
			_, err := srv.admin.RevokeKey(t.Context(), k.ID, "")
			must(t, err)
		}
	}
	if srv.admin, err = admin.Local(srv.dir); err != nil { // it trusts the file, which was written anew
		t.Fatal(err)
	}
	for range 2 {
		d.Handle("f", obey["f"])
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- d.Run(ctx) }()
		obeyed(t, srv, "lamp-1")
		cancel()
		must(t, <-ran)
		if n := len(d.Trust().Roots); n != 2 {
			t.Errorf("the device knows %d roots", n)
		}
		must(t, d.Close())
		d = srv.openDevice(dir, device.Options{})
	}
}

// Fetching bundles is no way in: a forged bundle from an attacker at the server's address is refused.
func TestDeviceRefusesForgedBundles(t *testing.T) {
	srv := serve(t, nil)
	d := srv.enroll("lamp-1", device.Options{}, nil)
	known := *d.Trust()
	ring := srv.stealKeys()
	_, unknown := newKey(t, "P-256")
	now := time.Now()
	next := known
	next.Version, next.Issued, next.Expires = known.Version+1, now, now.Add(time.Hour)
	root := ring.Signer(keyring.Root)
	mine := next
	mine.Roots = []*jose.PublicKey{unknown.Public()}
	both := next
	both.Roots = []*jose.PublicKey{known.Roots[0], unknown.Public()}
	for _, tc := range []struct {
		name string
		raw  func() (string, error)
		want watchword.Code
	}{
		{"a foreign key", func() (string, error) { return forgeTrust(mine, unknown) }, watchword.KeyUnknown},
		{"signed by the issuer key", func() (string, error) { return forgeTrust(next, ring.IssuerSigner()) }, watchword.KeyUnknown},
		{"a second root that did not sign", func() (string, error) { return forgeTrust(both, root) }, watchword.BundleInvalid},
		{"a second root that signed alone", func() (string, error) { return forgeTrust(both, unknown) }, watchword.KeyUnknown},
		{"one root twice", func() (string, error) { return forgeTrust(next, root, root) }, watchword.BundleInvalid},
		{"three", func() (string, error) {
			raw, err := forgeTrust(next, root)
			return `["` + raw + `","` + raw + `","` + raw + `"]`, err
		}, watchword.TokenMalformed},
		{"two that differ", func() (string, error) {
			a, err := forgeTrust(both, root)
			if err != nil {
				return "", err
			}
			b, err := forgeTrust(mine, unknown)
			return fmt.Sprintf("[%q,%q]", a, b), err
		}, watchword.TokenMalformed},
		{"an older one", func() (string, error) {
			old := next
			old.Version = known.Version - 1
			return forgeTrust(old, root)
		}, watchword.TokenMalformed},
		{"over", func() (string, error) {
			old := next
			old.Issued, old.Expires = now.Add(-2*time.Hour), now.Add(-time.Hour)
			return forgeTrust(old, root)
		}, watchword.BundleInvalid},
	} {
		raw, err := tc.raw()
		must(t, err)
		_, err = token.VerifyNextTrust(raw, known, now)
		wants(t, tc.name, err, tc.want)
	}
}

// forgeTrust signs a bundle as [token.SignTrust] does, also an invalid one.
func forgeTrust(b token.Trust, roots ...*jose.Signer) (string, error) {
	payload, err := token.TrustPayload(b)
	if err != nil {
		return "", err
	}
	return forgePayload(payload, roots...)
}

func forgePayload(payload []byte, roots ...*jose.Signer) (string, error) {
	if len(roots) == 2 {
		return jose.SignDual(roots[0], roots[1], token.TypTrust, payload)
	}
	return roots[0].Sign(token.TypTrust, payload)
}
