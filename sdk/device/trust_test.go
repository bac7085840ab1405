package device

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// A server that was restored from a backup may sign another bundle under a version that the device has: the folder keeps
// the one it had, and the device uses a root of that one.
func TestThePinnedRootIsInTheStoredBundle(t *testing.T) {
	root := func() *jose.Signer {
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
	first, second, third := root(), root(), root()
	now := time.Now()
	bundle := func(version int64, roots ...*jose.Signer) (token.Trust, string) {
		b := token.Trust{Issuer: "https://localhost", Version: version, Epoch: 1, Issued: now, Expires: now.Add(time.Hour)}
		for _, r := range roots {
			b.Roots = append(b.Roots, r.Public())
		}
		for _, role := range []*[]*jose.PublicKey{&b.Issuers, &b.Command, &b.Time, &b.Log} {
			*role = append(*role, root().Public())
		}
		raw, err := token.SignTrust(b, roots...)
		if err != nil {
			t.Fatal(err)
		}
		return b, raw
	}
	known, _ := bundle(2, first, second)
	_, answer := bundle(2, first, third)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) }))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo) // that the device hangs up is the point
	srv.StartTLS()
	defer srv.Close()

	d := &Device{dir: t.TempDir(), opts: Options{Log: slog.New(slog.DiscardHandler), Now: time.Now}}
	d.counters = &counterFile{disk: durable.OS{}, path: d.path(countersFile)}
	d.identity = &identity{ID: "lamp-1", Issuer: known.Issuer, HTTPS: srv.URL, Pin: token.TrustPin(second.Public())}
	d.client = rest.New(srv.URL, srv.Client().Transport, nil)
	d.trust.Store(&known)
	if err := d.renewTrust(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d.storedIdentity != nil || d.trust.Load() != &known {
		t.Errorf("its identity is %v now, and it keeps a bundle of version %d", d.storedIdentity, d.trust.Load().Version)
	}
}

// The counters keep the highest epoch, and the highest number of that epoch.
func TestTheCountersKeepTheNewestBundle(t *testing.T) {
	var c counters
	for _, step := range []struct{ seen, want token.BundleVersion }{
		{token.BundleVersion{Epoch: 1, Number: 9}, token.BundleVersion{Epoch: 1, Number: 9}},
		{token.BundleVersion{Epoch: 1, Number: 8}, token.BundleVersion{Epoch: 1, Number: 9}},
		{token.BundleVersion{Epoch: 3, Number: 2}, token.BundleVersion{Epoch: 3, Number: 2}},
		{token.BundleVersion{Epoch: 1, Number: 99}, token.BundleVersion{Epoch: 3, Number: 2}},
		{token.BundleVersion{Epoch: 3, Number: 3}, token.BundleVersion{Epoch: 3, Number: 3}},
	} {
		if c.setBundleVersion(step.seen); c.bundleVersion() != step.want {
			t.Errorf("after %s: %s, want %s", step.seen, c.bundleVersion(), step.want)
		}
	}
}

// Only a bundle of a higher epoch that names another log ends the record of the log that was seen.
func TestOnlyAHigherEpochStartsTheRecordOfTheLogAgain(t *testing.T) {
	const issuer = "https://w.example"
	bundle := func(epoch int64, origin string) *token.Trust {
		return &token.Trust{Issuer: issuer, Epoch: epoch, LogOrigin: origin}
	}
	restored := watchword.RestoredLogOrigin(issuer, 5)
	seen := logRecord{size: 9, epoch: 1}
	later := logRecord{originID: logOriginID(bundle(5, restored)), size: 4, epoch: 5}
	for _, tc := range []struct {
		name   string
		record logRecord
		under  *token.Trust
		size   int64
		origin string
	}{
		{"nothing was seen", logRecord{}, bundle(1, ""), 0, ""},
		{"the same log", seen, bundle(1, ""), 9, "w.example/log"},
		{"a later bundle with the same log", seen, bundle(5, ""), 9, "w.example/log"},
		{"another log, and the same epoch", seen, bundle(1, restored), 9, "another log"},
		{"another log, and a higher epoch", seen, bundle(5, restored), 0, ""},
		{"a build that stored no epoch", logRecord{size: 9}, bundle(1, ""), 9, "w.example/log"},
		{"a build that stored no epoch, and a restored log", logRecord{size: 9}, bundle(5, restored), 0, ""},
		{"the restored log", later, bundle(5, restored), 4, restored},
		{"the restored log under a later bundle", later, bundle(6, restored), 4, restored},
		{"the log of before, and a lower epoch", later, bundle(1, ""), 4, "another log"},
		{"the log of the next restore", later, bundle(7, watchword.RestoredLogOrigin(issuer, 7)), 0, ""},
	} {
		if got := tc.record.seenIn(tc.under); got.Size != tc.size || got.Origin != tc.origin {
			t.Errorf("%s: %d entries of %q", tc.name, got.Size, got.Origin)
		}
	}
}

