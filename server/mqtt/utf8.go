package mqtt

import (
	"unicode/utf8"

	"github.com/watchword-iot/watchword/mqtt/packet"
)

// isPlainText reports whether s has no code points that strings should not contain: control
// characters U+0001 to U+001F and U+007F to U+009F, and non-characters (MQTT 5.0 §1.5.4, 3.1.1
// §1.5.3). Receivers may treat packets with them as malformed, and some then close the connection
// repeatedly.
func isPlainText(s string) bool {
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c < 0x20 || c == 0x7F:
			return false
		case c < utf8.RuneSelf:
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r <= 0x9F || 0xFDD0 <= r && r <= 0xFDEF || r&0xFFFE == 0xFFFE {
			return false
		}
		i += n
	}
	return true
}

// acceptsText reports whether a string may be forwarded.
func (b *Broker) acceptsText(s string) bool { return b.options.ControlCharacters || isPlainText(s) }

// checkPropertyText refuses strings in properties of a message or will that may not be forwarded.
// Reasons: topic name invalid for the response topic, malformed packet for the others.
func (b *Broker) checkPropertyText(p *packet.Properties, t packet.Type) error {
	if b.options.ControlCharacters || p.Empty() {
		return nil
	}
	if s, ok := p.Text(packet.ResponseTopic); ok && !isPlainText(s) {
		return protocolError(packet.TopicNameInvalid, t, "Response Topic must not contain control characters")
	}
	s, _ := p.Text(packet.ContentType)
	bad := !isPlainText(s)
	for _, u := range p.User {
		bad = bad || !isPlainText(u.Name) || !isPlainText(u.Value)
	}
	if bad {
		return protocolError(packet.MalformedPacket, t, "Content Type and User Property must not contain control characters")
	}
	return nil
}
