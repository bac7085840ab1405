package server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/server"
)

const metricsToken = "0123456789abcdef0123456789abcdef"

func TestMetricsBeyondLoopbackNeedAToken(t *testing.T) {
	for _, c := range []struct{ listen, token, field string }{
		{"127.0.0.1:9464", "", ""},
		{"127.0.0.1:9464", metricsToken, ""},
		{"0.0.0.0:9464", metricsToken, ""},
		{"0.0.0.0:9464", "", "metrics.listen"},
		{"metrics.example:9464", "", "metrics.listen"},
		{"0.0.0.0:9464", metricsToken[1:], "metrics.token"},
		{"127.0.0.1:9464", metricsToken + " x", "metrics.token"},
		{"127.0.0.1:9464", strings.Repeat("x", 1025), "metrics.token"},
	} {
		cfg := server.Defaults()
		cfg.Data, cfg.Metrics.Listen, cfg.Metrics.Token = t.TempDir(), c.listen, c.token
		err := cfg.Check()
		if (err == nil) != (c.field == "") || err != nil && (watchword.CodeOf(err) != watchword.ConfigInvalid || !strings.HasPrefix(err.Error(), "config_invalid: "+c.field+": ")) {
			t.Errorf("%s with a token of %d bytes: %v, want %q", c.listen, len(c.token), err, c.field)
		}
	}
}

// The token is in a file that others cannot read, also in one of systemd's credentials.
func TestMetricsTokenIsReadFromAFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "scrape"), []byte(metricsToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, env := range []map[string]string{
		{"WATCHWORD_METRICS_TOKEN_FILE": filepath.Join(dir, "scrape")},
		{"WATCHWORD_METRICS_TOKEN_FILE": "scrape", "CREDENTIALS_DIRECTORY": dir},
	} {
		if c, err := load(t, "", env); err != nil || c.Metrics.Token != metricsToken {
			t.Errorf("%v: %q, %v", env, c.Metrics.Token, err)
		} else if b, err := c.Print(); err != nil || strings.Contains(string(b), metricsToken) {
			t.Errorf("the token is printed: %v", err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "scrape"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := load(t, "", map[string]string{"WATCHWORD_METRICS_TOKEN_FILE": filepath.Join(dir, "scrape")}); watchword.CodeOf(err) != watchword.KeyExposed {
		t.Errorf("a file that others can read: %v", err)
	}
}

func TestMetricsWithAToken(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "0.0.0.0:0"} {
		t.Run(listen, func(t *testing.T) {
			c := config(t, filepath.Join(t.TempDir(), "data"))
			c.Metrics.Listen, c.Metrics.Token = listen, metricsToken
			s, err := server.New(t.Context(), c, quiet)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- s.Run(ctx) }()
			testwait.For(t, "the server", s.Ready())
			_, port, err := net.SplitHostPort(s.Info().Metrics)
			if err != nil {
				t.Fatal(err)
			}
			pem, err := os.ReadFile(s.Info().CAFile)
			if err != nil {
				t.Fatal(err)
			}
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(pem)
			transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: testwait.Limit}
			get := func(scheme, path, authorization string) (int, string) {
				t.Helper()
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, scheme+"://127.0.0.1:"+port+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Host = "collector-sees-it.example" // the token makes the check of Host needless
				if authorization != "" {
					req.Header.Set("Authorization", authorization)
				}
				res, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(res.Body)
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Body.Close() // it was read
				return res.StatusCode, string(b)
			}
			scheme := "http"
			if listen != "127.0.0.1:0" {
				scheme = "https"
				if status, body := get("http", "/metrics", "Bearer "+metricsToken); status != http.StatusBadRequest || strings.Contains(body, "watchword_") {
					t.Errorf("without TLS: %d", status)
				}
			}
			for _, a := range []string{"", "Bearer", "Bearer ", "Bearer " + metricsToken + "x", "Bearer " + metricsToken[:31], "Basic " + metricsToken, metricsToken} {
				if status, body := get(scheme, "/metrics", a); status != http.StatusUnauthorized || strings.Contains(body, "watchword_") {
					t.Errorf("Authorization %q: %d", a, status)
				}
				if status, body := get(scheme, "/readyz", a); status != http.StatusOK || body != "" {
					t.Errorf("/readyz with Authorization %q: %d %q", a, status, body)
				}
			}
			if status, body := get(scheme, "/metrics", "bearer "+metricsToken); status != http.StatusOK || !strings.Contains(body, "watchword_mqtt_clients 0\n") {
				t.Errorf("with the token: %d", status)
			}
			cancel()
			if err := testwait.For(t, "the end of the server", ended); err != nil {
				t.Error(err)
			}
		})
	}
}
