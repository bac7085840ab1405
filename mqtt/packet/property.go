package packet

import (
	"bytes"
	"encoding/binary"
	"maps"
	"slices"
)

// Property is a property's identifier (MQTT 5.0 §2.2.2.2).
type Property byte

// Properties.
const (
	PayloadFormatIndicator           Property = 0x01
	MessageExpiryInterval            Property = 0x02
	ContentType                      Property = 0x03
	ResponseTopic                    Property = 0x08
	CorrelationData                  Property = 0x09
	SubscriptionIdentifier           Property = 0x0B
	SessionExpiryInterval            Property = 0x11
	AssignedClientIdentifier         Property = 0x12
	ServerKeepAlive                  Property = 0x13
	AuthenticationMethod             Property = 0x15
	AuthenticationData               Property = 0x16
	RequestProblemInformation        Property = 0x17
	WillDelayInterval                Property = 0x18
	RequestResponseInformation       Property = 0x19
	ResponseInformation              Property = 0x1A
	ServerReference                  Property = 0x1C
	ReasonString                     Property = 0x1F
	ReceiveMaximum                   Property = 0x21
	TopicAliasMaximum                Property = 0x22
	TopicAlias                       Property = 0x23
	MaximumQoS                       Property = 0x24
	RetainAvailable                  Property = 0x25
	UserProperty                     Property = 0x26
	MaximumPacketSize                Property = 0x27
	WildcardSubscriptionAvailable    Property = 0x28
	SubscriptionIdentifiersAvailable Property = 0x29 // whether subscription identifiers are available
	SharedSubscriptionAvailable      Property = 0x2A
)

// UserProp is a user property: a name-value pair; a name may occur more than once.
type UserProp struct{ Name, Value string }

// Properties holds the properties of a version 5 packet. The zero value has none; version 3.1.1 has
// no properties.
type Properties struct {
	numbers map[Property]uint32
	texts   map[Property]string
	data    map[Property][]byte

	// User holds the user properties in order.
	User []UserProp
	// Subscriptions holds the subscription identifiers of a PUBLISH.
	Subscriptions []uint32
}

// Number returns the value of a numeric property, and whether it is present.
func (p *Properties) Number(id Property) (uint32, bool) {
	n, ok := p.numbers[id]
	return n, ok
}

// Text returns the value of a string property, and whether it is present.
func (p *Properties) Text(id Property) (string, bool) {
	s, ok := p.texts[id]
	return s, ok
}

// Data returns the value of a binary property, and whether it is present.
func (p *Properties) Data(id Property) ([]byte, bool) {
	b, ok := p.data[id]
	return b, ok
}

// SetNumber sets a numeric property.
func (p *Properties) SetNumber(id Property, n uint32) {
	if p.numbers == nil {
		p.numbers = map[Property]uint32{}
	}
	p.numbers[id] = n
}

// SetText sets a string property.
func (p *Properties) SetText(id Property, s string) {
	if p.texts == nil {
		p.texts = map[Property]string{}
	}
	p.texts[id] = s
}

// StripExplanation removes the reason string and the user properties of a response.
func StripExplanation(p Packet) {
	var ps *Properties
	switch p := p.(type) {
	case *Connack:
		ps = &p.Properties
	case *Ack:
		ps = &p.Properties
	case *Suback:
		ps = &p.Properties
	case *Unsuback:
		ps = &p.Properties
	case *Disconnect:
		ps = &p.Properties
	case *Auth:
		ps = &p.Properties
	default:
		return
	}
	delete(ps.texts, ReasonString)
	ps.User = nil
}

// SetData sets a binary property.
func (p *Properties) SetData(id Property, b []byte) {
	if p.data == nil {
		p.data = map[Property][]byte{}
	}
	p.data[id] = b
}

// Forms of property values.
const (
	formFlag          = iota + 1 // a byte, 0 or 1
	formUint16                   // two bytes
	formUint16NonZero            // two bytes, not zero
	formUint32                   // four bytes
	formUint32NonZero            // four bytes, not zero
	formVarint                   // a variable byte integer, not zero
	formText
	formTopic // a string without wildcards
	formData
	formUserProperty
)

// will stands for the will properties of CONNECT, which have no packet type.
const will Type = 0

