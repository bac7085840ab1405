package mqtt

import (
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/session"
)

// attachSession makes c the connection of its client identifier. What was there before ends, or
// goes on with c where it lasts: present says so. Whether it may is asked once more, at
// the act: until the one before has ended, it may come to hold more.
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
			if err := old.takeOver(ad); err != nil { // it has no client when it returns
				return false, err
			}
		}
		if !ad.clean && prev.owner == ad.owner {
			resumed, err := c.resume(prev, ad)
			if resumed || err != nil {
				return resumed, err
			}
		}
		if err := prev.endStateIf(func() error { return prev.checkResumable(ad) }); err != nil {
			return false, err
		}
		tn.removeClient(prev)
	}
}

// checkTakeover says why a client may not take the place of its identifier, and which live
// session ends when it does; nil for none.
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

// checkResumable says why an admission does not suffice to resume, take over or end this client.
// One of an earlier life of its subject holds nothing against it. mu is held.
func (st *sessionState) checkResumable(ad *admission) error {
	if st.removed || st.owner != ad.owner {
		return nil
	}
	return st.checkCovers(ad.authority)
}

// takeOver ends the connection whose client id connected again, if the admission of the
// other suffices. Its session is over when it returns without an error.
func (c *conn) takeOver(ad *admission) error {
	if err := c.closeIf(errTakenOver, func() error { return c.session.checkResumable(ad) }); err != nil {
		return err
	}
	c.broker.stats.takeovers.Add(1)
	if s := c.live(); s != nil {
		s.Close(nil)
	}
	return nil
}

// startNew makes the connection's own client that of an identifier.
func (c *conn) startNew(ad *admission) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.session.id, c.session.owner = ad.clientID, ad.owner
	if ad.expiry > 0 {
		c.session.number = c.broker.clientSequence.Add(1) // in the order in which sessions begin: see Load
		c.session.makePersistent(ad.expiry)
		c.session.persistent.losses.narrowed = ad.narrowed
	}
}

// resume gives c the place of the connection that prev has no more. It reports false
// where prev is over. Code: denied where the admission does not cover what prev holds.
func (c *conn) resume(prev *sessionState, ad *admission) (bool, error) {
	own := c.session
	own.mu.Lock()
	for c.out.writing && !c.out.failed { // what was said before CONNACK: a challenge
		c.out.moved.Wait()
	}
	own.mu.Unlock()
	prev.receiving.Lock() // the connection before may be in the middle of a publish
	defer prev.receiving.Unlock()
	prev.mu.Lock()
	if prev.removed || prev.conn != nil || prev.hasExpired(prev.broker.options.Now()) { // somebody was quicker, or the time is
		prev.mu.Unlock()
		return false, nil
	}
	if err := prev.checkResumable(ad); err != nil {
		prev.mu.Unlock()
		return false, err
	}
	hold := prev.persistent.resumed(ad.expiry)
	prev.conn = c
	prev.restoreInflight()
	prev.updateLoad()
	prev.markChanged()
	c.session = prev
	c.out.moved.L = &prev.mu
	prev.mu.Unlock()
	if hold != nil {
		hold.Close(nil)
	}
	return true, nil
}

// resumeSubscriptions takes from a session that goes on what a does not allow, and returns what was
// lost since its client last heard, how many messages found no room, and what must be on
// the disk before the client may hear that it is there. A client of version 3.1.1 cannot
// be told of a loss, nor one of more losses than CONNACK names: present becomes false, so
// that it subscribes anew and hears what it may not have. The session keeps the
// subscriptions that are left and what waits by them.
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
	if len(lost) > 0 && (c.version == packet.V311 || !c.lostFitsConnack(lost)) {
		c.session.removeAllReceived() // it may discard its side and use the identifiers for other messages
		*present = false
	}
	c.addReport(r, 0)
	c.updatePump()
	at = c.session.markChanged()
	if *present && !per.uncommitted {
		at = nil // it is on the disk
	}
	c.session.mu.Unlock()
	if len(redistributions) > 0 {
		go c.session.redistribute(redistributions, false)
	}
	return lost, dropped, at
}
