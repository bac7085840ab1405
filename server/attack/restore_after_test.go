//go:build unix

package attack_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/token"
)

// Every key that a restore replaced is rotated twice on the restored server: its devices obey under each key, over MQTT and over
// HTTPS, those too that obey only what is logged, and none stays out.
func TestKeysRotateAfterARestore(t *testing.T) {
	s := newRestoreSite(t)
	old := filepath.Join(t.TempDir(), "old")
	srv := s.serve(old)
	onlyHTTPS := func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == s.mqtt {
			return nil, errors.New("a firewall")
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	devices := map[watchword.SubjectID]*device.Device{}
	for id, o := range map[watchword.SubjectID]device.Options{"mqtt": {}, "https": {Dial: onlyHTTPS}, "logged": {RequireLogProof: true}, "proved": {ProvePossession: true}} {
		devices[id], _ = s.device(srv, id, o)
		answers(t, srv, id)
	}
	file := s.backup(old)
	srv.stop()
	r := s.options(file)
	r.Source = old
	done := s.restore(r, server.Options{})
	srv = s.serve(r.Data)
	for id := range devices {
		answers(t, srv, id)
	}
	for range 2 {
		for _, role := range []string{"issuer", "command", "time", "log"} {
			k, err := srv.admin.RotateKey(t.Context(), role, true)
			must(t, err)
			if k.State != "active" {
				t.Errorf("the new %s key is %s", role, k.State)
			}
			for id, d := range devices {
				answers(t, srv, id)
				if _, err := d.NewToken(t.Context()); err != nil {
					t.Errorf("%s after the rotation of the %s key: %v", id, role, err)
				}
			}
		}
	}
	for id, d := range devices {
		if epoch, _ := d.Position(); epoch != done.Epoch {
			t.Errorf("%s is in epoch %d, and the server in %d", id, epoch, done.Epoch)
		}
	}
}

// The address moved, and the root was taken offline, before the server was lost. When the old server comes back at the addresses of
// the restored one, the first device that reaches it stops it, by the bundle that the offline root signed, and it says so.
func TestTheOldServerIsStoppedAfterAMoveAndWithAnOfflineRoot(t *testing.T) {
	s := newRestoreSite(t)
	old := filepath.Join(t.TempDir(), "old")
	srv := s.serve(old)
	file := s.backup(old)
	lamp, _ := s.device(srv, "lamp", device.Options{})
	moved := "https://" + strings.Replace(s.https, "localhost", "127.0.0.1", 1)
	_, err := srv.admin.MoveAddress(t.Context(), moved, time.Hour)
	must(t, err)
	trusts(t, lamp, "the new address", func(b *token.Trust) bool { return b.Issuer == moved })
	answers(t, srv, "lamp")
	srv.stop()
	root := s.rootKey(old)
	cfg := server.Defaults()
	cfg.Data = old
	must(t, server.TakeRootOffline(t.Context(), cfg, filepath.Join(t.TempDir(), "root.jwk"), server.Options{}))

	r := s.options(file)
	r.Source = old
	done := s.restore(r, server.Options{})
	if done.Plan == nil {
		t.Fatal("the root that was taken offline after the backup is on the restored server")
	}
	raw, err := token.SignTrustPayload([]byte(done.Plan.Payload), root)
	must(t, err)
	cfg = server.Defaults()
	cfg.Data = r.Data
	must(t, server.ImportBundles(t.Context(), cfg, []string{raw}, server.Options{}))
	srv = s.serve(r.Data)
	answers(t, srv, "lamp")
	if epoch, _ := lamp.Position(); epoch != done.Epoch {
		t.Errorf("the device is in epoch %d, and the server in %d", epoch, done.Epoch)
	}
	srv.stop()

	srv = s.serve(old)
	for end := time.Now().Add(2 * time.Minute); ; {
		_, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp", Function: "f", TTL: time.Hour, WaitReceipt: 100 * time.Millisecond})
		if watchword.CodeOf(err) == watchword.Superseded {
			break
		}
		must(t, err)
		if time.Now().After(end) {
			t.Fatal("the old server was not stopped by the device")
		}
	}
	res, err := http.Get("http://" + srv.info.Metrics + "/readyz")
	must(t, err)
	must(t, res.Body.Close())
	if res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("/readyz of the old server answers %d", res.StatusCode)
	}
	if text := srv.log.String(); !strings.Contains(text, "another server was restored from a backup of this one") {
		t.Error("the process log of the old server does not say that it was restored elsewhere")
	}
}
