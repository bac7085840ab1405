package acme_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testport"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/backup"
	"github.com/watchword-iot/watchword/token"
)

// running is a server with a certificate of an authority.
type running struct {
	t     *testing.T
	cfg   server.Config
	info  server.Info
	ahead *atomic.Int64
	stop  func()
}

// configured returns the configuration of a server for hub.example and mqtt.example, where an authority validates.
func configured(t *testing.T, a *authority, f *front) server.Config {
	t.Helper()
	c := server.Defaults()
	c.Data = filepath.Join(t.TempDir(), "data")
	c.Server.HTTPS, c.Server.MQTTS, c.Metrics.Listen = "localhost:"+a.tlsPort, "localhost:"+testport.Reserve(t), "127.0.0.1:0"
	c.Server.PublicURL = "https://hub.example:" + a.tlsPort
	c.Server.AcmeDomain, c.Server.AcmeDirectory, c.Server.AcmeAcceptTerms = []string{"Hub.example", "mqtt.example"}, f.directory, true
	c.Server.AcmeCA = filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(c.Server.AcmeCA, f.ca, 0o600))
	must(t, c.Check())
	return c
}

func start(t *testing.T, c server.Config, ahead time.Duration) *running {
	t.Helper()
	r := &running{t: t, cfg: c, ahead: &atomic.Int64{}}
	r.ahead.Store(int64(ahead))
	s, err := server.New(t.Context(), c, server.Options{
		Log: slog.New(slog.DiscardHandler), Version: "test", Built: time.Now().Add(-1000 * time.Hour), Now: r.now,
	})
	must(t, err)
	r.info = s.Info()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	testwait.For(t, "the server", s.Ready())
	r.stop = sync.OnceFunc(func() {
		cancel()
		must(t, testwait.For(t, "the end of the server", ended))
	})
	t.Cleanup(r.stop)
	return r
}

func (r *running) now() time.Time { return time.Now().Add(time.Duration(r.ahead.Load())) }

// get returns the body of a page of the metrics listener.
func (r *running) get(path string) string {
	r.t.Helper()
	res, err := http.Get("http://" + r.info.Metrics + path)
	must(r.t, err)
	b, err := io.ReadAll(res.Body)
	must(r.t, err)
	must(r.t, res.Body.Close())
	return string(b)
}

// ready waits until /readyz says something.
func (r *running) ready(says string) {
	r.t.Helper()
	for wait := testwait.Within(); ; pause() {
		got := r.get("/readyz")
		if strings.Contains(got, says) {
			return
		}
		wait.Check(r.t, fmt.Sprintf("%q in %q", says, got))
	}
}

// issuer returns by whom the certificate is that a handshake for a name gets.
func (r *running) issuer(address, name string) string {
	r.t.Helper()
	c := shown(r.t, address, name, "http/1.1", "mqtt")
	if c == nil {
		return "none"
	}
	if strings.Contains(c.Issuer.CommonName, "Pebble") {
		return "public"
	}
	return "own"
}

// served waits until handshakes for the name of the server get the certificate of the authority.
func (r *running) served() {
	r.t.Helper()
	for wait := testwait.Within(); r.issuer(r.info.HTTPS, "hub.example") != "public"; pause() {
		wait.Check(r.t, "the certificate of the authority: "+r.get("/readyz"))
	}
}

func (r *running) admin() *admin.Client {
	r.t.Helper()
	o, err := admin.LocalOptions(r.cfg.Data)
	must(r.t, err)
	o.Now = r.now
	c, err := admin.New(o)
	must(r.t, err)
	return c
}

// connected is a device that is told of its connections.
type connected struct {
	*device.Device
	made chan string
}

// device makes a device for which the names of the server are at 127.0.0.1.
func (r *running) device(dir string) *connected {
	r.t.Helper()
	made := make(chan string, 16)
	d, err := device.OpenWith(dir, device.Options{
		Log: slog.New(slog.DiscardHandler), Now: r.now, Connected: func(over string) { made <- over },
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+port)
		},
	})
	must(r.t, err)
	return &connected{d, made}
}

// enroll enrolls a device by a link.
func (r *running) enroll(id watchword.SubjectID) *connected {
	r.t.Helper()
	made, err := r.admin().CreateDevice(r.t.Context(), id, nil, 0)
	must(r.t, err)
	if !strings.HasPrefix(made.Enrollment.Link, "https://hub.example:") {
		r.t.Fatalf("the link is %s", made.Enrollment.Link)
	}
	d := r.device(filepath.Join(r.t.TempDir(), string(id)))
	must(r.t, d.Enroll(r.t.Context(), made.Enrollment.Link))
	return d
}

