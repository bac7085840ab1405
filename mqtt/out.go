package mqtt

import (
	"encoding/binary"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
)

// The bounds of writing.
const (
	batchBytes   = 16 << 10         // what one write coalesces
	controlBytes = 64 << 10         // answers that may wait while another write is stuck; then the reader waits too
	writeTimeout = 10 * time.Second // a peer that takes nothing for so long is cut
	byeTimeout   = time.Second      // for the last words, and for the peer to hear them
	maxFlights   = 1024             // unacknowledged messages to one client, however many it would take
)

// item is one message in a queue.
type item struct {
	m    *message
	sub  *subscription
	qos  byte
	flag byte // RETAIN, for this receiver
}

// flight is a message that was sent with QoS 1 and not acknowledged yet.
type flight struct {
	id      uint16
	command int64 // of the message
}

// out is what goes to one client: a bounded queue and the answers, and whoever
// writes them. At most one goroutine writes; no lock is held while it does.
type out struct {
	mu      sync.Mutex
	moved   sync.Cond // something was written, or the end came; for the reader that waits
	queue   []item    // from head on
	head    int
	bytes   int
	control []byte   // answers, which go before messages
	flights []flight // oldest first
	nextID  uint16
	window  int // how many flights the client takes
	largest int // the longest packet that the client takes; 0 for any

	writing bool // somebody writes
	armed   bool // a write deadline is set; the writer's
	woken   bool // somebody will
	closed  bool // nothing comes in any more; what is in control still goes out
	failed  bool // nothing goes out any more
}

var batches = sync.Pool{New: func() any { b := make([]byte, 0, batchBytes+4<<10); return &b }}

// offer queues m once, for those of a client's subscriptions that it matches. wake
// says that the caller must see to it that c is flushed. A client that does not
// read what it is sent loses its connection.
func (c *conn) offer(m *message, subs ...*subscription) (wake bool) {
	c.mu.Lock()
	wake, full := c.push(m, subs)
	c.mu.Unlock()
	if full {
		c.broker.stats.slow.Add(1)
		c.end(errSlow)
	}
	return wake
}

func (c *conn) push(m *message, subs []*subscription) (wake, full bool) {
	if c.closed {
		return false, false
	}
	var by *subscription // the one with the highest QoS (MQTT 5.0 §3.3.4)
	retain := m.kept
	for _, s := range subs {
		if s.since != nil {
			if _, newer := s.since[m.topic]; newer && m.kept {
				continue
			}
			if !m.kept && isState(m.topic) {
				s.since[m.topic] = struct{}{}
			}
		}
		if s.dead || s.noLocal && m.from == c {
			continue
		}
		retain = retain || m.retain && s.asPublished
		if by == nil || s.qos > by.qos {
			by = s
		}
	}
	if by == nil {
		return false, false
	}
	qos := min(m.qos, by.qos)
	if c.largest > 0 && len(m.encoded(c.version, qos).bytes) > c.largest {
		c.broker.stats.tooLarge.Add(1)
		return false, false // MQTT 5.0 §3.1.2.11.4: as if it had been delivered
	}
	if len(c.queue)-c.head >= c.broker.o.QueueMessages || c.bytes+m.size() > c.broker.o.QueueBytes {
		return false, true
	}
	it := item{m: m, sub: by, qos: qos}
	if retain {
		it.flag = 1
	}
	c.queue = append(c.queue, it)
	c.bytes += m.size()
	return c.mustWake(), false
}

// mustWake is called with mu held.
func (c *conn) mustWake() bool {
	if c.writing || c.woken {
		return false
	}
	c.woken = true
	return true
}

// answer appends a packet that goes before all messages. It is the reader's.
func (c *conn) answer(p packet.Packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.control = packet.Append(c.control, p, c.version)
	}
}

// puback answers a publish in full success: the common case, in four bytes.
func (c *conn) puback(id uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.control = append(c.control, byte(packet.PUBACK)<<4, 2, byte(id>>8), byte(id))
	}
}

