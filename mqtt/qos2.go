package mqtt

import (
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// isDuplicate says whether a publish was taken before: the client did not hear so, and says
// it again (MQTT 5.0 §4.3.3). More of them than the client may have open end the
// connection.
func (c *conn) isDuplicate(p *packet.Publish) (again bool, err error) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if c.session.conn != c || c.out.closed {
		return true, nil
	}
	at, known := c.session.received[p.ID]
	if known && at != nil && at.state.Load() == commitFailed { // nobody has it: neither a receiver nor the disk
		c.session.removeReceived(p.ID)
		known = false
	}
	if known && p.QoS == 2 {
		c.acknowledgeLocked(at, packet.PUBREC, p.ID)
		return true, nil
	}
	switch n := c.unacknowledgedPublishes(); {
	case c.version == packet.V5 && n >= ReceiveMaximum:
		return false, protocolError(packet.ReceiveMaximumExceeded, packet.PUBLISH, "more publishes open than the receive maximum")
	case p.QoS == 2 && len(c.session.received) >= maxPendingResponses:
		return false, protocolError(packet.QuotaExceeded, packet.PUBLISH, "too many publishes with QoS 2 that were not released")
	}
	return false, nil
}

// reserveQoS2 makes room for the identifier of a publish with QoS 2. Code: busy.
func (c *conn) reserveQoS2() error {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	return c.session.reserveReceived(true)
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
