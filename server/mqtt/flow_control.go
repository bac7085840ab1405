package mqtt

import (
	"slices"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
)

// inflightMessage is a QoS 1 or 2 message that was sent and is not completed.
type inflightMessage struct {
	seq      int64
	command  int64          // sequence number of the command in it
	stored   *storedMessage // nil: not stored, or the receiver has it
	message  *message       // of shared subscriptions only, for redistribution
	size     uint32         // its size, if counted
	qos      byte
	retain   bool
	released bool       // PUBREL was sent
	counted  bool       // stored, and counted so
	group    *bus.Group // shared subscription that it was received by

	identifiers *[]uint32
}

func (f *inflightMessage) backlogEntry() backlogEntry {
	return backlogEntry{stored: f.stored, identifiers: f.identifiers, seq: f.seq, size: f.size, qos: f.qos, retain: f.retain, released: f.released, group: f.group}
}

// packetID returns the packet identifier of a sequence number. It is a function of the number, so
// that it stays the same after a restart.
func packetID(seq int64) uint16 { return uint16((seq-1)%maxPacketIDs + 1) }

// maxPacketIDs is the number of packet identifiers; 0 is not a valid one.
const maxPacketIDs = 65535

// inflightKeptCapacity is the largest capacity of an empty inflight list that is kept.
const inflightKeptCapacity = 16

// maySendInflight reports whether one more message may be sent unacknowledged: the Receive Maximum
// allows it, its packet identifier is free, and with QoS 2 it is committed.
func (c *conn) maySendInflight(it *queuedMessage) bool {
	if it.qos == 2 && it.extra != nil && it.extra.stored != nil && !it.extra.stored.durable.Load() && !it.extra.stored.failed.Load() {
		return false
	}
	if len(c.session.inflight) == 0 {
		return true
	}
	seq := it.sequence()
	if seq == 0 {
		seq = c.session.lastSeq + 1
	}
	if len(c.session.inflight) >= c.out.receiveMaximum {
		return false
	}
	oldest, newest := c.session.inflight[0].seq, seq
	if c.session.persistent != nil { // unstored messages may have overtaken stored ones
		for i := range c.session.inflight {
			oldest, newest = min(oldest, c.session.inflight[i].seq), max(newest, c.session.inflight[i].seq)
		}
	}
	return newest-min(oldest, seq) < maxPacketIDs
}

func (c *conn) addInflight(it *queuedMessage, seq int64) {
	f := inflightMessage{seq: seq, command: it.message.command(), qos: it.qos, size: uint32(it.message.size()), retain: it.flags&1 != 0}
	if x := it.extra; x != nil {
		if x.identifiers != nil {
			f.identifiers = &x.identifiers
		}
		if f.stored = x.stored; x.stored != nil {
			f.counted, f.size = true, x.countedBytes
			c.session.persistent.backlog.markSent(seq)
			c.session.markChanged()
		}
		if x.group != nil {
			f.group, f.message = x.group, it.message
		}
	}
	c.session.appendInflight(f)
}

// appendInflight appends an inflight message. They usually complete at the front, so free space
// there is reused before the list grows.
func (st *sessionState) appendInflight(f inflightMessage) {
	if len(st.inflight) == cap(st.inflight) && 2*len(st.inflight) <= cap(st.inflightBuffer) {
		n := copy(st.inflightBuffer, st.inflight)
		clear(st.inflightBuffer[n:])
		st.inflight = st.inflightBuffer[:n]
	}
	grows := len(st.inflight) == cap(st.inflight)
	if st.inflight = append(st.inflight, f); grows {
		st.inflightBuffer = st.inflight[:cap(st.inflight)]
	}
}

// findInflight returns the index of the inflight message with that packet identifier; -1 for none:
// the acknowledgement belongs to an earlier connection or is a duplicate, and is ignored (MQTT 5.0
// §4.4).
func (c *conn) findInflight(id uint16) int {
	for i := range c.session.inflight {
		if packetID(c.session.inflight[i].seq) == id {
			return i
		}
	}
	return -1
}

// removeInflight removes an inflight message; its parameters are as in
// [sessionState.uncountOffline].
func (c *conn) removeInflight(i int) {
	f := c.session.inflight[i]
	if i == 0 { // usually
		c.session.inflight[0] = inflightMessage{}
		c.session.inflight = c.session.inflight[1:]
	} else {
		c.session.inflight = slices.Delete(c.session.inflight, i, i+1)
	}
	if len(c.session.inflight) == 0 && cap(c.session.inflightBuffer) > inflightKeptCapacity { // so that an idle client keeps little memory
		c.session.inflight, c.session.inflightBuffer = nil, nil
	}
	if f.counted {
		c.session.uncountOffline(f.stored, f.seq, int(f.size))
	}
	c.session.updateLoad()
	c.out.changed.Broadcast()
}

// unacknowledgedPublishes returns the number of the client's unacknowledged publishes; mu is held.
func (c *conn) unacknowledgedPublishes() int {
	n := len(c.session.received)
	for i := range c.out.pendingResponses {
		if c.out.pendingResponses[i].kind == packet.PUBACK {
			n++
		}
	}
	return n
}
