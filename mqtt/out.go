package mqtt

import (
	"encoding/binary"
	"net"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/watchword-iot/watchword/internal/lockrank"
)

// The bounds of writing.
const (
	batchBytes   = 16 << 10         // what one write coalesces
	controlBytes = 64 << 10         // answers that may wait while another write is stuck; then the reader waits too
	writeTimeout = 10 * time.Second // a peer that takes nothing for so long is cut
	byeTimeout   = time.Second      // for the last words, and for the peer to hear them
	maxFlights   = 1024             // unacknowledged messages to one client, however many it would take
	maxAnswers   = 1024             // answers that wait for the disk; then the reader waits too
	maxAliases   = 64               // topic aliases in each direction
)

// item is one message in a queue.
type item struct {
	m    *message
	sub  *subscription // nil where it was fetched from the shelf
	x    *extra        // nil for most
	qos  byte
	flag byte // RETAIN and DUP, for this receiver
}

// extra is what few items have.
type extra struct {
	seq         int64 // its number, where it has one before it is sent
	k           *kept // nil where it does not wait on the shelf
	identifiers []uint32
	shared      *group // that it was picked from
	counted     uint32 // what it counts while it waits on the shelf
}

// size is what the item counts against the bounds of a queue, or while it waits on the shelf.
func (it *item) size() int {
	if it.x == nil {
		return it.m.size()
	}
	return it.m.size() + sizeOfIdentifiers(it.x.identifiers)
}

// sizeOfIdentifiers is what they take: a message has as many as it matches subscriptions.
func sizeOfIdentifiers(ids []uint32) int {
	if ids == nil {
		return 0
	}
	return int(unsafe.Sizeof(extra{})) + 4*len(ids)
}

// number is the item's, 0 where it gets one when it is sent.
func (it *item) number() int64 {
	if it.x == nil {
		return 0
	}
	return it.x.seq
}

// group names the shared subscription that it was picked from, "" for none.
func (it *item) group() string {
	if it.x == nil || it.x.shared == nil {
		return ""
	}
	return it.x.shared.name
}

// flight is a message that was sent with QoS 1 or 2 and is not done.
type flight struct {
	seq      int64
	command  int64    // of the message
	k        *kept    // nil where it does not wait on the shelf, or the receiver has it
	m        *message // of a shared subscription alone: another may get it
	size     uint32   // what it counts, if it counts
	qos      byte
	retain   bool
	released bool   // PUBREL is to be answered
	counts   bool   // it waits on the shelf
	shared   *group // that it was picked from

	identifiers *[]uint32
}

func (f *flight) entry() entry {
	return entry{k: f.k, identifiers: f.identifiers, seq: f.seq, size: f.size, qos: f.qos, retain: f.retain, released: f.released, shared: f.shared}
}

// packetID is the packet identifier of the message with that number. It follows from the
// number, so that what was sent before a restart has the same one after it.
func packetID(seq int64) uint16 { return uint16((seq-1)%identifiers + 1) }

// out is what goes to one connection, and whoever writes it: answers, and after them
// the queue of the client. At most one goroutine writes; no lock is held while it
// does. All is under the client's mu.
type out struct {
	moved   sync.Cond // something was written, or the end came; for the reader that waits
	control []byte    // answers, which go before messages
	answers []reply   // those that wait for the disk, in order, and all that come after them
	window  int       // how many flights the client takes
	largest int       // the longest packet that the client takes; 0 for any
	aliases map[string]uint16
	aliased int // how many the client takes, or there is room for

	aliasBytes   int // of memory that aliases take, each way
	aliasCharged charged

	ready   bool // CONNACK is in control or beyond: messages may follow
	writing bool // somebody writes
	armed   bool // a write deadline is set; the writer's
	woken   bool // somebody will
	closed  bool // nothing comes in any more; what is in control still goes out
	failed  bool // nothing goes out any more
}

var batches = sync.Pool{New: func() any { b := make([]byte, 0, batchBytes+4<<10); return &b }}

// flush writes what waits, unless somebody is at it. A patient caller is one who
// may be held up by this peer: its own reader, or a goroutine for it alone.
func (c *conn) flush(patient bool) {
	c.session.mu.Lock()
	c.out.woken = false
	if c.out.writing || c.out.failed || len(c.out.control) == 0 && (c.session.conn != c || c.session.head == len(c.session.queue)) {
		c.session.mu.Unlock()
		return
	}
	c.out.writing = true
	c.session.mu.Unlock()
	switch {
	case patient:
		c.write(nil)
	case c.raw != nil:
		c.tryWrite()
	default:
		go c.write(nil)
	}
}

