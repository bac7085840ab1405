package httpapi

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// watch notes until when an answer may be written.
type watch struct {
	*httptest.ResponseRecorder
	until time.Time
}

func (w *watch) SetWriteDeadline(t time.Time) error {
	w.until = t
	return nil
}

// Who asks to wait may be answered after that wait: the connection is not cut before.
func TestWhoWaitsMayBeAnsweredAtTheEndOfTheWait(t *testing.T) {
	a := &API{Parts: Parts{Options: Options{Log: slog.New(slog.DiscardHandler), Now: time.Now}}}
	for target, want := range map[string]time.Duration{
		"/v1//commands":                0,
		"/v1//commands?wait=60s":       60 * time.Second,
		"/v1//commands?a=b&wait=45s":   45 * time.Second,
		"/v1//commands?wait=24h":       0, // refused
		"/v1//commands?wait=tomorrow":  0,
		"/v1//commands?waiting=60s":    0,
		"/v1//self/commands?wait=1m0s": time.Minute,
	} {
		w := &watch{ResponseRecorder: httptest.NewRecorder()}
		before := time.Now()
		a.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
		if got := w.until.Sub(before) - writeTimeout; got < want || got > want+10*time.Second {
			t.Errorf("%s: %v beyond the rest, want %v", target, got, want)
		}
	}
}
