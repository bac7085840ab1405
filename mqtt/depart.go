package mqtt

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/shelf"
)

// remains is what is to be done once a connection has lost its client.
type remains struct {
	will    *will // to be published now
	orphans []orphan
	there   bool // orphans are for who is there alone: the client may come for them
	watch   int  // of which turn of a lasting client the guard is to know; 0 for none
	over    bool // the client is no more
}

// detach is detachFor for who cannot do what is to be done: another will.
func (c *conn) detach() {
	if c.conn == c && c.rest == nil {
		rest := c.detachFor(nil)
		c.rest = &rest
	}
}

// detachFor takes the client from its connection. What lasts of it waits from here on;
// what does not is gone. cause is as in [conn.end]. It does so once; mu is held.
func (c *conn) detachFor(cause error) (rest remains) {
	if c.rest != nil {
		rest, *c.rest = *c.rest, remains{}
		return rest
	}
	if c.conn != c {
		return rest
	}
	c.rest = &remains{}
	c.answers = nil
	c.listen(nil)
	if c.pump != nil {
		c.pump.stop()
		c.pump = nil
	}
	rest.orphans = c.orphans(nil)
	if l := c.lasting; l != nil && (l.expiry == 0 || l.turn == 0 && c.live() == nil) {
		rest.orphans = append(rest.orphans, c.heirless()...)
		c.forget() // the client said so, or never came to be
	}
	if c.lasting == nil {
		c.reset()
		c.client.conn, c.client.over, rest.over = nil, true, true
		c.weigh()
		if c.will != nil {
			rest.will, c.will = c.will, nil
		}
		return rest
	}
	l := c.lasting
	rest.there = true
	c.pack()
	c.client.conn = nil
	c.weigh()
	l.turn++
	rest.watch = l.turn
	now := c.broker.o.Now()
	l.left, l.row = now, true
	c.settleWill(cause, now, &rest)
	c.touch()
	c.client.arm(now)
	return rest
}

// restartGrace is how long the server gives those whose connection it ended itself to
// come back, before their wills are published.
const restartGrace = time.Minute

// settleWill decides on the will of a client whose connection ended and whose state
// lasts: now, later (MQTT 5.0 §3.1.3.2.2), or never where what ended is its authority.
func (c *conn) settleWill(cause error, now time.Time, rest *remains) {
	if c.will == nil {
		return
	}
	s := c.live()
	ended := s != nil && s.Over() && cause != nil
	switch {
	case ended && watchword.CodeOf(cause) == watchword.Unavailable: // the server goes
		c.lasting.willAt = now.Add(max(c.will.delay, restartGrace))
	case ended:
		c.will = nil
	case c.will.delay == 0:
		rest.will, c.will = c.will, nil
	default:
		c.lasting.willAt = now.Add(c.will.delay)
	}
}

// arm starts the clocks of a client without a connection. mu is held.
func (cl *client) arm(now time.Time) {
	l, turn := cl.lasting, cl.lasting.turn
	if cl.will != nil {
		l.timers = append(l.timers, time.AfterFunc(l.willAt.Sub(now), func() { cl.willIsDue(turn) }))
	}
	if l.expiry != shelf.Forever {
		l.timers = append(l.timers, time.AfterFunc(l.left.Add(time.Duration(l.expiry)*time.Second).Sub(now), func() { cl.expire(turn) }))
	}
}

// bury does what is left of a connection's end. It may block.
func (c *conn) bury(ctx context.Context, rest remains) {
	if rest.will != nil {
		c.publishWill(ctx, rest.will)
	}
	c.client.hand(rest.orphans, rest.there)
	if rest.over {
		c.client.leave()
	}
	if rest.watch > 0 {
		c.client.watch(ctx, rest.watch)
	}
}
