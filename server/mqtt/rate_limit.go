package mqtt

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/internal/ratelimit"
	"github.com/watchword-iot/watchword/server/twin"
)

// Rate limits of a subject over all its connections. A packet above the rate is delayed, together
// with later packets whose order matters; nothing is refused, lost or reordered. Packets whose
// order does not matter are handled meanwhile: PINGREQ, and acknowledgements of the server's
// messages. See [conn.mustWaitBehind].
const (
	publishRate = iota // of PUBLISH: limits.publish_rate, shared with events over HTTP
	controlRate        // of all other requests that sign, write or log: limits.control_rate, shared with states and receipts over HTTP
	rateCount
)

// Costs against controlRate: each distinct filter of SUBSCRIBE or UNSUBSCRIBE 1, a reported state
// [twin.ReportCost], a receipt [command.ReceiptCost], and proofCost where a credential is verified
// or commands are signed: CONNECT, AUTH, and a publish to $watchword/….
const proofCost = 10

const (
	// maxDelayedBytes limits the delayed bytes of a connection; beyond it the connection is not
	// read, so that TCP slows the client. One read, or one packet, may exceed it.
	maxDelayedBytes = 64 << 10
	// rateGrantsPerSecond is the fraction of a second for which one connection is granted its rate
	// at a time, so that the connections of a subject take turns.
	rateGrantsPerSecond = 200
)

// errDelayed says that a packet was above the rate; it is handled again later.
var errDelayed = errors.New("held back")

// rateLimiter holds the delayed packets of a connection. Protected by conn.processing, except
// delayedBytes.
type rateLimiter struct {
	accounts     [rateCount]*ratelimit.Account // nil before the session starts, and without limit
	credit       [rateCount]int                // reserved and not used yet
	nextDue      time.Duration                 // until the last reservation is available
	delayed      []byte                        // complete packets, in order
	delayedBytes atomic.Int64                  // bytes of delayed
	timer        *time.Timer                   // runs while packets are delayed
}

// joinRates starts counting c's packets against its subject's rates.
func (c *conn) joinRates(now time.Time) {
	k := c.session.account()
	c.limiter.accounts = [rateCount]*ratelimit.Account{publishRate: c.broker.publishRates.Join(k, now), controlRate: c.broker.controlRates.Join(k, now)}
}

// leaveRates drops delayed packets and returns their reservations.
func (c *conn) leaveRates() {
	c.processing.Lock()
	defer c.processing.Unlock()
	p := &c.limiter
	if p.timer != nil {
		p.timer.Stop()
	}
	if p.delayed = nil; p.accounts == [rateCount]*ratelimit.Account{} {
		return
	}
	for i, a := range p.accounts {
		a.Return(p.credit[i])
	}
	p.accounts = [rateCount]*ratelimit.Account{}
	k, now := c.session.account(), time.Now()
	c.broker.publishRates.Leave(k, now)
	c.broker.controlRates.Leave(k, now)
}

// takeRate takes n from a rate and reports whether they were available; if not, they are reserved
// and the packet must be delayed. monotonic is a recent time of the monotonic clock.
func (c *conn) takeRate(rate, n int, monotonic time.Time) bool {
	p := &c.limiter
	if p.accounts[rate] == nil {
		return true
	}
	if p.credit[rate] < n {
		p.nextDue = p.accounts[rate].Reserve(n-p.credit[rate], monotonic)
		if p.nextDue > 0 {
			p.nextDue -= time.Since(monotonic)
		}
		if p.credit[rate] = n; p.nextDue > 0 {
			return false
		}
	}
	p.credit[rate] -= n
	return true
}

// mustWaitBehind reports whether a packet must wait behind delayed ones.
func (c *conn) mustWaitBehind(first byte) bool {
	if len(c.limiter.delayed) == 0 {
		return false
	}
	switch packet.Type(first >> 4) {
	case packet.PINGREQ, packet.PUBACK, packet.PUBREC, packet.PUBCOMP:
		return false // their meaning does not depend on delayed packets. PUBREL waits, since its PUBLISH may be delayed
	}
	return true
}

// delayPackets queues a complete packet until earlier ones are handled and it is within the rate.
func (c *conn) delayPackets(encoded []byte) {
	p := &c.limiter
	switch packet.Type(encoded[0] >> 4) {
	case packet.PUBLISH:
		c.broker.stats.delayedPublishes.Add(1)
	case packet.DISCONNECT: // what DISCONNECT says about will and session takes effect at once
		_, body, _, _ := packet.Frame(encoded, len(encoded)) // it is complete: the reader framed it
		if d, err := packet.Parse(encoded[0], body, c.version); err == nil {
			_ = c.applyDisconnect(d.(*packet.Disconnect)) // handled again in its place
		}
	}
	if len(p.delayed) == 0 {
		c.scheduleDelayed(p.nextDue)
	}
	p.delayed = append(p.delayed, encoded...)
	p.delayedBytes.Store(int64(len(p.delayed)))
}

