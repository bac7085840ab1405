package mqtt

import (
	"log/slog"
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqttstore"
	"github.com/watchword-iot/watchword/server/session"
)

// maxPersistentPerSubject limits the persistent sessions of one subject.
const maxPersistentPerSubject = 8

// maxSessionExpiry returns the longest Session Expiry Interval of this server in seconds; 0 without
// a store.
func (b *Broker) maxSessionExpiry() uint32 {
	if b.committer.store == nil {
		return 0
	}
	return uint32(min(b.options.SessionExpiry/time.Second, mqttstore.NeverExpires-1))
}

// sessionExpiry returns the effective Session Expiry Interval in seconds.
func (c *conn) sessionExpiry(p *packet.Connect) uint32 {
	limit := c.broker.maxSessionExpiry()
	if c.version == packet.V311 {
		if p.CleanStart {
			return 0
		}
		return limit
	}
	n, _ := p.Properties.Number(packet.SessionExpiryInterval)
	return min(n, limit)
}

// makePersistent makes the session persistent. mu is held.
func (st *sessionState) makePersistent(expiry uint32) {
	st.persistent = newPersistent(expiry)
	st.broker.persistentCount.Add(1)
}

// startTimers starts the expiry timer of a session without a connection, or starts it anew. mu is held.
func (st *sessionState) startTimers(now time.Time) {
	generation := st.persistent.generation
	st.persistent.startExpiryTimer(now, func() { st.expireIfDue(generation) })
}

// hasExpired reports whether an offline session has expired although its timer has not fired yet.
// mu is held.
func (st *sessionState) hasExpired(now time.Time) bool {
	if st.persistent == nil || !st.offline() {
		return false
	}
	ends, ok := st.persistent.expiresAt()
	return ok && !now.Before(ends)
}

// expireIfDue is called by the expiry timer.
func (st *sessionState) expireIfDue(generation int) {
	st.mu.Lock()
	now := st.persistent != nil && st.persistent.generation == generation
	st.mu.Unlock()
	if now {
		st.broker.options.Log.Info("a session ended, its client did not come back", slog.String("client", st.id))
		st.endSession()
	}
}

// endSession ends an offline session that expired or is replaced by a clean start. It does nothing if
// the session has a connection again.
func (st *sessionState) endSession() { _ = st.endSessionIf(func() error { return nil }) } // no reason not to

// endSessionIf is endSession if may, called with mu held, returns nil.
func (st *sessionState) endSessionIf(may func() error) error {
	st.mu.Lock()
	if st.removed || st.conn != nil {
		st.mu.Unlock()
		return nil
	}
	if err := may(); err != nil {
		st.mu.Unlock()
		return err
	}
	var offlineSession *session.Session
	var redistributions []redistribution
	if per := st.persistent; per != nil {
		offlineSession = per.takeAuthority()
		redistributions = st.takeAllForRedistribution()
		st.dropPersistentState()
	}
	st.removed = true
	if st.tenant != nil {
		st.tenant.offline.remove(st)
	}
	st.mu.Unlock()
	if offlineSession != nil {
		offlineSession.End(nil)
	}
	st.redistribute(redistributions, false)
	st.removeFromTenant()
	return nil
}

// removeFromTenant removes an ended session from its tenant. Its deletion is written together with
// its redistributed messages, or later.
func (st *sessionState) removeFromTenant() {
	if st.expired {
		st.broker.committer.add(change{deletedSession: st.number})
	}
	if st.tenant != nil {
		st.tenant.removeClient(st)
	}
}
