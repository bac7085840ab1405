package mqtt

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/watchword-iot/watchword/internal/lockrank"
)

// Limits of writing.
const (
	maxBatchBytes       = 16 << 10         // bytes of one write
	maxResponseBytes    = 64 << 10         // bytes of responses that may wait for a blocked write; then the reader waits
	writeTimeout        = 10 * time.Second // a peer that does not read for this long is disconnected
	closeTimeout        = time.Second      // time for the final packet to be written and read
	maxInflight         = 1024             // unacknowledged messages to one client, whatever its Receive Maximum
	maxPendingResponses = 1024             // responses that wait for a commit; then the reader waits
	maxAliases          = 64               // topic aliases in each direction
)

// outbound is the writing side of a connection: responses, then the session's queue. At most one
// goroutine writes, without a lock. The fields are protected by the session's mu.
type outbound struct {
	changed            sync.Cond  // signalled when something was written or the end came
	responses          []byte     // encoded responses, sent before messages
	pendingResponses   []response // responses that wait for a commit, in order, and all later ones
	receiveMaximum     int        // Receive Maximum of the client
	maxPacket          int        // largest packet that the client accepts; 0: any
	outboundAliases    map[string]uint16
	maxOutboundAliases int // largest alias that the client accepts, or that the quota allows

	aliasBytes   int // memory of aliases in both directions
	aliasCharged chargedBytes

	connackSent    bool // CONNACK is in responses or was sent: messages may follow
	writing        bool // a goroutine is writing
	deadlineSet    bool // a write deadline is set; used by the writer
	flushScheduled bool // a flush is scheduled
	closed         bool // nothing is queued any more; responses are still sent
	failed         bool // nothing is sent any more
}

var writeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, maxBatchBytes+4<<10); return &b }}

// flush writes what is queued, unless another goroutine is writing. A patient caller may block for
// this peer: its reader, or a goroutine for it alone.
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

// write is called by the writing goroutine. rest is what is left of a batch.
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

// tryWrite writes what the system accepts without blocking. The rest is written by a new goroutine,
// so that a stalled peer delays only itself.
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

// writeNonblocking writes without blocking. It clears an earlier deadline, which would make it
// fail.
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

// fillBatch takes the next batch from responses and queue. It returns false and ends writing if
// there is none.
func (c *conn) fillBatch(b *[]byte) bool {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	buf := append(*b, c.out.responses...)
	if c.out.responses = c.out.responses[:0]; cap(c.out.responses) > 64 { // so that an idle client keeps little memory
		c.out.responses = nil
	}
	if c.session.conn == c && c.out.connackSent {
		buf = c.fillFromQueue(buf)
	}
	*b = buf
	if len(buf) == 0 {
		c.out.writing = false
	}
	c.out.changed.Broadcast()
	return len(buf) > 0
}

// encodeNext appends the encoding of one message, if it is still to be sent.
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
	if alias > 0 || !now.IsZero() || it.message.retained || it.extra != nil && it.extra.identifiers != nil { // the encoding is for this receiver only
		buf = it.message.encodeFor(buf, c.version, it, id, alias, known, now)
	} else {
		f := it.message.encoded(c.version, it.qos)
		buf = append(buf, f.bytes...)
		if f.idOffset > 0 {
			binary.BigEndian.PutUint16(buf[at+f.idOffset:], id)
		}
	}
	if c.out.maxPacket > 0 && len(buf)-at > c.out.maxPacket { // MQTT 5.0 §3.1.2.11.4: handled as if it had been sent
		c.broker.stats.tooLarge.Add(1)
		if alias > 0 && !known {
			delete(c.out.outboundAliases, it.message.topic)                              // the client never received it
			_ = c.chargeAliases(-(outboundAliasBytes + allocatedSize(it.message.topic))) // never refused, since it shrinks
		}
		if n := it.message.command(); n > 0 && c.pump != nil { // only commands are acknowledged by their receipt too
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

// wasSent reports whether a message was sent over an earlier connection; then it is sent again even
// if it has expired (MQTT 5.0 §4.3.3). mu is held.
func (st *sessionState) wasSent(it *queuedMessage) bool {
	return st.persistent != nil && st.persistent.backlog.wasSent(it.sequence())
}

// skipMessage completes a message that is not sent.
func (c *conn) skipMessage(buf []byte, it *queuedMessage) []byte {
	if it.extra != nil && it.extra.stored != nil {
		c.session.persistent.backlog.markSent(it.extra.seq)
		c.session.uncountOffline(it.extra.stored, it.extra.seq, int(it.extra.countedBytes))
	}
	return buf
}

// writeFailed is called by the writer when the peer is gone or stalled.
func (c *conn) writeFailed() {
	c.session.mu.Lock()
	c.out.failed, c.out.writing, c.out.closed = true, false, true
	c.out.responses = nil
	c.detachInReader()
	c.out.changed.Broadcast()
	c.session.mu.Unlock()
	// The reader notices it and cleans up. The caller may be the reader, in the middle of a read,
	// and Close waits for reads to end.
	go func() { _ = c.nc.Close() }()
}

// flushResponses is called by the reader after each batch: it writes the responses, and waits if
// too many are pending.
func (c *conn) flushResponses() {
	c.flush(c.rawConn == nil) // a nonblocking write needs no deadline; the rest of it is written by another goroutine
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	for len(c.out.responses) > maxResponseBytes && !c.out.failed && c.out.writing || len(c.out.pendingResponses) >= maxPendingResponses && !c.out.closed {
		c.out.changed.Wait()
	}
}
