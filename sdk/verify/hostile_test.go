package verify_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/verify"
)

// Only the keys of an issuer are trusted, whatever answers for it: no refusal, no text, no pause.
func TestOnlyKeysOfTheIssuerAreUsed(t *testing.T) {
	refuse := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.Header().Set("Location", "/lies")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"code":"subject_revoked","detail":"lies","retry_after":3600}`)
		}
	}
	for name, h := range map[string]http.HandlerFunc{
		"forbidden": refuse(403), "busy": refuse(429), "not found": refuse(404), "an error": refuse(500), "created": refuse(201), "moved": refuse(301), "not modified": refuse(304),
		"a page": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>lies") },
		"headers without end": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Lies", strings.Repeat("lies", 1<<16))
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"issuer":"https://another.test"}`)
		},
		"a body without end": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, strings.Repeat("lies", 1<<16))
		},
		"metadata of no sense": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"issuer":7}`)
		},
	} {
		srv := httptest.NewUnstartedServer(h)
		srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
		srv.StartTLS()
		for way, o := range map[string]verify.Option{"its own client": verify.CAPool(poolOf(srv)), "another's client": verify.HTTPClient(srv.Client())} {
			var log bytes.Buffer
			_, err := verify.New(t.Context(), srv.URL, o, verify.Log(slog.New(slog.NewTextHandler(&log, nil))))
			if watchword.CodeOf(err) != watchword.Unavailable {
				t.Errorf("%s, by %s: %v", name, way, err)
			}
			if text := fmt.Sprint(err, log.String()); strings.Contains(text, "lies") {
				t.Errorf("%s, by %s: the server's words are in %s", name, way, text)
			}
		}
		srv.Close()
	}
}

// An issuer whose answer stalls is tried again, and its last keys stay in use.
func TestStalledIssuerDoesNotBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newSigner(t, jose.P256)
		w := &web{}
		w.publish(key)
		stalls := &stalling{web: w}
		v, err := verify.New(t.Context(), issuerID, verify.HTTPClient(&http.Client{Transport: stalls}), verify.Audience(audience), quiet())
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		stalls.on.Store(true)
		time.Sleep(time.Hour)
		if n := stalls.asked.Load(); n < 12 || n > 60 {
			t.Errorf("it was asked %d times in an hour", n)
		}
		if _, err := v.Check(t.Context(), signToken(t, key, time.Now(), nil)); err != nil {
			t.Errorf("a good token: %v", err)
		}
	})
}

// stalling sends the first byte of each answer, and then waits for the end of the request.
type stalling struct {
	*web
	on    atomic.Bool
	asked atomic.Int64 // while on
}

func (s *stalling) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := s.web.RoundTrip(r)
	if err == nil && s.on.Load() {
		s.asked.Add(1)
		res.Body = io.NopCloser(io.MultiReader(io.LimitReader(res.Body, 1), untilTheEnd{r}))
	}
	return res, err
}

type untilTheEnd struct{ r *http.Request }

func (u untilTheEnd) Read([]byte) (int, error) {
	<-u.r.Context().Done()
	return 0, u.r.Context().Err()
}
