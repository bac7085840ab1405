package packet_test

import (
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword/mqtt/packet"
)

func raw(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	if len(b) >= 2 && b[1] < 128 { // the length is what follows, whatever was written
		b[1] = byte(len(b) - 2)
	}
	return b
}

// parse reads exactly one packet.
func parse(b []byte, v packet.Version) (packet.Packet, error) {
	first, body, n, err := packet.Frame(b, packet.MaxSize)
	if err != nil {
		return nil, err
	}
	if n != len(b) {
		return nil, errors.New("the frame is not whole")
	}
	return packet.Parse(first, body, v)
}

func version(p packet.Packet, v packet.Version) packet.Version {
	if c, ok := p.(*packet.Connect); ok {
		return c.Version
	}
	return v
}

func TestGoodPackets(t *testing.T) {
	for _, tc := range []struct {
		name string
		v    packet.Version
		hex  string
	}{
		{"CONNECT 3.1.1, clean, keep alive 60", packet.V311, "10 10 0004 4D515454 04 02 003C 0004 6C616D70"},
		{"CONNECT 3.1.1 with will, user and password", packet.V311, "10 1d 0004 4D515454 04 C6 003C 0001 61 0001 74 0002 6869 0001 75 0003 707764"},
		{"CONNECT 5 with a session expiry and a password alone", packet.V5, "10 1a 0004 4D515454 05 42 003C 05 11 0000000A 0001 61 0006 736563726574"},
		{"CONNECT 5 with will properties", packet.V5, "10 1c 0004 4D515454 05 0E 0000 00 0001 61 07 01 01 18 00000005 0001 74 0000"},
		{"CONNACK 3.1.1, not authorized", packet.V311, "20 02 00 05"},
		{"CONNACK 5 with limits", packet.V5, "20 0b 01 00 08 21 000A 22 0000 24 01"},
		{"PUBLISH QoS 0", packet.V311, "30 05 0003 612F62"},
		{"PUBLISH QoS 1, dup, retain", packet.V311, "3B 08 0003 612F62 0007 78"},
		{"PUBLISH 5 by alias", packet.V5, "30 07 0000 03 23 0001 78"},
		{"PUBLISH 5 with everything", packet.V5, "32 2d 0001 61 0001 23 01 01 02 0000000A 03 0001 6A 08 0001 72 09 0002 0102 0B 80 01 0B 02 23 0003 26 0001 6B 0001 76 78 79"},
		{"PUBACK 3.1.1", packet.V311, "40 02 0007"},
		{"PUBACK 5, no subscribers", packet.V5, "40 03 0007 10"},
		{"PUBREC 5 with a reason string", packet.V5, "50 0a 0007 87 06 1F 0003 6E6F70"},
		{"PUBREL", packet.V311, "62 02 0007"},
		{"PUBCOMP 5, not found", packet.V5, "70 03 0007 92"},
		{"SUBSCRIBE 3.1.1", packet.V311, "82 0a 0001 0001 61 01 0001 62 00"},
		{"SUBSCRIBE 5 with options", packet.V5, "82 09 0001 02 0B 05 0001 61 2D"},
		{"SUBACK 3.1.1", packet.V311, "90 04 0001 01 80"},
		{"SUBACK 5", packet.V5, "90 05 0001 00 01 87"},
		{"UNSUBSCRIBE", packet.V311, "A2 05 0001 0001 61"},
		{"UNSUBACK 3.1.1", packet.V311, "B0 02 0001"},
		{"UNSUBACK 5", packet.V5, "B0 04 0001 00 11"},
		{"PINGREQ", packet.V311, "C0 00"},
		{"PINGRESP", packet.V5, "D0 00"},
		{"DISCONNECT", packet.V311, "E0 00"},
		{"DISCONNECT 5, revoked", packet.V5, "E0 01 87"},
		{"AUTH 5", packet.V5, "F0 10 18 0E 15 0003 616365 16 0005 0102030405"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := raw(t, tc.hex)
			p, err := parse(b, tc.v)
			if err != nil {
				t.Fatal(err)
			}
			if again := packet.Append(nil, p, version(p, tc.v)); !reflect.DeepEqual(again, b) {
				t.Errorf("printed as %x, was %x", again, b)
			}
		})
	}
}

