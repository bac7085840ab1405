package mqtt

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/watchword-iot/watchword/internal/lockrank"
)

// The bounds of writing.
const (
	maxBatchBytes       = 16 << 10         // what one write coalesces
	maxResponseBytes    = 64 << 10         // answers that may wait while another write is stuck; then the reader waits too
	writeTimeout        = 10 * time.Second // a peer that takes nothing for so long is cut
	closeTimeout        = time.Second      // for the last words, and for the peer to hear them
	maxInflight         = 1024             // unacknowledged messages to one client, however many it would take
	maxPendingResponses = 1024             // answers that wait for the disk; then the reader waits too
	maxAliases          = 64               // topic aliases in each direction
)

// outbound is what goes to one connection, and whoever writes it: answers, and after them
// the queue of the client. At most one goroutine writes; no lock is held while it
// does. All is under the client's mu.
type outbound struct {
	moved              sync.Cond  // something was written, or the end came; for the reader that waits
	responses          []byte     // answers, which go before messages
	pendingResponses   []response // those that wait for the disk, in order, and all that come after them
	receiveMaximum     int        // how many flights the client takes
	maxPacket          int        // the longest packet that the client takes; 0 for any
	outboundAliases    map[string]uint16
	maxOutboundAliases int // how many the client takes, or there is room for

	aliasBytes   int // of memory that aliases take, each way
	aliasCharged chargedBytes

	connackSent    bool // CONNACK is in control or beyond: messages may follow
	writing        bool // somebody writes
	deadlineSet    bool // a write deadline is set; the writer's
	flushScheduled bool // somebody will
	closed         bool // nothing comes in any more; what is in control still goes out
	failed         bool // nothing goes out any more
}

var writeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, maxBatchBytes+4<<10); return &b }}

// flush writes what waits, unless somebody is at it. A patient caller is one who
// may be held up by this peer: its own reader, or a goroutine for it alone.
func (c *conn) flush(patient bool) {
	c.session.mu.Lock()
	c.out.flushScheduled = false
	if c.out.writing || c.out.failed || len(c.out.responses) == 0 && (c.session.conn != c || c.session.head == len(c.session.queue)) {
		c.session.mu.Unlock()
		return
	}
	c.out.writing = true
	c.session.mu.Unlock()
	switch {
	case patient:
		c.write(nil)
	case c.rawConn != nil:
		c.tryWrite()
	default:
		go c.write(nil)
	}
}

// write is called by the one who writes. rest is what is left of a batch.
func (c *conn) write(rest *[]byte) {
	b := rest
	if b == nil {
		b = writeBuffers.Get().(*[]byte)
		*b = (*b)[:0]
	}
	defer writeBuffers.Put(b)
	for {
		if len(*b) == 0 && !c.fillBatch(b) {
			return
		}
		if err := c.send(*b); err != nil {
			c.writeFailed()
			return
		}
		*b = (*b)[:0]
	}
}

func (c *conn) send(b []byte) error {
	lockrank.Block()
	timeout := writeTimeout
	if c.closing.Load() {
		timeout = closeTimeout
	}
	if err := c.nc.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	c.out.deadlineSet = true
	_, err := c.nc.Write(b)
	return err
}

// tryWrite writes as much as the system takes at once. What is left is a new
// goroutine's: nobody waits for a stalled peer but itself.
func (c *conn) tryWrite() {
	b := writeBuffers.Get().(*[]byte)
	*b = (*b)[:0]
	for c.fillBatch(b) {
		n, err := c.writeNonblocking(*b)
		if err != nil {
			c.writeFailed()
			break
		}
		if n < len(*b) {
			*b = append((*b)[:0], (*b)[n:]...)
			go c.write(b)
			return
		}
		*b = (*b)[:0]
	}
	writeBuffers.Put(b)
}

// writeNonblocking is a write that does not wait. A deadline that an earlier write left
// behind would fail it.
func (c *conn) writeNonblocking(b []byte) (n int, err error) {
	if c.out.deadlineSet {
		if err := c.nc.SetWriteDeadline(time.Time{}); err != nil {
			return 0, err
		}
		c.out.deadlineSet = false
	}
	lockrank.Block()
	cerr := c.rawConn.Write(func(fd uintptr) bool {
		n, err = writeNonblocking(fd, b)
		return true
	})
	if err == nil {
		err = cerr
	}
	return n, err
}

