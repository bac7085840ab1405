package hostile

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// refused answers CONNECT with a reason code, and with the error code that Watchword adds.
func refused(reason packet.Reason, code watchword.Code) func(*Session) {
	return func(m *Session) {
		if m.Open() {
			ack := &packet.Connack{Code: reason}
			if code != "" {
				ack.Properties.SetText(packet.ReasonString, refusal(code))
			}
			_ = m.Write(ack) // the peer has closed the connection
		}
	}
}

// instead answers CONNECT with bytes, and nothing more.
func instead(b string) func(*Session) {
	return func(m *Session) {
		if m.Open() && m.Raw([]byte(b)) == nil {
			m.Drain()
		}
	}
}

// connack answers with a valid CONNACK with more properties.
func connack(edit func(*packet.Connack)) func(*Session) {
	return func(m *Session) {
		if m.Open() {
			ack := m.Connack()
			edit(ack)
			if m.Write(ack) == nil {
				m.ServeAfterConnack()
			}
		}
	}
}

// then behaves well until the device receives commands, then misbehaves once, and continues well.
func then(f func(m *Session) error) func(*Session) {
	return func(m *Session) {
		if m.Accept() && m.ServeUntilSubscribed() {
			m.ServeWith(f)
		}
	}
}

// sending is [then] with packets.
func sending(ps ...packet.Packet) func(*Session) {
	return then(func(m *Session) error { return m.Write(ps...) })
}

// bytesOf is [then] with bytes.
func bytesOf(b string) func(*Session) {
	return then(func(m *Session) error { return m.Raw([]byte(b)) })
}

