package mqtt

import (
	"unsafe"
)

// queuedMessage is one message in a queue.
type queuedMessage struct {
	message      *message
	subscription *subscription // nil where it was fetched from the shelf
	extra        *queuedExtra  // nil for most
	qos          byte
	flags        byte // RETAIN and DUP, for this receiver
}

// queuedExtra is what few items have.
type queuedExtra struct {
	seq          int64          // its number, where it has one before it is sent
	stored       *storedMessage // nil where it does not wait on the shelf
	identifiers  []uint32
	group        *sharedGroup // that it was picked from
	countedBytes uint32       // what it counts while it waits on the shelf
}

// size is what the item counts against the bounds of a queue, or while it waits on the shelf.
func (it *queuedMessage) size() int {
	if it.extra == nil {
		return it.message.size()
	}
	return it.message.size() + sizeOfIdentifiers(it.extra.identifiers)
}

// sizeOfIdentifiers is what they take: a message has as many as it matches subscriptions.
func sizeOfIdentifiers(ids []uint32) int {
	if ids == nil {
		return 0
	}
	return int(unsafe.Sizeof(queuedExtra{})) + 4*len(ids)
}

// sequence is the item's, 0 where it gets one when it is sent.
func (it *queuedMessage) sequence() int64 {
	if it.extra == nil {
		return 0
	}
	return it.extra.seq
}

// group names the shared subscription that it was picked from, "" for none.
func (it *queuedMessage) group() string {
	if it.extra == nil || it.extra.group == nil {
		return ""
	}
	return it.extra.group.name
}

// queueKeptCapacity is the longest empty queue that is kept for what comes next.
const queueKeptCapacity = 64

func (st *sessionState) enqueue(it queuedMessage) (wake *conn) {
	st.appendToQueue(it)
	st.updateLoad()
	if c := st.conn; c.out.connackSent && c.needsFlush() {
		return c
	}
	return nil
}

// appendToQueue puts an item at the end of the queue. mu is held.
func (st *sessionState) appendToQueue(it queuedMessage) {
	if n := len(st.queue); n == cap(st.queue) && 2*st.head >= n { // what was sent makes room before the queue grows
		k := copy(st.queue, st.queue[st.head:])
		clear(st.queue[k:])
		st.queue, st.head = st.queue[:k], 0
	}
	st.queue = append(st.queue, it)
	st.queuedBytes += it.size()
}

// dropQueued takes what is queued and gone away again. It is called with mu held.
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
	} else if c.session.head > 4*queueKeptCapacity && c.session.head > len(c.session.queue)/4*3 { // one who is never quite done keeps no more than it has
		c.session.queue, c.session.head = append([]queuedMessage(nil), c.session.queue[c.session.head:]...), 0
	}
	c.session.updateLoad()
	c.session.dischargeQueue()
	if c.session.persistent != nil {
		c.refill()
	}
	return buf
}
