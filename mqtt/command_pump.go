package mqtt

import (
	"context"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/command"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/policy"
)

// The bounds of handing over.
const (
	commandWindow     = 16          // commands that one device has in hand and has not acknowledged: see [conn.commandWindow]
	commandRetryDelay = time.Second // after commands could not be handed over
	// How long an acknowledgement may wait to be written down: the receipt, which as
	// a rule comes right behind it, says the same and more.
	deliverDelay = 25 * time.Millisecond
)

// commandPump hands a device's commands to one connection, in sequence. It runs while
// there is something to do and costs nothing while there is not.
//
// Each command that it hands over is in hand until it is acknowledged, returned (it was
// not queued, or was taken out of the queue again), or found too large when it was to be
// written; or until the connection ends. Nothing else takes a place of the window.
type commandPump struct {
	c         *conn
	delivery  *command.Delivery
	sub       *subscription
	topic     string
	maxPacket int // the longest packet that the client takes; 0 for any
	window    int // commands that may be in hand

	mu               lockrank.Mutex[pumpLock]
	running          bool
	rerun            bool  // something may be new since the run began to look
	hasMore          bool  // there may be more than the window had room for
	deliverNow       bool  // what was acknowledged is to be written down now
	deliverScheduled bool  // it will be
	stopped          bool  // hand over nothing more
	lastHandedOver   int64 // the number that was handed over last
	nonce            string
	maxJWE           int                     // bytes of the largest JWE that the device can hold; 0 for any
	inflight         []command.SealedCommand // without their JWEs; at most window
	acknowledgedUpTo commandPosition         // the device said that it knows all up to here; to be written down
	acknowledgedSeqs []int64                 // acknowledged one by one, to be written down
	tooLarge         []oversizedCommand      // to be settled
}

// commandPosition is a command's number in an epoch; its seq is 0 for none.
type commandPosition struct{ epoch, seq int64 }

// oversizedCommand is a command that was handed over and turned out to be too large to send.
type oversizedCommand struct {
	command command.SealedCommand
	reason  command.Reason
}

// updatePump starts or stops the pump as the subscriptions say. It is called with
// c.mu held.
func (c *conn) updatePump() {
	if c.broker.deps.Commands == nil || c.out.closed {
		return
	}
	var by *subscription
	topic := c.commandsTopic()
	for _, s := range c.session.subs {
		if s.qos > 0 && s.memberOf == nil && policy.Match(s.Filter, topic) {
			by = s
			break
		}
	}
	switch {
	case by == nil && c.pump != nil:
		c.pump.stop()
		c.pump = nil
	case by != nil && c.pump == nil:
		p := &commandPump{c: c, sub: by, topic: topic, maxPacket: c.out.maxPacket, window: c.commandWindow()}
		p.delivery = c.broker.deps.Commands.AttachFunc(c.session.tenant.id, c.session.owner.subject, p.wake)
		if h := c.hello; h != nil {
			p.nonce, p.maxJWE, p.acknowledgedUpTo, p.deliverNow = h.Nonce, h.Max, commandPosition{h.Epoch, h.Seq}, true
			p.requireLogged(h)
		}
		c.pump = p
		p.wake()
	case by != nil:
		c.pump.sub = by
	}
}

// commandWindow is how many commands the client may have unacknowledged: half of its Receive Maximum
// at most, if it takes more than one message. A device that carries them out in turn must not be
// deaf for everything else until it is done. mu is held.
func (c *conn) commandWindow() int {
	if c.out.receiveMaximum < 2 {
		return commandWindow
	}
	return min(commandWindow, c.out.receiveMaximum/2)
}

// wake makes the pump look again.
func (p *commandPump) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rerun = true
	p.start()
}

// start is called with mu held.
func (p *commandPump) start() {
	if !p.running && (!p.stopped || p.hasUnrecorded()) {
		p.running = true
		go p.run(p.c.broker.ctx)
	}
}

// hasUnrecorded reports whether something is to be written down. mu is held.
func (p *commandPump) hasUnrecorded() bool {
	return p.acknowledgedUpTo.seq > 0 || len(p.acknowledgedSeqs) > 0 || len(p.tooLarge) > 0
}

// stop is called with c.mu held. The line goes to another connection once what was
// acknowledged here is written down: it would be handed over again.
func (p *commandPump) stop() {
	p.mu.Lock()
	p.stopped = true
	p.start()
	running := p.running
	p.mu.Unlock()
	if !running {
		p.delivery.Close()
	}
}

