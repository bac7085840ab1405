package mqtt

import (
	"context"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// errShuttingDown is why a connection ends where the server goes.
var errShuttingDown = watchword.Refuse(watchword.Unavailable, "the server is going down")

// drainReadTime is how long what was taken in may take to be passed on.
const drainReadTime = time.Second

// Drain has every client go when it has what is its own: nothing new is taken in, what
// was taken in is passed on, answers wait for the disk as ever, and each connection ends
// with DISCONNECT 0x8B when its client has what was meant for it. A client that takes
// nothing is let go when ctx ends. Publishes that come meanwhile are not answered: their
// client says them again over its next connection. Close comes after it.
func (b *Broker) Drain(ctx context.Context) {
	b.mu.Lock()
	b.closing = true
	b.mu.Unlock()
	b.draining.Store(true)
	b.closeUnauthenticated()
	passed, cancel := context.WithTimeout(ctx, drainReadTime) // one who is held back holds up nobody else
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
				s.Close(errShuttingDown) // which ends the connection
			}
		})
	}
	wg.Wait()
}

// closeUnauthenticated ends the connections whose client has not come to be yet.
func (b *Broker) closeUnauthenticated() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.unauthenticated {
		_ = c.nc.Close() // nothing was promised; the error is that of a connection that is gone
	}
}

// waitForReader returns when the reader has passed on what it had taken in.
func (c *conn) waitForReader(ctx context.Context) {
	done := make(chan struct{})
	go func() { // it outlives ctx only for as long as the reader is held back
		c.processing.Lock()
		defer c.processing.Unlock()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// waitForDelivery returns when the client has what is meant for it, or ctx ends.
func (c *conn) waitForDelivery(ctx context.Context) {
	c.flush(false)
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	l := c.out.moved.L
	defer context.AfterFunc(ctx, func() {
		l.Lock()
		defer l.Unlock()
		c.out.moved.Broadcast()
	})()
	for ctx.Err() == nil && c.session.conn == c && !c.out.closed && !c.out.failed && c.hasUnsent() {
		c.out.moved.Wait()
	}
}

// hasUnsent reports whether something is on its way to the client that its state does not
// keep. mu is held.
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

// isPersisted reports whether what is queued waits on the shelf too.
func (c *conn) isPersisted(x *queuedExtra) bool {
	return c.session.persistent != nil && x != nil && x.stored != nil
}