// sessionCases are cases of CONNECT and of the start of a session. HTTPS behaves well.
func sessionCases() (out []Case) {
	for _, why := range []struct {
		reason packet.Reason
		code   watchword.Code
	}{
		{packet.UnspecifiedError, ""},
		{packet.UnsupportedProtocolVersion, ""},
		{packet.BadUserNameOrPassword, watchword.ClientInvalid},
		{packet.NotAuthorized, watchword.Denied},
		{packet.NotAuthorized, watchword.ProofRequired},
		{packet.NotAuthorized, watchword.TokenEarly},
		{packet.ServerUnavailable, watchword.Unavailable},
		{packet.ServerBusy, watchword.Busy},
		{packet.Banned, ""},
		{packet.BadAuthenticationMethod, ""},
		{packet.QuotaExceeded, watchword.RateLimited},
		{packet.UseAnotherServer, ""},
	} {
		out = append(out, Case{Name: strings.TrimSpace(fmt.Sprintf("CONNACK 0x%02X %s", byte(why.reason), why.code)), Session: refused(why.reason, why.code)})
	}
	for _, c := range []struct {
		name string
		with func(*Session)
	}{
		{"CONNACK that names another server", connack(func(a *packet.Connack) {
			a.Code = packet.ServerMoved
			a.Properties.SetText(packet.ServerReference, "127.0.0.1:9")
		})},
		{"CONNACK of a session that there was not", connack(func(a *packet.Connack) { a.SessionPresent = true })},
		{"CONNACK with another client identifier", connack(func(a *packet.Connack) { a.Properties.SetText(packet.AssignedClientIdentifier, "other") })},
		{"CONNACK with a keep-alive of a second", connack(func(a *packet.Connack) { a.Properties.SetNumber(packet.ServerKeepAlive, 1) })},
		{"CONNACK with a keep-alive of zero", connack(func(a *packet.Connack) { a.Properties.SetNumber(packet.ServerKeepAlive, 0) })},
		{"CONNACK that allows packets of one byte", connack(func(a *packet.Connack) { a.Properties.SetNumber(packet.MaximumPacketSize, 1) })},
		{"CONNACK that allows one publish", connack(func(a *packet.Connack) { a.Properties.SetNumber(packet.ReceiveMaximum, 1) })},
		{"CONNACK that allows QoS 0", connack(func(a *packet.Connack) { a.Properties.SetNumber(packet.MaximumQoS, 0) })},
		{"CONNACK of a session that has ended", connack(func(a *packet.Connack) {
			a.Properties.User = []packet.UserProp{{Name: "expires_at", Value: "1970-01-01T00:00:00Z"}}
		})},
		{"CONNACK of a session for 7,000 years", connack(func(a *packet.Connack) {
			a.Properties.User = []packet.UserProp{{Name: "expires_at", Value: "9000-01-01T00:00:00Z"}}
		})},
		{"CONNACK with 60 kB of user properties", connack(func(a *packet.Connack) {
			for range 1000 {
				a.Properties.User = append(a.Properties.User, packet.UserProp{Name: "x", Value: strings.Repeat("y", 50)})
			}
		})},
		{"CONNACK with an authentication that was not begun", connack(func(a *packet.Connack) { a.Properties.SetText(packet.AuthenticationMethod, "other") })},
		{"the end after CONNECT", func(m *Session) { m.Open() }},
		{"the end after CONNACK", func(m *Session) { m.Accept() }},
		{"the end after SUBACK", then(func(m *Session) error { return m.Conn.Close() })},
		{"DISCONNECT in the place of CONNACK", instead("\xe0\x02\x8b\x00")},
		{"AUTH in the place of CONNACK", instead("\xf0\x00")},
		{"AUTH that goes on, in the place of CONNACK", instead("\xf0\x08\x18\x06\x15\x00\x03ace")},
		{"PINGRESP in the place of CONNACK", instead("\xd0\x00")},
		{"PUBLISH before CONNACK", func(m *Session) {
			if !m.Open() {
				return
			}
			jwe, err := m.Server.Seal(nil, Forbidden+1, func(c *watchwordCommand) { c.Expires = c.Issued.Add(-time.Hour) })
			if err == nil && m.Write(m.Command(jwe), m.Connack()) == nil {
				m.ServeAfterConnack()
			}
		}},
		{"CONNACK with a property that it does not have", instead("\x20\x06\x00\x00\x03\x02\x00\x01")},
		{"CONNACK with a property twice", instead("\x20\x09\x00\x00\x06\x21\x00\x01\x21\x00\x01")},
		{"CONNACK with properties that are longer than it", instead("\x20\x04\x00\x00\x7f\x21")},
		{"CONNACK with reserved flags", instead("\x20\x03\xff\x00\x00")},
		{"CONNACK that is empty", instead("\x20\x00")},
		{"CONNACK of version 3.1.1", instead("\x20\x02\x00\x00")},
		{"a length of five bytes", instead("\x20\xff\xff\xff\xff\x7f")},
		{"a packet of type 0", instead("\x00\x00")},
		{"SUBACK that denies all", answering(func(s *packet.Subscribe) *packet.Suback {
			ack := &packet.Suback{ID: s.ID}
			for range s.Filters {
				ack.Codes = append(ack.Codes, packet.NotAuthorized)
			}
			ack.Properties.SetText(packet.ReasonString, refusal(watchword.Denied))
			return ack
		})},
		{"SUBACK with another packet identifier", answering(func(s *packet.Subscribe) *packet.Suback {
			return &packet.Suback{ID: s.ID + 1, Codes: make([]packet.Reason, len(s.Filters))}
		})},
		{"SUBACK with too few codes", answering(func(s *packet.Subscribe) *packet.Suback {
			return &packet.Suback{ID: s.ID, Codes: []packet.Reason{packet.GrantedQoS1}}
		})},
		{"SUBACK with too many codes", answering(func(s *packet.Subscribe) *packet.Suback {
			return &packet.Suback{ID: s.ID, Codes: make([]packet.Reason, 500)}
		})},
	} {
		out = append(out, Case{Name: c.name, Session: c.with})
	}
	for _, c := range []struct {
		name string
		with func(*Session)
	}{
		{"no CONNACK", func(m *Session) {
			if m.Open() {
				m.Drain()
			}
		}},
		{"half a CONNACK", instead("\x20\x7f\x00\x00")},
		{"no SUBACK", answering(func(*packet.Subscribe) *packet.Suback { return nil })},
		{"no PUBACK", func(m *Session) {
			if m.Accept() {
				m.Drain()
			}
		}},
		{"no PINGRESP, nor anything else", then(func(m *Session) error {
			m.mu.Lock()
			m.silent = true
			m.mu.Unlock()
			return nil
		})},
		{"half a packet, and silence", then(func(m *Session) error {
			m.mu.Lock()
			m.silent = true
			m.mu.Unlock()
			return m.Raw([]byte{0x32, 0x7f, 0x00, 0x10, 'd'})
		})},
	} {
		out = append(out, Case{Name: c.name, Session: c.with, KeepsConnections: true})
	}
	return out
}

