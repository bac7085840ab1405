package mqtt

import (
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/session"
)

// attachSession makes c the connection of its client identifier. An earlier connection ends; a
// persistent session is resumed, then present is true. Permission to take over is checked once
// more, since the earlier connection may have gained subscriptions since admission.
func (c *conn) attachSession(ad *admission) (present bool, err error) {
	tn := c.session.tenant
	for {
		tn.mu.Lock()
		prev := tn.clients[ad.clientID]
		if err := tn.checkSessionQuota(c.broker, prev, ad); err != nil {
			tn.mu.Unlock()
			return false, err
		}
		if prev == nil {
			c.startNew(ad)
			tn.putClient(c.session)
			tn.mu.Unlock()
			return false, nil
		}
		tn.mu.Unlock()
		prev.mu.Lock()
		old := prev.conn
		prev.mu.Unlock()
		if old != nil {
			if err := old.takeOver(ad); err != nil { // it has no session when it returns
				return false, err
			}
		}
		if !ad.clean && prev.owner == ad.owner {
			resumed, err := c.resume(prev, ad)
			if resumed || err != nil {
				return resumed, err
			}
		}
		if err := prev.endSessionIf(func() error { return prev.checkResumable(ad) }); err != nil {
			return false, err
		}
		tn.removeClient(prev)
	}
}

// checkTakeover returns why the client may not take over its client identifier, and the live
// session that it would replace; nil for none.
func (tn *tenant) checkTakeover(b *Broker, ad *admission) (replaces *session.Session, err error) {
	tn.mu.Lock()
	prev := tn.clients[ad.clientID]
	err = tn.checkSessionQuota(b, prev, ad)
	tn.mu.Unlock()
	if prev == nil || err != nil {
		return nil, err
	}
	prev.mu.Lock()
	defer prev.mu.Unlock()
	if prev.conn != nil {
		replaces = prev.conn.live()
	}
	return replaces, prev.checkResumable(ad)
}

// checkResumable returns why an admission may not resume, take over or end this session. A session
// of an earlier incarnation of the subject never refuses. mu is held.
func (st *sessionState) checkResumable(ad *admission) error {
	if st.removed || st.owner != ad.owner {
		return nil
	}
	return st.checkCovers(ad.authority)
}

// takeOver ends the connection that had the client identifier, if the admission of the new one
// allows it. The old session has ended when it returns nil.
func (c *conn) takeOver(ad *admission) error {
	if err := c.closeIf(errTakenOver, func() error { return c.session.checkResumable(ad) }); err != nil {
		return err
	}
	c.broker.stats.takeovers.Add(1)
	if s := c.live(); s != nil {
		s.End(nil)
	}
	return nil
}

// startNew registers the connection's own session under its client identifier.
func (c *conn) startNew(ad *admission) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.session.id, c.session.owner = ad.clientID, ad.owner
	if ad.expiry > 0 {
		c.session.number = c.broker.clientSequence.Add(1) // ordered by session start: see Restore
		c.session.makePersistent(ad.expiry)
		c.session.persistent.losses.narrowed = ad.narrowed
	}
}

// resume attaches the persistent session prev to c. It returns false if prev has ended. Code:
// denied where the admission does not cover prev.
func (c *conn) resume(prev *sessionState, ad *admission) (bool, error) {
	own := c.session
	own.mu.Lock()
	for c.out.writing && !c.out.failed { // a challenge that was sent before CONNACK
		c.out.changed.Wait()
	}
	own.mu.Unlock()
	prev.receiving.Lock() // the earlier connection may be handling a publish
	defer prev.receiving.Unlock()
	prev.mu.Lock()
	if prev.removed || prev.conn != nil || prev.hasExpired(prev.broker.options.Now()) { // another connection resumed it, or it expired
		prev.mu.Unlock()
		return false, nil
	}
	if err := prev.checkResumable(ad); err != nil {
		prev.mu.Unlock()
		return false, err
	}
	offlineSession := prev.persistent.resumed(ad.expiry)
	prev.conn = c
	prev.tenant.offline.remove(prev)
	prev.restoreInflight()
	prev.updateLoad()
	prev.markChanged()
	c.session = prev
	c.out.changed.L = &prev.mu
	prev.mu.Unlock()
	if offlineSession != nil {
		offlineSession.End(nil)
	}
	return true, nil
}

// resumeSubscriptions removes the subscriptions of a resumed session that a does not allow. It returns those lost since the
// last report to the client, the number of dropped messages, and the commit that must be durable before CONNACK. Losses
// cannot be reported to a 3.1.1 client, nor can CONNACK name many: then *present becomes false, so that the client
// subscribes again and sees which filters are refused. The session keeps its other subscriptions and their messages.
func (c *conn) resumeSubscriptions(a *session.Authority, present *bool) (lost []string, dropped int64, at *commit) {
	c.session.mu.Lock()
	per := c.session.persistent
	if per == nil || c.session.conn != c {
		c.session.mu.Unlock()
		return nil, 0, nil
	}
	_, redistributions := c.session.removeDeniedSubscriptions(a)
	var r lossReport
	if per.losses.mayReportTo(a) {
		r.lost = c.session.unreportedLosses()
		if c.version == packet.V5 {
			r.dropped = per.losses.dropped
		}
	}
	lost, dropped = lostFilters(r.lost), r.dropped
	if len(lost) > 0 && (c.version == packet.V311 || !c.connackHasRoomFor(lost)) {
		c.session.removeAllReceived() // the client may discard its state and reuse its identifiers
		*present = false
	}
	c.addReport(r, 0)
	c.updatePump()
	at = c.session.markChanged()
	if *present && !per.uncommitted {
		at = nil // it is committed
	}
	c.session.mu.Unlock()
	if len(redistributions) > 0 {
		go c.session.redistribute(redistributions, false)
	}
	return lost, dropped, at
}
