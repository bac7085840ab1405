package packet

import "fmt"

// Version is a protocol level as CONNECT carries it.
type Version byte

// The versions that there are here.
const (
	V311 Version = 4
	V5   Version = 5
)

// Type is a control packet type (MQTT 5.0 §2.1.2).
type Type byte

// The types of packets.
const (
	CONNECT Type = iota + 1
	CONNACK
	PUBLISH
	PUBACK
	PUBREC
	PUBREL
	PUBCOMP
	SUBSCRIBE
	SUBACK
	UNSUBSCRIBE
	UNSUBACK
	PINGREQ
	PINGRESP
	DISCONNECT
	AUTH
)

var typeNames = [...]string{
	"", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP",
	"DISCONNECT", "AUTH",
}

// String returns the standard's name.
func (t Type) String() string {
	if t == 0 || int(t) >= len(typeNames) {
		return fmt.Sprintf("packet type %d", byte(t))
	}
	return typeNames[t]
}

// Packet is one control packet. The concrete types are *Connect, *Connack,
// *Publish, *Ack, *Subscribe, *Suback, *Unsubscribe, *Unsuback, *Ping, *Disconnect
// and *Auth.
type Packet interface {
	// Type returns what kind of packet it is.
	Type() Type
	// flags is the low half of the first byte.
	flags() byte
	// body appends what follows the fixed header.
	body(out []byte, v Version) []byte
}

// Error is why a packet is refused. Reason is what the other side must be told
// (MQTT 5.0 §2.4), where the protocol lets.
type Error struct {
	Reason Reason
	Type   Type
	Detail string
}

// Error says what was wrong, and where.
func (e *Error) Error() string {
	return fmt.Sprintf("%s: %s (0x%02X)", e.Type, e.Detail, byte(e.Reason))
}

// MaxSize is the longest packet that the format allows: 256 MiB and its header.
const MaxSize = 268_435_455 + 5

// Frame cuts the first packet off b. It returns its first byte, its body (which
// aliases b), and how many bytes of b it takes; n is 0 where b does not hold it
// whole yet. max bounds the whole packet: a longer one is refused as soon as its
// length is known, before anything is kept of it. Reasons: malformed, packet too large.
func Frame(b []byte, max int) (first byte, body []byte, n int, err error) {
	if len(b) < 2 {
		return 0, nil, 0, nil
	}
	first = b[0]
	length, used, err := varint(b[1:])
	if err != nil {
		return 0, nil, 0, &Error{MalformedPacket, Type(first >> 4), err.Error()}
	}
	if used == 0 {
		return 0, nil, 0, nil
	}
	n = 1 + used + int(length)
	if n > max {
		return 0, nil, 0, &Error{PacketTooLarge, Type(first >> 4), fmt.Sprintf("%d bytes, and %d are the most", n, max)}
	}
	if len(b) < n {
		return 0, nil, 0, nil
	}
	return first, b[1+used : n], n, nil
}

// NeededBytes returns how many bytes the first packet of b takes, of which b holds only
// the beginning; 0 where not even that can be said yet.
func NeededBytes(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	length, used, err := varint(b[1:])
	if err != nil || used == 0 {
		return 0
	}
	return 1 + used + int(length)
}

// Append appends p as it goes over the wire in that version.
func Append(out []byte, p Packet, v Version) []byte {
	out = append(out, byte(p.Type())<<4|p.flags())
	at := len(out)
	out = append(out, 0, 0, 0, 0) // room for the longest length
	out = p.body(out, v)
	length := len(out) - at - 4
	var head [4]byte
	used := len(appendVarint(head[:0], uint32(length)))
	copy(out[at:], head[:used])
	if used < 4 {
		copy(out[at+used:], out[at+4:])
		out = out[:len(out)-(4-used)]
	}
	return out
}

// Parse reads a packet from what [Frame] cut off. v is the connection's version;
// it does not matter for CONNECT, which brings its own. Byte slices and nothing
// else of the packet alias body. Reasons: malformed, protocol error, and for
// CONNECT unsupported protocol version.
func Parse(first byte, body []byte, v Version) (Packet, error) {
	t := Type(first >> 4)
	r := &reader{b: body, v: v}
	var p Packet
	switch t {
	case CONNECT:
		p = r.connect()
	case CONNACK:
		p = r.connack()
	case PUBLISH:
		p = r.publish(&Publish{}, first&15)
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		p = r.ack(t)
	case SUBSCRIBE:
		p = r.subscribe()
	case SUBACK:
		p = r.suback()
	case UNSUBSCRIBE:
		p = r.unsubscribe()
	case UNSUBACK:
		p = r.unsuback()
	case PINGREQ, PINGRESP:
		p = &Ping{Response: t == PINGRESP}
	case DISCONNECT:
		p = r.disconnect()
	case AUTH:
		p = r.auth()
	default:
		return nil, &Error{MalformedPacket, t, "no such type"}
	}
	if r.err == nil && t != PUBLISH && first&15 != p.flags() {
		r.fail(MalformedPacket, "the flags of the fixed header are reserved")
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail(MalformedPacket, "bytes after its end")
	}
	if r.err != nil {
		r.err.Type = t
		return nil, r.err
	}
	return p, nil
}
