package device

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// How often a device connects at most, whatever its server does: net/http by itself connects
// again at once, without end, where a server says GOAWAY before any answer (RFC 9113 §6.8).
const (
	dialBurst = 20          // connections at once
	dialEvery = time.Second // from then on
)

// dialLimiter counts connections. It is safe for concurrent use.
type dialLimiter struct {
	mu   sync.Mutex
	free time.Time // when all of the burst is there again
}

// take reports whether one more connection may be made now. Nothing waits: net/http goes on
// connecting for requests that have ended, so that waits would pile up.
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

// connect is [Options.Dial] at the pace of a device. Code: unavailable beyond it.
func (d *Device) connect(ctx context.Context, network, address string) (net.Conn, error) {
	if !d.dialLimiter.take(time.Now()) {
		return nil, watchword.Refuse(watchword.Unavailable, "this device connects too often; a connection a second is free again")
	}
	return d.opts.Dial(ctx, network, address)
}
