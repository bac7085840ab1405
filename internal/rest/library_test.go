package rest_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/internal/rest"
)

func TestAClientForALibraryHasBounds(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, "/ten", http.StatusFound)
		case "/ten":
			_, _ = io.WriteString(w, "0123456789")
		case "/eleven":
			_, _ = io.WriteString(w, "0123456789x")
		}
	}))
	defer s.Close()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	c := rest.ForLibrary(rest.Transport(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}, nil), time.Minute, 10)
	defer c.CloseIdleConnections()
	for _, tc := range []struct{ url, says string }{
		{s.URL + "/ten", ""},
		{s.URL + "/eleven", "too long"},
		{s.URL + "/redirect", "redirects"},
		{"http" + strings.TrimPrefix(s.URL, "https") + "/ten", "not https"},
	} {
		res, err := c.Get(tc.url)
		body := []byte{}
		if err == nil {
			body, err = io.ReadAll(res.Body)
			_ = res.Body.Close() // it was read
		}
		if tc.says == "" && (err != nil || string(body) != "0123456789") || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s: %q, %v", tc.url, body, err)
		}
	}
}
