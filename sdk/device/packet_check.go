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

// Limits that the device states in CONNECT (MQTT 5.0 §3.1.2.11) and enforces.
const (
	receiveMaximum    = 8       // PUBLISH packets with QoS 1 that are not acknowledged
	maxProperties     = 4 << 10 // bytes of a packet besides topic and payload
	maxTopic          = 512     // bytes
	disconnectTimeout = time.Second
)

// maxPacket is the Maximum Packet Size in bytes: the largest command, or configuration if there is a handler, plus topic
// and properties. Notices and acknowledgements are smaller.
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

// checkedConn is the connection of an MQTT client that would read a packet of any length. It passes on only packets that
// the server may send to this device, and ends the connection at the first other one; a packet that is too long is refused
// before its body is read. It sets a deadline for each write. One goroutine reads, any may write.
type checkedConn struct {
	net.Conn
	sync.Mutex // guards writes; the MQTT client holds it for each packet

	max         int                           // maximum bytes of a packet
	onViolation func(why error, leave func()) // gets the violation, and calls leave before another goroutine ends the connection
	r           *bufio.Reader                 // used by one goroutine, with packet and rest
	body        []byte
	rest        []byte // bytes of a verified packet that are not read yet

	auths         atomic.Int32 // AUTH packets that are expected
	disconnecting atomic.Bool

	inflightMu sync.Mutex
	inflight   map[uint16]struct{} // packet identifiers of PUBLISH with QoS 1 that are not acknowledged
}

func newCheckedConn(nc net.Conn, max int, wrong func(why error, leave func())) *checkedConn {
	return &checkedConn{Conn: nc, max: max, onViolation: wrong, r: bufio.NewReader(nc), inflight: map[uint16]struct{}{}}
}

// protocolViolation is the error for which the device disconnects.
type protocolViolation struct {
	reason byte // for DISCONNECT (MQTT 5.0 §2.4)
	what   string
}

// Error describes the violation, for the log.
func (v *protocolViolation) Error() string {
	return fmt.Sprintf("the server breaks the protocol: %s (0x%02X)", v.what, v.reason)
}

func malformed(what string) error { return &protocolViolation{packets.DisconnectMalformedPacket, what} }

// Read returns bytes of packets that were verified completely.
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

// next reads one packet, and checks its length before it reads its body.
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

// check checks that the server may send this packet to this device.
func (c *checkedConn) check(first byte, body []byte) error {
	at := len(body) // offset of the properties
	switch kind, flags := first>>4, first&15; {
	case kind == packets.PUBLISH:
		return c.publish(flags, body)
	case flags != 0:
		return malformed("reserved flags must be 0")
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
	default: // including PUBREC to PUBCOMP: the device uses no QoS 2
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

// properties returns the bytes after the properties at the beginning of b.
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

// acknowledged is called before a PUBLISH is acknowledged: its packet identifier may be used again.
func (c *checkedConn) acknowledged(id uint16) {
	c.inflightMu.Lock()
	defer c.inflightMu.Unlock()
	delete(c.inflight, id)
}

// Write writes, and fails if the peer does not read for too long. A failed write ends the connection, because the number of
// bytes sent is unknown.
func (c *checkedConn) Write(b []byte) (int, error) {
	if !c.disconnecting.Load() {
		if err := c.SetWriteDeadline(time.Now().Add(mqttTimeout)); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Write(b)
	if err != nil {
		_ = c.Close() // the connection is already broken
	}
	return n, err
}

// limitWrites shortens the deadline of current and further writes.
func (c *checkedConn) limitWrites() {
	c.disconnecting.Store(true)
	_ = c.SetWriteDeadline(time.Now().Add(disconnectTimeout)) // it fails if the connection is closed
}

// disconnect sends DISCONNECT with the reason, if possible, and closes the connection.
func (c *checkedConn) disconnect(reason byte) {
	c.limitWrites()
	c.Lock()                                                           // a write in progress has a moment left
	_, _ = c.Conn.Write([]byte{packets.DISCONNECT << 4, 2, reason, 0}) // delivery is not required
	c.Unlock()
	_ = c.Close()
}

// pinger checks that the server still answers. Unlike the MQTT client's own, it ignores the server's keep alive, and has
// the same timeout as every other request.
type pinger struct {
	answered chan struct{} // one token
}

func newPinger() *pinger { return &pinger{answered: make(chan struct{}, 1)} }

// Run sends PINGREQ until ctx ends, and returns the reason for which the connection is lost.
func (p *pinger) Run(ctx context.Context, conn net.Conn, keepAlive uint16) error {
	every := time.Duration(mqttKeepAlive) * time.Second
	if keepAlive > 0 && keepAlive < mqttKeepAlive {
		every = time.Duration(keepAlive) * time.Second
	}
	for sleep(ctx, every) {
		for len(p.answered) > 0 {
			<-p.answered // of an earlier PINGREQ, or unsolicited
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

// PingResp is called for each PINGRESP.
func (p *pinger) PingResp() { signal(p.answered) }

// PacketSent, PacketReceived and SetDebug do nothing: PINGREQ is sent in any case.
func (*pinger) PacketSent()         {}
func (*pinger) PacketReceived()     {}
func (*pinger) SetDebug(log.Logger) {}