// connect runs a device until it has connected.
func (d *connected) connect(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	if over := testwait.For(t, "the connection of the device", d.made); over != "mqtt" {
		t.Errorf("connected over %s", over)
	}
	cancel()
	testwait.For(t, "the end of the device", ended)
}

func testServer(t *testing.T, a *authority) {
	t.Run("own certificate, then the public one, then its renewal and its end", func(t *testing.T) {
		f := newFront(t, a)
		f.set(func(f *front) { f.down = true })
		r := start(t, configured(t, a, f), 0)
		r.ready("there is no public certificate for hub.example, mqtt.example yet; 1 orders failed")
		if got := r.issuer(r.info.HTTPS, "hub.example"); got != "own" {
			t.Fatalf("before the first certificate: %s", got)
		}
		lamp := r.enroll("lamp-1")
		lamp.connect(t)

		// The names that clients send cause no request.
		before := f.all()
		for _, name := range []string{"other.example", "hub.example", "x.hub.example"} {
			r.issuer(r.info.HTTPS, name)
			r.issuer(r.info.MQTTS, name)
		}
		if n := f.all(); n != before {
			t.Errorf("handshakes caused %d requests", n-before)
		}

		f.set(func(f *front) { f.down = false })
		r.ahead.Store(int64(2 * time.Minute))
		r.served()
		for _, tc := range []struct{ address, name, want string }{
			{r.info.HTTPS, "mqtt.example", "public"},
			{r.info.MQTTS, "hub.example", "public"},
			{r.info.MQTTS, "mqtt.example", "public"},
			{r.info.HTTPS, "localhost", "own"},
			{r.info.MQTTS, "", "own"},
			{r.info.HTTPS, "other.example", "own"},
		} {
			if got := r.issuer(tc.address, tc.name); got != tc.want {
				t.Errorf("%q at %s: %s", tc.name, tc.address, got)
			}
		}
		if shown(t, r.info.HTTPS, "hub.example", "acme-tls/1") != nil {
			t.Error("a handshake of a validation succeeds when none is in progress")
		}
		if got := r.get("/readyz"); strings.Contains(got, "certificate") {
			t.Errorf("readyz: %s", got)
		}
		if got := r.get("/metrics"); !strings.Contains(got, "watchword_acme_failures 0") || !strings.Contains(got, "watchword_acme_certificate_seconds 7.77") {
			t.Error("metrics without the certificate")
		}
		lamp.connect(t)
		r.enroll("lamp-2").connect(t)
		bundle, err := r.admin().TrustBundle(t.Context())
		must(t, err)
		if trust, err := token.ReadTrust(bundle); err != nil || !trust.WebPKI || len(trust.CAs) == 0 {
			t.Errorf("bundle %+v, %v", trust, err)
		}
		// A client with nothing but the public authorities.
		o, err := admin.LocalOptions(r.cfg.Data)
		must(t, err)
		outsider, err := admin.New(admin.Options{URL: r.info.URL, Dial: r.info.HTTPS, Subject: o.Subject, Key: o.Key, Now: r.now})
		must(t, err)
		if _, err := outsider.TrustPin(t.Context()); err != nil {
			t.Errorf("with the public authorities: %v", err)
		}
		first := shown(t, r.info.HTTPS, "hub.example")

		r.ahead.Store(int64(65 * 24 * time.Hour))
		for wait := testwait.Within(); shown(t, r.info.HTTPS, "hub.example").Equal(first); pause() {
			wait.Check(t, "a renewal")
		}
		second := shown(t, r.info.HTTPS, "hub.example")
		f.set(func(f *front) { f.down = true })
		r.ahead.Store(int64(85 * 24 * time.Hour))
		r.ready("was not renewed; 1 orders failed")
		r.ready("tls_certificate Hub.example ends at " + second.NotAfter.UTC().Format(time.RFC3339) + ": its renewal by ACME fails")
		if got := r.issuer(r.info.HTTPS, "hub.example"); got != "public" {
			t.Errorf("a week before the end: %s", got)
		}
		r.ahead.Store(int64(91 * 24 * time.Hour))
		r.ready("the public certificate ended at")
		if got := r.issuer(r.info.HTTPS, "hub.example"); got != "own" {
			t.Errorf("after its end: %s", got)
		}
	})
	t.Run("a device from before, and a move to another name", func(t *testing.T) {
		f := newFront(t, a)
		c := configured(t, a, f)
		plain := c
		plain.Server.AcmeDomain, plain.Server.AcmeDirectory, plain.Server.AcmeAcceptTerms, plain.Server.AcmeCA = nil, server.Defaults().Server.AcmeDirectory, false, ""
		r := start(t, plain, 0)
		lamp := r.enroll("lamp-1")
		r.stop()
		r = start(t, c, 0)
		r.served()
		lamp.connect(t) // its bundle knows the own authority alone

		if _, err := r.admin().MoveAddress(t.Context(), "https://third.example:"+a.tlsPort, time.Hour); watchword.CodeOf(err) != watchword.BadRequest || !strings.Contains(err.Error(), "server.acme_domain") {
			t.Errorf("a move to a name that is not in the certificate: %v", err)
		}
		if _, err := r.admin().MoveAddress(t.Context(), "https://mqtt.example:"+a.tlsPort, time.Hour); err != nil {
			t.Fatal(err)
		}
		lamp.connect(t)
		if got := r.issuer(r.info.HTTPS, "mqtt.example"); got != "public" {
			t.Errorf("at the new name: %s", got)
		}
	})
	t.Run("after a restart, and in a backup", func(t *testing.T) {
		f := newFront(t, a)
		c := configured(t, a, f)
		r := start(t, c, 0)
		r.served()
		first, orders := shown(t, r.info.HTTPS, "hub.example"), f.got("order-plz")
		r.stop()
		r = start(t, c, time.Minute)
		if got := shown(t, r.info.HTTPS, "hub.example"); !got.Equal(first) || f.got("order-plz") != orders {
			t.Error("another certificate after a restart")
		}
		r.stop()

		id, err := age.GenerateX25519Identity()
		must(t, err)
		file, out := filepath.Join(t.TempDir(), "backup"), t.TempDir()
		made, err := server.CreateBackup(t.Context(), c, server.Options{Log: slog.New(slog.DiscardHandler), Now: r.now}, file, false, server.BackupKey{Recipients: []string{id.Recipient().String()}})
		must(t, err)
		if len(made.Manifest.LeftOut)+len(made.Manifest.Missing) > 0 {
			t.Errorf("the backup lacks %v and %v", made.Manifest.LeftOut, made.Manifest.Missing)
		}
		archive, err := os.Open(file)
		must(t, err)
		defer archive.Close()
		_, err = backup.Extract(archive, []age.Identity{id}, "", out)
		must(t, err)
		for _, name := range []string{"account.json", "certificate.pem"} {
			got, err := os.ReadFile(filepath.Join(out, "data", "acme", name))
			must(t, err)
			want, err := os.ReadFile(filepath.Join(c.Data, "acme", name))
			must(t, err)
			if !bytes.Equal(got, want) {
				t.Errorf("%s in the backup is another one", name)
			}
			must(t, os.Chmod(filepath.Join(c.Data, "acme", name), 0o644))
			if _, err := server.New(t.Context(), c, server.Options{Log: slog.New(slog.DiscardHandler), Now: r.now}); watchword.CodeOf(err) != watchword.KeyExposed {
				t.Errorf("others can read %s: %v", name, err)
			}
			must(t, os.Chmod(filepath.Join(c.Data, "acme", name), 0o600))
		}
	})
	t.Run("by HTTP-01", func(t *testing.T) {
		f := newFront(t, a)
		c := configured(t, a, f)
		c.Server.AcmeHTTP = "localhost:" + a.httpPort
		r := start(t, c, 0)
		r.served()
		for path, want := range map[string]int{"/": 404, "/.well-known/acme-challenge/x": 404, "/v1/trust": 404} {
			res, err := http.Get("http://" + r.info.ACMEHTTP + path)
			must(t, err)
			if must(t, res.Body.Close()); res.StatusCode != want {
				t.Errorf("%s: %s", path, res.Status)
			}
		}
	})
	t.Run("no order by a clock that is not trusted", func(t *testing.T) {
		f := newFront(t, a)
		f.set(func(f *front) { f.down = true })
		c := configured(t, a, f)
		r := start(t, c, 0)
		r.ready("1 orders failed")
		r.stop()
		f.set(func(f *front) { f.down = false })
		must(t, os.Remove(filepath.Join(c.Data, "acme", "attempts.json")))
		before := f.all()
		r = start(t, c, -400*24*time.Hour)
		r.ready("clock")
		lookTwice := r.get("/readyz")
		if n := f.all() - before; n != 0 {
			t.Errorf("%d requests; readyz: %s", n, lookTwice)
		}
		r.ahead.Store(0)
		r.served()
	})
}
