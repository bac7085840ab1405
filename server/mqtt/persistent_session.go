package mqtt

import (
	"time"

	"github.com/watchword-iot/watchword/server/mqttstore"
	"github.com/watchword-iot/watchword/server/session"
)

// persistent is what a session has beside the Session State in memory while it outlives its
// connection: its Session Expiry Interval is above 0 (MQTT 5.0 §3.1.2.11.2), and a store keeps it. All of
// it is under sessionState.mu.
type persistent struct {
	backlog    backlog
	losses     losses
	rowChanged row
	offline    offline

	expiry      uint32 // Session Expiry Interval, in seconds
	generation  int    // counts connections and their ends: what was begun in an earlier one is void
	uncommitted bool   // when its connection came, something was not in the store yet
}

// offline is what a persistent session has while it has no connection.
type offline struct {
	since       time.Time        // end of the last connection; zero while there is one
	expiryTimer *time.Timer      // ends the session
	retryTimer  *time.Timer      // asks for the authority again where the store could not be read
	authority   *session.Session // what its subject may do at this moment
	suspended   bool             // its subject may do nothing at this moment: nothing is stored for it
}

func newPersistent(expiry uint32) *persistent {
	return &persistent{expiry: expiry, rowChanged: row{allChanged: true}}
}

// setExpiry changes the Session Expiry Interval.
func (p *persistent) setExpiry(seconds uint32) {
	p.expiry = seconds
	p.rowChanged.allChanged = true
}

// disconnected notes the end of the connection, and returns the generation that begins.
func (p *persistent) disconnected(now time.Time) (generation int) {
	p.generation++
	p.offline.since = now
	p.rowChanged.allChanged = true
	return p.generation
}

// resumed notes a new connection. It returns the authority under which the session was offline, which the
// caller closes without the session's lock; nil for none.
func (p *persistent) resumed(expiry uint32) (authority *session.Session) {
	authority = p.takeAuthority()
	p.stopTimers()
	p.generation++
	p.offline.since, p.offline.suspended = time.Time{}, false
	p.uncommitted = p.rowChanged.isPending()
	p.setExpiry(expiry)
	return authority
}

// takeAuthority returns the authority under which the session is offline, and forgets it; nil for none.
func (p *persistent) takeAuthority() (authority *session.Session) {
	authority, p.offline.authority = p.offline.authority, nil
	return authority
}

// expiresAt is when a session without a connection ends; false for never.
func (p *persistent) expiresAt() (time.Time, bool) {
	return p.offline.since.Add(time.Duration(p.expiry) * time.Second), p.expiry != mqttstore.NeverExpires
}

// startExpiryTimer calls expire when the session ends. A timer that ran is stopped.
func (p *persistent) startExpiryTimer(now time.Time, expire func()) {
	if p.offline.expiryTimer != nil {
		p.offline.expiryTimer.Stop()
		p.offline.expiryTimer = nil
	}
	if at, ok := p.expiresAt(); ok {
		p.offline.expiryTimer = time.AfterFunc(at.Sub(now), expire)
	}
}

// startRetryTimer calls retry after d. A timer that ran is stopped.
func (p *persistent) startRetryTimer(d time.Duration, retry func()) {
	if p.offline.retryTimer != nil {
		p.offline.retryTimer.Stop()
	}
	p.offline.retryTimer = time.AfterFunc(d, retry)
}

// stopTimers stops both.
func (p *persistent) stopTimers() {
	if p.offline.expiryTimer != nil {
		p.offline.expiryTimer.Stop()
	}
	if p.offline.retryTimer != nil {
		p.offline.retryTimer.Stop()
	}
	p.offline.expiryTimer, p.offline.retryTimer = nil, nil
}

// row is what of a persistent session is to be written with the next commit.
type row struct {
	commit     *commit             // with which it is written next
	allChanged bool                // all columns are to be written, not only how far the client has come
	filters    map[string]struct{} // of subscriptions that are to be written or deleted
}

// isPending reports whether something of the session is not in the store yet.
func (r *row) isPending() bool { return r.commit != nil && !r.commit.written() }

// joins notes that c writes the session. It reports false where it was noted before.
func (r *row) joins(c *commit) bool {
	if r.commit == c {
		return false
	}
	r.commit = c
	return true
}

// changeFilter has the subscription with that filter written, or deleted if it does not exist then.
func (r *row) changeFilter(name string) {
	if r.filters == nil {
		r.filters = map[string]struct{}{}
	}
	r.filters[name] = struct{}{}
}

// take returns what is to be written, and forgets it.
func (r *row) take() (all bool, filters map[string]struct{}) {
	all, filters = r.allChanged, r.filters
	r.allChanged, r.filters = false, nil
	return all, filters
}

// restore undoes take, for what could not be written.
func (r *row) restore(all bool, filters map[string]struct{}) {
	r.allChanged = r.allChanged || all
	for name := range filters {
		r.changeFilter(name)
	}
}
