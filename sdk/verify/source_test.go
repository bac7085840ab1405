package verify_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/verify"
)

func quiet() verify.Option { return verify.Log(slog.New(slog.DiscardHandler)) }

// serveIssuer is an issuer behind real TLS; path is that of its identifier.
func serveIssuer(t *testing.T, path string, keys []byte) (srv *httptest.Server, issuer string) {
	mux := http.NewServeMux()
	srv = httptest.NewTLSServer(mux)
	t.Cleanup(srv.Close)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	issuer = srv.URL + path
	mux.HandleFunc("GET /.well-known/oauth-authorization-server"+strings.TrimSuffix(path, "/"), func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, issuer, srv.URL+"/keys?v=1")
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/jwk-set+json")
		if r.URL.RawQuery == "v=1" {
			_, _ = w.Write(keys)
		}
	})
	return srv, issuer
}

func poolOf(srv *httptest.Server) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	return pool
}

func TestAnIssuerIsFoundByItsMetadata(t *testing.T) {
	key := newSigner(t, jose.P256)
	for _, path := range []string{"", "/", "/t/plant", "/t/plant/"} {
		srv, issuer := serveIssuer(t, path, jwks(key))
		ca := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		for name, way := range map[string]verify.Option{
			"CAFile": verify.CAFile(ca), "CAPool": verify.CAPool(poolOf(srv)), "HTTPClient": verify.HTTPClient(srv.Client()),
		} {
			c := &clock{t: noon}
			v, err := verify.New(t.Context(), issuer, way, verify.Now(c.now), quiet())
			if err != nil {
				t.Errorf("%q by %s: %v", path, name, err)
				continue
			}
			_, err = v.Check(t.Context(), signToken(t, key, noon, map[string]any{"iss": issuer, "aud": issuer}))
			wants(t, path+" by "+name, err, "")
			v.Close()
		}
		srv.Close()
	}
}

