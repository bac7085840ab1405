package packet

import "encoding/binary"

// Connect is a CONNECT packet (§3.1).
type Connect struct {
	Version    Version
	CleanStart bool // Clean Session in 3.1.1
	KeepAlive  uint16
	ClientID   string
	Will       *Will // nil: no tokens
	Username   string
	Password   []byte // aliases the body it was read from
	HasUser    bool
	HasPass    bool
	Properties Properties
}

// Will is the will message of a CONNECT packet (§3.1.3).
type Will struct {
	Topic      string
	Payload    []byte // aliases the body it was read from
	QoS        byte
	Retain     bool
	Properties Properties
}

// Type returns CONNECT.
func (*Connect) Type() Type { return CONNECT }

func (*Connect) flags() byte { return 0 }

func (r *reader) connect() *Connect {
	c := &Connect{}
	name := r.text()
	c.Version = Version(r.byte())
	if r.err == nil && (name != "MQTT" || c.Version != V311 && c.Version != V5) {
		r.fail(UnsupportedProtocolVersion, "the protocol version must be MQTT 3.1.1 or 5.0")
	}
	r.v = c.Version
	f := r.byte()
	hasWill, willQoS, willRetain := f&4 != 0, f>>3&3, f&32 != 0
	c.CleanStart, c.HasPass, c.HasUser = f&2 != 0, f&64 != 0, f&128 != 0
	switch {
	case r.err != nil:
	case f&1 != 0:
		r.fail(MalformedPacket, "the reserved Connect Flag must be 0")
	case willQoS == 3:
		r.fail(MalformedPacket, "Will QoS must be 0, 1 or 2")
	case !hasWill && (willQoS != 0 || willRetain):
		r.fail(MalformedPacket, "Will QoS and Will Retain must be 0 without a will")
	case c.Version == V311 && c.HasPass && !c.HasUser:
		r.fail(MalformedPacket, "Password requires User Name in MQTT 3.1.1")
	}
	c.KeepAlive = r.uint16()
	c.Properties = r.properties(CONNECT)
	c.ClientID = r.text()
	if hasWill {
		c.Will = &Will{QoS: willQoS, Retain: willRetain}
		c.Will.Properties = r.properties(will)
		c.Will.Topic = r.topic()
		if r.err == nil && c.Will.Topic == "" {
			r.fail(TopicNameInvalid, "Will Topic must not be empty")
		}
		c.Will.Payload = r.binary()
	}
	if c.HasUser {
		c.Username = r.text()
	}
	if c.HasPass {
		c.Password = r.binary()
	}
	return c
}

func (c *Connect) body(out []byte, _ Version) []byte {
	out = append(appendText(out, "MQTT"), byte(c.Version))
	f := bit(c.CleanStart, 1) | bit(c.HasPass, 6) | bit(c.HasUser, 7)
	if w := c.Will; w != nil {
		f |= 4 | w.QoS<<3 | bit(w.Retain, 5)
	}
	out = binary.BigEndian.AppendUint16(append(out, f), c.KeepAlive)
	out = appendText(c.Properties.append(out, c.Version), c.ClientID)
	if w := c.Will; w != nil {
		out = appendBinary(appendText(w.Properties.append(out, c.Version), w.Topic), w.Payload)
	}
	if c.HasUser {
		out = appendText(out, c.Username)
	}
	if c.HasPass {
		out = appendBinary(out, c.Password)
	}
	return out
}

// Connack is a CONNACK packet (§3.2). In 3.1.1 Code is a return code, 0 to 5.
type Connack struct {
	SessionPresent bool
	Code           Reason
	Properties     Properties
}

// Type returns CONNACK.
func (*Connack) Type() Type { return CONNACK }

func (*Connack) flags() byte { return 0 }

func (r *reader) connack() *Connack {
	f := r.byte()
	c := &Connack{SessionPresent: f&1 != 0, Code: Reason(r.byte())}
	switch {
	case r.err != nil:
	case f > 1:
		r.fail(MalformedPacket, "reserved flags must be 0")
	case r.v == V311 && c.Code > 5, r.v == V5 && allowedIn[c.Code]&(1<<CONNACK) == 0:
		r.fail(MalformedPacket, "the packet has a reason code that it must not have")
	case c.SessionPresent && c.Code != Success:
		r.fail(ProtocolError, "Session Present must be 0 in a refusal")
	}
	c.Properties = r.properties(CONNACK)
	return c
}

func (c *Connack) body(out []byte, v Version) []byte {
	return c.Properties.append(append(out, bit(c.SessionPresent, 0), byte(c.Code)), v)
}

// Disconnect is a DISCONNECT packet (§3.14). In 3.1.1 it has neither reason nor properties.
type Disconnect struct {
	Reason     Reason
	Properties Properties
}

// Type returns DISCONNECT.
func (*Disconnect) Type() Type { return DISCONNECT }

func (*Disconnect) flags() byte { return 0 }

func (r *reader) disconnect() *Disconnect {
	d := &Disconnect{}
	if r.v == V5 {
		d.Reason, d.Properties = r.readEnding(DISCONNECT)
	}
	return d
}

func (d *Disconnect) body(out []byte, v Version) []byte {
	return appendEnding(out, v, d.Reason, &d.Properties)
}

// Auth is an AUTH packet (§3.15); version 5 only.
type Auth struct {
	Reason     Reason
	Properties Properties
}

// Type returns AUTH.
func (*Auth) Type() Type { return AUTH }

func (*Auth) flags() byte { return 0 }

func (r *reader) auth() *Auth {
	a := &Auth{}
	if r.v != V5 {
		r.fail(MalformedPacket, "AUTH requires MQTT 5.0")
		return a
	}
	a.Reason, a.Properties = r.readEnding(AUTH)
	return a
}

func (a *Auth) body(out []byte, v Version) []byte {
	return appendEnding(out, v, a.Reason, &a.Properties)
}

// readEnding reads a reason code and properties that may be omitted.
func (r *reader) readEnding(t Type) (reason Reason, p Properties) {
	if r.err != nil || len(r.b) == 0 {
		return Success, p
	}
	reason = Reason(r.byte())
	if allowedIn[reason]&(1<<t) == 0 {
		r.fail(MalformedPacket, "the packet has a reason code that it must not have")
	}
	if r.err == nil && len(r.b) > 0 {
		p = r.properties(t)
	}
	return reason, p
}

// appendEnding omits the reason code and properties where it may.
func appendEnding(out []byte, v Version, reason Reason, p *Properties) []byte {
	if v != V5 {
		return out
	}
	props := p.append(nil, v)
	if len(props) > 1 {
		return append(append(out, byte(reason)), props...)
	}
	if reason != Success {
		return append(out, byte(reason))
	}
	return out
}

// Ping is PINGREQ or PINGRESP (§3.12, §3.13).
type Ping struct{ Response bool }

// Type returns PINGREQ or PINGRESP.
func (p *Ping) Type() Type {
	if p.Response {
		return PINGRESP
	}
	return PINGREQ
}

func (*Ping) flags() byte { return 0 }

func (*Ping) body(out []byte, _ Version) []byte { return out }
