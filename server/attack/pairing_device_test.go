package attack_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// A device is switched off, and the server too, at every point of its way in.
func TestPairingSurvivesRestarts(t *testing.T) {
	c := newClock()
	data, dir := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "lamp")
	srv := serveAt(t, data, c.now, nil)
	pin, err := srv.admin.TrustPin(t.Context())
	must(t, err)
	off := errors.New("switched off")
	var shown []device.Pairing
	pair := func(wait func(context.Context, time.Duration) error) error {
		d := srv.openDevice(dir, device.Options{Now: c.now})
		defer func() { must(t, d.Close()) }()
		return d.Pair(t.Context(), srv.url+"/", device.PairOptions{ID: "lamp-1", Pin: pin, Show: func(p device.Pairing) { shown = append(shown, p) }, Wait: wait})
	}
	goOff := func(context.Context, time.Duration) error { return off }

	// The server it meets is not the pinned one: nothing is said, nothing is kept.
	good := pin
	pin = strings.Repeat("A", 43)
	wants(t, "another root", pair(goOff), watchword.PinMismatch)
	pin = good
	if len(shown) != 0 {
		t.Error("a code is shown for a server that was not checked")
	}

	if err := pair(goOff); !errors.Is(err, off) {
		t.Fatal(err)
	}
	var paces []time.Duration
	if err := pair(func(_ context.Context, d time.Duration) error { paces = append(paces, d); return off }); !errors.Is(err, off) {
		t.Fatal(err)
	}
	if len(paces) != 1 || paces[0] != 10*time.Second {
		t.Errorf("asked at once after a restart, it waits %v; want 10s, as slow_down says", paces)
	}
	srv.stop()
	srv = serveAt(t, data, c.now, onPort(srv.url[strings.LastIndex(srv.url, ":")+1:]))
	c.forward(time.Minute)
	if err := pair(goOff); !errors.Is(err, off) {
		t.Fatal(err)
	}
	if len(shown) != 3 || shown[0] != shown[1] || shown[0] != shown[2] {
		t.Errorf("not the same pairing: %+v", shown)
	}
	info, err := os.Stat(filepath.Join(dir, "pairing.json"))
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the device code can be read by others: %04o", info.Mode().Perm())
	}
	// Approved while it waits; the answer is lost; the device polls once more.
	c.forward(time.Minute)
	waits := 0
	must(t, pair(func(context.Context, time.Duration) error {
		waits++
		_, err := srv.admin.ApprovePairing(t.Context(), shown[0].UserCode, shown[0].Sign, "lamp-7", watchword.Labels{"site": "a"})
		must(t, err)
		kept, err := os.ReadFile(filepath.Join(dir, "pairing.json"))
		must(t, err)
		var k struct {
			DeviceCode string `json:"device_code"`
		}
		must(t, json.Unmarshal(kept, &k))
		s := &unenrolledDevice{h: srv, now: c.now, issuer: srv.url, requestedID: "lamp-1", code: k.DeviceCode, sign: folderKey(t, dir), seal: folderSeal(t, dir)}
		if a := s.poll(); a.status != 200 {
			t.Errorf("the lost answer: %+v", a)
		}
		return nil
	}))
	if waits != 1 {
		t.Errorf("it waited %d times", waits)
	}
	d := srv.openDevice(dir, device.Options{Now: c.now})
	if d.ID() != "lamp-7" || d.Server() != srv.url {
		t.Errorf("enrolled as %s at %s", d.ID(), d.Server())
	}
	if a := srv.request("GET", "/v1/self", srv.token(d), ""); a.status != 200 {
		t.Errorf("%+v", a)
	}
	must(t, d.Pair(t.Context(), srv.url, device.PairOptions{})) // again is no harm
	wants(t, "another server", d.Pair(t.Context(), "https://other.example", device.PairOptions{}), watchword.Conflict)

	// The folder has the same files as after enrollment by a link.
	linked := srv.enroll("lamp-8", device.Options{}, nil)
	if got, want := names(t, dir), names(t, filepath.Dir(linked.CAFile())); got != want {
		t.Errorf("the folder holds %s, want %s", got, want)
	}
}

func TestRejectedDeviceMayAskAgain(t *testing.T) {
	srv, c := servePairing(t)
	dir := filepath.Join(t.TempDir(), "lamp")
	pin, err := srv.admin.TrustPin(t.Context())
	must(t, err)
	d := srv.openDevice(dir, device.Options{Now: c.now})
	var shown []device.Pairing
	o := device.PairOptions{Pin: pin, Show: func(p device.Pairing) { shown = append(shown, p) }}
	o.Wait = func(context.Context, time.Duration) error {
		_, err := srv.admin.RejectPairing(t.Context(), shown[0].UserCode)
		return err
	}
	wants(t, "turned down", d.Pair(t.Context(), srv.url, o), watchword.PairingRejected)
	o.Wait = func(context.Context, time.Duration) error { c.forward(2 * time.Minute); return nil }
	wants(t, "over", d.Pair(t.Context(), srv.url, o), watchword.PairingExpired)
	o.Wait = func(context.Context, time.Duration) error {
		p := shown[len(shown)-1]
		_, err := srv.admin.ApprovePairing(t.Context(), p.UserCode, p.Sign, "lamp-1", nil)
		return err
	}
	must(t, d.Pair(t.Context(), srv.url, o))
	if len(shown) != 3 || shown[0].UserCode == shown[1].UserCode || shown[1].UserCode == shown[2].UserCode || shown[0].Sign != shown[2].Sign {
		t.Errorf("shown %+v", shown)
	}
}

