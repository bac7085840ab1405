package mqtt

import (
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// isDuplicate reports whether a publish was received before and is sent again because its
// acknowledgement was lost (MQTT 5.0 §4.3.3). More open publishes than the Receive Maximum end the
// connection.
func (c *conn) isDuplicate(p *packet.Publish) (again bool, err error) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if c.session.conn != c || c.out.closed {
		return true, nil
	}
	at, known := c.session.received[p.ID]
	if known && at != nil && at.state.Load() == commitFailed { // it was neither delivered nor written
		c.session.removeReceived(p.ID)
		known = false
	}
	if known && p.QoS == 2 {
		c.acknowledgeLocked(at, packet.PUBREC, p.ID)
		return true, nil
	}
	switch n := c.unacknowledgedPublishes(); {
	case c.version == packet.V5 && n >= ReceiveMaximum:
		return false, protocolError(packet.ReceiveMaximumExceeded, packet.PUBLISH, "more unacknowledged messages than the server's Receive Maximum")
	case p.QoS == 2 && len(c.session.received) >= maxPendingResponses:
		return false, protocolError(packet.QuotaExceeded, packet.PUBLISH, "too many QoS 2 messages without PUBREL")
	}
	return false, nil
}

// reserveQoS2 reserves memory for the packet identifier of a QoS 2 publish. Code: busy.
func (c *conn) reserveQoS2() error {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	return c.session.reserveReceived(true)
}

// reserveReceived reserves memory for one more QoS 2 packet identifier. Code: busy. mu is held.
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

// addReceived records a received QoS 2 publish with the commit after which it may be acknowledged;
// nil: at once. reserveReceived was called. mu is held.
func (st *sessionState) addReceived(id uint16, at *commit) {
	if st.received == nil {
		st.received = map[uint16]*commit{}
	}
	st.received[id] = at
}

// receivedWritten records that the commit of a received publish is durable. mu is held.
func (st *sessionState) receivedWritten(id uint16, at *commit) {
	if was, known := st.received[id]; known && was == at {
		st.received[id] = nil
	}
}

// removeReceived removes a packet identifier. mu is held.
func (st *sessionState) removeReceived(id uint16) {
	delete(st.received, id)
	if len(st.received) == 0 && st.receivedPeak > smallReceivedMap {
		st.removeAllReceived()
	}
}

// removeAllReceived removes all packet identifiers. mu is held.
func (st *sessionState) removeAllReceived() {
	st.received, st.receivedPeak = nil, 0
	if st.receivedCharged > 0 { // otherwise it may have no subject yet
		_ = st.receivedCharged.resize(st.broker.connectionQuota, st.account(), 0, false) // never refused, since it shrinks
	}
}
