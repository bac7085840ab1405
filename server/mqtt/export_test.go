package mqtt

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/session"
)

// Feed returns a function that handles packets as if the client of that identifier had just sent them, without a
// system call. The client must be connected.
func (b *Broker) Feed(id string) func(packets []byte) {
	for _, c := range b.connections(func(c *conn) bool { return c.session != nil && c.session.id == id }) {
		return func(packets []byte) { c.handlePackets(b.ctx, packets) }
	}
	panic("no connection of " + id)
}

// Accounts returns how many subjects have a rate account at that time: those with a connection, and
// those whose bucket is not full yet.
func (b *Broker) Accounts(now time.Time) int {
	return b.publishRates.Len(now) + b.controlRates.Len(now)
}

// SessionStates returns the sessions of a subject in order of client identifier, and checks that those of the tenant in the
// list of offline sessions are exactly those with persistent state and no connection.
func (b *Broker) SessionStates(t watchword.TenantID, subject watchword.SubjectID) []session.State {
	tn := b.tenant(t)
	tn.mu.Lock()
	all := slices.Collect(maps.Values(tn.clients))
	tn.mu.Unlock()
	out := []session.State{}
	for _, st := range all {
		st.mu.Lock()
		tn.offline.mu.Lock()
		listed := slices.Contains(tn.offline.all.Page(func(*sessionState) bool { return false }, math.MaxInt), st)
		tn.offline.mu.Unlock()
		if offline := !st.removed && st.conn == nil && st.persistent != nil; listed != offline {
			panic(fmt.Sprintf("mqtt: the session of %s is offline: %t, and in the list of these: %t", st.id, offline, listed))
		}
		if !st.removed && subject == st.owner.subject {
			out = append(out, st.sessionState())
		}
		st.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b session.State) int { return cmp.Compare(a.Client, b.Client) })
	return out
}
