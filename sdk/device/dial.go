package device

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// Maximum rate of connections, whatever the server does: net/http reconnects at once and without limit if a server sends
// GOAWAY before any answer (RFC 9113 §6.8).
const (
	dialBurst = 20          // connections at once
	dialEvery = time.Second // interval of further ones
)

// dialLimiter limits the rate of connections. It is safe for concurrent use.
type dialLimiter struct {
	mu   sync.Mutex
	free time.Time // when the whole burst is available again
}

// take reports whether one more connection may be made now. It does not wait: net/http keeps dialing for requests that have
// ended, so waiting calls would accumulate.
func (p *dialLimiter) take(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free.Before(now) {
		p.free = now
	}
	if p.free.Sub(now) > (dialBurst-1)*dialEvery {
		return false
	}
	p.free = p.free.Add(dialEvery)
	return true
}

// dial calls [Options.Dial] within the device's rate of connections. Code: unavailable above it.
func (d *Device) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if !d.dialLimiter.take(time.Now()) {
		return nil, watchword.Refuse(watchword.Unavailable, "this device connects too often: at most one connection each second")
	}
	return d.opts.Dial(ctx, network, address)
}
