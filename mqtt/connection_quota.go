package mqtt

import (
	"github.com/watchword-iot/watchword/internal/quota"
)

// What a connection or a session remembers between packets is counted against its subject:
// its first rememberFree bytes are not, and the rest is in steps, so that hardly a packet
// asks the account.
const (
	connectionFreeBytes  = 4 << 10
	connectionChargeStep = 4 << 10

	// receivedEntryBytes is what an identifier of QoS 2 takes in the map, which does not shrink.
	receivedEntryBytes = 36
	// smallReceivedMap is how many identifiers fit a map that is kept when it is empty.
	smallReceivedMap = 8
	// inboundAliasBytes is what a topic alias of the client takes beside the topic, and sentBytes
	// one of the server.
	inboundAliasBytes  = 16
	outboundAliasBytes = 48
)

// chargedBytes is what of that one connection or session is counted now.
type chargedBytes int64

// resize has n bytes remembered from now on. Code: busy, where that is more than before and
// its account has no room, only where it is bounded.
func (c *chargedBytes) resize(q *quota.Ledger[quota.Key], k quota.Key, n int, bounded bool) error {
	want := roundUpToStep(int64(n)-connectionFreeBytes, connectionChargeStep)
	switch more := want - int64(*c); {
	case more > 0 && bounded:
		if err := q.Reserve(k, more); err != nil {
			return err
		}
	case more > 0:
		q.Add(k, more)
	case more < 0:
		q.Release(k, -more)
	}
	*c = chargedBytes(want)
	return nil
}

// reserveReceived makes room for one more identifier of QoS 2. Code: busy. mu is held.
func (st *sessionState) reserveReceived(bounded bool) error {
	n := len(st.received) + 1
	if n <= st.receivedPeak {
		return nil
	}
	err := st.receivedCharged.resize(st.broker.connectionQuota, st.account(), n*receivedEntryBytes, bounded)
	if err == nil {
		st.receivedPeak = n
	}
	return err
}

// addReceived notes that a publish with QoS 2 was taken, with what is on the disk when it may be
// acknowledged; nil: it may be. There is room for it. mu is held.
func (st *sessionState) addReceived(id uint16, at *commit) {
	if st.received == nil {
		st.received = map[uint16]*commit{}
	}
	st.received[id] = at
}

// receivedWritten notes that at, with which a publish was taken, is on the disk: nobody needs
// it any more. mu is held.
func (st *sessionState) receivedWritten(id uint16, at *commit) {
	if was, known := st.received[id]; known && was == at {
		st.received[id] = nil
	}
}

// removeReceived forgets an identifier. mu is held.
func (st *sessionState) removeReceived(id uint16) {
	delete(st.received, id)
	if len(st.received) == 0 && st.receivedPeak > smallReceivedMap {
		st.removeAllReceived()
	}
}

// removeAllReceived forgets them all. mu is held.
func (st *sessionState) removeAllReceived() {
	st.received, st.receivedPeak = nil, 0
	if st.receivedCharged > 0 { // else it may have no subject yet
		_ = st.receivedCharged.resize(st.broker.connectionQuota, st.account(), 0, false) // never refused: it shrinks
	}
}

// setInboundAlias has an alias stand for a topic from now on (MQTT 5.0 §3.3.2.3.4). Code: busy: the
// client may use any alias up to the maximum, so that the connection ends where there is no room.
func (c *conn) setInboundAlias(alias int, topic string) error {
	if len(c.inboundAliases) >= alias && c.inboundAliases[alias-1] == topic {
		return nil
	}
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	received := c.inboundAliases
	if len(received) < alias {
		received = make([]string, alias)
		copy(received, c.inboundAliases)
	}
	if err := c.chargeAliases((len(received)-len(c.inboundAliases))*inboundAliasBytes + allocatedSize(topic) - allocatedSize(received[alias-1])); err != nil {
		return err
	}
	received[alias-1] = topic
	c.inboundAliases = received
	return nil
}

// chargeAliases counts n bytes more of aliases, or less. mu is held.
func (c *conn) chargeAliases(n int) error {
	err := c.out.aliasCharged.resize(c.broker.connectionQuota, c.session.account(), c.out.aliasBytes+n, true)
	if err == nil {
		c.out.aliasBytes += n
	}
	return err
}

// forgetAliases is the reader's last word on them: nobody sends on the connection any more.
func (c *conn) forgetAliases() {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	c.inboundAliases, c.out.outboundAliases, c.out.maxOutboundAliases = nil, nil, 0
	if c.out.aliasBytes > 0 { // else it may never have come to CONNECT
		_ = c.chargeAliases(-c.out.aliasBytes) // never refused: it shrinks
	}
}

// allocatedSize is what the bytes of a text take, which memory rounds up.
func allocatedSize(s string) int { return (len(s) + 15) &^ 15 }
