package mqtt

import "time"

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