func TestMalformedPackets(t *testing.T) {
	for _, tc := range []struct {
		name string
		v    packet.Version
		hex  string
		want packet.Reason
	}{
		{"type 0", packet.V5, "00 00", packet.MalformedPacket},
		{"a length in five bytes", packet.V5, "30 80 80 80 80 01", packet.MalformedPacket},
		{"a length in more bytes than it needs", packet.V5, "C0 80 00", packet.MalformedPacket},
		{"CONNECT with flags", packet.V311, "11 10 0004 4D515454 04 02 003C 0004 6C616D70", packet.MalformedPacket},
		{"CONNECT of version 3.1", packet.V311, "10 12 0006 4D5149736470 03 02 003C 0004 6C616D70", packet.UnsupportedProtocolVersion},
		{"CONNECT of version 6", packet.V311, "10 10 0004 4D515454 06 02 003C 0004 6C616D70", packet.UnsupportedProtocolVersion},
		{"CONNECT with another name", packet.V311, "10 10 0004 4D515455 04 02 003C 0004 6C616D70", packet.UnsupportedProtocolVersion},
		{"CONNECT with the reserved flag", packet.V311, "10 10 0004 4D515454 04 03 003C 0004 6C616D70", packet.MalformedPacket},
		{"CONNECT with will flags and no will", packet.V311, "10 10 0004 4D515454 04 22 003C 0004 6C616D70", packet.MalformedPacket},
		{"CONNECT with a will QoS and no will", packet.V311, "10 10 0004 4D515454 04 0A 003C 0004 6C616D70", packet.MalformedPacket},
		{"CONNECT with a will flag and nothing behind it", packet.V311, "10 0d 0004 4D515454 04 06 003C 0001 61", packet.MalformedPacket},
		{"CONNECT with a will topic and no payload", packet.V311, "10 10 0004 4D515454 04 06 003C 0001 61 0001 74", packet.MalformedPacket},
		{"CONNECT 5 with a will flag and nothing behind it", packet.V5, "10 0e 0004 4D515454 05 06 003C 00 0001 61", packet.MalformedPacket},
		{"CONNECT 5 with a will and no properties of it", packet.V5, "10 13 0004 4D515454 05 06 003C 00 0001 61 0001 74 0000", packet.MalformedPacket},
		{"CONNECT with a user name flag and nothing behind it", packet.V311, "10 0d 0004 4D515454 04 82 003C 0001 61", packet.MalformedPacket},
		{"CONNECT with a password flag and nothing behind it", packet.V311, "10 10 0004 4D515454 04 C2 003C 0001 61 0001 75", packet.MalformedPacket},
		{"CONNECT with a will of QoS 3", packet.V311, "10 15 0004 4D515454 04 1E 003C 0001 61 0001 74 0002 6869", packet.MalformedPacket},
		{"CONNECT 3.1.1 with a password and no user", packet.V311, "10 12 0004 4D515454 04 42 003C 0001 61 0003 707764", packet.MalformedPacket},
		{"CONNECT cut off", packet.V311, "10 0f 0004 4D515454 04 02 003C 0004 6C616D", packet.MalformedPacket},
		{"CONNECT with bytes after it", packet.V311, "10 11 0004 4D515454 04 02 003C 0004 6C616D70 00", packet.MalformedPacket},
		{"CONNECT with a client id that is no UTF-8", packet.V311, "10 0d 0004 4D515454 04 02 003C 0001 FF", packet.MalformedPacket},
		{"CONNECT with a NUL in it", packet.V311, "10 0d 0004 4D515454 04 02 003C 0001 00", packet.MalformedPacket},
		{"CONNECT with a surrogate", packet.V311, "10 0f 0004 4D515454 04 02 003C 0003 EDA080", packet.MalformedPacket},
		{"CONNECT with a will topic that is no UTF-8", packet.V311, "10 12 0004 4D515454 04 06 003C 0001 61 0001 FF 0000", packet.MalformedPacket},
		{"CONNECT with a user name that is no UTF-8", packet.V311, "10 10 0004 4D515454 04 82 003C 0001 61 0001 FF", packet.MalformedPacket},
		{"CONNECT with a will on a wildcard", packet.V311, "10 13 0004 4D515454 04 06 003C 0001 61 0001 23 0000", packet.TopicNameInvalid},
		{"CONNECT 5 with receive maximum 0", packet.V5, "10 10 0004 4D515454 05 02 003C 03 21 0000 0000", packet.ProtocolError},
		{"CONNECT 5 with maximum packet size 0", packet.V5, "10 12 0004 4D515454 05 02 003C 05 27 00000000 0000", packet.ProtocolError},
		{"CONNECT 5 with a property twice", packet.V5, "10 17 0004 4D515454 05 02 003C 0A 11 0000000A 11 0000000A 0000", packet.ProtocolError},
		{"CONNECT 5 with an unknown property", packet.V5, "10 0f 0004 4D515454 05 02 003C 02 7F 00 0000", packet.MalformedPacket},
		{"CONNECT 5 with a property of PUBLISH", packet.V5, "10 10 0004 4D515454 05 02 003C 03 23 0001 0000", packet.MalformedPacket},
		{"CONNECT 5 with properties that end too late", packet.V5, "10 0d 0004 4D515454 05 02 003C 09 0000", packet.MalformedPacket},
		{"CONNECT 5 with a flag of 2", packet.V5, "10 0f 0004 4D515454 05 02 003C 02 17 02 0000", packet.ProtocolError},
		{"CONNECT 5 with data and no method", packet.V5, "10 11 0004 4D515454 05 02 003C 04 16 0001 01 0000", packet.ProtocolError},
		{"CONNACK with a reserved flag", packet.V5, "20 03 02 00 00", packet.MalformedPacket},
		{"CONNACK 3.1.1 with code 6", packet.V311, "20 02 00 06", packet.MalformedPacket},
		{"CONNACK 5 with a code of DISCONNECT", packet.V5, "20 03 00 8E 00", packet.MalformedPacket},
		{"CONNACK with a session in a refusal", packet.V5, "20 03 01 87 00", packet.ProtocolError},
		{"PUBLISH QoS 3", packet.V5, "36 05 0001 61 0001 00", packet.MalformedPacket},
		{"PUBLISH QoS 0, dup", packet.V311, "38 03 0001 61", packet.MalformedPacket},
		{"PUBLISH with a wildcard", packet.V311, "30 05 0003 612F23", packet.TopicNameInvalid},
		{"PUBLISH with identifier 0", packet.V311, "32 05 0001 61 0000", packet.ProtocolError},
		{"PUBLISH without topic or alias", packet.V5, "30 03 0000 00", packet.ProtocolError},
		{"PUBLISH 3.1.1 without topic", packet.V311, "30 02 0000", packet.TopicNameInvalid},
		{"PUBLISH with alias 0", packet.V5, "30 06 0000 03 23 0000", packet.ProtocolError},
		{"PUBLISH with subscription identifier 0", packet.V5, "30 06 0001 61 02 0B 00", packet.ProtocolError},
		{"PUBLISH with a response topic with a wildcard", packet.V5, "30 08 0001 61 04 08 0001 23", packet.TopicNameInvalid},
		{"PUBLISH with a payload format of 2", packet.V5, "30 06 0001 61 02 01 02", packet.ProtocolError},
		{"PUBLISH with a topic that is no UTF-8", packet.V311, "30 03 0001 FF", packet.MalformedPacket},
		{"PUBLISH with a response topic that is no UTF-8", packet.V5, "30 08 0001 61 04 08 0001 FF", packet.MalformedPacket},
		{"PUBLISH with a content type that is no UTF-8", packet.V5, "30 08 0001 61 04 03 0001 FF", packet.MalformedPacket},
		{"PUBLISH with a pair whose name is no UTF-8", packet.V5, "30 0b 0001 61 07 26 0001 FF 0001 62", packet.MalformedPacket},
		{"PUBLISH with a pair whose value is no UTF-8", packet.V5, "30 0b 0001 61 07 26 0001 62 0001 FF", packet.MalformedPacket},
		{"PUBACK with flags", packet.V311, "41 02 0001", packet.MalformedPacket},
		{"PUBACK with identifier 0", packet.V311, "40 02 0000", packet.ProtocolError},
		{"PUBACK 3.1.1 with a reason", packet.V311, "40 03 0001 00", packet.MalformedPacket},
		{"PUBACK 5 with a reason of PUBREL", packet.V5, "40 03 0001 92", packet.MalformedPacket},
		{"PUBREL without its flags", packet.V311, "60 02 0001", packet.MalformedPacket},
		{"SUBSCRIBE without its flags", packet.V311, "80 06 0001 0001 61 00", packet.MalformedPacket},
		{"SUBSCRIBE with no filter", packet.V311, "82 02 0001", packet.ProtocolError},
		{"SUBSCRIBE with an empty filter", packet.V311, "82 05 0001 0000 00", packet.TopicFilterInvalid},
		{"SUBSCRIBE with a filter that is no UTF-8", packet.V311, "82 06 0001 0001 FF 00", packet.MalformedPacket},
		{"SUBSCRIBE with QoS 3", packet.V311, "82 06 0001 0001 61 03", packet.MalformedPacket},
		{"SUBSCRIBE 3.1.1 with options of 5", packet.V311, "82 06 0001 0001 61 04", packet.MalformedPacket},
		{"SUBSCRIBE 5 with reserved options", packet.V5, "82 07 0001 00 0001 61 40", packet.MalformedPacket},
		{"SUBSCRIBE 5 with retain handling 3", packet.V5, "82 07 0001 00 0001 61 30", packet.ProtocolError},
		{"SUBSCRIBE 5, no local and shared", packet.V5, "82 10 0001 00 000A 2473686172652F672F61 04", packet.ProtocolError},
		{"SUBSCRIBE 5 with two identifiers", packet.V5, "82 0b 0001 04 0B 01 0B 02 0001 61 00", packet.ProtocolError},
		{"SUBACK with a code that there is not", packet.V311, "90 03 0001 03", packet.MalformedPacket},
		{"SUBACK with no code", packet.V311, "90 02 0001", packet.MalformedPacket},
		{"UNSUBSCRIBE with no filter", packet.V311, "A2 02 0001", packet.ProtocolError},
		{"UNSUBSCRIBE without its flags", packet.V311, "A0 05 0001 0001 61", packet.MalformedPacket},
		{"UNSUBSCRIBE with a filter that is no UTF-8", packet.V311, "A2 05 0001 0001 FF", packet.MalformedPacket},
		{"PINGREQ with a body", packet.V311, "C0 01 00", packet.MalformedPacket},
		{"DISCONNECT 3.1.1 with a reason", packet.V311, "E0 01 00", packet.MalformedPacket},
		{"DISCONNECT with flags", packet.V5, "E1 00", packet.MalformedPacket},
		{"DISCONNECT 3.1.1 with flags", packet.V311, "E1 00", packet.MalformedPacket},
		{"DISCONNECT 5 with a reason of CONNACK", packet.V5, "E0 01 84", packet.MalformedPacket},
		{"AUTH in 3.1.1", packet.V311, "F0 00", packet.MalformedPacket},
		{"AUTH with flags", packet.V5, "F1 00", packet.MalformedPacket},
		{"AUTH with a reason of its own", packet.V5, "F0 01 87", packet.MalformedPacket},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := parse(raw(t, tc.hex), tc.v)
			e, ok := errors.AsType[*packet.Error](err)
			if !ok || e.Reason != tc.want {
				t.Errorf("got %+v, %v, want 0x%02X", p, err, byte(tc.want))
			}
		})
	}
}