func TestAnIssuerBehindTLS12(t *testing.T) {
	key := newSigner(t, jose.P256)
	srv, issuer := serveIssuer(t, "", jwks(key))
	srv.TLS.MaxVersion = tls.VersionTLS12
	c := &clock{t: noon}
	_, err := verify.New(t.Context(), issuer, verify.CAPool(poolOf(srv)), verify.Now(c.now), quiet())
	wants(t, "by default", err, watchword.Unavailable)
	v, err := verify.New(t.Context(), issuer, verify.CAPool(poolOf(srv)), verify.TLS12(), verify.Now(c.now), quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	_, err = v.Check(t.Context(), signToken(t, key, noon, map[string]any{"iss": issuer, "aud": issuer}))
	wants(t, "with TLS12", err, "")
	srv.TLS.MaxVersion = tls.VersionTLS11
	_, err = verify.New(t.Context(), issuer, verify.CAPool(poolOf(srv)), verify.TLS12(), verify.Now(c.now), quiet())
	wants(t, "TLS 1.1 with TLS12", err, watchword.Unavailable)
	for name, o := range map[string]verify.Option{"a client": verify.HTTPClient(srv.Client()), "keys": verify.Keys(jwks(key))} {
		_, err := verify.New(t.Context(), issuer, o, verify.TLS12())
		wants(t, "TLS12 beside "+name, err, watchword.ConfigInvalid)
	}
}

func TestAnIssuerThatIsGoneIsNotAsked(t *testing.T) {
	key := newSigner(t, jose.P256)
	srv, issuer := serveIssuer(t, "", jwks(key))
	c := &clock{t: noon}
	v, err := verify.New(t.Context(), issuer, verify.CAPool(poolOf(srv)), verify.Now(c.now), quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	srv.Close()
	_, err = v.Check(t.Context(), signToken(t, key, noon, map[string]any{"iss": issuer, "aud": issuer}))
	wants(t, "with the server closed", err, "")
	_, err = verify.New(t.Context(), issuer, verify.CAPool(poolOf(srv)), quiet())
	wants(t, "a start then", err, watchword.Unavailable)
}

func TestAnIssuerThatIsNotTheOneAskedForIsRefused(t *testing.T) {
	key := newSigner(t, jose.P256)
	const good = `{"issuer":"` + issuerID + `","jwks_uri":"` + issuerID + `/keys"}`
	keysOf := func(uri string) string { return `{"issuer":"` + issuerID + `","jwks_uri":"` + uri + `"}` }
	for _, tc := range []struct {
		name, metadata, kind, keys string
		status                     int
		code                       watchword.Code
	}{
		{"a good one", good, "application/json", string(jwks(key)), 200, ""},
		{"with a charset", good, "Application/JSON; charset=utf-8", string(jwks(key)), 200, ""},
		{"by another origin's letters", keysOf("https://WATCHWORD.example:443/keys"), "application/json", string(jwks(key)), 200, ""},
		{"another issuer", strings.Replace(good, issuerID, issuerID+"/", 1), "application/json", "", 200, watchword.IssuerMismatch},
		{"no issuer", `{"jwks_uri":"` + issuerID + `/keys"}`, "application/json", "", 200, watchword.IssuerMismatch},
		{"keys at another host", keysOf("https://evil.example/keys"), "application/json", "", 200, watchword.IssuerMismatch},
		{"keys at another port", keysOf(issuerID + ":8443/keys"), "application/json", "", 200, watchword.IssuerMismatch},
		{"keys without TLS", keysOf("http://watchword.example/keys"), "application/json", "", 200, watchword.IssuerMismatch},
		{"keys with a user", keysOf("https://a@watchword.example/keys"), "application/json", "", 200, watchword.IssuerMismatch},
		{"keys in a file", keysOf("file:///etc/passwd"), "application/json", "", 200, watchword.IssuerMismatch},
		{"no keys", `{"issuer":"` + issuerID + `"}`, "application/json", "", 200, watchword.IssuerMismatch},
		{"an issuer twice", `{"issuer":"` + issuerID + `",` + good[1:], "application/json", "", 200, watchword.Unavailable},
		{"a portal's page", good, "text/html", string(jwks(key)), 200, watchword.Unavailable},
		{"a redirect", good, "application/json", string(jwks(key)), 302, watchword.Unavailable},
		{"an error", good, "application/json", string(jwks(key)), 500, watchword.Unavailable},
		{"keys that never end", good, "application/json", `{"keys":[` + strings.Repeat(" ", 64<<10) + `]}`, 200, watchword.Unavailable},
		{"invalid keys", good, "application/json", `{"keys":[{"kty":"EC","crv":"P-256"}]}`, 200, watchword.KeyDamaged},
	} {
		asked := 0
		rt := roundTrip(func(r *http.Request) (*http.Response, error) {
			asked++
			body := tc.metadata
			if r.URL.Path == "/keys" {
				body = tc.keys
			}
			return &http.Response{
				StatusCode: tc.status, Status: http.StatusText(tc.status), Header: http.Header{"Content-Type": {tc.kind}, "Location": {"https://watchword.example/elsewhere"}},
				Body: io.NopCloser(strings.NewReader(body)), Request: r,
			}, nil
		})
		v, err := verify.New(t.Context(), issuerID, verify.HTTPClient(&http.Client{Transport: rt}), quiet())
		wants(t, tc.name, err, tc.code)
		if (v != nil) != (tc.code == "") || asked > 2 {
			t.Errorf("%s: %v, after %d requests", tc.name, v, asked)
		}
		if v != nil {
			v.Close()
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestOptionsThatDoNotFitAreRefused(t *testing.T) {
	keys := verify.Keys(jwks(newSigner(t, jose.P256)))
	for _, tc := range []struct {
		name, issuer string
		opts         []verify.Option
	}{
		{"an issuer without TLS", "http://watchword.example", nil},
		{"an issuer without TLS on this machine", "http://127.0.0.1:1", nil},
		{"an issuer without TLS elsewhere, in a test", "http://watchword.example", []verify.Option{verify.LoopbackHTTP()}},
		{"an issuer with a query", issuerID + "?a", nil},
		{"an issuer with a fragment", issuerID + "#", nil},
		{"an issuer with a user", "https://a@watchword.example", nil},
		{"an issuer that is no URL", "watchword", nil},
		{"an audience that breaks a header", issuerID, []verify.Option{keys, verify.Audience("a\"b")}},
		{"two ways to the keys", issuerID, []verify.Option{keys, verify.CAFile("x")}},
		{"a cache of given keys", issuerID, []verify.Option{keys, verify.Cache("x")}},
		{"an authority that is not there", issuerID, []verify.Option{verify.CAFile("/does/not/exist")}},
		{"an invalid address", issuerID, []verify.Option{keys, verify.PublicURL("api.example")}},
		{"an address with a query", issuerID, []verify.Option{keys, verify.PublicURL("https://api.example/?a=b")}},
		{"proofs for no address", issuerID, []verify.Option{keys, verify.ProofRequired()}},
		{"a short secret", issuerID, []verify.Option{keys, verify.Nonces([]byte("short"))}},
		{"no pause between fetches", issuerID, []verify.Option{verify.Refresh(0)}},
		{"keys that are too old before they are fetched anew", issuerID, []verify.Option{verify.MaxAge(time.Minute)}},
		{"no room for proofs", issuerID, []verify.Option{keys, verify.Proofs(0)}},
		{"no clock", issuerID, []verify.Option{keys, verify.Now(nil)}},
	} {
		v, err := verify.New(t.Context(), tc.issuer, append(tc.opts, verify.HTTPClient(nil))...)
		wants(t, tc.name, err, watchword.ConfigInvalid)
		if v != nil {
			t.Errorf("%s: there is a verifier", tc.name)
		}
	}
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	_, err := verify.New(t.Context(), srv.URL, verify.LoopbackHTTP(), quiet())
	wants(t, "loopback without TLS, in a test", err, watchword.Unavailable) // requested, and not found
}
