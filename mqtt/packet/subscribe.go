package packet

import (
	"encoding/binary"
	"strings"
)

// maxFilters limits the filters of one SUBSCRIBE or UNSUBSCRIBE.
const maxFilters = 1024

// Filter is one filter of a SUBSCRIBE with its options (§3.8.3.1). Version 3.1.1 has only QoS.
type Filter struct {
	Topic             string
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte // 0 to 2
}

// Subscribe is a SUBSCRIBE packet (§3.8). The engine checks the syntax of filters, since it answers
// each one separately.
type Subscribe struct {
	ID         uint16
	Filters    []Filter // at least one
	Properties Properties
}

// Type returns SUBSCRIBE.
func (*Subscribe) Type() Type { return SUBSCRIBE }

func (*Subscribe) flags() byte { return 2 }

func (r *reader) subscribe() *Subscribe {
	s := &Subscribe{ID: r.packetID()}
	s.Properties = r.properties(SUBSCRIBE)
	for r.err == nil && len(r.b) > 0 {
		f := Filter{Topic: r.text()}
		o := r.byte()
		f.QoS, f.NoLocal, f.RetainAsPublished, f.RetainHandling = o&3, o&4 != 0, o&8 != 0, o>>4&3
		switch {
		case r.err != nil:
		case f.QoS == 3, o&0xC0 != 0, r.v == V311 && o > 2:
			r.fail(MalformedPacket, "reserved Subscription Options must be 0")
		case f.RetainHandling == 3:
			r.fail(ProtocolError, "Retain Handling must be 0, 1 or 2")
		case f.NoLocal && strings.HasPrefix(f.Topic, "$share/"):
			r.fail(ProtocolError, "No Local must be 0 for a shared subscription")
		case f.Topic == "":
			r.fail(TopicFilterInvalid, "a topic filter must not be empty")
		case len(s.Filters) >= maxFilters:
			r.fail(QuotaExceeded, "the packet has too many topic filters")
		}
		s.Filters = append(s.Filters, f)
	}
	if r.err == nil && len(s.Filters) == 0 {
		r.fail(ProtocolError, "at least one topic filter is required")
	}
	return s
}

func (s *Subscribe) body(out []byte, v Version) []byte {
	out = s.Properties.append(binary.BigEndian.AppendUint16(out, s.ID), v)
	for _, f := range s.Filters {
		o := f.QoS
		if v == V5 {
			o |= bit(f.NoLocal, 2) | bit(f.RetainAsPublished, 3) | f.RetainHandling<<4
		}
		out = append(appendText(out, f.Topic), o)
	}
	return out
}

// Suback is a SUBACK packet, with one code for each filter in order (§3.9). In 3.1.1 a code is 0 to
// 2 or 0x80.
type Suback struct {
	ID         uint16
	Codes      []Reason
	Properties Properties
}

// Type returns SUBACK.
func (*Suback) Type() Type { return SUBACK }

func (*Suback) flags() byte { return 0 }

func (r *reader) suback() *Suback {
	s := &Suback{ID: r.packetID()}
	s.Properties = r.properties(SUBACK)
	s.Codes = r.codes(SUBACK)
	return s
}

// codes reads the remaining bytes as reason codes, at least one.
func (r *reader) codes(t Type) []Reason {
	if r.err == nil && len(r.b) == 0 {
		r.fail(MalformedPacket, "a reason code is required")
	}
	if r.err == nil && len(r.b) > maxFilters {
		r.fail(QuotaExceeded, "the packet has too many reason codes")
	}
	out := make([]Reason, 0, len(r.b))
	for r.err == nil && len(r.b) > 0 {
		c := Reason(r.byte())
		if allowedIn[c]&(1<<t) == 0 || r.v == V311 && c > 2 && c != UnspecifiedError {
			r.fail(MalformedPacket, "the packet has a reason code that it must not have")
		}
		out = append(out, c)
	}
	return out
}

func appendCodes(out []byte, codes []Reason) []byte {
	for _, c := range codes {
		out = append(out, byte(c))
	}
	return out
}

func (s *Suback) body(out []byte, v Version) []byte {
	return appendCodes(s.Properties.append(binary.BigEndian.AppendUint16(out, s.ID), v), s.Codes)
}

// Unsubscribe is an UNSUBSCRIBE packet (§3.10).
type Unsubscribe struct {
	ID         uint16
	Filters    []string // at least one
	Properties Properties
}

// Type returns UNSUBSCRIBE.
func (*Unsubscribe) Type() Type { return UNSUBSCRIBE }

func (*Unsubscribe) flags() byte { return 2 }

func (r *reader) unsubscribe() *Unsubscribe {
	u := &Unsubscribe{ID: r.packetID()}
	u.Properties = r.properties(UNSUBSCRIBE)
	for r.err == nil && len(r.b) > 0 {
		f := r.text()
		switch {
		case r.err != nil:
		case f == "":
			r.fail(TopicFilterInvalid, "a topic filter must not be empty")
		case len(u.Filters) >= maxFilters:
			r.fail(QuotaExceeded, "the packet has too many topic filters")
		}
		u.Filters = append(u.Filters, f)
	}
	if r.err == nil && len(u.Filters) == 0 {
		r.fail(ProtocolError, "at least one topic filter is required")
	}
	return u
}

func (u *Unsubscribe) body(out []byte, v Version) []byte {
	out = u.Properties.append(binary.BigEndian.AppendUint16(out, u.ID), v)
	for _, f := range u.Filters {
		out = appendText(out, f)
	}
	return out
}

// Unsuback is an UNSUBACK packet (§3.11). Version 3.1.1 has no codes.
type Unsuback struct {
	ID         uint16
	Codes      []Reason
	Properties Properties
}

// Type returns UNSUBACK.
func (*Unsuback) Type() Type { return UNSUBACK }

func (*Unsuback) flags() byte { return 0 }

func (r *reader) unsuback() *Unsuback {
	u := &Unsuback{ID: r.packetID()}
	if r.v == V5 {
		u.Properties = r.properties(UNSUBACK)
		u.Codes = r.codes(UNSUBACK)
	}
	return u
}

func (u *Unsuback) body(out []byte, v Version) []byte {
	out = binary.BigEndian.AppendUint16(out, u.ID)
	if v != V5 {
		return out
	}
	return appendCodes(u.Properties.append(out, v), u.Codes)
}
