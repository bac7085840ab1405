package mqtt

import (
	"context"
	"slices"
	"time"

	"github.com/watchword-iot/watchword/server/bus"
)

// teardown is what is to be done once a connection has lost its client.
type teardown struct {
	publishWill     *will // to be published now
	delayedWill     *will // to be published later; the guard must watch it
	redistributions []redistribution
	onlineOnly      bool         // redistribute to connected members only: the client may come back
	generation      int          // generation of the offline session that the guard must watch; 0: none
	removed         bool         // the session was removed
	groups          []*bus.Group // shared subscriptions that may have other members for its stored messages
}

// detachInReader detaches the session where the caller must not block; the reader finishes the teardown.
func (c *conn) detachInReader() {
	if c.session.conn == c && c.teardown == nil {
		td := c.detachSession(nil)
		c.teardown = &td
	}
}

// detachSession detaches the session from its connection. A persistent session becomes offline; any other ends. cause is as
// in [conn.close]. It has an effect once; mu is held.
func (c *conn) detachSession(cause error) (td teardown) {
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
		c.session.dropPersistentState() // the expiry is 0, or CONNECT was not completed
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
	c.session.tenant.offline.add(c.session)
	c.session.markChanged()
	c.session.startTimers(now)
	return td
}

// runTeardown does the remaining work after a detach. It may block.
func (c *conn) runTeardown(ctx context.Context, td teardown) {
	if td.publishWill != nil {
		c.publishWill(ctx, td.publishWill)
	}
	c.broker.wills.watchAuthority(ctx, td.delayedWill)
	c.session.redistribute(td.redistributions, td.onlineOnly)
	for _, g := range td.groups {
		g.Pull()
	}
	if td.removed {
		c.session.removeFromTenant()
	}
	if td.generation > 0 {
		c.session.watchAuthority(ctx, td.generation)
	}
}
