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
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/sqlite"
)

// testServer is a whole server on loopback, with what an attacker may know of it.
type testServer struct {
	t     testing.TB
	dir   string
	url   string
	admin *admin.Client
	log   *logBuffer
	info  server.Info
	stop  func()
	http  *http.Client // used by ask; nil: a new connection for each request
}

// logBuffer keeps what the server prints.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func serve(t testing.TB, change func(*server.Config)) *testServer {
	return serveOn(t, filepath.Join(t.TempDir(), "data"), change)
}

func serveOn(t testing.TB, dir string, change func(*server.Config)) *testServer {
	t.Helper()
	return serveAt(t, dir, time.Now, change)
}

// serveAt is serveOn by another clock.
func serveAt(t testing.TB, dir string, now func() time.Time, change func(*server.Config)) *testServer {
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
	srv := &testServer{t: t, dir: dir, log: &logBuffer{}}
	s, err := server.New(t.Context(), cfg, server.Options{Log: slog.New(slog.NewTextHandler(srv.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Version: "test", Now: now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	srv.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		srv.stop()
		if t.Failed() {
			t.Log(srv.log.String())
		}
	})
	srv.info = s.Info()
	srv.url = srv.info.URL
	if srv.admin, err = admin.Local(dir); err != nil {
		t.Fatal(err)
	}
	return srv
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
func (srv *testServer) enroll(id watchword.SubjectID, o device.Options, labels watchword.Labels) *device.Device {
	srv.t.Helper()
	made, err := srv.admin.CreateDevice(srv.t.Context(), id, labels, 0)
	must(srv.t, err)
	d := srv.openDevice(filepath.Join(srv.t.TempDir(), string(id)), o)
	must(srv.t, d.Enroll(srv.t.Context(), made.Enrollment.Link))
	return d
}

func (srv *testServer) openDevice(dir string, o device.Options) *device.Device {
	srv.t.Helper()
	o.Log = slog.New(slog.NewTextHandler(srv.log, nil))
	d, err := device.OpenWith(dir, o)
	must(srv.t, err)
	srv.t.Cleanup(func() { _ = d.Close() }) // closed earlier by the tests that open it again
	return d
}

func (srv *testServer) token(d *device.Device) string {
	srv.t.Helper()
	tok, err := d.NewToken(srv.t.Context())
	must(srv.t, err)
	return tok
}

// stealKeys opens the server's keys, as an attacker with a copy of the whole folder can.
func (srv *testServer) stealKeys() *keyring.Ring {
	srv.t.Helper()
	kek, err := keyring.OpenKEK(filepath.Join(srv.dir, "keys", "kek"), false)
	must(srv.t, err)
	st, err := sqlite.Open(srv.t.Context(), filepath.Join(srv.dir, "watchword.db"), sqlite.Options{})
	must(srv.t, err)
	ring, err := keyring.Open(srv.t.Context(), st, kek, nil)
	must(srv.t, err)
	must(srv.t, st.Close())
	return ring
}

// client trusts the server's authority, and shows no token by itself.
func (srv *testServer) client() *http.Client {
	srv.t.Helper()
	pem, err := os.ReadFile(filepath.Join(srv.dir, "tls", "ca.pem"))
	must(srv.t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	srv.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// answer is what an endpoint said.
type answer struct {
	status int
	header http.Header
	body   string
	code   watchword.Code
	field  string
	oauth  string
}

// request sends one request; a header is "Name: value".
func (srv *testServer) request(method, path, token, body string, headers ...string) answer {
	srv.t.Helper()
	req, err := http.NewRequestWithContext(srv.t.Context(), method, srv.url+path, strings.NewReader(body))
	must(srv.t, err)
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
	client := srv.http
	if client == nil {
		client = srv.client()
	}
	res, err := client.Do(req)
	must(srv.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	must(srv.t, err)
	a := answer{status: res.StatusCode, header: res.Header, body: string(b)}
	var p struct {
		Code  watchword.Code `json:"code"`
		Field string         `json:"field"`
		Error string         `json:"error"`
	}
	if res.StatusCode >= 400 {
		if err := json.Unmarshal(b, &p); err != nil {
			srv.t.Errorf("%s %s: status %d with no problem document: %s", method, path, res.StatusCode, b)
		}
	}
	a.code, a.field, a.oauth = p.Code, p.Field, p.Error
	return a
}

// exchangeAssertion posts an assertion to the token endpoint.
func (srv *testServer) exchangeAssertion(assertion string) answer {
	srv.t.Helper()
	form := url.Values{
		"grant_type":            {"client_credentials"},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		"client_assertion":      {assertion},
	}
	return srv.request("POST", "/oauth/token", "", form.Encode(), "Content-Type: application/x-www-form-urlencoded")
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