func TestFramesAreBoundedBeforeTheyAreKept(t *testing.T) {
	if _, _, n, err := packet.Frame(raw(t, "30 FF FF FF 7F"), 1<<20); n != 0 || err == nil {
		t.Errorf("256 MiB: %d, %v", n, err)
	}
	b := append(raw(t, "30 05 0003 612F62"), 0xC0, 0)
	for i := range 7 {
		if _, _, n, err := packet.Frame(b[:i], 100); n != 0 || err != nil {
			t.Errorf("%d bytes: %d, %v", i, n, err)
		}
	}
	if _, _, n, err := packet.Frame(b, 7); n != 7 || err != nil {
		t.Errorf("whole: %d, %v", n, err)
	}
	if _, _, _, err := packet.Frame(b, 6); err == nil {
		t.Error("one byte over the bound is taken")
	}
}

// random draws a packet that the format can carry.
func random(r *rand.Rand, v packet.Version) packet.Packet {
	text := func() string {
		return []string{"a", "devices/lamp-1/events/lux", "é", "x y", strings.Repeat("z", 300)}[r.IntN(5)]
	}
	data := func() []byte {
		b := make([]byte, r.IntN(200))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	id := func() uint16 { return uint16(1 + r.IntN(65535)) }
	user := func(p packet.Properties) packet.Properties {
		if v == packet.V5 {
			for range r.IntN(3) {
				p.User = append(p.User, packet.UserProp{Name: text(), Value: text()})
			}
		}
		return p
	}
	message := func() (p packet.Properties) {
		if v == packet.V5 && r.IntN(2) == 0 {
			p.SetNumber(packet.PayloadFormatIndicator, 1)
			p.SetNumber(packet.MessageExpiryInterval, r.Uint32())
			p.SetText(packet.ContentType, text())
			p.SetText(packet.ResponseTopic, "r/t")
			p.SetData(packet.CorrelationData, data())
		}
		return user(p)
	}
	switch r.IntN(9) {
	case 0:
		c := &packet.Connect{Version: v, CleanStart: r.IntN(2) == 0, KeepAlive: id(), ClientID: text(), HasUser: true, Username: text(), HasPass: r.IntN(2) == 0, Properties: user(packet.Properties{})}
		if c.HasPass {
			c.Password = data()
		}
		if r.IntN(2) == 0 {
			c.Will = &packet.Will{Topic: "w", Payload: data(), QoS: byte(r.IntN(3)), Retain: r.IntN(2) == 0, Properties: message()}
		}
		return c
	case 1:
		p := &packet.Publish{QoS: byte(r.IntN(3)), Retain: r.IntN(2) == 0, Topic: text(), Payload: data(), Properties: message()}
		if p.QoS > 0 {
			p.ID, p.Dup = id(), r.IntN(2) == 0
		}
		return p
	case 2:
		return &packet.Ack{Kind: packet.PUBACK + packet.Type(r.IntN(4)), ID: id()}
	case 3:
		s := &packet.Subscribe{ID: id(), Properties: user(packet.Properties{})}
		for range 1 + r.IntN(5) {
			f := packet.Filter{Topic: text(), QoS: byte(r.IntN(3))}
			if v == packet.V5 {
				f.NoLocal, f.RetainAsPublished, f.RetainHandling = r.IntN(2) == 0, r.IntN(2) == 0, byte(r.IntN(3))
			}
			s.Filters = append(s.Filters, f)
		}
		return s
	case 4:
		return &packet.Suback{ID: id(), Codes: []packet.Reason{0, 1, 2, 0x80}[:1+r.IntN(4)], Properties: user(packet.Properties{})}
	case 5:
		return &packet.Unsubscribe{ID: id(), Filters: []string{text(), text()}, Properties: user(packet.Properties{})}
	case 6:
		u := &packet.Unsuback{ID: id()}
		if v == packet.V5 {
			u.Codes, u.Properties = []packet.Reason{0, 0x11}, user(packet.Properties{})
		}
		return u
	case 7:
		d := &packet.Disconnect{}
		if v == packet.V5 {
			d.Reason, d.Properties = packet.NotAuthorized, user(packet.Properties{})
		}
		return d
	default:
		return &packet.Connack{Code: packet.Success, SessionPresent: r.IntN(2) == 0, Properties: user(packet.Properties{})}
	}
}

func TestWhatIsPrintedReadsAsItWas(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 5))
	for range 50_000 {
		v := []packet.Version{packet.V311, packet.V5}[r.IntN(2)]
		p := random(r, v)
		b := packet.Append(nil, p, v)
		got, err := parse(b, v)
		if err != nil {
			t.Fatalf("%+v printed as %x: %v", p, b, err)
		}
		if again := packet.Append(nil, got, v); !reflect.DeepEqual(again, b) {
			t.Fatalf("%+v\n%x\n%x", p, b, again)
		}
	}
}

