package mqtt

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// message is one publish on its way to many. It is immutable; its encodings are
// made when first asked for and shared by all who get it.
type message struct {
	topic     string
	payload   []byte
	qos       byte
	retain    bool               // as it was published
	retained  bool               // it was kept for those who subscribe
	expiresAt int64              // Unix time in nanoseconds; 0: never
	sender    *sessionState      // nil for the server's own
	props     *packet.Properties // nil for none; what goes along to clients of version 5
	unicast   *unicast           // nil where it is for everybody

	frames       [6]atomic.Pointer[encodedPublish] // by version and QoS
	inboundFrame encodedPublish                    // where the first of them is kept, if it came so
}

// Topic returns the topic.
func (m *message) Topic() string { return m.topic }

// messageOf is a publication as MQTT sessions receive it. One that did not come over MQTT is turned into one for the
// first of them.
func messageOf(x bus.Message) *message {
	switch x := x.(type) {
	case *message:
		return x
	case *bus.Document:
		m, _ := x.Encoded.(*message)
		if m == nil {
			m = &message{topic: x.Name, payload: x.Payload, qos: 1}
			if x.ContentType != "" {
				m.props = &packet.Properties{}
				m.props.SetText(packet.ContentType, x.ContentType)
			}
			x.Encoded = m
		}
		return m
	}
	panic("a message that no transport of this program makes")
}

// unicast is what a message has that is for one connection alone.
type unicast struct {
	receiver *conn
	command  int64       // the number of the command that it carries, 0 for none
	report   *lossReport // that it makes, nil for none
}

// command is the number of the command that m carries, 0 for none.
func (m *message) command() int64 {
	if m.unicast == nil {
		return 0
	}
	return m.unicast.command
}

// expires is when nobody is to get m any more; zero: never.
func (m *message) expires() time.Time { return unixNano(m.expiresAt) }

// unixNano is a moment in nanoseconds of Unix time; 0 is none.
func unixNano(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// expireAt sets it; zero is never.
func (m *message) expireAt(t time.Time) {
	if m.expiresAt = 0; !t.IsZero() {
		m.expiresAt = t.UnixNano()
	}
}

// encodedPublish is an encoded PUBLISH. The packet identifier at idAt, if idAt > 0, is the
// receiver's to fill in.
type encodedPublish struct {
	bytes    []byte
	idOffset int
}

func frameIndex(v packet.Version, qos byte) int {
	i := int(qos)
	if v == packet.V5 {
		i += 3
	}
	return i
}

// reuseEncoding takes the packet in which p came, and which carries no properties, as the
// encoding for those who get the same version and QoS.
func (m *message) reuseEncoding(p *packet.Publish, encoded []byte, v packet.Version) {
	b := bytes.Clone(encoded)
	b[0] = byte(packet.PUBLISH)<<4 | p.QoS<<1
	m.payload = b[len(b)-len(p.Payload):]
	m.inboundFrame.bytes = b
	if p.QoS > 0 {
		m.inboundFrame.idOffset = idOffset(b)
	}
	m.frames[frameIndex(v, p.QoS)].Store(&m.inboundFrame)
}

// encoded returns m for receivers of version v at qos. Two who ask first at
// once make the same twice, and one is kept.
func (m *message) encoded(v packet.Version, qos byte) *encodedPublish {
	at := &m.frames[frameIndex(v, qos)]
	if f := at.Load(); f != nil {
		return f
	}
	p := packet.Publish{Topic: m.topic, QoS: qos, Payload: m.payload}
	if m.props != nil && v == packet.V5 {
		p.Properties = *m.props
	}
	f := &encodedPublish{bytes: packet.Append(make([]byte, 0, len(m.topic)+len(m.payload)+16), &p, v)}
	if qos > 0 {
		f.idOffset = idOffset(f.bytes)
	}
	at.CompareAndSwap(nil, f)
	return at.Load()
}

// idOffset finds the packet identifier of a PUBLISH: after its topic.
func idOffset(b []byte) int {
	at := 2
	for b[at-1] >= 128 { // the remaining length
		at++
	}
	return at + 2 + int(binary.BigEndian.Uint16(b[at:]))
}

// messageOverhead is what a message counts beside its topic, payload and properties.
const messageOverhead = 64

// size is what m counts against the bounds of a queue.
func (m *message) size() int {
	n := len(m.topic) + len(m.payload) + messageOverhead
	if m.props != nil {
		n += m.props.Size()
	}
	return n
}

// encodeFor appends m as only one receiver gets it: with the identifiers of its
// subscriptions, an alias for the topic, or what is left of its life.
func (m *message) encodeFor(out []byte, v packet.Version, it *queuedMessage, id uint16, alias uint16, known bool, now time.Time) []byte {
	p := packet.Publish{Topic: m.topic, QoS: it.qos, ID: id, Payload: m.payload}
	if v != packet.V5 {
		return packet.Append(out, &p, v)
	}
	if m.props != nil {
		p.Properties = m.props.Clone()
	}
	if it.extra != nil {
		p.Properties.Subscriptions = it.extra.identifiers
	}
	if m.expiresAt != 0 {
		p.Properties.SetNumber(packet.MessageExpiryInterval, uint32(max(m.expires().Sub(now)+time.Second-1, 0)/time.Second))
	}
	if alias > 0 {
		p.Properties.SetNumber(packet.TopicAlias, uint32(alias))
		if known {
			p.Topic = ""
		}
	}
	return packet.Append(out, &p, v)
}

// encodeStored is m as it lies on the shelf: a PUBLISH of version 5.
func (m *message) encodeStored() []byte {
	p := packet.Publish{Topic: m.topic, QoS: m.qos, Retain: m.retain, Payload: m.payload}
	if m.qos > 0 {
		p.ID = 1 // one there must be
	}
	if m.props != nil {
		p.Properties = *m.props
	}
	return packet.Append(nil, &p, packet.V5)
}

// storedSize is [message.size] of what takes n bytes where it is stored, within a few
// bytes: beside topic, payload and properties a packet has 8 or 9, as a rule.
func storedSize(n int) int { return n + messageOverhead - 8 }

// decodeStored reads what stored wrote.
func decodeStored(b []byte, expires time.Time) (*message, error) {
	first, body, n, err := packet.Frame(b, packet.MaxSize)
	if err != nil {
		return nil, err
	}
	if n != len(b) || packet.Type(first>>4) != packet.PUBLISH {
		return nil, watchword.Refuse(watchword.Internal, "a message on the shelf is none")
	}
	var p packet.Publish
	if err := packet.ReadPublish(&p, first, body, packet.V5); err != nil {
		return nil, err
	}
	m := &message{topic: p.Topic, payload: p.Payload, qos: p.QoS, retain: p.Retain}
	m.expireAt(expires)
	if !p.Properties.Empty() {
		m.props = &p.Properties
	}
	return m, nil
}

// expired reports whether nobody is to get m any more.
func (m *message) expired(now time.Time) bool {
	return m.expiresAt != 0 && now.UnixNano() >= m.expiresAt
}
