package device

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho/log"

	"github.com/watchword-iot/watchword"
)

// What the device tells the server in CONNECT (MQTT 5.0 §3.1.2.11), and holds it to.
const (
	receiveMaximum    = 8       // PUBLISH with QoS 1 that are not acknowledged
	maxProperties     = 4 << 10 // bytes of a packet beside topic and payload
	maxTopic          = 512     // bytes
	disconnectTimeout = time.Second
)

// maxPacket is the Maximum Packet Size: of the largest command, or configuration if anybody hears of
// those, and what goes along. Notices and answers are smaller.
func (d *Device) maxPacket() int {
	limit := watchword.MaxDocument
	if d.opts.MaxCommand > 0 {
		limit = min(limit, d.opts.MaxCommand)
	}
	if d.wantsConfig() {
		limit = 2 * watchword.MaxDocument // see token.VerifyConfig
	}
	return limit + maxProperties
}

// checkedConn is a connection under an MQTT client that reads any packet whole, however long it says
// that it is. It hands on only packets that the server may send to this device, and ends the
// connection at the first that it may not: before the body of one that is over the bound is read.
// It sets a deadline for each write. One goroutine reads, any may write.
type checkedConn struct {
	net.Conn
	sync.Mutex // of writes; the MQTT client holds it for each packet

	max         int                           // bytes of a packet
	onViolation func(why error, leave func()) // is told why the server is left, and calls leave before anybody else ends the connection
	r           *bufio.Reader                 // of one goroutine, with packet and rest
	body        []byte
	rest        []byte // of a packet that was checked: not read yet

	auths         atomic.Int32 // AUTH packets that may come
	disconnecting atomic.Bool

	inflightMu sync.Mutex
	inflight   map[uint16]struct{} // identifiers of PUBLISH with QoS 1 that were not acknowledged
}

func newCheckedConn(nc net.Conn, max int, wrong func(why error, leave func())) *checkedConn {
	return &checkedConn{Conn: nc, max: max, onViolation: wrong, r: bufio.NewReader(nc), inflight: map[uint16]struct{}{}}
}

// protocolViolation is why the server is left.
type protocolViolation struct {
	reason byte // for DISCONNECT (MQTT 5.0 §2.4)
	what   string
}

// Error says what the server did, for the log.
func (v *protocolViolation) Error() string {
	return fmt.Sprintf("the server breaks the protocol: %s (0x%02X)", v.what, v.reason)
}

func malformed(what string) error { return &protocolViolation{packets.DisconnectMalformedPacket, what} }

