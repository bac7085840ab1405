// Package ratelimit limits how often each of many keys may do something, with token buckets. Keys that
// were not used for a while are forgotten.
package ratelimit

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/cache"
)

// Map limits how often each key may do something, such as requests of an address without a token.
// It is safe for concurrent use.
type Map[K comparable] struct {
	limit    rate.Limit
	burst    int
	detail   string
	mu       sync.Mutex
	limiters *cache.Map[K, *rate.Limiter]
}

// New allows perSecond to each key, with a burst of twice as many (at least 10); 0: no limit.
func New[K comparable](perSecond float64, detail string) *Map[K] {
	return NewBurst[K](perSecond, int(max(10, 2*perSecond)), detail)
}

// NewBurst allows perSecond to each key, with the given burst; perSecond 0: no limit. It keeps the
// buckets of the last 8,192 keys at least and of 16,384 at most, about 200 bytes each.
func NewBurst[K comparable](perSecond float64, burst int, detail string) *Map[K] {
	return &Map[K]{limit: rate.Limit(perSecond), burst: burst, detail: detail, limiters: cache.New[K, *rate.Limiter](8 << 10)}
}

// Take takes one token of k. Code: rate_limited, with RetryAfter.
func (l *Map[K]) Take(k K, now time.Time) error {
	if l.limit <= 0 {
		return nil
	}
	l.mu.Lock()
	lim, ok := l.limiters.Get(k)
	if !ok {
		lim = rate.NewLimiter(l.limit, l.burst)
		l.limiters.Put(k, lim)
	}
	l.mu.Unlock()
	res := lim.ReserveN(now, 1)
	if wait := res.DelayFrom(now); wait > 0 {
		res.CancelAt(now)
		return &watchword.Error{Code: watchword.RateLimited, Detail: l.detail, RetryAfter: wait}
	}
	return nil
}
