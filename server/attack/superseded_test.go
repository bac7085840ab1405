package attack_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/token"
)

// laterBundle is a bundle of a higher epoch, as a restored server signs it.
func laterBundle(t *testing.T, srv *testServer, ring *keyring.Ring, epoch int64, root *jose.Signer) string {
	t.Helper()
	own, err := token.ReadTrust(ring.Bundle(time.Now()))
	must(t, err)
	own.Epoch, own.Version, own.Roots = epoch, 1, []*jose.PublicKey{root.Public()}
	raw, err := token.SignTrust(own, root)
	must(t, err)
	return raw
}

// A device that states a higher epoch than the server's gets no commands, and stops no other device.
func TestAHigherEpochStopsTheCommandsOfThatDeviceAlone(t *testing.T) {
	srv := serve(t, nil)
	liar := srv.enroll("lamp-1", device.Options{}, nil)
	running(t, srv, "lamp-2", obey)
	w := connectPaho(t, liar, "")
	w.subscribe(t, "devices/lamp-1/commands")
	ack, err := w.client.Publish(t.Context(), &paho.Publish{Topic: "$watchword/hello", QoS: 1, Payload: []byte(`{"nonce":"","epoch":9,"seq":0}`)})
	if err == nil || ack == nil || !strings.HasPrefix(ack.Properties.ReasonString, string(watchword.Superseded)+": ") {
		t.Errorf("the hello: %+v, %v, want %s", ack, err, watchword.Superseded)
	}
	_, err = srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "f", TTL: time.Hour})
	must(t, err)
	obeyed(t, srv, "lamp-2") // the server goes on, and had the time to deliver the other command
	select {
	case p := <-w.got:
		t.Errorf("%s came to a device that has another server", p.Topic)
	default:
	}
	tok := srv.token(liar)
	if a := srv.request("GET", "/v1/self/commands?epoch=9&after=3", tok, ""); a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, `"superseded"`) {
		t.Errorf("the poll: %d %s", a.status, a.body)
	}
	if _, err := w.client.Publish(t.Context(), &paho.Publish{Topic: "$watchword/hello", QoS: 1, Payload: []byte(`{"nonce":"","epoch":1,"seq":0}`)}); err != nil {
		t.Errorf("a hello of the server's epoch: %v", err)
	}
	select {
	case p := <-w.got:
		if p.Topic != "devices/lamp-1/commands" {
			t.Errorf("got %s", p.Topic)
		}
	case <-time.After(20 * time.Second):
		t.Error("the command did not come after a hello of the server's epoch")
	}
	srv.stop()
	for _, e := range srv.allEntries() {
		if e.Actor == "lamp-1" && e.Code == watchword.Superseded {
			return
		}
	}
	t.Error("the audit log does not say that a device stated a higher epoch")
}

// Only a bundle that the server's own root signed stops the server, for good.
func TestABundleOfTheRootStopsASupersededServer(t *testing.T) {
	srv := serve(t, nil)
	d, _ := running(t, srv, "lamp-1", obey)
	ring := srv.stealKeys()
	root := ring.Signer(keyring.Root)
	_, other := newKey(t, jose.P256)
	tok := srv.token(d)
	put := func(what, bundle string, status int) {
		t.Helper()
		if a := srv.request("PUT", "/v1/self/trust", tok, bundle, "Content-Type: application/jose"); a.status != status {
			t.Errorf("%s: %d %s, want %d", what, a.status, a.body, status)
		}
	}
	put("the server's own bundle", ring.Bundle(time.Now()), http.StatusNoContent)
	put("no bundle", "x", http.StatusUnprocessableEntity)
	put("a bundle of another root", laterBundle(t, srv, ring, 9, other), http.StatusUnprocessableEntity)
	put("a bundle of an epoch above the highest", laterBundle(t, srv, ring, keyring.MaxEpoch+1, root), http.StatusUnprocessableEntity)
	put("a bundle of an epoch of a year and a day from now", laterBundle(t, srv, ring, keyring.EpochAt(time.Now().AddDate(0, 0, 367)), root), http.StatusUnprocessableEntity)
	obeyed(t, srv, "lamp-1")
	put("a bundle of a higher epoch", laterBundle(t, srv, ring, 9, root), http.StatusNoContent)
	put("the same again", laterBundle(t, srv, ring, 9, root), http.StatusNoContent)
	put("one of an epoch in between", laterBundle(t, srv, ring, 5, root), http.StatusNoContent)
	stopped := func(when string) {
		t.Helper()
		_, err := srv.admin.Send(t.Context(), admin.CommandOrder{Device: "lamp-1", Function: "f"})
		wants(t, when+": an order", err, watchword.Superseded)
		res, err := http.Get("http://" + srv.info.Metrics + "/readyz")
		must(t, err)
		must(t, res.Body.Close())
		if res.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s: /readyz answers %d", when, res.StatusCode)
		}
		if a := srv.request("GET", "/v1/self/commands?epoch=1&after=0", tok, ""); a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, `"superseded"`) {
			t.Errorf("%s: a poll of a device of the old epoch: %d %s", when, a.status, a.body)
		}
	}
	stopped("at once")
	srv.stop()
	n := 0
	for _, e := range srv.allEntries() {
		if e.Kind == audit.ServerSuperseded && e.Actor == "lamp-1" && e.Data["superseded_by"] == "9" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d entries %s, want 1", n, audit.ServerSuperseded)
	}
	address := strings.TrimPrefix(srv.url, "https://")
	srv = serveOn(t, srv.dir, func(c *server.Config) { c.Server.HTTPS = address })
	tok = srv.token(d)
	stopped("after a restart")
}