// answering answers SUBSCRIBE in its own way; not at all where f returns nil.
func answering(f func(*packet.Subscribe) *packet.Suback) func(*Session) {
	return func(m *Session) {
		if !m.Accept() {
			return
		}
		for {
			p, err := m.Read()
			if err != nil {
				return
			}
			good := true
			if s, ok := p.(*packet.Subscribe); !ok {
				good = m.HandlePacket(p)
			} else if ack := f(s); ack != nil {
				good = m.Write(ack) == nil
			}
			if !good {
				return
			}
		}
	}
}

// packetCases are single packets that no server may send. HTTPS behaves well.
func packetCases() (out []Case) {
	alias := func(topic string, n uint32) packet.Packet {
		p := &packet.Publish{Topic: topic, QoS: 1, ID: 77, Payload: []byte("x")}
		p.Properties.SetNumber(packet.TopicAlias, n)
		return p
	}
	for _, c := range []struct {
		name string
		with func(*Session)
	}{
		{"CONNACK twice", then(func(m *Session) error { return m.Write(m.Connack()) })},
		{"a topic alias that was never announced", sending(alias("", 3))},
		{"a topic alias above what the device allows", sending(alias(topicAuth, 60_000))},
		{"topic alias 0", sending(alias(topicAuth, 0))},
		{"a topic with a wildcard", sending(&packet.Publish{Topic: "devices/+/commands", QoS: 1, ID: 5, Payload: []byte("x")})},
		{"a topic that the device never asked for", sending(&packet.Publish{Topic: "devices/device-2/commands", QoS: 1, ID: 5, Payload: []byte("x")})},
		{"PUBLISH with QoS 3", bytesOf("\x36\x07\x00\x01a\x00\x05\x00x")},
		{"PUBLISH with packet identifier 0", bytesOf("\x32\x07\x00\x01a\x00\x00\x00x")},
		{"PUBLISH with a topic that is no UTF-8", bytesOf("\x30\x06\x00\x02\xff\xfe\x00x")},
		{"PUBLISH with an empty topic", bytesOf("\x30\x04\x00\x00\x00x")},
		{"PUBLISH that is longer than itself", bytesOf("\x30\x04\x7f\x00\x00x")},
		{"PUBLISH with properties that are longer than it", bytesOf("\x30\x05\x00\x01a\x7fx")},
		{"PUBLISH with a subscription identifier of 0", bytesOf("\x30\x07\x00\x01a\x02\x0b\x00x")},
		{"PUBREC of a packet that was never sent", sending(&packet.Ack{Kind: packet.PUBREC, ID: 9})},
		{"PUBREL of a packet that was never sent", sending(&packet.Ack{Kind: packet.PUBREL, ID: 9})},
		{"PUBCOMP of a packet that was never sent", sending(&packet.Ack{Kind: packet.PUBCOMP, ID: 9})},
		{"PUBACK of a packet that was never sent", sending(&packet.Ack{Kind: packet.PUBACK, ID: 9})},
		{"PUBACK that is malformed", bytesOf("\x40\x01\x00")},
		{"SUBACK of a packet that was never sent", sending(&packet.Suback{ID: 9, Codes: []packet.Reason{packet.Success}})},
		{"UNSUBACK of a packet that was never sent", sending(&packet.Unsuback{ID: 9, Codes: []packet.Reason{packet.Success}})},
		{"PINGRESP that was not requested", sending(&packet.Ping{Response: true})},
		{"PINGREQ", sending(&packet.Ping{})},
		{"CONNECT", sending(&packet.Connect{Version: packet.V5, ClientID: "server"})},
		{"SUBSCRIBE", sending(&packet.Subscribe{ID: 3, Filters: []packet.Filter{{Topic: "#", QoS: 1}}})},
		{"UNSUBSCRIBE", sending(&packet.Unsubscribe{ID: 3, Filters: []string{"#"}})},
		{"a reserved packet type", bytesOf("\x00\x00")},
		{"reserved flags", bytesOf("\xd5\x00")},
		{"a length that does not end", bytesOf("\x30\xff\xff\xff\xff\xff")},
		{"AUTH that was not requested", sending(&packet.Auth{Reason: packet.ContinueAuthentication})},
		{"AUTH that asks for another method", bytesOf("\xf0\x08\x19\x06\x15\x00\x03abc")},
		{"DISCONNECT", sending(&packet.Disconnect{Reason: packet.ServerShuttingDown})},
		{"DISCONNECT that names another server", bytesOf("\xe0\x0d\x9d\x0b\x1c\x00\x08evil:883")},
		{"DISCONNECT by which another took over", sending(&packet.Disconnect{Reason: packet.SessionTakenOver})},
		{"DISCONNECT with reason 0xFF", bytesOf("\xe0\x01\xff")},
		{"noise", bytesOf("GET / HTTP/1.1\r\n\r\n")},
		{"a notice that is no JSON", notice("{{{")},
		{"a notice of an array", notice(`[1,2,3]`)},
		{"a notice of a type that there is not", notice(`{"type":"explode"}`)},
		{"a notice that subscriptions are lost", notice(`{"type":"lost"}`)},
		{"a configuration that is none", then(func(m *Session) error { return m.Write(m.Publish(topicConfig, []byte("x.y.z"))) })},
		{"an empty command", then(func(m *Session) error { return m.Write(m.Command("")) })},
	} {
		out = append(out, Case{Name: c.name + " over MQTT", Session: c.with})
	}
	return out
}

