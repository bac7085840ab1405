package packet

import "encoding/binary"

// Publish is a PUBLISH packet (§3.3). ID is 0 with QoS 0. Topic is empty only where a topic alias
// replaces it.
type Publish struct {
	Dup        bool
	QoS        byte
	Retain     bool
	Topic      string
	ID         uint16
	Properties Properties
	Payload    []byte // aliases the body it was read from
}

// Type returns PUBLISH.
func (*Publish) Type() Type { return PUBLISH }

func (p *Publish) flags() byte { return bit(p.Retain, 0) | p.QoS<<1 | bit(p.Dup, 3) }

// ReadPublish is [Parse] for PUBLISH into an existing value. Where the topic equals the one in p,
// its string is reused, so that a client that keeps publishing to one topic costs no allocation.
func ReadPublish(p *Publish, first byte, body []byte, v Version) error {
	r := reader{b: body, v: v}
	r.publish(p, first&15)
	if r.err != nil {
		r.err.Type = PUBLISH
		return r.err
	}
	return nil
}

func (r *reader) publish(p *Publish, flags byte) *Publish {
	last := p.Topic
	*p = Publish{Retain: flags&1 != 0, QoS: flags >> 1 & 3, Dup: flags&8 != 0}
	switch {
	case p.QoS == 3:
		r.fail(MalformedPacket, "QoS must be 0, 1 or 2")
	case p.Dup && p.QoS == 0:
		r.fail(MalformedPacket, "DUP must be 0 with QoS 0")
	}
	if n := 2 + len(last); last != "" && len(r.b) >= n && int(r.b[0])<<8|int(r.b[1]) == len(last) && string(r.b[2:n]) == last {
		p.Topic, r.b = last, r.b[n:]
	} else {
		p.Topic = r.topic()
	}
	if p.QoS > 0 {
		p.ID = r.packetID()
	}
	p.Properties = r.properties(PUBLISH)
	if _, aliased := p.Properties.Number(TopicAlias); r.err == nil && p.Topic == "" && !aliased {
		if r.v == V5 {
			r.fail(ProtocolError, "a topic name or a Topic Alias is required")
		} else {
			r.fail(TopicNameInvalid, "the topic name must not be empty")
		}
	}
	if r.err == nil {
		p.Payload, r.b = r.b, nil
	}
	return p
}

func (p *Publish) body(out []byte, v Version) []byte {
	out = appendText(out, p.Topic)
	if p.QoS > 0 {
		out = binary.BigEndian.AppendUint16(out, p.ID)
	}
	return append(p.Properties.append(out, v), p.Payload...)
}

// Ack is PUBACK, PUBREC, PUBREL or PUBCOMP (§3.4 to §3.7), according to Kind.
type Ack struct {
	Kind       Type
	ID         uint16
	Reason     Reason
	Properties Properties
}

// Type returns Kind.
func (a *Ack) Type() Type { return a.Kind }

func (a *Ack) flags() byte { return bit(a.Kind == PUBREL, 1) }

func (r *reader) ack(t Type) *Ack {
	a := &Ack{Kind: t, ID: r.packetID()}
	if r.v == V5 {
		a.Reason, a.Properties = r.readEnding(t)
	}
	return a
}

func (a *Ack) body(out []byte, v Version) []byte {
	return appendEnding(binary.BigEndian.AppendUint16(out, a.ID), v, a.Reason, &a.Properties)
}
