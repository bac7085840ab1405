package httpapi

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

// pauses is how long an answer of that status is held back.
func pauses(ctx context.Context, a *API, actor watchword.SubjectID, status int, direct bool) time.Duration {
	w := newResponseWriter(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	w.WriteHeader(status)
	w.direct = direct
	began := time.Now()
	a.delayRefusal(ctx, &requestInfo{actor: audit.Actor{Subject: actor}, writer: w})
	return time.Since(began)
}

func TestRateLimitedResponseIsDelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, ctx := &API{}, t.Context()
		for _, tc := range []struct {
			who    watchword.SubjectID
			status int
			direct bool
			want   time.Duration
		}{
			{"lamp", http.StatusTooManyRequests, false, refusalDelay},
			{"lamp", http.StatusTooManyRequests, true, 0}, // its first bytes have gone
			{"", http.StatusTooManyRequests, false, 0},    // unauthenticated
			{"lamp", http.StatusOK, false, 0},
			{"lamp", http.StatusForbidden, false, 0},
			{"lamp", http.StatusServiceUnavailable, false, 0},
		} {
			if got := pauses(ctx, a, tc.who, tc.status, tc.direct); got != tc.want {
				t.Errorf("status %d, begun %v: %v, want %v", tc.status, tc.direct, got, tc.want)
			}
		}
		gone, cancel := context.WithCancel(ctx)
		cancel()
		if got := pauses(gone, a, "lamp", http.StatusTooManyRequests, false); got != 0 {
			t.Errorf("for a client that has gone: %v", got)
		}
		var wg sync.WaitGroup
		for range maxDelayedResponses {
			wg.Go(func() { pauses(ctx, a, "lamp", http.StatusTooManyRequests, false) })
		}
		synctest.Wait()
		if got := pauses(ctx, a, "lamp", http.StatusTooManyRequests, false); got != 0 {
			t.Errorf("beyond the bound: %v", got)
		}
		wg.Wait()
		if got := pauses(ctx, a, "lamp", http.StatusTooManyRequests, false); got != refusalDelay || a.delayedResponses.Load() != 0 {
			t.Errorf("afterwards: %v, %d are counted", got, a.delayedResponses.Load())
		}
	})
}
