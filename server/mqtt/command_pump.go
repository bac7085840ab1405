package mqtt

import (
	"context"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/policy"
)

// Limits of command delivery.
const (
	commandWindow     = 16          // unacknowledged commands of one device: see [conn.commandWindow]
	commandRetryDelay = time.Second // pause after a failed delivery
	// acknowledgeDelay is how long an acknowledgement may wait before it is recorded: usually the
	// receipt follows and records more.
	acknowledgeDelay = 25 * time.Millisecond
)

// commandPump delivers a device's commands to one connection, in sequence. Its goroutine runs only
// while there is work.
//
// A delivered command is inflight until it is acknowledged, taken back (it was not queued, or
// removed from the queue), found too large when it was encoded, or until the connection ends. Only
// inflight commands count against the window.
type commandPump struct {
	c         *conn
	delivery  *command.Delivery
	sub       *subscription
	topic     string
	maxPacket int // largest packet that the client accepts; 0: any
	window    int // largest number of inflight commands

	mu               lockrank.Mutex[pumpLock]
	running          bool
	rerun            bool  // look again: there may be new commands
	hasMore          bool  // there may be more commands than the window allows
	deliverNow       bool  // record acknowledgements now
	deliverScheduled bool  // recording is scheduled
	stopped          bool  // deliver no more
	lastHandedOver   int64 // last delivered sequence number
	nonce            string
	maxJWE           int                     // largest JWE that the device accepts, in bytes; 0: any
	inflight         []command.SealedCommand // without their JWEs; at most window
	acknowledgedUpTo commandPosition         // the device has everything up to here; to be recorded
	acknowledgedSeqs []int64                 // acknowledged individually, to be recorded
	tooLarge         []oversizedCommand      // to be reported as undeliverable
}

// commandPosition is an epoch and sequence number; seq 0 means none.
type commandPosition struct{ epoch, seq int64 }

// oversizedCommand is a delivered command that was too large to send.
type oversizedCommand struct {
	command command.SealedCommand
	reason  command.Reason
}

// updatePump starts or stops the pump according to the subscriptions. c.session.mu is held.
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
	case by != nil && c.pump == nil && c.hello != nil && c.broker.deps.Commands.CheckEpoch(c.hello.Epoch) != nil:
		return // refused in its hello
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

// commandWindow returns how many unacknowledged commands the client may have: at most half of its
// Receive Maximum, if that is more than one, so that a device that is executing commands still
// receives other messages. mu is held.
func (c *conn) commandWindow() int {
	if c.out.receiveMaximum < 2 {
		return commandWindow
	}
	return min(commandWindow, c.out.receiveMaximum/2)
}

// wake makes the pump look for work.
func (p *commandPump) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rerun = true
	p.start()
}

// start requires mu to be held.
func (p *commandPump) start() {
	if !p.running && (!p.stopped || p.hasUnrecorded()) {
		p.running = true
		go p.run(p.c.broker.ctx)
	}
}

// hasUnrecorded reports whether there is something to record. mu is held.
func (p *commandPump) hasUnrecorded() bool {
	return p.acknowledgedUpTo.seq > 0 || len(p.acknowledgedSeqs) > 0 || len(p.tooLarge) > 0
}

// stop requires the session's mu. Another connection may take over delivery once the
// acknowledgements are recorded; otherwise it would deliver these commands again.
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

// takeInflight removes an inflight command; ok is false if it is not inflight here, but was
// delivered by an earlier pump. mu is held.
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

// acknowledged handles the PUBACK of command n. A command that was not accepted stays sent, and is
// delivered again over the next connection.
func (p *commandPump) acknowledged(n int64, taken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takeInflight(n)
	if !taken {
		return
	}
	if !slices.Contains(p.acknowledgedSeqs, n) { // bounded like a device's commands: command.MaxQueued
		p.acknowledgedSeqs = append(p.acknowledgedSeqs, n)
	}
	if !p.deliverScheduled {
		p.deliverScheduled = true
		time.AfterFunc(acknowledgeDelay, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.deliverScheduled, p.deliverNow = false, true
			p.start()
		})
	}
}

// notSent records that command n was not sent: it and later ones are delivered again.
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

// tooLargeToSend records that command n was not sent because its packet has size bytes. Its size
// was checked at delivery, but its properties can grow afterwards.
func (p *commandPump) tooLargeToSend(n int64, size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.takeInflight(n); ok {
		p.tooLarge = append(p.tooLarge, oversizedCommand{c, command.PacketTooLarge(size, p.maxPacket)})
		p.start()
	}
}

// handleHello handles a device's hello: its position, its largest JWE, and the nonce for its
// commands.
func (p *commandPump) handleHello(h *hello) {
	p.mu.Lock()
	if p.nonce != h.Nonce {
		p.lastHandedOver = 0 // unanswered commands are delivered again with this nonce
	}
	p.nonce, p.maxJWE, p.acknowledgedUpTo, p.deliverNow = h.Nonce, h.Max, commandPosition{h.Epoch, h.Seq}, true
	p.mu.Unlock()
	p.requireLogged(h)
	p.wake()
}

// requireLogged records that the device executes only logged commands.
func (p *commandPump) requireLogged(h *hello) {
	if h.Log != nil {
		p.delivery.RequireLogProofs(h.Epoch, *h.Log)
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

// step does the pending work and reports whether to look again.
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
		p.rerun = true // the window may have room by then; otherwise hasMore is set
		p.mu.Unlock()
	}
	return true
}

// acknowledgements is what a pump has to record.
type acknowledgements struct {
	upTo     commandPosition
	seqs     []int64
	tooLarge []oversizedCommand
}

// takeAcknowledgements returns what is to be recorded and clears it. mu is held.
func (p *commandPump) takeAcknowledgements() acknowledgements {
	t := acknowledgements{p.acknowledgedUpTo, p.acknowledgedSeqs, p.tooLarge}
	p.acknowledgedUpTo, p.acknowledgedSeqs, p.tooLarge, p.deliverNow = commandPosition{}, nil, nil, false
	return t
}

// recordAcknowledgements records the commands that the device has received, and those that are too
// large for it; passed is as in [command.Delivery.AcknowledgeUpTo]. What could not be recorded is
// kept for the next time.
func (p *commandPump) recordAcknowledgements(ctx context.Context, t acknowledgements) (passed int64, err error) {
	defer func() {
		if err != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.acknowledgedUpTo.seq == 0 { // no newer one was set
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
		if err = p.delivery.MarkUndeliverable(ctx, t.tooLarge[0].command, t.tooLarge[0].reason); err != nil {
			return passed, err
		}
		t.tooLarge = t.tooLarge[1:]
	}
	return passed, nil
}

// sizeLimit returns the largest command that can be sent to the client.
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

// commandProperties returns the properties of a PUBLISH with a command.
func commandProperties() *packet.Properties {
	props := &packet.Properties{}
	props.SetText(packet.ContentType, "application/jose")
	return props
}

// send queues one command if the device may still receive it. It returns false without effect if it
// could not be queued.
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

// retryLater looks again after a pause, so that waiting commands do not depend on a new one. If the
// device lost its permission, its session ends; if a newer connection took over delivery, that one
// delivers; a server that was superseded delivers nothing more. A nil err means that the command could not be queued because the subscription or
// connection is ending.
func (p *commandPump) retryLater(ctx context.Context, err error) bool {
	code := watchword.CodeOf(err)
	conflict := code == watchword.Conflict || code == watchword.Superseded
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
