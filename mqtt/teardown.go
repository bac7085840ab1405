package mqtt

import (
	"context"
	"slices"
	"time"
)

// teardown is what is to be done once a connection has lost its client.
type teardown struct {
	publishWill     *will // to be published now
	delayedWill     *will // to be published later: the guard is to know
	redistributions []redistribution
	onlineOnly      bool           // orphans are for who is there alone: the client may come for them
	generation      int            // of which turn of a lasting client the guard is to know; 0 for none
	removed         bool           // the client is no more
	groups          []*sharedGroup // that may have other members for what waits with the client now
}

// detach is detachFor for who cannot do what is to be done: another will.
func (c *conn) detach() {
	if c.session.conn == c && c.teardown == nil {
		td := c.detachFor(nil)
		c.teardown = &td
	}
}

// detachFor takes the client from its connection. What lasts of it waits from here on;
// what does not is gone. cause is as in [conn.close]. It does so once; mu is held.
func (c *conn) detachFor(cause error) (td teardown) {
	if c.teardown != nil {
		td, *c.teardown = *c.teardown, teardown{}
		return td
	}
	if c.session.conn != c {
		return td
	}
	c.teardown = &teardown{}
	c.out.pendingResponses = nil
	c.setNoticeSubscription(nil)
	if c.pump != nil {
		c.pump.stop()
		c.pump = nil
	}
	td.redistributions = c.session.takeForRedistribution(nil)
	now := c.broker.options.Now()
	expiry := time.Duration(0)
	if c.session.persistent != nil {
		expiry = time.Duration(c.session.persistent.expiry) * time.Second
	}
	td.publishWill, td.delayedWill = c.endWill(cause, expiry, now)
	if per := c.session.persistent; per != nil && (per.expiry == 0 || per.generation == 0 && c.live() == nil) {
		td.redistributions = append(td.redistributions, c.session.takeAllForRedistribution()...)
		c.session.endPersistent() // the client said so, or never came to be
	}
	if c.session.persistent == nil {
		c.session.reset()
		c.session.conn, c.session.removed, td.removed = nil, true, true
		c.session.updateLoad()
		return td
	}
	td.onlineOnly, td.groups = true, slices.Clone(c.session.groups)
	c.session.requeueOffline()
	c.session.conn = nil
	c.session.updateLoad()
	td.generation = c.session.persistent.disconnected(now)
	c.session.markChanged()
	c.session.startTimers(now)
	return td
}

// finishTeardown does what is left of a connection's end. It may block.
func (c *conn) finishTeardown(ctx context.Context, td teardown) {
	if td.publishWill != nil {
		c.publishWill(ctx, td.publishWill)
	}
	c.broker.wills.watch(ctx, td.delayedWill)
	c.session.redistribute(td.redistributions, td.onlineOnly)
	for _, g := range td.groups {
		g.pull()
	}
	if td.removed {
		c.session.removeFromTenant()
	}
	if td.generation > 0 {
		c.session.watchOffline(ctx, td.generation)
	}
}
