package mqtt

import (
	"unsafe"

	"github.com/watchword-iot/watchword/server/bus"
)

// queuedMessage is an item of a queue.
type queuedMessage struct {
	message      *message
	subscription *subscription // nil: read from the store
	extra        *queuedExtra  // nil for most items
	qos          byte
	flags        byte // RETAIN and DUP for this receiver
}

// queuedExtra holds what few items need.
type queuedExtra struct {
	seq          int64          // sequence number, if assigned before sending
	stored       *storedMessage // nil: not stored
	identifiers  []uint32
	group        *bus.Group // shared subscription that it was received by
	countedBytes uint32     // its size among stored messages
}

// size returns what the item counts against queue limits, or among stored messages.
func (it *queuedMessage) size() int {
	if it.extra == nil {
		return it.message.size()
	}
	return it.message.size() + sizeOfIdentifiers(it.extra.identifiers)
}

// sizeOfIdentifiers returns the memory of subscription identifiers, one for each matching
// subscription.
func sizeOfIdentifiers(ids []uint32) int {
	if ids == nil {
		return 0
	}
	return int(unsafe.Sizeof(queuedExtra{})) + 4*len(ids)
}

// sequence returns the item's sequence number, 0 if it is assigned when sent.
func (it *queuedMessage) sequence() int64 {
	if it.extra == nil {
		return 0
	}
	return it.extra.seq
}

// group returns the name of the shared subscription that it was received by, "" for none.
func (it *queuedMessage) group() string {
	if it.extra == nil || it.extra.group == nil {
		return ""
	}
	return it.extra.group.Name()
}

// queueKeptCapacity is the largest capacity of an empty queue that is kept.
const queueKeptCapacity = 64

func (st *sessionState) enqueue(it queuedMessage) (wake *conn) {
	st.appendToQueue(it)
	st.updateLoad()
	if c := st.conn; c.out.connackSent && c.needsFlush() {
		return c
	}
	return nil
}

// appendToQueue appends an item to the queue. mu is held.
func (st *sessionState) appendToQueue(it queuedMessage) {
	if n := len(st.queue); n == cap(st.queue) && 2*st.head >= n { // sent items are dropped before the queue grows
		k := copy(st.queue, st.queue[st.head:])
		clear(st.queue[k:])
		st.queue, st.head = st.queue[:k], 0
	}
	st.queue = append(st.queue, it)
	st.queuedBytes += it.size()
}

// dropQueued removes matching items from the queue. mu is held.
func (st *sessionState) dropQueued(gone func(*queuedMessage) bool) {
	stays := st.queue[:0]
	for i := range st.queue[st.head:] {
		it := st.queue[st.head+i]
		if gone(&it) {
			st.queuedBytes -= it.size()
			if it.extra != nil && it.extra.stored != nil {
				st.uncountOffline(it.extra.stored, it.extra.seq, int(it.extra.countedBytes))
			}
			if n := it.message.command(); n > 0 && st.conn != nil && st.conn.pump != nil {
				st.conn.pump.notSent(n)
			}
			continue
		}
		stays = append(stays, it)
	}
	clear(st.queue[len(stays):])
	st.queue, st.head = stays, 0
	st.dischargeQueue()
}

func (c *conn) fillFromQueue(buf []byte) []byte {
	for c.session.head < len(c.session.queue) && len(buf) < maxBatchBytes {
		it := &c.session.queue[c.session.head]
		if it.qos > 0 && !c.maySendInflight(it) {
			break
		}
		buf = c.encodeNext(buf, it)
		c.session.queuedBytes -= it.size()
		*it = queuedMessage{}
		c.session.head++
	}
	if c.session.head == len(c.session.queue) {
		if c.session.head = 0; cap(c.session.queue) > queueKeptCapacity {
			c.session.queue = nil
		} else {
			c.session.queue = c.session.queue[:0]
		}
	} else if c.session.head > 4*queueKeptCapacity && c.session.head > len(c.session.queue)/4*3 { // limits the memory of a client that always has messages
		c.session.queue, c.session.head = append([]queuedMessage(nil), c.session.queue[c.session.head:]...), 0
	}
	c.session.updateLoad()
	c.session.dischargeQueue()
	if c.session.persistent != nil {
		c.refill()
	}
	return buf
}