func (c *conn) scheduleDelayed(d time.Duration) {
	if c.limiter.timer == nil {
		c.limiter.timer = time.AfterFunc(d, c.handleDelayed)
		return
	}
	c.limiter.timer.Reset(d)
}

// handleDelayed is called by the timer.
func (c *conn) handleDelayed() {
	ctx := fair.WithNetwork(c.broker.ctx, addressPrefix(c.remote))
	defer c.closeOnPanic(ctx)
	again, more := c.handleDueDelayed(ctx)
	if !c.closing.Load() {
		c.flushResponses()
	}
	if !more {
		return
	}
	c.processing.Lock()
	defer c.processing.Unlock()
	if len(c.limiter.delayed) > 0 && !c.closing.Load() {
		c.scheduleDelayed(again)
	}
}

// handleDueDelayed handles the delayed packets that are due, and returns in how long the next one
// will be.
func (c *conn) handleDueDelayed(ctx context.Context) (again time.Duration, more bool) {
	c.processing.Lock()
	defer c.processing.Unlock()
	p := &c.limiter
	w := c.borrowBatch()
	defer c.returnBatch(w)
	for len(p.delayed) > 0 && !c.closing.Load() {
		if n := c.leadingPublishes(); n > 0 && p.credit[publishRate] == 0 {
			now := time.Now()
			p.nextDue = p.accounts[publishRate].Reserve(n, now)
			if p.credit[publishRate] = n; p.nextDue > 0 {
				return p.nextDue, true
			}
		}
		first, body, n, err := packet.Frame(p.delayed, len(p.delayed))
		if err == nil {
			w.encoded = p.delayed[:n]
			err = c.handlePacket(ctx, w, first, body)
		}
		if err == errDelayed {
			return p.nextDue, true
		}
		if err != nil {
			c.close(err)
			break
		}
		if p.delayed = p.delayed[n:]; len(p.delayed) == 0 {
			p.delayed = nil
		}
		c.setDelayedBytes(len(p.delayed))
		if w.Offers > maxBatchDeliveries {
			w.Flush()
		}
	}
	return 0, false
}

// setDelayedBytes updates the number of delayed bytes and wakes a waiting reader.
func (c *conn) setDelayedBytes(n int) {
	if before := c.limiter.delayedBytes.Swap(int64(n)); n > 0 && (before <= maxDelayedBytes || n > maxDelayedBytes) {
		return
	}
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.out.changed.Broadcast()
}

// leadingPublishes counts the publishes at the front of the delayed packets, up to what is granted
// at a time.
func (c *conn) leadingPublishes() (n int) {
	if c.limiter.accounts[publishRate] == nil {
		return 0
	}
	limit := max(1, int(c.limiter.accounts[publishRate].Rate()/rateGrantsPerSecond))
	for rest := c.limiter.delayed; n < limit; n++ {
		first, _, used, err := packet.Frame(rest, len(rest))
		if err != nil || used == 0 || packet.Type(first>>4) != packet.PUBLISH {
			break
		}
		rest = rest[used:]
	}
	return n
}

// waitForDelayed is called by the reader: it waits until at most that many bytes are delayed, or
// the connection ends.
func (c *conn) waitForDelayed(limit int64) {
	if c.limiter.delayedBytes.Load() <= limit {
		return
	}
	c.session.mu.Lock()
	for c.limiter.delayedBytes.Load() > limit && !c.out.closed {
		c.out.changed.Wait()
	}
	c.session.mu.Unlock()
	// The client was not read meanwhile, so its silence does not count.
	c.extendReadDeadline(c.broker.options.Now())
	if c.closing.Load() { // the deadline applies
		_ = c.nc.SetReadDeadline(time.Now().Add(closeTimeout)) // an error means that the connection is closed, which the next read reports
	}
}

// closeOnPanic ends a connection whose handler panicked.
func (c *conn) closeOnPanic(ctx context.Context) {
	if v := recover(); v != nil {
		c.broker.options.Log.ErrorContext(ctx, "panic in a connection", slog.Any("panic", v), slog.String("client", c.session.id), slog.String("stack", string(debug.Stack())))
		c.close(errPanic)
	}
}

// controlCost returns the cost of a publish against controlRate.
func controlCost(topic string) int {
	if strings.HasPrefix(topic, connTopicPrefix) {
		return proofCost
	}
	if !strings.HasSuffix(topic, "/state") && !strings.HasSuffix(topic, "/receipts") {
		return 0
	}
	switch parseSystemTopic(topic).kind {
	case topicState:
		return twin.ReportCost
	case topicReceipts:
		return command.ReceiptCost
	}
	return 0
}

// countDistinct counts distinct items: a repeated filter is answered without further work.
func countDistinct[T comparable](list []T) int {
	if len(list) < 2 {
		return len(list)
	}
	seen := make(map[T]struct{}, len(list))
	for _, x := range list {
		seen[x] = struct{}{}
	}
	return len(seen)
}
