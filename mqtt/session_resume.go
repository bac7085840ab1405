package mqtt

import (
	"context"
	"log/slog"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqttstore"
	"github.com/watchword-iot/watchword/session"
)

// maxPersistentPerSubject is how many clients of one subject may have state that outlives their
// connections.
const maxPersistentPerSubject = 8

// maxSessionExpiry is the longest session expiry that this server gives, in seconds; 0 where
// nothing survives.
func (b *Broker) maxSessionExpiry() uint32 {
	if b.journal.store == nil {
		return 0
	}
	return uint32(min(b.options.SessionExpiry/time.Second, mqttstore.NeverExpires-1))
}

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

// makePersistent makes the client's state outlive its connection. mu is held.
func (st *sessionState) makePersistent(expiry uint32) {
	st.persistent = newPersistent(expiry)
	st.broker.persistentCount.Add(1)
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

// watchOffline has the guard say what a client that is away may have. Its answers come with
// the session locked.
func (st *sessionState) watchOffline(ctx context.Context, turn int) {
	st.mu.Lock()
	tenant, owner := st.tenant.id, st.owner
	st.mu.Unlock()
	still := func(f func(per *persistent)) {
		st.mu.Lock()
		defer st.mu.Unlock()
		if per := st.persistent; per != nil && !st.removed && per.generation == turn {
			f(per)
		}
	}
	hold := st.broker.deps.Guard.OpenOffline(ctx, session.Credentials{Tenant: tenant, Subject: owner.subject, Incarnation: owner.incarnation}, session.Options{
		Transport: "mqtt",
		Changed: func(a *session.Authority) {
			var redistributions []redistribution
			still(func(per *persistent) {
				per.offline.suspended = false
				_, redistributions = st.removeDeniedSubscriptions(a)
			})
			if len(redistributions) > 0 {
				go st.redistribute(redistributions, false)
			}
		},
		Withdrawn: func(cause error) {
			still(func(per *persistent) {
				switch watchword.CodeOf(cause) {
				case watchword.SubjectSuspended, watchword.SubjectNew: // it may come back, with all it had
					per.offline.suspended = true
				case watchword.SubjectRevoked, watchword.TokenRevoked:
					per.offline.suspended = true
					go st.endState()
				default: // nobody can say: what waits goes on to wait, and is judged when its client comes
					per.startRetryTimer(offlineRetryDelay, func() { st.retryOffline(turn) })
				}
			})
		},
	})
	kept := false
	still(func(per *persistent) { per.offline.authority, kept = hold, true })
	if !kept {
		hold.Close(nil)
	}
}

// offlineRetryDelay is when a question is asked again that nobody could answer.
const offlineRetryDelay = time.Second

// retryOffline has the guard look again at what a client that is away may have.
func (st *sessionState) retryOffline(turn int) {
	st.mu.Lock()
	var hold *session.Session
	if per := st.persistent; per != nil && per.generation == turn {
		hold = per.offline.authority
	}
	st.mu.Unlock()
	if hold != nil {
		hold.Recompute(st.broker.ctx)
	}
}

// endState ends a client without a connection: its time has come, or somebody begins anew in
// its place. Where it has a connection again, it does nothing.
func (st *sessionState) endState() { _ = st.endStateIf(func() error { return nil }) } // no reason not to

// endStateIf is end where may, asked with mu held, returns no error.
func (st *sessionState) endStateIf(may func() error) error {
	st.mu.Lock()
	if st.removed || st.conn != nil {
		st.mu.Unlock()
		return nil
	}
	if err := may(); err != nil {
		st.mu.Unlock()
		return err
	}
	var hold *session.Session
	var redistributions []redistribution
	if per := st.persistent; per != nil {
		hold = per.takeAuthority()
		redistributions = st.takeAllForRedistribution()
		st.endPersistent()
	}
	st.removed = true
	st.mu.Unlock()
	if hold != nil {
		hold.Close(nil)
	}
	st.redistribute(redistributions, false)
	st.removeFromTenant()
	return nil
}

// expireIfDue is the clock's.
func (st *sessionState) expireIfDue(turn int) {
	st.mu.Lock()
	now := st.persistent != nil && st.persistent.generation == turn
	st.mu.Unlock()
	if now {
		st.broker.options.Log.Info("a session ended, its client did not come back", slog.String("client", st.id))
		st.endState()
	}
}

// removeFromTenant takes a client that is over out of the world. That its session ended is written
// with what it handed on, or later.
func (st *sessionState) removeFromTenant() {
	if st.expired {
		st.broker.journal.add(change{deletedSession: st.number})
	}
	if st.tenant != nil {
		st.tenant.removeClient(st)
	}
}

// putClient makes st the client of its identifier. mu is held.
func (tn *tenant) putClient(st *sessionState) {
	tn.clients[st.id] = st
	if st.persistent != nil {
		st.counted = true
		tn.persistent[st.owner.subject]++
	}
}

// removeClient takes a client out that is over; another that is not stays.
func (tn *tenant) removeClient(st *sessionState) {
	st.mu.Lock()
	over := st.removed
	st.mu.Unlock()
	if !over {
		return
	}
	tn.mu.Lock()
	defer tn.mu.Unlock()
	if tn.clients[st.id] == st {
		delete(tn.clients, st.id)
	}
	if st.counted {
		st.counted = false
		if tn.persistent[st.owner.subject]--; tn.persistent[st.owner.subject] == 0 {
			delete(tn.persistent, st.owner.subject)
		}
	}
}
