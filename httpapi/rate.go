package httpapi

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/recent"
)

// rates bounds what one address may ask of the endpoints that need no token.
type rates struct {
	limit rate.Limit
	mu    sync.Mutex
	by    *recent.Map[netip.Prefix, *rate.Limiter]
}

func newRates(perSecond float64) *rates {
	return &rates{limit: rate.Limit(perSecond), by: recent.New[netip.Prefix, *rate.Limiter](8 << 10)}
}

// take refuses an address that asks too often. Code: rate_limited, with RetryAfter.
func (l *rates) take(a netip.Addr, now time.Time) error {
	if l.limit <= 0 {
		return nil
	}
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the zero prefix for the zero address
	l.mu.Lock()
	lim, ok := l.by.Get(p)
	if !ok {
		lim = rate.NewLimiter(l.limit, int(max(10, 2*l.limit)))
		l.by.Put(p, lim)
	}
	l.mu.Unlock()
	res := lim.ReserveN(now, 1)
	if wait := res.DelayFrom(now); wait > 0 {
		res.CancelAt(now)
		return &watchword.Error{Code: watchword.RateLimited, Detail: "too many requests from this address", RetryAfter: wait}
	}
	return nil
}