// propertyTable gives the form of each property and the packets that may contain it (table 2-4).
var propertyTable = [0x2B]struct {
	form byte
	in   uint16
}{
	PayloadFormatIndicator:     {formFlag, set(PUBLISH, will)},
	MessageExpiryInterval:      {formUint32, set(PUBLISH, will)},
	ContentType:                {formText, set(PUBLISH, will)},
	ResponseTopic:              {formTopic, set(PUBLISH, will)},
	CorrelationData:            {formData, set(PUBLISH, will)},
	SubscriptionIdentifier:     {formVarint, set(PUBLISH, SUBSCRIBE)},
	SessionExpiryInterval:      {formUint32, set(CONNECT, CONNACK, DISCONNECT)},
	AssignedClientIdentifier:   {formText, set(CONNACK)},
	ServerKeepAlive:            {formUint16, set(CONNACK)},
	AuthenticationMethod:       {formText, set(CONNECT, CONNACK, AUTH)},
	AuthenticationData:         {formData, set(CONNECT, CONNACK, AUTH)},
	RequestProblemInformation:  {formFlag, set(CONNECT)},
	WillDelayInterval:          {formUint32, set(will)},
	RequestResponseInformation: {formFlag, set(CONNECT)},
	ResponseInformation:        {formText, set(CONNACK)},
	ServerReference:            {formText, set(CONNACK, DISCONNECT)},
	ReasonString:               {formText, set(CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, DISCONNECT, AUTH)},
	ReceiveMaximum:             {formUint16NonZero, set(CONNECT, CONNACK)},
	TopicAliasMaximum:          {formUint16, set(CONNECT, CONNACK)},
	TopicAlias:                 {formUint16NonZero, set(PUBLISH)},
	MaximumQoS:                 {formFlag, set(CONNACK)},
	RetainAvailable:            {formFlag, set(CONNACK)},
	UserProperty: {formUserProperty, set(CONNECT, CONNACK, PUBLISH, will, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK,
		DISCONNECT, AUTH)},
	MaximumPacketSize:                {formUint32NonZero, set(CONNECT, CONNACK)},
	WildcardSubscriptionAvailable:    {formFlag, set(CONNACK)},
	SubscriptionIdentifiersAvailable: {formFlag, set(CONNACK)},
	SharedSubscriptionAvailable:      {formFlag, set(CONNACK)},
}

// Limits of properties that may occur more than once.
const (
	maxUserProperties          = 64
	maxSubscriptionIdentifiers = 64
)

// properties parses the properties of a packet of type t; version 3.1.1 has none.
func (r *reader) properties(t Type) (p Properties) {
	if r.v != V5 {
		return p
	}
	n := int(r.varint())
	if r.err == nil && n > len(r.b) {
		r.fail(MalformedPacket, "Property Length is longer than the packet")
	}
	if r.err != nil {
		return p
	}
	inner := &reader{b: r.take(n), v: r.v}
	for inner.err == nil && len(inner.b) > 0 {
		inner.property(&p, t)
	}
	if inner.err == nil && p.data != nil {
		if _, has := p.texts[AuthenticationMethod]; p.data[AuthenticationData] != nil && !has {
			inner.fail(ProtocolError, "Authentication Data requires an Authentication Method")
		}
	}
	if inner.err != nil {
		r.fail(inner.err.Reason, inner.err.Detail)
	}
	return p
}

func (r *reader) property(p *Properties, t Type) {
	raw := r.varint()
	if r.err == nil && (raw >= uint32(len(propertyTable)) || propertyTable[raw].form == 0) {
		r.fail(MalformedPacket, "the packet has an unknown property")
	}
	if r.err != nil {
		return
	}
	id, k := Property(raw), propertyTable[raw]
	if k.in&(1<<t) == 0 {
		r.fail(MalformedPacket, "the packet has a property that it must not have")
		return
	}
	if p.has(id) && k.form != formUserProperty && !(id == SubscriptionIdentifier && t == PUBLISH) {
		r.fail(ProtocolError, "each property must be given once")
		return
	}
	switch k.form {
	case formUserProperty:
		if len(p.User) >= maxUserProperties {
			r.fail(QuotaExceeded, "the packet has too many User Properties")
			return
		}
		p.User = append(p.User, UserProp{r.text(), r.text()})
	case formText:
		p.SetText(id, r.text())
	case formTopic:
		p.SetText(id, r.responseTopic())
	case formData:
		p.SetData(id, r.binary())
	case formVarint:
		n := r.varint()
		if r.err == nil && n == 0 {
			r.fail(ProtocolError, "Subscription Identifier must not be 0")
		}
		if len(p.Subscriptions) >= maxSubscriptionIdentifiers {
			r.fail(QuotaExceeded, "the packet has too many Subscription Identifiers")
			return
		}
		p.Subscriptions = append(p.Subscriptions, n)
	default:
		r.number(p, id, k.form)
	}
}

