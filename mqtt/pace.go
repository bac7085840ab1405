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
// and acknowledgements of what the server sent. See [conn.waits].
const (
	publishRate = iota // of PUBLISH: limits.publish_rate, shared with events over HTTP
	controlRate        // of everything else that signs, writes or logs: limits.control_rate, shared with states and receipts over HTTP
	paces
)

// What a packet counts against controlRate: each different filter of SUBSCRIBE or UNSUBSCRIBE 1,
// [twin.ReportCost] a reported state, [command.ReceiptCost] a receipt, and proofCost where a credential is checked or commands
// are signed: CONNECT, AUTH, and a publish to $watchword/….
const proofCost = 10

const (
	// heldBytes is how much of what is held back a connection may have before no more of it
	// is read, and TCP tells its client. One read, or one packet, may be above it.
	heldBytes = 64 << 10
	// paceStep is how much of its rate is granted to one connection at a time, as a part of
	// a second: those of a subject take turns.
	paceStep = 200
)

// errHeld is what becomes of a packet that came too early. It is handled again when it is
// in time.
var errHeld = errors.New("held back")

// pace is what of a connection is held back. It is under conn.processing but for size.
type pace struct {
	of     [paces]*rates.Account // nil before the session stands, and where there is no bound
	credit [paces]int            // reserved for what comes first, and not used
	due    time.Duration         // until what was reserved last is there
	held   []byte                // whole packets, in order
	size   atomic.Int64          // of held
	timer  *time.Timer           // runs while something is held
}

// join begins to count c's packets against the rates of its subject.
func (c *conn) join(now time.Time) {
	k := c.session.account()
	c.pace.of = [paces]*rates.Account{publishRate: c.broker.publishes.Join(k, now), controlRate: c.broker.controls.Join(k, now)}
}

// leavePace forgets what is held back, and gives back what was reserved for it.
func (c *conn) leavePace() {
	c.processing.Lock()
	defer c.processing.Unlock()
	p := &c.pace
	if p.timer != nil {
		p.timer.Stop()
	}
	if p.held = nil; p.of == [paces]*rates.Account{} {
		return
	}
	for i, a := range p.of {
		a.Return(p.credit[i])
	}
	p.of = [paces]*rates.Account{}
	k, now := c.session.account(), time.Now()
	c.broker.publishes.Leave(k, now)
	c.broker.controls.Leave(k, now)
}

// pay takes n from a rate, and reports whether they are there: if not, they are reserved,
// and the packet is held back until they are. tick is a moment of the monotonic clock, not
// long ago.
func (c *conn) pay(rate, n int, tick time.Time) bool {
	p := &c.pace
	if p.of[rate] == nil {
		return true
	}
	if p.credit[rate] < n {
		p.due = p.of[rate].Reserve(n-p.credit[rate], tick)
		if p.due > 0 {
			p.due -= time.Since(tick)
		}
		if p.credit[rate] = n; p.due > 0 {
			return false
		}
	}
	p.credit[rate] -= n
	return true
}

// waits reports whether a packet keeps its place behind what is held back.
func (c *conn) waits(first byte) bool {
	if len(c.pace.held) == 0 {
		return false
	}
	switch packet.Type(first >> 4) {
	case packet.PINGREQ, packet.PUBACK, packet.PUBREC, packet.PUBCOMP:
		return false // nothing that is held changes what they mean. PUBREL stays: it ends a publish that may be held
	}
	return true
}

// hold keeps a whole packet until those before it are done, and itself is in time.
func (c *conn) hold(whole []byte) {
	p := &c.pace
	switch packet.Type(whole[0] >> 4) {
	case packet.PUBLISH:
		c.broker.stats.heldBack.Add(1)
	case packet.DISCONNECT: // what it says of the will and the session counts at once
		_, body, _, _ := packet.Frame(whole, len(whole)) // it is whole: the reader framed it
		if d, err := packet.Parse(whole[0], body, c.version); err == nil {
			_ = c.lastWords(d.(*packet.Disconnect)) // in its place it says so again
		}
	}
	if len(p.held) == 0 {
		c.passIn(p.due)
	}
	p.held = append(p.held, whole...)
	p.size.Store(int64(len(p.held)))
}

func (c *conn) passIn(d time.Duration) {
	if c.pace.timer == nil {
		c.pace.timer = time.AfterFunc(d, c.passHeld)
		return
	}
	c.pace.timer.Reset(d)
}