// Read returns bytes of packets that were checked whole.
func (c *checkedConn) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		err := c.next()
		if v, ok := err.(*protocolViolation); ok {
			c.onViolation(&mqttUnavailable{watchword.Wrap(v, watchword.Unavailable, "%s", v)}, func() { c.disconnect(v.reason) })
		}
		if err != nil {
			return 0, err
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// next reads one packet, and checks its length before its body.
func (c *checkedConn) next() error {
	first, err := c.r.ReadByte()
	if err != nil {
		return err
	}
	head := append(make([]byte, 0, 5), first)
	length := 0
	for shift := 0; ; shift += 7 {
		b, err := c.r.ReadByte()
		if err != nil {
			return err
		}
		head = append(head, b)
		length |= int(b&127) << shift
		if b < 128 {
			break
		}
		if len(head) == 5 {
			return malformed("a length of more than four bytes")
		}
	}
	n := len(head) + length
	if n > c.max {
		return &protocolViolation{packets.DisconnectPacketTooLarge, fmt.Sprintf("a packet of %d bytes, and %d were agreed", n, c.max)}
	}
	if cap(c.body) < n {
		c.body = make([]byte, n)
	}
	c.body = c.body[:n]
	copy(c.body, head)
	for at := len(head); at < n; {
		k, err := c.r.Read(c.body[at:])
		if err != nil {
			return err
		}
		at += k
	}
	if err := c.check(first, c.body[len(head):]); err != nil {
		return err
	}
	c.rest = c.body
	return nil
}

// check holds a packet against what a server may send to this device.
func (c *checkedConn) check(first byte, body []byte) error {
	at := len(body) // of the properties
	switch kind, flags := first>>4, first&15; {
	case kind == packets.PUBLISH:
		return c.publish(flags, body)
	case flags != 0:
		return malformed("reserved flags are set")
	case kind == packets.CONNACK:
		at = 2
	case kind == packets.SUBACK:
		at = 2
	case kind == packets.PUBACK:
		if len(body) > 3 {
			at = 3
		}
	case kind == packets.DISCONNECT:
		at = 1
	case kind == packets.AUTH:
		if c.auths.Add(-1) < 0 {
			return &protocolViolation{packets.DisconnectProtocolError, "an AUTH that was not asked for"}
		}
		at = 1
	case kind == packets.PINGRESP:
	default: // no PUBREC to PUBCOMP: no QoS 2 was asked for
		return &protocolViolation{packets.DisconnectProtocolError, fmt.Sprintf("a packet of type %d", kind)}
	}
	if at >= len(body) {
		return nil
	}
	_, err := properties(body[at:])
	return err
}

// publish checks a PUBLISH (MQTT 5.0 §3.3).
func (c *checkedConn) publish(flags byte, body []byte) error {
	qos := flags >> 1 & 3
	if qos > 1 {
		return &protocolViolation{packets.DisconnectQoSNotSupported, "a message with a QoS that was not asked for"}
	}
	if len(body) < 2 {
		return malformed("a PUBLISH without a topic")
	}
	n := int(binary.BigEndian.Uint16(body))
	if body = body[2:]; n == 0 || n > maxTopic || n > len(body) {
		return malformed("a PUBLISH whose topic is empty or too long")
	}
	body = body[n:]
	var id uint16
	if qos > 0 {
		if len(body) < 2 {
			return malformed("a PUBLISH without an identifier")
		}
		if id, body = binary.BigEndian.Uint16(body), body[2:]; id == 0 {
			return malformed("a PUBLISH with the identifier 0")
		}
	}
	if _, err := properties(body); err != nil || id == 0 {
		return err
	}
	c.inflightMu.Lock()
	defer c.inflightMu.Unlock()
	if _, used := c.inflight[id]; used {
		return &protocolViolation{packets.DisconnectProtocolError, "an identifier that is in use"}
	}
	if len(c.inflight) >= receiveMaximum {
		return &protocolViolation{packets.DisconnectReceiveMaximumExceeded, fmt.Sprintf("more than %d messages that are not acknowledged", receiveMaximum)}
	}
	c.inflight[id] = struct{}{}
	return nil
}

// properties returns what follows the properties that b begins with.
func properties(b []byte) (rest []byte, err error) {
	length := 0
	for i := range min(len(b), 4) {
		length |= int(b[i]&127) << (7 * i)
		if b[i] >= 128 {
			continue
		}
		if b = b[i+1:]; length > len(b) || length > maxProperties {
			break
		}
		return b[length:], nil
	}
	return nil, malformed("properties that are cut off or too long")
}

// acknowledged is told before a PUBLISH is acknowledged: its identifier may come again.
func (c *checkedConn) acknowledged(id uint16) {
	c.inflightMu.Lock()
	defer c.inflightMu.Unlock()
	delete(c.inflight, id)
}

// Write writes, and fails where the peer takes nothing for too long. A write that failed ends the
// connection: nobody knows how far it came.
func (c *checkedConn) Write(b []byte) (int, error) {
	if !c.disconnecting.Load() {
		if err := c.SetWriteDeadline(time.Now().Add(mqttTimeout)); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Write(b)
	if err != nil {
		_ = c.Close() // of a connection that is broken
	}
	return n, err
}

// limitWrites lets what is written from now on, and what is being written, take a moment alone.
func (c *checkedConn) limitWrites() {
	c.disconnecting.Store(true)
	_ = c.SetWriteDeadline(time.Now().Add(disconnectTimeout)) // it fails where the connection is gone
}

// disconnect says why the connection ends, if that can be said, and ends it.
func (c *checkedConn) disconnect(reason byte) {
	c.limitWrites()
	c.Lock()                                                           // who writes now has a moment left
	_, _ = c.Conn.Write([]byte{packets.DISCONNECT << 4, 2, reason, 0}) // nobody needs to hear it
	c.Unlock()
	_ = c.Close()
}

// pinger finds out whether the server is still there. Unlike the MQTT client's own, it asks whatever
// keep alive the server says, and waits for the answer for no longer than for any other.
type pinger struct {
	answered chan struct{} // one token
}

func newPinger() *pinger { return &pinger{answered: make(chan struct{}, 1)} }

// Run asks until ctx ends, and returns why the connection is over.
func (p *pinger) Run(ctx context.Context, conn net.Conn, keepAlive uint16) error {
	every := time.Duration(mqttKeepAlive) * time.Second
	if keepAlive > 0 && keepAlive < mqttKeepAlive {
		every = time.Duration(keepAlive) * time.Second
	}
	for sleep(ctx, every) {
		for len(p.answered) > 0 {
			<-p.answered // of an earlier question, or of none
		}
		if _, err := packets.NewControlPacket(packets.PINGREQ).WriteTo(conn); err != nil {
			return err
		}
		late := time.NewTimer(mqttTimeout)
		select {
		case <-p.answered:
		case <-late.C:
			return watchword.Refuse(watchword.Unavailable, "no PINGRESP within %s", mqttTimeout)
		case <-ctx.Done():
		}
		late.Stop()
	}
	return nil
}

// PingResp is told of each PINGRESP.
func (p *pinger) PingResp() { signal(p.answered) }

// PacketSent, PacketReceived and SetDebug are of no use here: it asks in any case.
func (*pinger) PacketSent()         {}
func (*pinger) PacketReceived()     {}
func (*pinger) SetDebug(log.Logger) {}
