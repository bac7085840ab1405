package mqtt

import (
	"context"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/command"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/policy"
)

// The bounds of handing over.
const (
	commandWindow = 16          // commands that one device has in hand and has not acknowledged
	commandRetry  = time.Second // after commands could not be handed over
	// How long an acknowledgement may wait to be written down: the receipt, which as
	// a rule comes right behind it, says the same and more.
	deliverPause = 25 * time.Millisecond
)

// pump hands a device's commands to one connection, in sequence. It runs while
// there is something to do and costs nothing while there is not.
type pump struct {
	c     *conn
	line  *command.Line
	sub   *subscription
	topic string

	mu      sync.Mutex // a leaf: nothing else is locked under it
	running bool
	again   bool  // something may be new since the run began to look
	more    bool  // there may be more than the window had room for
	due     bool  // what was acknowledged is to be written down now
	pausing bool  // it will be
	stopped bool  // hand over nothing more
	after   int64 // the number that was handed over last
	nonce   string
	epoch   int64
	flying  int   // handed over on this connection, not acknowledged
	acked   int64 // up to here, to be written down
	written int64
}

// keepPump starts or stops the pump as the subscriptions say. It is called with
// c.mu held.
func (c *conn) keepPump() {
	if c.broker.Desk == nil || c.closed {
		return
	}
	var by *subscription
	topic := c.commandsTopic()
	for _, s := range c.subs {
		if s.qos > 0 && s.memberOf == nil && policy.Match(s.filter, topic) {
			by = s
			break
		}
	}
	switch {
	case by == nil && c.pump != nil:
		c.pump.stop()
		c.pump = nil
	case by != nil && c.pump == nil:
		p := &pump{c: c, sub: by, topic: topic}
		p.line = c.broker.Desk.AttachFunc(c.world.tenant, c.owner.subject, p.kick)
		if h := c.hello; h != nil {
			p.nonce, p.epoch, p.acked, p.due = h.Nonce, h.Epoch, h.Seq, true
			p.wantsLog(h)
		}
		c.pump = p
		p.kick()
	case by != nil:
		c.pump.sub = by
	}
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
	if !p.running && (!p.stopped || p.acked > p.written) {
		p.running = true
		go p.run(p.c.broker.ctx)
	}
}

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

// acknowledged notes a PUBACK for the command with number n.
func (p *pump) acknowledged(n int64, taken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flying--
	if taken {
		p.acked = max(p.acked, n)
	}
	if p.more {
		p.again = true
		p.start()
	}
	if p.acked > p.written && !p.pausing {
		p.pausing = true
		time.AfterFunc(deliverPause, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.pausing, p.due = false, true
			p.start()
		})
	}
}

// greeted notes a device's hello: where it is, and the nonce that commands must carry.
func (p *pump) greeted(h *hello) {
	p.mu.Lock()
	if p.nonce != h.Nonce {
		p.after = 0 // what is unanswered goes out again, for this nonce
	}
	p.nonce, p.epoch = h.Nonce, h.Epoch
	p.acked, p.written, p.due = h.Seq, 0, true
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
	acked, epoch := p.acked, p.epoch
	tell := acked > p.written && (p.due || p.stopped)
	look := p.again && !p.stopped
	if !tell && !look {
		p.running, p.due = false, false
		p.mu.Unlock()
		return false
	}
	if tell {
		p.due, p.written = false, acked
	}
	if look {
		p.again, p.more = false, false
	}
	after, nonce, room := p.after, p.nonce, commandWindow-p.flying
	p.more = p.more || look && room <= 0
	p.mu.Unlock()
	if tell {
		passed, err := p.line.Deliver(ctx, epoch, acked)
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
	cs, more, err := p.line.Take(ctx, after, nonce, room)
	if err != nil {
		return p.failed(ctx, err)
	}
	for _, sc := range cs {
		p.send(sc)
	}
	if more {
		p.mu.Lock()
		p.again = true // the window may have room meanwhile; else more says so then
		p.mu.Unlock()
	}
	return true
}

// send puts one command on its way, if the device may still have it.
func (p *pump) send(sc command.SealedCommand) {
	m := &message{topic: p.topic, payload: []byte(sc.JWE), qos: 1, private: &private{p.c, sc.Seq}, props: &packet.Properties{}}
	m.props.SetText(packet.ContentType, "application/jose")
	p.mu.Lock()
	p.after, p.epoch = sc.Seq, sc.Epoch
	p.flying++
	p.mu.Unlock()
	p.c.mu.Lock()
	sub := p.sub
	p.c.mu.Unlock()
	p.c.broker.stats.commands.Add(1)
	if wake := p.c.offer(m, &outcome{}, nil, sub); wake != nil {
		wake.flush(false)
	}
}

// failed looks again a while later, whatever it was: what waits must not wait for the
// next command to come. Where the device has lost its right, its session ends by itself;
// where a newer line has the commands, that one hands them over.
func (p *pump) failed(ctx context.Context, err error) bool {
	conflict := watchword.CodeOf(err) == watchword.Conflict
	if ctx.Err() == nil && !conflict {
		p.c.broker.refused(p.c, "commands not handed over", p.topic, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running, p.written, p.again, p.due = false, 0, true, true
	if !conflict && !p.stopped && ctx.Err() == nil {
		time.AfterFunc(commandRetry, p.kick)
	}
	return false
}