// acknowledged frees the flight of a packet identifier. command is the number of
// the command that flew with it, 0 if none did. ok is false for an identifier
// that is not in flight.
func (c *conn) acknowledged(id uint16) (command int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, f := range c.flights {
		if f.id == id {
			c.flights = slices.Delete(c.flights, i, i+1)
			if len(c.flights) == 0 {
				c.flights = nil // an idle client keeps no list
			}
			return f.command, true
		}
	}
	return 0, false
}

// flush writes what waits, unless somebody is at it. A patient caller is one who
// may be held up by this peer: its own reader, or a goroutine for it alone.
func (c *conn) flush(patient bool) {
	c.mu.Lock()
	c.woken = false
	if c.writing || c.failed || len(c.control) == 0 && c.head == len(c.queue) {
		c.mu.Unlock()
		return
	}
	c.writing = true
	c.mu.Unlock()
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
	timeout := writeTimeout
	if c.leaving.Load() {
		timeout = byeTimeout
	}
	if err := c.nc.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	c.armed = true
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
	if c.armed {
		if err := c.nc.SetWriteDeadline(time.Time{}); err != nil {
			return 0, err
		}
		c.armed = false
	}
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

// fill takes the next batch out of the queue. It reports false, and gives the
// writing up, where there is none.
func (c *conn) fill(b *[]byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	buf := append(*b, c.control...)
	if c.control = c.control[:0]; cap(c.control) > 64 { // an idle client keeps little
		c.control = nil
	}
	for c.head < len(c.queue) && len(buf) < batchBytes {
		it := &c.queue[c.head]
		if it.qos > 0 && !c.mayFly() {
			break
		}
		buf = c.take(buf, it)
	}
	if c.head == len(c.queue) {
		if c.head = 0; cap(c.queue) > 8 {
			c.queue = nil
		} else {
			c.queue = c.queue[:0]
		}
	}
	*b = buf
	if len(buf) == 0 {
		c.writing = false
	}
	c.moved.Broadcast()
	return len(buf) > 0
}

// take appends one message as it goes over the wire.
func (c *conn) take(buf []byte, it *item) []byte {
	f := it.m.encoded(c.version, it.qos)
	at := len(buf)
	buf = append(buf, f.bytes...)
	buf[at] |= it.flag
	if f.idAt > 0 {
		binary.BigEndian.PutUint16(buf[at+f.idAt:], c.fly(it.m.command))
	}
	c.bytes -= it.m.size()
	c.broker.stats.sent.Add(1)
	*it = item{}
	c.head++
	return buf
}

// mayFly says whether one more message may go out unacknowledged: the client
// takes one, and its identifier has come free.
func (c *conn) mayFly() bool {
	return len(c.flights) < c.window && (len(c.flights) == 0 || c.flights[0].id != after(c.nextID))
}

func (c *conn) fly(command int64) uint16 {
	c.nextID = after(c.nextID)
	c.flights = append(c.flights, flight{c.nextID, command})
	return c.nextID
}

// after returns the packet identifier that follows id: 1 to 65535.
func after(id uint16) uint16 {
	if id == 65535 {
		return 1
	}
	return id + 1
}

// writeFailed is the writer's: the peer is gone or stalled.
func (c *conn) writeFailed() {
	c.mu.Lock()
	c.failed, c.writing, c.closed = true, false, true
	c.drop(func(*item) bool { return true })
	c.control = nil
	c.moved.Broadcast()
	c.mu.Unlock()
	// The reader sees it and takes the rest down. It may be the one who is here, in the
	// middle of a read, and Close waits for the end of all reads.
	go func() { _ = c.nc.Close() }()
}

// drop takes what is queued and gone away again. It is called with mu held.
func (c *conn) drop(gone func(*item) bool) {
	kept := c.queue[:0]
	for i := range c.queue[c.head:] {
		it := c.queue[c.head+i]
		if gone(&it) {
			c.bytes -= it.m.size()
			continue
		}
		kept = append(kept, it)
	}
	clear(c.queue[len(kept):])
	c.queue, c.head = kept, 0
}

// settle is the reader's, at the end of each batch: it writes the answers, and
// waits where too many are on their way already.
func (c *conn) settle() {
	c.flush(c.raw == nil) // a write that can be tried needs no deadline, and what it leaves is another's
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.control) > controlBytes && !c.failed && c.writing {
		c.moved.Wait()
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
