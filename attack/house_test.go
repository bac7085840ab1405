package attack_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/keyring"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/sqlite"
)

// house is a whole server on loopback, with what a burglar may know of it.
type house struct {
	t     testing.TB
	dir   string
	url   string
	admin *admin.Client
	log   *logs
	info  server.Info
	stop  func()
	http  *http.Client // that ask uses; nil: a new connection for each request
}

// logs keeps what the server prints.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func serve(t testing.TB, change func(*server.Config)) *house {
	return serveOn(t, filepath.Join(t.TempDir(), "data"), change)
}

func serveOn(t testing.TB, dir string, change func(*server.Config)) *house {
	t.Helper()
	return serveAt(t, dir, time.Now, change)
}

// serveAt is serveOn by another clock.
func serveAt(t testing.TB, dir string, now func() time.Time, change func(*server.Config)) *house {
	t.Helper()
	cfg := server.Defaults()
	cfg.Data, cfg.Server.HTTPS, cfg.Server.MQTTS = dir, "localhost:0", "localhost:0"
	cfg.Metrics.Listen = "127.0.0.1:0"
	cfg.Limits.TokenRate, cfg.Limits.RequestRate, cfg.Limits.IssueRate = 100_000, 1<<20, 1<<20 // few subjects do a lot here
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Check(); err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, dir: dir, log: &logs{}}
	s, err := server.New(t.Context(), cfg, server.Options{Log: slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Version: "test", Now: now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		h.stop()
		if t.Failed() {
			t.Log(h.log.String())
		}
	})
	h.info = s.Info()
	h.url = h.info.URL
	if h.admin, err = admin.Local(dir); err != nil {
		t.Fatal(err)
	}
	return h
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wants fails unless err has the code.
func wants(t testing.TB, what string, err error, code watchword.Code) {
	t.Helper()
	if got := watchword.CodeOf(err); got != code {
		t.Errorf("%s: got %q (%v), want %q", what, got, err, code)
	}
}

// enroll adds a device and lets it become itself.
func (h *house) enroll(id watchword.SubjectID, o device.Options, labels watchword.Labels) *device.Device {
	h.t.Helper()
	made, err := h.admin.CreateDevice(h.t.Context(), id, labels, 0)
	must(h.t, err)
	d := h.open(filepath.Join(h.t.TempDir(), string(id)), o)
	must(h.t, d.Enroll(h.t.Context(), made.Enrollment.Link))
	return d
}

func (h *house) open(dir string, o device.Options) *device.Device {
	h.t.Helper()
	o.Log = slog.New(slog.NewTextHandler(h.log, nil))
	d, err := device.OpenWith(dir, o)
	must(h.t, err)
	h.t.Cleanup(func() { _ = d.Close() }) // closed earlier by the tests that open it again
	return d
}

func (h *house) token(d *device.Device) string {
	h.t.Helper()
	tok, err := d.NewToken(h.t.Context())
	must(h.t, err)
	return tok
}

// burgle opens the server's keys, as somebody who stole the whole folder can.
func (h *house) burgle() *keyring.Ring {
	h.t.Helper()
	kek, err := keyring.OpenKEK(filepath.Join(h.dir, "keys", "kek"), false)
	must(h.t, err)
	st, err := sqlite.Open(h.t.Context(), filepath.Join(h.dir, "watchword.db"), sqlite.Options{})
	must(h.t, err)
	ring, err := keyring.Open(h.t.Context(), st, kek)
	must(h.t, err)
	must(h.t, st.Close())
	return ring
}

// client trusts the house's authority, and shows no token by itself.
func (h *house) client() *http.Client {
	h.t.Helper()
	pem, err := os.ReadFile(filepath.Join(h.dir, "tls", "ca.pem"))
	must(h.t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	h.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// answer is what a door said.
type answer struct {
	status int
	header http.Header
	body   string
	code   watchword.Code
	field  string
	oauth  string
}

// ask sends one request; a header is "Name: value".
func (h *house) ask(method, path, token, body string, headers ...string) answer {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), method, h.url+path, strings.NewReader(body))
	must(h.t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, line := range headers {
		k, v, _ := strings.Cut(line, ": ")
		req.Header.Set(k, v)
	}
	client := h.http
	if client == nil {
		client = h.client()
	}
	res, err := client.Do(req)
	must(h.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	must(h.t, err)
	a := answer{status: res.StatusCode, header: res.Header, body: string(b)}
	var p struct {
		Code  watchword.Code `json:"code"`
		Field string         `json:"field"`
		Error string         `json:"error"`
	}
	if res.StatusCode >= 400 {
		if err := json.Unmarshal(b, &p); err != nil {
			h.t.Errorf("%s %s: status %d with no problem document: %s", method, path, res.StatusCode, b)
		}
	}
	a.code, a.field, a.oauth = p.Code, p.Field, p.Error
	return a
}

// exchange posts an assertion to the token endpoint.
func (h *house) exchange(assertion string) answer {
	h.t.Helper()
	form := url.Values{
		"grant_type":            {"client_credentials"},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		"client_assertion":      {assertion},
	}
	return h.ask("POST", "/oauth/token", "", form.Encode(), "Content-Type: application/x-www-form-urlencoded")
}

func newKey(t testing.TB, curve string) (*jose.PrivateKey, *jose.Signer) {
	t.Helper()
	k, err := jose.GenerateKey(curve)
	must(t, err)
	s, err := k.Signer()
	must(t, err)
	return k, s
}

// privateKey reads a device's own key from its folder.
func deviceSigner(t testing.TB, d *device.Device) *jose.Signer {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(d.CAFile()), "sign.jwk"))
	must(t, err)
	k, err := jose.ParsePrivateJWK(b, jose.ForSigning)
	must(t, err)
	s, err := k.Signer()
	must(t, err)
	return s
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
