package mqtt

import (
	"slices"

	"github.com/watchword-iot/watchword/mqtt/packet"
)

// inflightMessage is a message that was sent with QoS 1 or 2 and is not done.
type inflightMessage struct {
	seq      int64
	command  int64          // of the message
	stored   *storedMessage // nil where it does not wait on the shelf, or the receiver has it
	message  *message       // of a shared subscription alone: another may get it
	size     uint32         // what it counts, if it counts
	qos      byte
	retain   bool
	released bool         // PUBREL is to be answered
	counted  bool         // it waits on the shelf
	group    *sharedGroup // that it was picked from

	identifiers *[]uint32
}

func (f *inflightMessage) backlogEntry() backlogEntry {
	return backlogEntry{stored: f.stored, identifiers: f.identifiers, seq: f.seq, size: f.size, qos: f.qos, retain: f.retain, released: f.released, group: f.group}
}

// packetID is the packet identifier of the message with that number. It follows from the
// number, so that what was sent before a restart has the same one after it.
func packetID(seq int64) uint16 { return uint16((seq-1)%maxPacketIDs + 1) }

// maxPacketIDs is how many packet identifiers there are: 0 is none.
const maxPacketIDs = 65535

// inflightKeptCapacity is the longest empty list of flights that is kept for what comes next.
const inflightKeptCapacity = 16

// maySendInflight says whether one more message may go out unacknowledged: the client takes
// one, its identifier has come free, and with QoS 2 it is on the disk.
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
	if c.session.persistent != nil { // what does not wait on the shelf may have overtaken what does
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

// appendInflight adds a message to those in flight. They land at the front as a rule: what is
// free there is used again before the list grows.
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

// findInflight finds what is in flight under a packet identifier; -1 for nothing: it is of a
// connection before, or said twice, and nothing hangs on it (MQTT 5.0 §4.4).
func (c *conn) findInflight(id uint16) int {
	for i := range c.session.inflight {
		if packetID(c.session.inflight[i].seq) == id {
			return i
		}
	}
	return -1
}

// removeInflight takes a message out of flight; size and the rest as in [sessionState.uncountOffline].
func (c *conn) removeInflight(i int) {
	f := c.session.inflight[i]
	if i == 0 { // as a rule
		c.session.inflight[0] = inflightMessage{}
		c.session.inflight = c.session.inflight[1:]
	} else {
		c.session.inflight = slices.Delete(c.session.inflight, i, i+1)
	}
	if len(c.session.inflight) == 0 && cap(c.session.inflightBuffer) > inflightKeptCapacity { // an idle client keeps little
		c.session.inflight, c.session.inflightBuffer = nil, nil
	}
	if f.counted {
		c.session.uncountOffline(f.stored, f.seq, int(f.size))
	}
	c.session.updateLoad()
	c.out.moved.Broadcast()
}

// unacknowledgedPublishes is how many publishes of the client wait for their end; mu is held.
func (c *conn) unacknowledgedPublishes() int {
	n := len(c.session.received)
	for i := range c.out.pendingResponses {
		if c.out.pendingResponses[i].kind == packet.PUBACK {
			n++
		}
	}
	return n
}
