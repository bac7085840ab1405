package server_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server"
)

func config(t *testing.T, dir string) server.Config {
	t.Helper()
	c := server.Defaults()
	c.Data, c.Server.HTTPS, c.Server.MQTTS = dir, "localhost:0", "localhost:0"
	c.Metrics.Listen = "127.0.0.1:0"
	return c
}

var quiet = server.Options{Log: slog.New(slog.DiscardHandler), Version: "test"}

// once starts a server and ends it again.
func once(t *testing.T, c server.Config) server.Info {
	t.Helper()
	s, err := server.New(t.Context(), c, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	return s.Info()
}

func TestEmptyFolderIsInitializedInUnderASecond(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "data")
	start := time.Now()
	s, err := server.New(t.Context(), config(t, dir), quiet)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > slow*time.Second { // make test runs it without the race detector too
		t.Errorf("it took %s", took)
	}
	if !s.Info().Initialized {
		t.Error("it was not the first start")
	}
	for name, mode := range map[string]os.FileMode{"operator.jwk": 0o600, "keys/kek": 0o600, "watchword.db": 0o600, "server.json": 0o600, "tls/ca.pem": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	_, err = server.New(t.Context(), config(t, dir), quiet)
	if watchword.CodeOf(err) != watchword.FolderInUse {
		t.Errorf("a second one on the same folder: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if again := once(t, config(t, dir)); again.Initialized {
		t.Error("the second start founded it again")
	}
}

func TestWrongKeyOpensNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	once(t, config(t, dir))
	kek := filepath.Join(dir, "keys", "kek")
	good, err := os.ReadFile(kek)
	if err != nil {
		t.Fatal(err)
	}
	bad := []byte("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
	if len(good) != len(bad) && len(good) != len(bad)+1 {
		t.Fatalf("the key file has %d bytes", len(good))
	}
	if err := os.WriteFile(kek, bad[:len(good)], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := server.New(t.Context(), config(t, dir), quiet); err == nil {
		t.Fatal("another key opens the instance")
	}
	if err := os.Remove(kek); err != nil {
		t.Fatal(err)
	}
	if _, err := server.New(t.Context(), config(t, dir), quiet); err == nil {
		t.Fatal("a lost key is made anew, over keys that it cannot open")
	}
	if err := os.WriteFile(kek, good, 0o600); err != nil {
		t.Fatal(err)
	}
	once(t, config(t, dir))
	if err := os.Chmod(filepath.Join(dir, "operator.jwk"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := server.New(t.Context(), config(t, dir), quiet); watchword.CodeOf(err) != watchword.KeyExposed {
		t.Errorf("an operator's key that others can read: %v", err)
	}
}

func TestTheIssuerIsFixedAtFirstStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	c := config(t, dir)
	c.Server.PublicURL = "https://hub.example"
	if got := once(t, c).Issuer; got != "https://hub.example" {
		t.Errorf("issuer %s", got)
	}
	c.Server.PublicURL = "https://other.example"
	if _, err := server.New(t.Context(), c, quiet); watchword.CodeOf(err) != watchword.ConfigInvalid {
		t.Errorf("another issuer later: %v", err)
	}
}

// A name that the network knows may mean nothing on the server's own machine.
func TestLocalOperatorNeedsNoFlags(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	c := config(t, dir)
	c.Server.HTTPS, c.Server.Names = "127.0.0.1:0", []string{"hub.invalid", "192.0.2.9"}
	s, err := server.New(t.Context(), c, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	cl, err := admin.Local(dir)
	if err != nil {
		t.Fatal(err)
	}
	d, err := cl.CreateDevice(ctx, "lamp-1", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(d.Enrollment.Link, "https://hub.invalid:") {
		t.Errorf("the link is %s", d.Enrollment.Link)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestOperationsListener(t *testing.T) {
	s, err := server.New(t.Context(), config(t, filepath.Join(t.TempDir(), "data")), quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	for path, want := range map[string]string{"/healthz": "", "/readyz": "", "/metrics": "watchword_mqtt_clients 0\n"} {
		res, err := http.Get("http://" + s.Info().Metrics + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(b), want) {
			t.Errorf("%s: %s %v\n%s", path, res.Status, err, b)
		}
		if err := res.Body.Close(); err != nil {
			t.Error(err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// A page whose name was made to point at this machine (DNS rebinding) reads nothing of operations.
func TestOperationsListenerChecksHost(t *testing.T) {
	c := config(t, filepath.Join(t.TempDir(), "data"))
	c.Server.Names, c.Server.PublicURL = []string{"hub.local", "192.0.2.7"}, "https://hub.example"
	s, err := server.New(t.Context(), c, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		for host, want := range map[string]int{
			"localhost": 200, "LOCALHOST:9464": 200, "localhost.": 200, "127.0.0.1": 200, "127.9.9.9:1": 200, "[::1]:9464": 200, "[::1]": 200,
			"hub.local": 200, "Hub.Local:443": 200, "192.0.2.7": 200, "hub.example:9464": 200,
			"evil.example": 421, "evil.example:9464": 421, "localhost.evil.example": 421, "127.0.0.1.evil.example": 421, "hub.local.evil.example": 421,
			"192.0.2.8": 421, "[2001:db8::1]": 421, "a.hub.local": 421,
		} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Info().Metrics+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = host
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != want || want == 421 && strings.Contains(string(b), "watchword_") {
				t.Errorf("Host %s, %s: %s %v, want %d", host, path, res.Status, err, want)
			}
			if err := res.Body.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}