func (r *reader) number(p *Properties, id Property, form byte) {
	var n uint32
	switch form {
	case formFlag:
		n = uint32(r.byte())
	case formUint16, formUint16NonZero:
		n = uint32(r.uint16())
	default:
		n = r.uint32()
	}
	if r.err == nil && (form == formFlag && n > 1 || (form == formUint16NonZero || form == formUint32NonZero) && n == 0) {
		r.fail(ProtocolError, "a property has a value that it must not have")
	}
	p.SetNumber(id, n)
}

// Empty reports whether there are no properties.
func (p *Properties) Empty() bool {
	return p.numbers == nil && p.texts == nil && p.data == nil && p.User == nil && p.Subscriptions == nil
}

// Forwarded returns the properties of a PUBLISH that are forwarded to subscribers (MQTT 5.0
// §3.3.2.3), nil if there are none. The result does not alias the parsed packet.
func (p *Properties) Forwarded() *Properties {
	out := &Properties{User: p.User}
	for _, id := range []Property{PayloadFormatIndicator, MessageExpiryInterval} {
		if n, ok := p.numbers[id]; ok {
			out.SetNumber(id, n)
		}
	}
	for _, id := range []Property{ContentType, ResponseTopic} {
		if s, ok := p.texts[id]; ok {
			out.SetText(id, s)
		}
	}
	if b, ok := p.data[CorrelationData]; ok {
		out.SetData(CorrelationData, bytes.Clone(b))
	}
	if out.Empty() {
		return nil
	}
	return out
}

// Size estimates the bytes of the properties.
func (p *Properties) Size() int {
	n := 5*len(p.numbers) + 5*len(p.Subscriptions)
	for _, s := range p.texts {
		n += 3 + len(s)
	}
	for _, b := range p.data {
		n += 3 + len(b)
	}
	for _, u := range p.User {
		n += 5 + len(u.Name) + len(u.Value)
	}
	return n
}

// Clone returns a copy that may be changed; values are shared.
func (p *Properties) Clone() Properties {
	return Properties{
		numbers: maps.Clone(p.numbers), texts: maps.Clone(p.texts), data: maps.Clone(p.data),
		User: slices.Clip(p.User), Subscriptions: slices.Clip(p.Subscriptions),
	}
}

func (p *Properties) has(id Property) bool {
	if _, ok := p.numbers[id]; ok {
		return true
	}
	if _, ok := p.texts[id]; ok {
		return true
	}
	_, ok := p.data[id]
	return ok || id == SubscriptionIdentifier && len(p.Subscriptions) > 0
}

// append appends the length of the properties and the properties, ordered by identifier.
func (p *Properties) append(out []byte, v Version) []byte {
	if v != V5 {
		return out
	}
	if p.Empty() {
		return append(out, 0)
	}
	var inner []byte
	for id := range Property(len(propertyTable)) {
		inner = p.appendOne(inner, id)
	}
	return append(appendVarint(out, uint32(len(inner))), inner...)
}

func (p *Properties) appendOne(out []byte, id Property) []byte {
	switch propertyTable[id].form {
	case formUserProperty:
		for _, u := range p.User {
			out = appendText(appendText(append(out, byte(id)), u.Name), u.Value)
		}
	case formVarint:
		for _, n := range p.Subscriptions {
			out = appendVarint(append(out, byte(id)), n)
		}
	case formText, formTopic:
		if s, ok := p.texts[id]; ok {
			out = appendText(append(out, byte(id)), s)
		}
	case formData:
		if b, ok := p.data[id]; ok {
			out = appendBinary(append(out, byte(id)), b)
		}
	case formFlag:
		if n, ok := p.numbers[id]; ok {
			out = append(out, byte(id), byte(n))
		}
	case formUint16, formUint16NonZero:
		if n, ok := p.numbers[id]; ok {
			out = binary.BigEndian.AppendUint16(append(out, byte(id)), uint16(n))
		}
	case formUint32, formUint32NonZero:
		if n, ok := p.numbers[id]; ok {
			out = binary.BigEndian.AppendUint32(append(out, byte(id)), n)
		}
	}
	return out
}
