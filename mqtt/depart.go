package mqtt

import (
	"context"
	"slices"
	"time"

	"github.com/watchword-iot/watchword/shelf"
)

// remains is what is to be done once a connection has lost its client.
type remains struct {
	will    *will // to be published now
	waits   *will // to be published later: the guard is to know
	orphans []orphan
	there   bool     // orphans are for who is there alone: the client may come for them
	watch   int      // of which turn of a lasting client the guard is to know; 0 for none
	over    bool     // the client is no more
	groups  []*group // that may have other members for what waits with the client now
}

// detach is detachFor for who cannot do what is to be done: another will.
func (c *conn) detach() {
	if c.session.conn == c && c.rest == nil {
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
	if c.session.conn != c {
		return rest
	}
	c.rest = &remains{}
	c.out.answers = nil
	c.listen(nil)
	if c.pump != nil {
		c.pump.stop()
		c.pump = nil
	}
	rest.orphans = c.session.orphans(nil)
	now := c.broker.options.Now()
	expiry := time.Duration(0)
	if c.session.lasting != nil {
		expiry = time.Duration(c.session.lasting.expiry) * time.Second
	}
	rest.will, rest.waits = c.endWill(cause, expiry, now)
	if l := c.session.lasting; l != nil && (l.expiry == 0 || l.turn == 0 && c.live() == nil) {
		rest.orphans = append(rest.orphans, c.session.heirless()...)
		c.session.forget() // the client said so, or never came to be
	}
	if c.session.lasting == nil {
		c.session.reset()
		c.session.conn, c.session.over, rest.over = nil, true, true
		c.session.weigh()
		return rest
	}
	l := c.session.lasting
	rest.there, rest.groups = true, slices.Clone(c.session.shares)
	c.session.pack()
	c.session.conn = nil
	c.session.weigh()
	l.turn++
	rest.watch = l.turn
	l.left, l.row = now, true
	c.session.touch()
	c.session.arm(now)
	return rest
}

// ends is when the state of a client without a connection ends, false for never.
func (l *lasting) ends() (time.Time, bool) {
	return l.left.Add(time.Duration(l.expiry) * time.Second), l.expiry != shelf.Forever
}

// arm starts the clocks of a client without a connection, or starts them anew. mu is held.
func (st *sessionState) arm(now time.Time) {
	l, turn := st.lasting, st.lasting.turn
	if l.clock != nil {
		l.clock.Stop()
		l.clock = nil
	}
	if ends, ok := l.ends(); ok {
		l.clock = time.AfterFunc(ends.Sub(now), func() { st.expire(turn) })
	}
}

// lapsed reports whether the session of a client that is away is over by the time of
// day, though no clock said so yet. mu is held.
func (st *sessionState) lapsed(now time.Time) bool {
	if st.lasting == nil || !st.away() {
		return false
	}
	ends, ok := st.lasting.ends()
	return ok && !now.Before(ends)
}

// bury does what is left of a connection's end. It may block.
func (c *conn) bury(ctx context.Context, rest remains) {
	if rest.will != nil {
		c.publishWill(ctx, rest.will)
	}
	c.broker.wills.watch(ctx, rest.waits)
	c.session.hand(rest.orphans, rest.there)
	for _, g := range rest.groups {
		g.pull()
	}
	if rest.over {
		c.session.leave()
	}
	if rest.watch > 0 {
		c.session.watch(ctx, rest.watch)
	}
}
