package mqtt

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
)

// message is one publish for any number of receivers. It is immutable; its encodings are made on
// first use and shared.
type message struct {
	topic     string
	payload   []byte
	qos       byte
	retain    bool               // RETAIN of the publish
	retained  bool               // set as the retained message
	expiresAt int64              // Unix time in nanoseconds; 0: never
	sender    *sessionState      // session of the publisher; nil: the server
	props     *packet.Properties // properties for version 5 receivers; nil: none
	unicast   *unicast           // nil: for all receivers

	frames       [6]atomic.Pointer[encodedPublish] // encodings by version and QoS
	inboundFrame encodedPublish                    // the encoding as received, if it can be reused
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

// unicast is the part of a message that is for one connection only.
type unicast struct {
	receiver *conn
	command  int64       // sequence number of the command in it, 0: none
	report   *lossReport // loss report in it, nil: none
}

// command returns the sequence number of the command in m, 0 for none.
func (m *message) command() int64 {
	if m.unicast == nil {
		return 0
	}
	return m.unicast.command
}

// expires returns when m expires; zero: never.
func (m *message) expires() time.Time { return unixNano(m.expiresAt) }

// unixNano converts Unix nanoseconds; 0 is the zero time.
func unixNano(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// expireAt sets the expiry; the zero time means never.
func (m *message) expireAt(t time.Time) {
	if m.expiresAt = 0; !t.IsZero() {
		m.expiresAt = t.UnixNano()
	}
}

// encodedPublish is an encoded PUBLISH. If idOffset > 0, the packet identifier at it is filled in
// for each receiver.
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

// reuseEncoding stores the received encoding of p, which has no properties, for receivers of the
// same version and QoS.
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

// encoded returns the encoding for version v and qos. Two concurrent first calls may both encode;
// one result is kept.
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

// idOffset returns the offset of the packet identifier of a PUBLISH, which follows its topic.
func idOffset(b []byte) int {
	at := 2
	for b[at-1] >= 128 { // remaining length
		at++
	}
	return at + 2 + int(binary.BigEndian.Uint16(b[at:]))
}

// messageOverhead is the size of a message beside topic, payload and properties.
const messageOverhead = 64

// size returns what m counts against queue limits.
func (m *message) size() int {
	n := len(m.topic) + len(m.payload) + messageOverhead
	if m.props != nil {
		n += m.props.Size()
	}
	return n
}

// encodeFor appends m encoded for one receiver: with its subscription identifiers, a topic alias,
// or the remaining Message Expiry Interval.
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

// encodeStored returns m as it is stored: a PUBLISH of version 5.
func (m *message) encodeStored() []byte {
	p := packet.Publish{Topic: m.topic, QoS: m.qos, Retain: m.retain, Payload: m.payload}
	if m.qos > 0 {
		p.ID = 1 // a receiver must have an identifier
	}
	if m.props != nil {
		p.Properties = *m.props
	}
	return packet.Append(nil, &p, packet.V5)
}

// storedSize estimates [message.size] from the stored size n: beside topic, payload and properties
// a packet usually has 8 or 9 bytes.
func storedSize(n int) int { return n + messageOverhead - 8 }

// decodeStored decodes what encodeStored encoded.
func decodeStored(b []byte, expires time.Time) (*message, error) {
	first, body, n, err := packet.Frame(b, packet.MaxSize)
	if err != nil {
		return nil, err
	}
	if n != len(b) || packet.Type(first>>4) != packet.PUBLISH {
		return nil, watchword.Refuse(watchword.Internal, "a stored message cannot be decoded")
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

// expired reports whether m has expired.
func (m *message) expired(now time.Time) bool {
	return m.expiresAt != 0 && now.UnixNano() >= m.expiresAt
}
