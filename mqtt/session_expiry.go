package mqtt

import (
	"log/slog"
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
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

// sessionExpiry is how long the session outlives its connection, in seconds.
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

// makePersistent makes the client's state outlive its connection. mu is held.
func (st *sessionState) makePersistent(expiry uint32) {
	st.persistent = newPersistent(expiry)
	st.broker.persistentCount.Add(1)
}

// startTimers starts the expiry timer of a session without a connection, or starts it anew. mu is held.
func (st *sessionState) startTimers(now time.Time) {
	generation := st.persistent.generation
	st.persistent.startExpiryTimer(now, func() { st.expireIfDue(generation) })
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