func notice(text string) func(*Session) {
	return then(func(m *Session) error { return m.Write(m.Publish(topicAuth, []byte(text))) })
}

// floodCases are floods of allowed packets, and packets that are too large. HTTPS behaves well.
func floodCases() (out []Case) {
	publish := func(topic string, id uint16, payload []byte) []byte {
		return packet.Append(nil, &packet.Publish{Topic: topic, QoS: 1, ID: id, Payload: payload}, packet.V5)
	}
	// announced returns the beginning of a PUBLISH of that length to the device's commands topic.
	announced := func(id uint16, bytes int) []byte {
		b := []byte{0x32}
		for n := bytes; ; n >>= 7 {
			if n < 0x80 {
				b = append(b, byte(n))
				break
			}
			b = append(b, byte(n)|0x80)
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(topicCommands)))
		b = append(b, topicCommands...)
		return append(binary.BigEndian.AppendUint16(b, id), 0)
	}
	const largest = 268_435_455
	flood := func(each string) func(*Session) {
		return then(func(m *Session) error {
			repeat(raw{m}, each, long)
			return nil
		})
	}
	numbered := func(count int, topic string, payload []byte) func(*Session) {
		return then(func(m *Session) error {
			for n := range count {
				if err := m.Raw(publish(topic, uint16(n%65_535+1), payload)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return []Case{
		{Name: "PUBLISH of 256 MB", Bytes: packetTake, Session: then(func(m *Session) error {
			if err := m.Raw(announced(1, largest)); err != nil {
				return err
			}
			repeat(raw{m}, filler, long)
			return nil
		})},
		{Name: "PUBLISH of 256 MB before CONNACK", Bytes: packetTake, Session: func(m *Session) {
			if m.Open() && m.Raw(announced(1, largest)) == nil {
				repeat(raw{m}, filler, long)
			}
		}},
		{Name: "64 commands of 100 kB", Bytes: packetTake + 128<<10, Session: numbered(64, topicCommands, make([]byte, 100<<10))},
		{Name: "64 publishes of 256 MB are announced", Bytes: packetTake, Session: then(func(m *Session) error {
			for n := range 64 {
				if err := m.Raw(announced(uint16(n+1), largest)); err != nil {
					return err
				}
			}
			return nil
		})},
		{Name: "CONNACK of 256 MB", Bytes: packetTake, Session: func(m *Session) {
			if m.Open() && m.Raw([]byte("\x20\xff\xff\xff\x7f\x00\x00\xff\xff\x7f")) == nil {
				repeat(raw{m}, strings.Repeat("\x26\x00\x01x\x00\x01y", 100), long)
			}
		}},
		{Name: "AUTH of 256 MB", Bytes: packetTake, Session: then(func(m *Session) error {
			err := m.Raw([]byte("\xf0\xff\xff\xff\x7f\x18\xff\xff\x7f"))
			repeat(raw{m}, strings.Repeat("\x26\x00\x01x\x00\x01y", 100), long)
			return err
		})},
		{Name: "more commands than the device's Receive Maximum", Session: numbered(2000, topicCommands, []byte("x.y.z"))},
		{Name: "publishes that were not requested, without end", Session: numbered(3000, "other", []byte("x"))},
		{Name: "notices to refresh without end", Session: numbered(1500, topicAuth, []byte(`{"type":"refresh"}`))},
		{Name: "notices of another trust bundle without end", Session: numbered(1500, topicAuth, []byte(`{"type":"trust"}`))},
		{Name: "configurations without end", Session: numbered(1500, topicConfig, []byte("x.y.z"))},
		{Name: "PUBACK without end", Session: flood("\x40\x02\x00\x09")},
		{Name: "PUBREC without end", Session: flood("\x50\x02\x00\x09")},
		{Name: "PUBREL without end", Session: flood("\x62\x02\x00\x09")},
		{Name: "PINGRESP without end", Session: flood("\xd0\x00")},
		{Name: "AUTH without end", Session: flood("\xf0\x08\x18\x06\x15\x00\x03ace")},
		{Name: "AUTH without end before CONNACK", Session: func(m *Session) {
			if m.Open() {
				go m.Drain()
				repeat(raw{m}, "\xf0\x08\x18\x06\x15\x00\x03ace", long)
			}
		}},
		{Name: "PINGRESP without end before CONNACK", Session: func(m *Session) {
			if m.Open() {
				repeat(raw{m}, "\xd0\x00", long)
			}
		}},
		{Name: "QoS 0 without end", Session: flood("\x30\x05\x00\x01a\x00x")},
		{Name: "publishes without end from one that reads nothing", KeepsConnections: true, Session: func(m *Session) {
			if m.Accept() && m.ServeUntilSubscribed() {
				for n := range 3000 {
					if m.Raw(publish(topicAuth, uint16(n%65_535+1), []byte("{}"))) != nil {
						return
					}
				}
				m.Drain()
			}
		}},
	}
}

// raw writes the bytes of a session.
type raw struct{ m *Session }

// Write implements [io.Writer].
func (r raw) Write(b []byte) (int, error) { return len(b), r.m.Raw(b) }
