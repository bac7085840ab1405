package packet

import "fmt"

// Version is the protocol level of CONNECT.
type Version byte

// Supported versions.
const (
	V311 Version = 4
	V5   Version = 5
)

// Type is a control packet type (MQTT 5.0 §2.1.2).
type Type byte

// Control packet types.
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

// String returns the name of the standard.
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
	// Type returns the control packet type.
	Type() Type
	// flags returns the lower four bits of the first byte.
	flags() byte
	// body appends the packet without its fixed header.
	body(out []byte, v Version) []byte
}

// Error says why a packet is refused. Reason is the reason code for the peer (MQTT 5.0 §2.4).
type Error struct {
	Reason Reason
	Type   Type
	Detail string
}

// Error names the packet type and what was wrong.
func (e *Error) Error() string {
	return fmt.Sprintf("%s: %s (0x%02X)", e.Type, e.Detail, byte(e.Reason))
}

// MaxSize is the longest packet of the format, in bytes: 256 MiB and its header.
const MaxSize = 268_435_455 + 5

// Frame splits the first packet off b. It returns its first byte, its body (which aliases b), and
// how many bytes of b it takes; n is 0 where b does not hold all of it yet. max limits the whole
// packet: a longer one is refused as soon as its length is known. Reasons: malformed packet, packet
// too large.
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
		return 0, nil, 0, &Error{PacketTooLarge, Type(first >> 4), fmt.Sprintf("the packet has %d bytes, and must have at most %d", n, max)}
	}
	if len(b) < n {
		return 0, nil, 0, nil
	}
	return first, b[1+used : n], n, nil
}

// NeededBytes returns the length of the first packet of b, of which b may hold a part; 0 where the
// length is not known yet.
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

// Append appends the encoding of p in version v.
func Append(out []byte, p Packet, v Version) []byte {
	out = append(out, byte(p.Type())<<4|p.flags())
	at := len(out)
	out = append(out, 0, 0, 0, 0) // room for the longest remaining length
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

// Parse parses what [Frame] split off. v is the connection's version; CONNECT carries its own. Only
// byte slices of the packet alias body. Reasons: malformed packet, protocol error, and for CONNECT
// unsupported protocol version.
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
		return nil, &Error{MalformedPacket, t, "the packet type does not exist"}
	}
	if r.err == nil && t != PUBLISH && first&15 != p.flags() {
		r.fail(MalformedPacket, "the flags of the fixed header must have the values of the standard")
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail(MalformedPacket, "the packet has bytes after its end")
	}
	if r.err != nil {
		r.err.Type = t
		return nil, r.err
	}
	return p, nil
}