// write is called by the one who writes. rest is what is left of a batch.
func (c *conn) write(rest *[]byte) {
	b := rest
	if b == nil {
		b = batches.Get().(*[]byte)
		*b = (*b)[:0]
	}
	defer batches.Put(b)
	for {
		if len(*b) == 0 && !c.fill(b) {
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
	if c.leaving.Load() {
		timeout = byeTimeout
	}
	if err := c.nc.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	c.out.armed = true
	_, err := c.nc.Write(b)
	return err
}

// tryWrite writes as much as the system takes at once. What is left is a new
// goroutine's: nobody waits for a stalled peer but itself.
func (c *conn) tryWrite() {
	b := batches.Get().(*[]byte)
	*b = (*b)[:0]
	for c.fill(b) {
		n, err := c.attempt(*b)
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
	batches.Put(b)
}

// attempt is a write that does not wait. A deadline that an earlier write left
// behind would fail it.
func (c *conn) attempt(b []byte) (n int, err error) {
	if c.out.armed {
		if err := c.nc.SetWriteDeadline(time.Time{}); err != nil {
			return 0, err
		}
		c.out.armed = false
	}
	lockrank.Block()
	cerr := c.raw.Write(func(fd uintptr) bool {
		for len(b) > n {
			var k int
			if k, err = syscall.Write(int(fd), b[n:]); err == syscall.EINTR {
				err = nil
				continue
			}
			if err != nil {
				break
			}
			n += k
		}
		if err == syscall.EAGAIN {
			err = nil
		}
		return true
	})
	if err == nil {
		err = cerr
	}
	return n, err
}

// fill takes the next batch out of the answers and the queue. It reports false, and
// gives the writing up, where there is none.
func (c *conn) fill(b *[]byte) bool {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	buf := append(*b, c.out.control...)
	if c.out.control = c.out.control[:0]; cap(c.out.control) > 64 { // an idle client keeps little
		c.out.control = nil
	}
	if c.session.conn == c && c.out.ready {
		buf = c.fillFromQueue(buf)
	}
	*b = buf
	if len(buf) == 0 {
		c.out.writing = false
	}
	c.out.moved.Broadcast()
	return len(buf) > 0
}

func (c *conn) fillFromQueue(buf []byte) []byte {
	for c.session.head < len(c.session.queue) && len(buf) < batchBytes {
		it := &c.session.queue[c.session.head]
		if it.qos > 0 && !c.mayFly(it) {
			break
		}
		buf = c.take(buf, it)
		c.session.bytes -= it.size()
		*it = item{}
		c.session.head++
	}
	if c.session.head == len(c.session.queue) {
		if c.session.head = 0; cap(c.session.queue) > keptQueue {
			c.session.queue = nil
		} else {
			c.session.queue = c.session.queue[:0]
		}
	} else if c.session.head > 4*keptQueue && c.session.head > len(c.session.queue)/4*3 { // one who is never quite done keeps no more than it has
		c.session.queue, c.session.head = append([]item(nil), c.session.queue[c.session.head:]...), 0
	}
	c.session.weigh()
	c.session.dischargeQueue()
	if c.session.lasting != nil {
		c.refill()
	}
	return buf
}

// keptQueue is the longest empty queue that is kept for what comes next.
const keptQueue = 64

// keptFlights is the longest empty list of flights that is kept for what comes next.
const keptFlights = 16

// take appends one message as it goes over the wire, if it still does.
func (c *conn) take(buf []byte, it *item) []byte {
	var now time.Time
	if it.m.ends != 0 {
		if now = c.broker.options.Now(); it.m.expired(now) && !c.session.wasSent(it) {
			c.broker.stats.expired.Add(1)
			return c.skip(buf, it)
		}
	}
	if it.x != nil && it.x.k != nil && it.x.k.failed.Load() {
		return c.skip(buf, it)
	}
	var id uint16
	seq := it.number()
	if it.qos > 0 {
		if seq == 0 {
			c.session.seq++
			seq = c.session.seq
		}
		id = packetID(seq)
	}
	at := len(buf)
	alias, known := c.alias(it.m.topic)
	if alias > 0 || !now.IsZero() || it.m.kept || it.x != nil && it.x.identifiers != nil { // what is kept is one receiver's alone
		buf = it.m.custom(buf, c.version, it, id, alias, known, now)
	} else {
		f := it.m.encoded(c.version, it.qos)
		buf = append(buf, f.bytes...)
		if f.idAt > 0 {
			binary.BigEndian.PutUint16(buf[at+f.idAt:], id)
		}
	}
	if c.out.largest > 0 && len(buf)-at > c.out.largest { // MQTT 5.0 §3.1.2.11.4: as if it had been delivered
		c.broker.stats.tooLarge.Add(1)
		if alias > 0 && !known {
			delete(c.out.aliases, it.m.topic)                      // it never heard it
			_ = c.rememberMore(-(sentBytes + rounded(it.m.topic))) // never refused: it shrinks
		}
		if n := it.m.command(); n > 0 && c.pump != nil { // but that a device has a command is said of no other
			c.pump.doesNotFit(n, len(buf)-at)
		}
		return c.skip(buf[:at], it)
	}
	buf[at] |= it.flag
	if it.qos > 0 {
		c.fly(it, seq)
	}
	if p := it.m.private; p != nil && p.report != nil {
		if it.qos == 0 {
			seq = c.session.seq + 1
		}
		c.says(*p.report, seq)
	}
	c.broker.stats.sent.Add(1)
	return buf
}

// wasSent reports whether a message went out over an earlier connection: then it goes out
// again whatever its age (MQTT 5.0 §4.3.3). mu is held.
func (st *sessionState) wasSent(it *item) bool {
	return st.lasting != nil && it.number() > 0 && it.number() <= st.lasting.sent
}

// skip is for what is not sent after all.
func (c *conn) skip(buf []byte, it *item) []byte {
	if it.x != nil && it.x.k != nil {
		c.session.lasting.sent = max(c.session.lasting.sent, it.x.seq)
		c.session.finished(it.x.k, it.x.seq, int(it.x.counted))
	}
	return buf
}

// identifiers is how many packet identifiers there are: 0 is none.
const identifiers = 65535

// mayFly says whether one more message may go out unacknowledged: the client takes
// one, its identifier has come free, and with QoS 2 it is on the disk.
func (c *conn) mayFly(it *item) bool {
	if it.qos == 2 && it.x != nil && it.x.k != nil && !it.x.k.durable.Load() && !it.x.k.failed.Load() {
		return false
	}
	if len(c.session.flights) == 0 {
		return true
	}
	seq := it.number()
	if seq == 0 {
		seq = c.session.seq + 1
	}
	if len(c.session.flights) >= c.out.window {
		return false
	}
	oldest, newest := c.session.flights[0].seq, seq
	if c.session.lasting != nil { // what does not wait on the shelf may have overtaken what does
		for i := range c.session.flights {
			oldest, newest = min(oldest, c.session.flights[i].seq), max(newest, c.session.flights[i].seq)
		}
	}
	return newest-min(oldest, seq) < identifiers
}

func (c *conn) fly(it *item, seq int64) {
	f := flight{seq: seq, command: it.m.command(), qos: it.qos, size: uint32(it.m.size()), retain: it.flag&1 != 0}
	if x := it.x; x != nil {
		if x.identifiers != nil {
			f.identifiers = &x.identifiers
		}
		if f.k = x.k; x.k != nil {
			f.counts, f.size = true, x.counted
			c.session.lasting.sent = max(c.session.lasting.sent, seq)
			c.session.touch()
		}
		if x.shared != nil {
			f.shared, f.m = x.shared, it.m
		}
	}
	c.session.takeOff(f)
}

// takeOff adds a message to those in flight. They land at the front as a rule: what is
// free there is used again before the list grows.
func (st *sessionState) takeOff(f flight) {
	if len(st.flights) == cap(st.flights) && 2*len(st.flights) <= cap(st.ground) {
		n := copy(st.ground, st.flights)
		clear(st.ground[n:])
		st.flights = st.ground[:n]
	}
	grows := len(st.flights) == cap(st.flights)
	if st.flights = append(st.flights, f); grows {
		st.ground = st.flights[:cap(st.flights)]
	}
}

// alias returns the alias of a topic for this client, 0 for none; known, if the client
// has heard it. Where its subject has no room for another, topics go as they are.
func (c *conn) alias(topic string) (alias uint16, known bool) {
	if alias, known = c.lookUpAlias(topic); alias > 0 && !known {
		if c.rememberMore(sentBytes+rounded(topic)) != nil {
			c.out.aliased = len(c.out.aliases)
			return 0, false
		}
		if c.out.aliases == nil {
			c.out.aliases = map[string]uint16{}
		}
		c.out.aliases[topic] = alias
	}
	return alias, known
}

// lookUpAlias returns the alias that a topic has or would get, as [conn.alias] does.
func (c *conn) lookUpAlias(topic string) (alias uint16, known bool) {
	if c.out.aliased == 0 {
		return 0, false
	}
	if alias, known = c.out.aliases[topic]; known || len(c.out.aliases) >= c.out.aliased {
		return alias, known
	}
	return uint16(len(c.out.aliases) + 1), false
}

// writeFailed is the writer's: the peer is gone or stalled.
func (c *conn) writeFailed() {
	c.session.mu.Lock()
	c.out.failed, c.out.writing, c.out.closed = true, false, true
	c.out.control = nil
	c.detach()
	c.out.moved.Broadcast()
	c.session.mu.Unlock()
	// The reader sees it and takes the rest down. It may be the one who is here, in the
	// middle of a read, and Close waits for the end of all reads.
	go func() { _ = c.nc.Close() }()
}

// settle is the reader's, at the end of each batch: it writes the answers, and
// waits where too many are on their way already.
func (c *conn) settle() {
	c.flush(c.raw == nil) // a write that can be tried needs no deadline, and what it leaves is another's
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	for len(c.out.control) > controlBytes && !c.out.failed && c.out.writing || len(c.out.answers) >= maxAnswers && !c.out.closed {
		c.out.moved.Wait()
	}
}

// rawOf returns the connection below nc to which a write can be tried, or nil.
func rawOf(nc net.Conn) syscall.RawConn {
	for {
		if t, ok := nc.(*net.TCPConn); ok {
			raw, err := t.SyscallConn()
			if err != nil {
				return nil
			}
			return raw
		}
		w, ok := nc.(interface{ Below() net.Conn })
		if !ok {
			return nil
		}
		nc = w.Below()
	}
}
