package bench_test

import (
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
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/token"
)

// BenchmarkRefusedAssertion reports how long the token endpoint takes to refuse an assertion by an unknown key, for known
// and unknown subjects. The answers are the same; their times are not, and that is not promised: the benchmark shows the
// difference.
func BenchmarkRefusedAssertion(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "data")
	cfg := server.Defaults()
	cfg.Data, cfg.Server.HTTPS, cfg.Server.MQTTS, cfg.Metrics.Listen = dir, "localhost:0", "localhost:0", "127.0.0.1:0"
	cfg.Limits.TokenRate = 1_000_000
	ok := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	ok(cfg.Check())
	s, err := server.New(b.Context(), cfg, server.Options{Log: slog.New(slog.DiscardHandler), Version: "bench"})
	ok(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := testwait.For(b, "the end of the server", ended); err != nil {
			b.Error(err)
		}
	})
	a, err := admin.Local(dir)
	ok(err)
	for id, curve := range map[watchword.SubjectID]string{"p256": jose.P256, "ed25519": jose.Ed} {
		made, err := a.CreateDevice(b.Context(), id, nil, 0)
		ok(err)
		d, err := device.OpenWith(filepath.Join(b.TempDir(), string(id)), device.Options{SignCurve: curve, Log: slog.New(slog.DiscardHandler)})
		ok(err)
		b.Cleanup(func() { _ = d.Close() })
		ok(d.Enroll(b.Context(), made.Enrollment.Link))
	}
	ca, err := os.ReadFile(filepath.Join(dir, "tls", "ca.pem"))
	ok(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	c := &http.Client{Timeout: testwait.Limit, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "localhost"}}}
	k, err := jose.GenerateKey(jose.P256)
	ok(err)
	stranger, err := k.Signer()
	ok(err)

	names := []watchword.SubjectID{"nobody", "p256", "ed25519"}
	took := map[watchword.SubjectID][]time.Duration{}
	for b.Loop() {
		for _, id := range names { // in turns
			form := url.Values{
				"grant_type": {"client_credentials"}, "client_assertion": {unknownSubjectAssertion(b, stranger, id, s.Info().URL)},
				"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
			}
			begin := time.Now()
			res, err := c.PostForm(s.Info().URL+"/oauth/token", form)
			ok(err)
			body, err := io.ReadAll(res.Body)
			took[id] = append(took[id], time.Since(begin))
			ok(err)
			_ = res.Body.Close() // read to its end
			if res.StatusCode != http.StatusUnauthorized || !strings.Contains(string(body), string(watchword.ClientInvalid)) {
				b.Fatalf("%s: %d %s", id, res.StatusCode, body)
			}
		}
	}
	b.ReportMetric(0, "ns/op") // of all three
	for _, id := range names {
		slices.Sort(took[id])
		b.ReportMetric(float64(took[id][len(took[id])/2].Nanoseconds())/1e3, string(id)+"-µs")
	}
}

// unknownSubjectAssertion is an assertion of id by an unknown key, without a kid: so each key of the subject that fits is
// tried.
func unknownSubjectAssertion(b *testing.B, s *jose.Signer, id watchword.SubjectID, issuer string) string {
	b.Helper()
	now := time.Now()
	claims, err := json.Marshal(map[string]any{"iss": id, "sub": id, "aud": issuer, "jti": watchword.NewNonce(), "iat": now.Unix(), "exp": now.Add(time.Minute).Unix()})
	if err != nil {
		b.Fatal(err)
	}
	input := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","typ":"`+token.TypAssertion+`"}`)) + "." + base64.RawURLEncoding.EncodeToString(claims)
	sig, err := s.SignBytes([]byte(input))
	if err != nil {
		b.Fatal(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(sig)
}
