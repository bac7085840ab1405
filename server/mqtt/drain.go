package mqtt

import (
	"context"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// errShuttingDown ends connections when the server shuts down.
var errShuttingDown = watchword.Refuse(watchword.Unavailable, "the server is shutting down")

// drainReadTime is how long packets that were read may take to be handled.
const drainReadTime = time.Second

// Drain disconnects every client gracefully: no connections are accepted, packets that were read
// are handled, responses wait for their commits, and each connection ends with DISCONNECT 0x8B when
// its client has received what was queued. A client that does not read is closed when ctx ends.
// Publishes that arrive meanwhile are not acknowledged, so their clients send them again. Call
// Close after it.
func (b *Broker) Drain(ctx context.Context) {
	b.mu.Lock()
	b.closing = true
	b.mu.Unlock()
	b.draining.Store(true)
	b.closeUnauthenticated()
	passed, cancel := context.WithTimeout(ctx, drainReadTime) // a delayed client does not block the others
	defer cancel()
	all := b.connections(func(*conn) bool { return true })
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() { c.waitForReader(passed) })
	}
	wg.Wait()
	for _, c := range all {
		wg.Go(func() {
			c.waitForDelivery(ctx)
			if s := c.live(); s != nil {
				s.End(errShuttingDown) // which ends the connection
			}
		})
	}
	wg.Wait()
}

// closeUnauthenticated closes connections whose CONNECT was not accepted yet.
func (b *Broker) closeUnauthenticated() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.unauthenticated {
		_ = c.nc.Close() // nothing was acknowledged on it
	}
}

// waitForReader returns when the reader has handled what it had read.
func (c *conn) waitForReader(ctx context.Context) {
	done := make(chan struct{})
	go func() { // outlives ctx only while the reader is delayed
		c.processing.Lock()
		defer c.processing.Unlock()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// waitForDelivery returns when the client has received what was queued, or ctx ends.
func (c *conn) waitForDelivery(ctx context.Context) {
	c.flush(false)
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	l := c.out.changed.L
	defer context.AfterFunc(ctx, func() {
		l.Lock()
		defer l.Unlock()
		c.out.changed.Broadcast()
	})()
	for ctx.Err() == nil && c.session.conn == c && !c.out.closed && !c.out.failed && c.hasUnsent() {
		c.out.changed.Wait()
	}
}

// hasUnsent reports whether something is queued that is not persistent. mu is held.
func (c *conn) hasUnsent() bool {
	if len(c.out.pendingResponses)+len(c.out.responses) > 0 || c.out.writing {
		return true
	}
	for i := c.session.head; i < len(c.session.queue); i++ {
		if !c.isPersisted(c.session.queue[i].extra) {
			return true
		}
	}
	for i := range c.session.inflight {
		if f := &c.session.inflight[i]; !f.counted && f.command == 0 { // a command is handed over again
			return true
		}
	}
	return false
}

// isPersisted reports whether the queued message is stored too.
func (c *conn) isPersisted(x *queuedExtra) bool {
	return c.session.persistent != nil && x != nil && x.stored != nil
}
