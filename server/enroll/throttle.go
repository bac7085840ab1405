package enroll

import (
	"net/netip"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/cache"
	"github.com/watchword-iot/watchword/internal/fair"
)

// How guesses are slowed: an address has some wrong ones free, then waits twice
// as long after each. A quiet hour forgives.
const (
	freeFailures    = 5
	firstDelay      = time.Second
	maxDelay        = 10 * time.Minute
	failuresExpire  = time.Hour
	throttleEntries = 8 << 10 // addresses remembered at least
)

// throttle counts wrong codes by address: by /64 for IPv6, since one customer has at least that many. A code of 128 random
// bits cannot be guessed; the throttle bounds the cost of attempts. It refuses unknown codes alone, so that one client does not
// keep others of its address, behind a proxy or NAT, from enrolling.
type throttle struct {
	mu        sync.Mutex
	byNetwork *cache.Map[netip.Prefix, failures]
}

type failures struct {
	count int
	last  time.Time
}

func newThrottle() *throttle {
	return &throttle{byNetwork: cache.New[netip.Prefix, failures](throttleEntries)}
}

// check refuses an address that must wait. Code: rate_limited, with RetryAfter.
func (th *throttle) check(a netip.Addr, now time.Time) error {
	th.mu.Lock()
	defer th.mu.Unlock()
	n, ok := th.byNetwork.Get(fair.Network(a.Unmap()))
	if !ok || n.count <= freeFailures {
		return nil
	}
	pause := maxDelay
	if doubled := n.count - freeFailures - 1; doubled < 10 {
		pause = min(firstDelay<<doubled, maxDelay)
	}
	if left := n.last.Add(pause).Sub(now); left > 0 {
		return &watchword.Error{Code: watchword.RateLimited, Detail: "too many wrong codes from this network address", RetryAfter: left}
	}
	return nil
}

func (th *throttle) fail(a netip.Addr, now time.Time) {
	th.mu.Lock()
	defer th.mu.Unlock()
	k := fair.Network(a.Unmap())
	n, _ := th.byNetwork.Get(k)
	if now.Sub(n.last) > failuresExpire {
		n.count = 0
	}
	th.byNetwork.Put(k, failures{n.count + 1, now})
}