// takeInflight takes a command out of hand and makes its place free; ok is false where it is not
// in hand: it was handed over before by another pump. mu is held.
func (p *commandPump) takeInflight(n int64) (c command.SealedCommand, ok bool) {
	i := slices.IndexFunc(p.inflight, func(c command.SealedCommand) bool { return c.Seq == n })
	if i < 0 {
		return c, false
	}
	c = p.inflight[i]
	p.inflight = slices.Delete(p.inflight, i, i+1)
	if p.hasMore {
		p.rerun = true
		p.start()
	}
	return c, true
}

// acknowledged notes a PUBACK for the command with number n. One that is not taken stays
// sent, and goes out again over the next connection.
func (p *commandPump) acknowledged(n int64, taken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takeInflight(n)
	if !taken {
		return
	}
	if !slices.Contains(p.acknowledgedSeqs, n) { // so that it has no more than a device has commands: command.MaxQueued
		p.acknowledgedSeqs = append(p.acknowledgedSeqs, n)
	}
	if !p.deliverScheduled {
		p.deliverScheduled = true
		time.AfterFunc(deliverDelay, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.deliverScheduled, p.deliverNow = false, true
			p.start()
		})
	}
}

// notSent notes that the command with number n was not sent: it goes out again, with
// those behind it.
func (p *commandPump) notSent(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.takeInflight(n); !ok {
		return
	}
	p.lastHandedOver = min(p.lastHandedOver, n-1)
	p.rerun = true
	p.start()
}

// tooLargeToSend notes that the command with number n was not sent, because its packet has
// size bytes. The client's connection measured it when it was handed over, but what goes
// along with a message can have become more.
func (p *commandPump) tooLargeToSend(n int64, size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.takeInflight(n); ok {
		p.tooLarge = append(p.tooLarge, oversizedCommand{c, command.PacketTooLarge(size, p.maxPacket)})
		p.start()
	}
}

// handleHello notes a device's hello: where it is, what it can hold, and the nonce that
// commands must carry.
func (p *commandPump) handleHello(h *hello) {
	p.mu.Lock()
	if p.nonce != h.Nonce {
		p.lastHandedOver = 0 // what is unanswered goes out again, for this nonce
	}
	p.nonce, p.maxJWE, p.acknowledgedUpTo, p.deliverNow = h.Nonce, h.Max, commandPosition{h.Epoch, h.Seq}, true
	p.mu.Unlock()
	p.requireLogged(h)
	p.wake()
}

// requireLogged notes that a device obeys only what is logged.
func (p *commandPump) requireLogged(h *hello) {
	if h.Log != nil {
		p.delivery.RequireLogProofs(*h.Log)
	}
}

func (p *commandPump) run(ctx context.Context) {
	for p.step(ctx) {
		continue
	}
	p.mu.Lock()
	stopped := p.stopped
	p.mu.Unlock()
	if stopped {
		p.delivery.Close()
	}
}

// step does what there is to do and reports whether to look again.
func (p *commandPump) step(ctx context.Context) bool {
	p.mu.Lock()
	tell := p.hasUnrecorded() && (p.deliverNow || p.stopped || len(p.tooLarge) > 0)
	look := p.rerun && !p.stopped
	if !tell && !look {
		p.running, p.deliverNow = false, false
		p.mu.Unlock()
		return false
	}
	var reported acknowledgements
	if tell {
		reported = p.takeAcknowledgements()
	}
	if look {
		p.rerun, p.hasMore = false, false
	}
	after, nonce, room := p.lastHandedOver, p.nonce, p.window-len(p.inflight)
	p.hasMore = p.hasMore || look && room <= 0
	p.mu.Unlock()
	if tell {
		passed, err := p.recordAcknowledgements(ctx, reported)
		if err != nil {
			return p.retryLater(ctx, err)
		}
		p.mu.Lock()
		if p.nonce == nonce {
			p.lastHandedOver = max(p.lastHandedOver, passed)
		}
		after = p.lastHandedOver
		p.mu.Unlock()
	}
	if !look || room <= 0 {
		return true
	}
	p.delivery.SetLimits(p.sizeLimit())
	lockrank.Block()
	cs, more, err := p.delivery.Take(ctx, after, nonce, room)
	if err != nil {
		return p.retryLater(ctx, err)
	}
	for _, sc := range cs {
		if !p.send(sc) {
			return p.retryLater(ctx, nil)
		}
	}
	if more {
		p.mu.Lock()
		p.rerun = true // the window may have room meanwhile; else more says so then
		p.mu.Unlock()
	}
	return true
}

// acknowledgements is what a pump writes down.
type acknowledgements struct {
	upTo     commandPosition
	seqs     []int64
	tooLarge []oversizedCommand
}

