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
	commandWindow = 16          // commands that one device has in hand and has not acknowledged: see [conn.commandWindow]
	commandRetry  = time.Second // after commands could not be handed over
	// How long an acknowledgement may wait to be written down: the receipt, which as
	// a rule comes right behind it, says the same and more.
	deliverPause = 25 * time.Millisecond
)

// pump hands a device's commands to one connection, in sequence. It runs while
// there is something to do and costs nothing while there is not.
//
// Each command that it hands over is in hand until it is acknowledged, returned (it was
// not queued, or was taken out of the queue again), or found too large when it was to be
// written; or until the connection ends. Nothing else takes a place of the window.
type pump struct {
	c       *conn
	line    *command.Line
	sub     *subscription
	topic   string
	largest int // the longest packet that the client takes; 0 for any
	window  int // commands that may be in hand

	mu       lockrank.Mutex[pumpLock]
	running  bool
	again    bool  // something may be new since the run began to look
	more     bool  // there may be more than the window had room for
	due      bool  // what was acknowledged is to be written down now
	pausing  bool  // it will be
	stopped  bool  // hand over nothing more
	after    int64 // the number that was handed over last
	nonce    string
	max      int                     // bytes of the largest JWE that the device can hold; 0 for any
	inHand   []command.SealedCommand // without their JWEs; at most window
	known    position                // the device said that it knows all up to here; to be written down
	acked    []int64                 // acknowledged one by one, to be written down
	tooLarge []misfit                // to be settled
}

// position is a command's number in an epoch; its seq is 0 for none.
type position struct{ epoch, seq int64 }

// misfit is a command that was handed over and turned out to be too large to send.
type misfit struct {
	command command.SealedCommand
	why     command.Reason
}

// keepPump starts or stops the pump as the subscriptions say. It is called with
// c.mu held.
func (c *conn) keepPump() {
	if c.broker.deps.Desk == nil || c.out.closed {
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
		p := &pump{c: c, sub: by, topic: topic, largest: c.out.largest, window: c.commandWindow()}
		p.line = c.broker.deps.Desk.AttachFunc(c.session.world.tenant, c.session.owner.subject, p.kick)
		if h := c.hello; h != nil {
			p.nonce, p.max, p.known, p.due = h.Nonce, h.Max, position{h.Epoch, h.Seq}, true
			p.wantsLog(h)
		}
		c.pump = p
		p.kick()
	case by != nil:
		c.pump.sub = by
	}
}

// commandWindow is how many commands the client may have unacknowledged: half of its Receive Maximum
// at most, if it takes more than one message. A device that carries them out in turn must not be
// deaf for everything else until it is done. mu is held.
func (c *conn) commandWindow() int {
	if c.out.window < 2 {
		return commandWindow
	}
	return min(commandWindow, c.out.window/2)
}

// kick makes the pump look again.
func (p *pump) kick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.again = true
	p.start()
}

// start is called with mu held.
func (p *pump) start() {
	if !p.running && (!p.stopped || p.untold()) {
		p.running = true
		go p.run(p.c.broker.ctx)
	}
}

// untold reports whether something is to be written down. mu is held.
func (p *pump) untold() bool { return p.known.seq > 0 || len(p.acked) > 0 || len(p.tooLarge) > 0 }

// stop is called with c.mu held. The line goes to another connection once what was
// acknowledged here is written down: it would be handed over again.
func (p *pump) stop() {
	p.mu.Lock()
	p.stopped = true
	p.start()
	running := p.running
	p.mu.Unlock()
	if !running {
		p.line.Close()
	}
}

// out takes a command out of hand and makes its place free; ok is false where it is not
// in hand: it was handed over before by another pump. mu is held.
func (p *pump) out(n int64) (c command.SealedCommand, ok bool) {
	i := slices.IndexFunc(p.inHand, func(c command.SealedCommand) bool { return c.Seq == n })
	if i < 0 {
		return c, false
	}
	c = p.inHand[i]
	p.inHand = slices.Delete(p.inHand, i, i+1)
	if p.more {
		p.again = true
		p.start()
	}
	return c, true
}

// acknowledged notes a PUBACK for the command with number n. One that is not taken stays
// sent, and goes out again over the next connection.
func (p *pump) acknowledged(n int64, taken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out(n)
	if !taken {
		return
	}
	if !slices.Contains(p.acked, n) { // so that it has no more than a device has commands: command.MaxQueued
		p.acked = append(p.acked, n)
	}
	if !p.pausing {
		p.pausing = true
		time.AfterFunc(deliverPause, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.pausing, p.due = false, true
			p.start()
		})
	}
}

// returned notes that the command with number n was not sent: it goes out again, with
// those behind it.
func (p *pump) returned(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.out(n); !ok {
		return
	}
	p.after = min(p.after, n-1)
	p.again = true
	p.start()
}

// doesNotFit notes that the command with number n was not sent, because its packet has
// size bytes. The client's connection measured it when it was handed over, but what goes
// along with a message can have become more.
func (p *pump) doesNotFit(n int64, size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.out(n); ok {
		p.tooLarge = append(p.tooLarge, misfit{c, command.PacketTooLarge(size, p.largest)})
		p.start()
	}
}

// greeted notes a device's hello: where it is, what it can hold, and the nonce that
// commands must carry.
func (p *pump) greeted(h *hello) {
	p.mu.Lock()
	if p.nonce != h.Nonce {
		p.after = 0 // what is unanswered goes out again, for this nonce
	}
	p.nonce, p.max, p.known, p.due = h.Nonce, h.Max, position{h.Epoch, h.Seq}, true
	p.mu.Unlock()
	p.wantsLog(h)
	p.kick()
}

