package mqtt

import (
	"context"
	"slices"
	"time"

	"github.com/watchword-iot/watchword/mqttstore"
)

// remains is what is to be done once a connection has lost its client.
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
	per := c.session.persistent
	td.onlineOnly, td.groups = true, slices.Clone(c.session.groups)
	c.session.requeueOffline()
	c.session.conn = nil
	c.session.updateLoad()
	per.generation++
	td.generation = per.generation
	per.disconnectedAt, per.rowChanged = now, true
	c.session.markChanged()
	c.session.startTimers(now)
	return td
}

// expiresAt is when the state of a client without a connection ends, false for never.
func (per *persistent) expiresAt() (time.Time, bool) {
	return per.disconnectedAt.Add(time.Duration(per.expiry) * time.Second), per.expiry != mqttstore.NeverExpires
}

// startTimers starts the clocks of a client without a connection, or starts them anew. mu is held.
func (st *sessionState) startTimers(now time.Time) {
	per, turn := st.persistent, st.persistent.generation
	if per.expiryTimer != nil {
		per.expiryTimer.Stop()
		per.expiryTimer = nil
	}
	if ends, ok := per.expiresAt(); ok {
		per.expiryTimer = time.AfterFunc(ends.Sub(now), func() { st.expireIfDue(turn) })
	}
}

// hasExpired reports whether the session of a client that is away is over by the time of
// day, though no clock said so yet. mu is held.
func (st *sessionState) hasExpired(now time.Time) bool {
	if st.persistent == nil || !st.offline() {
		return false
	}
	ends, ok := st.persistent.expiresAt()
	return ok && !now.Before(ends)
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