// A bundle that is older than the one that was had does not count, though its signature does.
func TestAnOlderBundleInTheFolderIsNoBundle(t *testing.T) {
	s := newFakeServer(t)
	d := s.device(false, Options{})
	older := s.bundle
	s.renewed(d)
	if err := os.WriteFile(d.path(trustFile), []byte(older), 0o600); err != nil {
		t.Fatal(err)
	}
	if known, err := d.readTrust(); err != nil || !isLostTrust(&known) {
		t.Errorf("version %d counts, %v", known.Version, err)
	}
}

// A server that claims that the address moved is followed only if a root that the device knows signed that.
func TestAMoveWithoutTheRootIsNotFollowed(t *testing.T) {
	root, other := testSigner(t), testSigner(t)
	now := time.Now().Truncate(time.Second)
	known := token.Trust{Issuer: "https://old.example", Version: 3, Epoch: 1, Roots: []*jose.PublicKey{root.Public()}, Issued: now, Expires: now.Add(time.Hour)}
	moved := known
	moved.Issuer, moved.Version, moved.MQTTS = "https://new.example", 4, "new.example:8883"
	moved.History = []token.IssuerPeriod{{Issuer: known.Issuer, Until: now.Add(time.Hour)}, {Issuer: moved.Issuer}}
	of := func(roots ...*jose.PublicKey) token.Trust {
		m := moved
		m.Roots = roots
		return m
	}
	stranger := moved
	stranger.History = []token.IssuerPeriod{{Issuer: "https://third.example", Until: now.Add(time.Hour)}, {Issuer: moved.Issuer}}
	for _, tc := range []struct {
		name   string
		bundle token.Trust
		by     []*jose.Signer
		want   watchword.Code
	}{
		{"signed by another root", of(other.Public()), []*jose.Signer{other}, watchword.KeyUnknown},
		{"of another server with the same root", stranger, []*jose.Signer{root}, watchword.BundleInvalid},
		{"signed by the known root", moved, []*jose.Signer{root}, ""},
	} {
		raw, err := token.SignTrust(tc.bundle, tc.by...)
		if err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, raw) }))
		d := &Device{dir: t.TempDir(), opts: Options{Log: slog.New(slog.DiscardHandler), Now: time.Now, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, srv.Listener.Addr().String())
		}}}
		d.counters = &counterFile{disk: durable.OS{}, path: d.path(countersFile)}
		d.identity = &identity{ID: "lamp-1", Issuer: known.Issuer, HTTPS: known.Issuer, MQTTS: "old.example:8883", Pin: token.TrustPin(root.Public())}
		if d.lock, err = openFolder(d.dir); err != nil {
			t.Fatal(err)
		}
		before := known
		if err := d.useTrust(&before); err != nil {
			t.Fatal(err)
		}
		if err := d.renewTrust(t.Context()); (tc.want == "") != (err == nil) || tc.want != "" && !strings.Contains(err.Error(), string(tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		server, mqtt := known.Issuer, "old.example:8883"
		if tc.want == "" {
			server, mqtt = moved.Issuer, moved.MQTTS
		}
		if d.Server() != server || d.MQTT() != mqtt {
			t.Errorf("%s: the device is at %s and %s", tc.name, d.Server(), d.MQTT())
		}
		if id, err := d.readIdentity(); tc.want == "" && (err != nil || id == nil || id.HTTPS != moved.Issuer || id.Issuer != moved.Issuer || id.MQTTS != moved.MQTTS || id.FirstIssuer != known.Issuer) {
			t.Errorf("%s: the identity in the folder is %+v, %v", tc.name, id, err)
		}
		srv.Close()
		if err := d.lock.Close(); err != nil {
			t.Error(err)
		}
	}
}