func FuzzParse(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		f.Add(packet.Append(nil, random(r, packet.V5), packet.V5), true)
		f.Add(packet.Append(nil, random(r, packet.V311), packet.V311), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, five bool) {
		v := packet.V311
		if five {
			v = packet.V5
		}
		first, body, n, err := packet.Frame(b, 1<<16)
		if err != nil || n == 0 {
			return
		}
		p, err := packet.Parse(first, body, v)
		if err != nil {
			if _, ok := errors.AsType[*packet.Error](err); !ok {
				t.Errorf("%x: %v", b, err)
			}
			return
		}
		v = version(p, v)
		once := packet.Append(nil, p, v)
		again, err := parse(once, v)
		if err != nil {
			t.Fatalf("%x printed as %x: %v", b[:n], once, err)
		}
		if twice := packet.Append(nil, again, v); !reflect.DeepEqual(once, twice) {
			t.Errorf("%x\n%x", once, twice)
		}
	})
}

func BenchmarkPublish(b *testing.B) {
	p := &packet.Publish{QoS: 1, ID: 7, Topic: "devices/lamp-1/events/lux", Payload: []byte(`{"lux":42}`)}
	for name, v := range map[string]packet.Version{"3.1.1": packet.V311, "5": packet.V5} {
		raw := packet.Append(nil, p, v)
		b.Run("parse/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := parse(raw, v); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("append/"+name, func(b *testing.B) {
			b.ReportAllocs()
			out := make([]byte, 0, 256)
			for b.Loop() {
				out = packet.Append(out[:0], p, v)
			}
		})
	}
}
