package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
)

// What an address that serves a log says beside the log's files does not count: it makes the mirror
// unavailable, and never the log invalid.
func TestMirrorStatementsAreNotTrusted(t *testing.T) {
	lie := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3600")
		_, _ = io.WriteString(w, `{"code":"log_invalid","detail":"lies","retry_after":3600}`)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "gone"):
			w.WriteHeader(404)
		case strings.Contains(r.URL.Path, "forbidden"):
			w.WriteHeader(403)
		case strings.Contains(r.URL.Path, "created"):
			w.WriteHeader(201)
		}
		lie(w, r)
	}))
	defer srv.Close()
	get := mirrorAt(rest.NewUnauthenticated(srv.URL, rest.Transport(nil, nil)), nil)
	for path, want := range map[string]watchword.Code{
		"checkpoint": "", "gone/checkpoint": watchword.Unavailable, "gone/tile/0/000": watchword.Unavailable, "gone/tile/0/000.p/7": watchword.NotFound, // the full one may be there
		"forbidden/tile/0/000": watchword.Unavailable, "forbidden/tile/0/000.p/7": watchword.Unavailable, "created/tile/0/000": watchword.Unavailable,
	} {
		_, err := get(t.Context(), path)
		if watchword.CodeOf(err) != want {
			t.Errorf("%s: got %v, want %s", path, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "lies") {
			t.Errorf("%s: its words are in %v", path, err)
		}
	}
}