// fillBatch takes the next batch out of the answers and the queue. It reports false, and
// gives the writing up, where there is none.
func (c *conn) fillBatch(b *[]byte) bool {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	buf := append(*b, c.out.responses...)
	if c.out.responses = c.out.responses[:0]; cap(c.out.responses) > 64 { // an idle client keeps little
		c.out.responses = nil
	}
	if c.session.conn == c && c.out.connackSent {
		buf = c.fillFromQueue(buf)
	}
	*b = buf
	if len(buf) == 0 {
		c.out.writing = false
	}
	c.out.moved.Broadcast()
	return len(buf) > 0
}

// encodeNext appends one message as it goes over the wire, if it still does.
func (c *conn) encodeNext(buf []byte, it *queuedMessage) []byte {
	var now time.Time
	if it.message.expiresAt != 0 {
		if now = c.broker.options.Now(); it.message.expired(now) && !c.session.wasSent(it) {
			c.broker.stats.expired.Add(1)
			return c.skipMessage(buf, it)
		}
	}
	if it.extra != nil && it.extra.stored != nil && it.extra.stored.failed.Load() {
		return c.skipMessage(buf, it)
	}
	var id uint16
	seq := it.sequence()
	if it.qos > 0 {
		if seq == 0 {
			c.session.lastSeq++
			seq = c.session.lastSeq
		}
		id = packetID(seq)
	}
	at := len(buf)
	alias, known := c.assignAlias(it.message.topic)
	if alias > 0 || !now.IsZero() || it.message.retained || it.extra != nil && it.extra.identifiers != nil { // what is kept is one receiver's alone
		buf = it.message.encodeFor(buf, c.version, it, id, alias, known, now)
	} else {
		f := it.message.encoded(c.version, it.qos)
		buf = append(buf, f.bytes...)
		if f.idOffset > 0 {
			binary.BigEndian.PutUint16(buf[at+f.idOffset:], id)
		}
	}
	if c.out.maxPacket > 0 && len(buf)-at > c.out.maxPacket { // MQTT 5.0 §3.1.2.11.4: as if it had been delivered
		c.broker.stats.tooLarge.Add(1)
		if alias > 0 && !known {
			delete(c.out.outboundAliases, it.message.topic)                              // it never heard it
			_ = c.chargeAliases(-(outboundAliasBytes + allocatedSize(it.message.topic))) // never refused: it shrinks
		}
		if n := it.message.command(); n > 0 && c.pump != nil { // but that a device has a command is said of no other
			c.pump.tooLargeToSend(n, len(buf)-at)
		}
		return c.skipMessage(buf[:at], it)
	}
	buf[at] |= it.flags
	if it.qos > 0 {
		c.addInflight(it, seq)
	}
	if p := it.message.unicast; p != nil && p.report != nil {
		if it.qos == 0 {
			seq = c.session.lastSeq + 1
		}
		c.addReport(*p.report, seq)
	}
	c.broker.stats.sent.Add(1)
	return buf
}

// wasSent reports whether a message went out over an earlier connection: then it goes out
// again whatever its age (MQTT 5.0 §4.3.3). mu is held.
func (st *sessionState) wasSent(it *queuedMessage) bool {
	return st.persistent != nil && st.persistent.backlog.wasSent(it.sequence())
}

// skipMessage is for what is not sent after all.
func (c *conn) skipMessage(buf []byte, it *queuedMessage) []byte {
	if it.extra != nil && it.extra.stored != nil {
		c.session.persistent.backlog.markSent(it.extra.seq)
		c.session.uncountOffline(it.extra.stored, it.extra.seq, int(it.extra.countedBytes))
	}
	return buf
}

// writeFailed is the writer's: the peer is gone or stalled.
func (c *conn) writeFailed() {
	c.session.mu.Lock()
	c.out.failed, c.out.writing, c.out.closed = true, false, true
	c.out.responses = nil
	c.detach()
	c.out.moved.Broadcast()
	c.session.mu.Unlock()
	// The reader sees it and takes the rest down. It may be the one who is here, in the
	// middle of a read, and Close waits for the end of all reads.
	go func() { _ = c.nc.Close() }()
}

// flushResponses is the reader's, at the end of each batch: it writes the answers, and
// waits where too many are on their way already.
func (c *conn) flushResponses() {
	c.flush(c.rawConn == nil) // a write that can be tried needs no deadline, and what it leaves is another's
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	for len(c.out.responses) > maxResponseBytes && !c.out.failed && c.out.writing || len(c.out.pendingResponses) >= maxPendingResponses && !c.out.closed {
		c.out.moved.Wait()
	}
}