// passHeld is the timer's: it handles what is in time by now.
func (c *conn) passHeld() {
	ctx := fair.With(c.broker.ctx, network(c.remote))
	defer c.recovered(ctx)
	again, more := c.passSome(ctx)
	if !c.leaving.Load() {
		c.settle()
	}
	if !more {
		return
	}
	c.processing.Lock()
	defer c.processing.Unlock()
	if len(c.pace.held) > 0 && !c.leaving.Load() {
		c.passIn(again)
	}
}

// passSome is passHeld up to what is not in time yet, and returns in how long it will be.
func (c *conn) passSome(ctx context.Context) (again time.Duration, more bool) {
	c.processing.Lock()
	defer c.processing.Unlock()
	p := &c.pace
	w := c.borrow()
	defer c.giveBack(w)
	for len(p.held) > 0 && !c.leaving.Load() {
		if n := c.inARow(); n > 0 && p.credit[publishRate] == 0 {
			now := time.Now()
			p.due = p.of[publishRate].Reserve(n, now)
			if p.credit[publishRate] = n; p.due > 0 {
				return p.due, true
			}
		}
		first, body, n, err := packet.Frame(p.held, len(p.held))
		if err == nil {
			w.whole = p.held[:n]
			err = c.handle(ctx, w, first, body)
		}
		if err == errHeld {
			return p.due, true
		}
		if err != nil {
			c.end(err)
			break
		}
		if p.held = p.held[n:]; len(p.held) == 0 {
			p.held = nil
		}
		c.stillHeld(len(p.held))
		if w.Offers > batchOffers {
			w.Flush()
		}
	}
	return 0, false
}

// stillHeld notes how much is held, and wakes the reader who waits for it to be less.
func (c *conn) stillHeld(n int) {
	if before := c.pace.size.Swap(int64(n)); n > 0 && (before <= heldBytes || n > heldBytes) {
		return
	}
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.out.moved.Broadcast()
}

// inARow is how many publishes come first of what is held, up to what is granted at a time.
func (c *conn) inARow() (n int) {
	if c.pace.of[publishRate] == nil {
		return 0
	}
	most := max(1, int(c.pace.of[publishRate].Rate()/paceStep))
	for rest := c.pace.held; n < most; n++ {
		first, _, used, err := packet.Frame(rest, len(rest))
		if err != nil || used == 0 || packet.Type(first>>4) != packet.PUBLISH {
			break
		}
		rest = rest[used:]
	}
	return n
}

// waitHeld is the reader's: it waits until at most that much is held, or the end comes.
func (c *conn) waitHeld(most int64) {
	if c.pace.size.Load() <= most {
		return
	}
	c.session.mu.Lock()
	for c.pace.size.Load() > most && !c.out.closed {
		c.out.moved.Wait()
	}
	c.session.mu.Unlock()
	// The client was not listened to: that it was silent meanwhile says nothing.
	c.extend(c.broker.options.Now())
	if c.leaving.Load() { // its deadline is the one
		_ = c.nc.SetReadDeadline(time.Now().Add(byeTimeout)) // the error is that of a closed connection, which the next read reports
	}
}

// recovered ends a connection in whose work something went wrong that must not.
func (c *conn) recovered(ctx context.Context) {
	if v := recover(); v != nil {
		c.broker.options.Log.ErrorContext(ctx, "panic in a connection", slog.Any("panic", v), slog.String("client", c.session.id), slog.String("stack", string(debug.Stack())))
		c.end(errPanic)
	}
}

// costOf is what a publish counts against controlRate.
func costOf(topic string) int {
	if strings.HasPrefix(topic, ownTopics) {
		return proofCost
	}
	if !strings.HasSuffix(topic, "/state") && !strings.HasSuffix(topic, "/receipts") {
		return 0
	}
	switch houseOf(topic).kind {
	case toState:
		return twin.ReportCost
	case toReceipts:
		return command.ReceiptCost
	}
	return 0
}

// distinct is how many different ones are in a list: what stands there again is answered with
// what was done for the first.
func distinct[T comparable](list []T) int {
	if len(list) < 2 {
		return len(list)
	}
	seen := make(map[T]struct{}, len(list))
	for _, x := range list {
		seen[x] = struct{}{}
	}
	return len(seen)
}