func TestADeviceWithNoClockIsPaired(t *testing.T) {
	srv := serve(t, nil)
	pin, err := srv.admin.TrustPin(t.Context())
	must(t, err)
	d := srv.openDevice(filepath.Join(t.TempDir(), "lamp"), device.Options{NoClock: true, Now: func() time.Time { return time.Unix(0, 0) }})
	wants(t, "no pin", d.Pair(t.Context(), srv.url, device.PairOptions{}), watchword.BadRequest)
	var shown device.Pairing
	must(t, d.Pair(t.Context(), srv.url, device.PairOptions{
		Pin: pin, Show: func(p device.Pairing) { shown = p },
		Wait: func(context.Context, time.Duration) error {
			_, err := srv.admin.ApprovePairing(t.Context(), shown.UserCode, shown.Sign, "lamp-1", nil)
			return err
		},
	}))
	if d.ID() != "lamp-1" {
		t.Errorf("got %s", d.ID())
	}
}

// A device without our SDK: openssl has its keys, curl talks.
func TestCurlAndOpensslPairADevice(t *testing.T) {
	outside(t, "curl")
	srv := serve(t, func(c *server.Config) { c.Pairing.Interval.Duration = time.Millisecond })
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, b, 0o600))
		return path
	}
	key := func(name, algorithm, curve string) (path, jwk, thumbprint string) {
		path = filepath.Join(dir, name)
		tool(t, "openssl", "genpkey", "-algorithm", algorithm, "-out", path)
		der := tool(t, "openssl", "pkey", "-in", path, "-pubout", "-outform", "DER")
		jwk = `{"crv":"` + curve + `","kty":"OKP","x":"` + b64([]byte(der[len(der)-32:])) + `"}`
		sum := tool(t, "openssl", "dgst", "-sha256", "-binary", file("jwk", []byte(jwk)))
		return path, jwk, b64([]byte(sum))
	}
	private, sign, signID := key("sign.pem", "ed25519", "Ed25519")
	_, seal, sealID := key("seal.pem", "x25519", "X25519")
	n := 0
	proof := func(code string) string {
		n++
		hash := tool(t, "openssl", "dgst", "-sha256", "-binary", file("code", []byte(code)))
		now := time.Now().Unix()
		head := `{"alg":"Ed25519","typ":"vnd.watchword.enrollment+jwt","kid":"` + signID + `"}`
		body := fmt.Sprintf(`{"aud":%q,"code_hash":%q,"seal_jkt":%q,"jti":"%s","iat":%d,"exp":%d}`, srv.url, b64([]byte(hash)), sealID, b64([]byte(fmt.Sprintf("%016d", n))), now, now+60)
		input := b64([]byte(head)) + "." + b64([]byte(body))
		return input + "." + b64([]byte(tool(t, "openssl", "pkeyutl", "-sign", "-rawin", "-inkey", private, "-in", file("input", []byte(input)))))
	}
	curl := func(path string, args ...string) map[string]any {
		args = append([]string{"-sS", "--cacert", filepath.Join(srv.dir, "tls", "ca.pem"), srv.url + path}, args...)
		var out map[string]any
		must(t, json.Unmarshal([]byte(tool(t, "curl", args...)), &out))
		return out
	}
	asked := curl("/oauth/device_authorization", "-d", "client_id=kettle", "--data-urlencode", "sign="+sign, "--data-urlencode", "seal="+seal, "-d", "proof="+proof("watchword-pairing"))
	device, _ := asked["device_code"].(string)
	user, _ := asked["user_code"].(string)
	if device == "" || user == "" {
		t.Fatalf("got %v", asked)
	}
	poll := func() map[string]any {
		return curl("/oauth/token", "-d", "grant_type=urn:ietf:params:oauth:grant-type:device_code", "-d", "client_id=kettle", "-d", "device_code="+device, "-d", "proof="+proof(device))
	}
	if got := poll(); got["error"] != "authorization_pending" {
		t.Fatalf("got %v", got)
	}
	_, err := srv.admin.ApprovePairing(t.Context(), user, watchword.KeyID(signID), "", nil)
	must(t, err)
	got := poll()
	tok, _ := got["access_token"].(string)
	if got["id"] != "kettle" || got["token_type"] != "Bearer" || tok == "" {
		t.Fatalf("got %v", got)
	}
	if self := curl("/v1/self", "-H", "Authorization: Bearer "+tok); self["id"] != "kettle" || self["state"] != "active" {
		t.Errorf("got %v", self)
	}
}

func folderKey(t testing.TB, dir string) *jose.Signer {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "sign.jwk"))
	must(t, err)
	k, err := jose.ParsePrivateJWK(b, jose.ForSigning)
	must(t, err)
	s, err := k.Signer()
	must(t, err)
	return s
}

func folderSeal(t testing.TB, dir string) *jose.PublicKey {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "seal.jwk"))
	must(t, err)
	k, err := jose.ParsePrivateJWK(b, jose.ForEncryption)
	must(t, err)
	return k.Public()
}

func names(t testing.TB, dir string) string {
	t.Helper()
	es, err := os.ReadDir(dir)
	must(t, err)
	var out []string
	for _, e := range es {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}
