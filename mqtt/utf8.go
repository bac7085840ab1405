package mqtt

import (
	"unicode/utf8"

	"github.com/watchword-iot/watchword/mqtt/packet"
)

// isPlainText reports whether s holds none of the code points that strings should not have: the
// control characters U+0001 to U+001F and U+007F to U+009F, and the non-characters (MQTT
// 5.0 §1.5.4, 3.1.1 §1.5.3). A receiver may take a packet with one of them for malformed,
// and some close the connection, again and again.
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

// acceptsText reports whether a string may be passed on to others.
func (b *Broker) acceptsText(s string) bool { return b.options.ControlCharacters || isPlainText(s) }

// checkPropertyText refuses the strings among the properties of a message, or of a will,
// that may not be passed on. Reasons: topic name invalid for the response topic, malformed
// for the others.
func (b *Broker) checkPropertyText(p *packet.Properties, t packet.Type) error {
	if b.options.ControlCharacters || p.Empty() {
		return nil
	}
	if s, ok := p.Text(packet.ResponseTopic); ok && !isPlainText(s) {
		return protocolError(packet.TopicNameInvalid, t, "the response topic holds control characters")
	}
	s, _ := p.Text(packet.ContentType)
	bad := !isPlainText(s)
	for _, u := range p.User {
		bad = bad || !isPlainText(u.Name) || !isPlainText(u.Value)
	}
	if bad {
		return protocolError(packet.MalformedPacket, t, "the content type or a user property holds control characters")
	}
	return nil
}