// takeAcknowledgements returns what is to be written down, and forgets it. mu is held.
func (p *commandPump) takeAcknowledgements() acknowledgements {
	t := acknowledgements{p.acknowledgedUpTo, p.acknowledgedSeqs, p.tooLarge}
	p.acknowledgedUpTo, p.acknowledgedSeqs, p.tooLarge, p.deliverNow = commandPosition{}, nil, nil, false
	return t
}

// recordAcknowledgements writes down what the device has, and what it cannot have; passed is as in
// [command.Delivery.AcknowledgeUpTo]. What could not be written is there again.
func (p *commandPump) recordAcknowledgements(ctx context.Context, t acknowledgements) (passed int64, err error) {
	defer func() {
		if err != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.acknowledgedUpTo.seq == 0 { // no newer one came
				p.acknowledgedUpTo = t.upTo
			}
			p.acknowledgedSeqs, p.tooLarge = append(t.seqs, p.acknowledgedSeqs...), append(t.tooLarge, p.tooLarge...)
		}
	}()
	lockrank.Block()
	if passed, err = p.delivery.AcknowledgeUpTo(ctx, t.upTo.epoch, t.upTo.seq); err != nil {
		return 0, err
	}
	t.upTo = commandPosition{}
	if len(t.seqs) > 0 {
		if err = p.delivery.Acknowledge(ctx, t.seqs); err != nil {
			return passed, err
		}
		t.seqs = nil
	}
	for len(t.tooLarge) > 0 {
		if err = p.delivery.Undeliverable(ctx, t.tooLarge[0].command, t.tooLarge[0].reason); err != nil {
			return passed, err
		}
		t.tooLarge = t.tooLarge[1:]
	}
	return passed, nil
}

// sizeLimit is what a command may have in bytes to go to the client.
func (p *commandPump) sizeLimit() command.Limits {
	p.mu.Lock()
	f := command.Limits{MaxJWE: p.maxJWE, MaxPacket: p.maxPacket}
	p.mu.Unlock()
	if f.MaxPacket == 0 {
		return f
	}
	p.c.session.mu.Lock()
	it := queuedMessage{qos: 1}
	if n := p.sub.identifier; n > 0 {
		it.extra = &queuedExtra{identifiers: []uint32{n}}
	}
	alias, known := p.c.lookUpAlias(p.topic)
	p.c.session.mu.Unlock()
	f.PacketSize = func(jwe int) int {
		m := &message{topic: p.topic, payload: make([]byte, jwe), qos: 1, props: commandProperties()}
		return len(m.encodeFor(nil, p.c.version, &it, 1, alias, known, time.Time{}))
	}
	return f
}

// commandProperties is what goes along with a command.
func commandProperties() *packet.Properties {
	props := &packet.Properties{}
	props.SetText(packet.ContentType, "application/jose")
	return props
}

// send puts one command on its way, if the device may still have it. It reports false,
// and leaves all as it was, where it could not be queued.
func (p *commandPump) send(sc command.SealedCommand) bool {
	m := &message{topic: p.topic, payload: []byte(sc.JWE), qos: 1, unicast: &unicast{receiver: p.c, command: sc.Seq}, props: commandProperties()}
	sc.JWE = ""
	p.mu.Lock()
	p.lastHandedOver = sc.Seq
	p.inflight = append(p.inflight, sc)
	p.mu.Unlock()
	p.c.session.mu.Lock()
	sub := p.sub
	p.c.session.mu.Unlock()
	var o bus.Result
	wake := p.c.session.deliver(m, &o, nil, &sub.Subscription)
	if o.Receivers == 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		if _, ok := p.takeInflight(sc.Seq); ok {
			p.lastHandedOver = min(p.lastHandedOver, sc.Seq-1)
		}
		return false
	}
	p.c.broker.stats.commands.Add(1)
	if wake != nil {
		wake.flush(false)
	}
	return true
}

// retryLater looks again a while later, whatever it was: what waits must not wait for the
// next command to come. Where the device has lost its right, its session ends by itself;
// where a newer line has the commands, that one hands them over. A nil err is a client
// that could not be offered a command: its subscription or its connection is about to end.
func (p *commandPump) retryLater(ctx context.Context, err error) bool {
	conflict := watchword.CodeOf(err) == watchword.Conflict
	if err != nil && ctx.Err() == nil && !conflict {
		p.c.broker.recordRefusal(p.c, "commands not handed over", p.topic, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running, p.rerun, p.deliverNow = false, true, true
	if !conflict && !p.stopped && ctx.Err() == nil {
		time.AfterFunc(commandRetryDelay, p.wake)
	}
	return false
}
