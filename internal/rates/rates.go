// Package rates bounds how often each of many may do something. In come keys and
// times, out comes a refusal for who comes too often. It forgets by itself.
package rates

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/recent"
)

// Map bounds how often each of many may do something: addresses that need no
// token, subjects that publish. It is safe for concurrent use.
type Map[K comparable] struct {
	limit    rate.Limit
	burst    int
	detail   string
	mu       sync.Mutex
	limiters *recent.Map[K, *rate.Limiter]
}

// New allows perSecond to each, and twice as many (at least 10) at once; 0 is no bound.
func New[K comparable](perSecond float64, detail string) *Map[K] {
	return NewBurst[K](perSecond, int(max(10, 2*perSecond)), detail)
}

// NewBurst allows perSecond to each, and burst at once; perSecond 0 is no bound. It keeps the accounts of the last
// 8,192 keys at least and of 16,384 at most, about 200 bytes each.
func NewBurst[K comparable](perSecond float64, burst int, detail string) *Map[K] {
	return &Map[K]{limit: rate.Limit(perSecond), burst: burst, detail: detail, limiters: recent.New[K, *rate.Limiter](8 << 10)}
}

// Take refuses one who comes too often. Code: rate_limited, with RetryAfter.
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

// Network is whom an address is counted with: its /64 for IPv6, since one
// customer has at least that many.
func Network(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the zero prefix for the zero address
	return p
}
