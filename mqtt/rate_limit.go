package mqtt

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword/command"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/rates"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/twin"
)

// The rates of a subject, over all its connections. A packet that comes too early is held
// back, with all that came behind it and must keep its place, until it is in time: nothing
// is refused, lost or put in another order. What needs no place is handled meanwhile: PINGREQ,
// and acknowledgements of what the server sent. See [conn.mustWaitBehind].
const (
	publishRate = iota // of PUBLISH: limits.publish_rate, shared with events over HTTP
	controlRate        // of everything else that signs, writes or logs: limits.control_rate, shared with states and receipts over HTTP
	rateCount
)

// What a packet counts against controlRate: each different filter of SUBSCRIBE or UNSUBSCRIBE 1,
// [twin.ReportCost] a reported state, [command.ReceiptCost] a receipt, and proofCost where a credential is checked or commands
// are signed: CONNECT, AUTH, and a publish to $watchword/….
const proofCost = 10

const (
	// maxDelayedBytes is how much of what is held back a connection may have before no more of it
	// is read, and TCP tells its client. One read, or one packet, may be above it.
	maxDelayedBytes = 64 << 10
	// rateGrantsPerSecond is how much of its rate is granted to one connection at a time, as a part of
	// a second: those of a subject take turns.
	rateGrantsPerSecond = 200
)

// errDelayed is what becomes of a packet that came too early. It is handled again when it is
// in time.
var errDelayed = errors.New("held back")

// rateLimiter is what of a connection is held back. It is under conn.processing but for size.
type rateLimiter struct {
	accounts     [rateCount]*rates.Account // nil before the session stands, and where there is no bound
	credit       [rateCount]int            // reserved for what comes first, and not used
	nextDue      time.Duration             // until what was reserved last is there
	delayed      []byte                    // whole packets, in order
	delayedBytes atomic.Int64              // of held
	timer        *time.Timer               // runs while something is held
}

// joinRates begins to count c's packets against the rates of its subject.
func (c *conn) joinRates(now time.Time) {
	k := c.session.account()
	c.limiter.accounts = [rateCount]*rates.Account{publishRate: c.broker.publishRates.Join(k, now), controlRate: c.broker.controlRates.Join(k, now)}
}

// leaveRates forgets what is held back, and gives back what was reserved for it.
func (c *conn) leaveRates() {
	c.processing.Lock()
	defer c.processing.Unlock()
	p := &c.limiter
	if p.timer != nil {
		p.timer.Stop()
	}
	if p.delayed = nil; p.accounts == [rateCount]*rates.Account{} {
		return
	}
	for i, a := range p.accounts {
		a.Return(p.credit[i])
	}
	p.accounts = [rateCount]*rates.Account{}
	k, now := c.session.account(), time.Now()
	c.broker.publishRates.Leave(k, now)
	c.broker.controlRates.Leave(k, now)
}

// takeRate takes n from a rate, and reports whether they are there: if not, they are reserved,
// and the packet is held back until they are. tick is a moment of the monotonic clock, not
// long ago.
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

// mustWaitBehind reports whether a packet keeps its place behind what is held back.
func (c *conn) mustWaitBehind(first byte) bool {
	if len(c.limiter.delayed) == 0 {
		return false
	}
	switch packet.Type(first >> 4) {
	case packet.PINGREQ, packet.PUBACK, packet.PUBREC, packet.PUBCOMP:
		return false // nothing that is held changes what they mean. PUBREL stays: it ends a publish that may be held
	}
	return true
}

// delay keeps a whole packet until those before it are done, and itself is in time.
func (c *conn) delay(encoded []byte) {
	p := &c.limiter
	switch packet.Type(encoded[0] >> 4) {
	case packet.PUBLISH:
		c.broker.stats.delayedPublishes.Add(1)
	case packet.DISCONNECT: // what it says of the will and the session counts at once
		_, body, _, _ := packet.Frame(encoded, len(encoded)) // it is whole: the reader framed it
		if d, err := packet.Parse(encoded[0], body, c.version); err == nil {
			_ = c.applyDisconnect(d.(*packet.Disconnect)) // in its place it says so again
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

// handleDelayed is the timer's: it handles what is in time by now.
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

// handleDueDelayed is passHeld up to what is not in time yet, and returns in how long it will be.
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

// setDelayedBytes notes how much is held, and wakes the reader who waits for it to be less.
func (c *conn) setDelayedBytes(n int) {
	if before := c.limiter.delayedBytes.Swap(int64(n)); n > 0 && (before <= maxDelayedBytes || n > maxDelayedBytes) {
		return
	}
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.out.moved.Broadcast()
}

// leadingPublishes is how many publishes come first of what is held, up to what is granted at a time.
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

// waitForDelayed is the reader's: it waits until at most that much is held, or the end comes.
func (c *conn) waitForDelayed(limit int64) {
	if c.limiter.delayedBytes.Load() <= limit {
		return
	}
	c.session.mu.Lock()
	for c.limiter.delayedBytes.Load() > limit && !c.out.closed {
		c.out.moved.Wait()
	}
	c.session.mu.Unlock()
	// The client was not listened to: that it was silent meanwhile says nothing.
	c.extendReadDeadline(c.broker.options.Now())
	if c.closing.Load() { // its deadline is the one
		_ = c.nc.SetReadDeadline(time.Now().Add(closeTimeout)) // the error is that of a closed connection, which the next read reports
	}
}

// closeOnPanic ends a connection in whose work something went wrong that must not.
func (c *conn) closeOnPanic(ctx context.Context) {
	if v := recover(); v != nil {
		c.broker.options.Log.ErrorContext(ctx, "panic in a connection", slog.Any("panic", v), slog.String("client", c.session.id), slog.String("stack", string(debug.Stack())))
		c.close(errPanic)
	}
}

// controlCost is what a publish counts against controlRate.
func controlCost(topic string) int {
	if strings.HasPrefix(topic, ownTopicPrefix) {
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

// countDistinct is how many different ones are in a list: what stands there again is answered with
// what was done for the first.
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