// wantsLog notes that a device obeys only what is logged.
func (p *pump) wantsLog(h *hello) {
	if h.Log != nil {
		p.line.Logged(*h.Log)
	}
}

func (p *pump) run(ctx context.Context) {
	for p.step(ctx) {
		continue
	}
	p.mu.Lock()
	stopped := p.stopped
	p.mu.Unlock()
	if stopped {
		p.line.Close()
	}
}

// step does what there is to do and reports whether to look again.
func (p *pump) step(ctx context.Context) bool {
	p.mu.Lock()
	tell := p.untold() && (p.due || p.stopped || len(p.tooLarge) > 0)
	look := p.again && !p.stopped
	if !tell && !look {
		p.running, p.due = false, false
		p.mu.Unlock()
		return false
	}
	var told told
	if tell {
		told = p.toTell()
	}
	if look {
		p.again, p.more = false, false
	}
	after, nonce, room := p.after, p.nonce, p.window-len(p.inHand)
	p.more = p.more || look && room <= 0
	p.mu.Unlock()
	if tell {
		passed, err := p.tell(ctx, told)
		if err != nil {
			return p.failed(ctx, err)
		}
		p.mu.Lock()
		if p.nonce == nonce {
			p.after = max(p.after, passed)
		}
		after = p.after
		p.mu.Unlock()
	}
	if !look || room <= 0 {
		return true
	}
	p.line.Fits(p.fit())
	lockrank.Block()
	cs, more, err := p.line.Take(ctx, after, nonce, room)
	if err != nil {
		return p.failed(ctx, err)
	}
	for _, sc := range cs {
		if !p.send(sc) {
			return p.failed(ctx, nil)
		}
	}
	if more {
		p.mu.Lock()
		p.again = true // the window may have room meanwhile; else more says so then
		p.mu.Unlock()
	}
	return true
}

// told is what a pump writes down.
type told struct {
	known    position
	acked    []int64
	tooLarge []misfit
}

// toTell returns what is to be written down, and forgets it. mu is held.
func (p *pump) toTell() told {
	t := told{p.known, p.acked, p.tooLarge}
	p.known, p.acked, p.tooLarge, p.due = position{}, nil, nil, false
	return t
}

// tell writes down what the device has, and what it cannot have; passed is as in
// [command.Line.Deliver]. What could not be written is there again.
func (p *pump) tell(ctx context.Context, t told) (passed int64, err error) {
	defer func() {
		if err != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.known.seq == 0 { // no newer one came
				p.known = t.known
			}
			p.acked, p.tooLarge = append(t.acked, p.acked...), append(t.tooLarge, p.tooLarge...)
		}
	}()
	lockrank.Block()
	if passed, err = p.line.Deliver(ctx, t.known.epoch, t.known.seq); err != nil {
		return 0, err
	}
	t.known = position{}
	if len(t.acked) > 0 {
		if err = p.line.Acknowledged(ctx, t.acked); err != nil {
			return passed, err
		}
		t.acked = nil
	}
	for len(t.tooLarge) > 0 {
		if err = p.line.Undeliverable(ctx, t.tooLarge[0].command, t.tooLarge[0].why); err != nil {
			return passed, err
		}
		t.tooLarge = t.tooLarge[1:]
	}
	return passed, nil
}

// fit is what a command may have in bytes to go to the client.
func (p *pump) fit() command.Fit {
	p.mu.Lock()
	f := command.Fit{Max: p.max, Packet: p.largest}
	p.mu.Unlock()
	if f.Packet == 0 {
		return f
	}
	p.c.session.mu.Lock()
	it := item{qos: 1}
	if n := p.sub.identifier; n > 0 {
		it.x = &extra{identifiers: []uint32{n}}
	}
	alias, known := p.c.lookUpAlias(p.topic)
	p.c.session.mu.Unlock()
	f.Size = func(jwe int) int {
		m := &message{topic: p.topic, payload: make([]byte, jwe), qos: 1, props: commandProperties()}
		return len(m.custom(nil, p.c.version, &it, 1, alias, known, time.Time{}))
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
func (p *pump) send(sc command.SealedCommand) bool {
	m := &message{topic: p.topic, payload: []byte(sc.JWE), qos: 1, private: &private{only: p.c, command: sc.Seq}, props: commandProperties()}
	sc.JWE = ""
	p.mu.Lock()
	p.after = sc.Seq
	p.inHand = append(p.inHand, sc)
	p.mu.Unlock()
	p.c.session.mu.Lock()
	sub := p.sub
	p.c.session.mu.Unlock()
	var o bus.Result
	wake := p.c.session.offer(m, &o, nil, &sub.Subscription)
	if o.Receivers == 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		if _, ok := p.out(sc.Seq); ok {
			p.after = min(p.after, sc.Seq-1)
		}
		return false
	}
	p.c.broker.stats.commands.Add(1)
	if wake != nil {
		wake.flush(false)
	}
	return true
}

// failed looks again a while later, whatever it was: what waits must not wait for the
// next command to come. Where the device has lost its right, its session ends by itself;
// where a newer line has the commands, that one hands them over. A nil err is a client
// that could not be offered a command: its subscription or its connection is about to end.
func (p *pump) failed(ctx context.Context, err error) bool {
	conflict := watchword.CodeOf(err) == watchword.Conflict
	if err != nil && ctx.Err() == nil && !conflict {
		p.c.broker.refused(p.c, "commands not handed over", p.topic, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running, p.again, p.due = false, true, true
	if !conflict && !p.stopped && ctx.Err() == nil {
		time.AfterFunc(commandRetry, p.kick)
	}
	return false
}
