package mqtt_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// The code points of MQTT 5.0 §1.5.4, at their bounds, and those beside them.
var (
	advisedAgainst = []rune{0x01, '\t', '\n', 0x1F, 0x7F, 0x80, 0x9F, 0xFDD0, 0xFDEF, 0xFFFE, 0xFFFF, 0x1FFFE, 0x1FFFF, 0x10FFFE, 0x10FFFF}
	allowedRunes   = []rune{' ', '~', 0xA0, 'é', 0xFDCF, 0xFDF0, 0xFFFD, 0xFEFF, 0x10000, 0x10FFFD}
)

// textPositions is every position of a client's packets whose string is forwarded, and the response to a client of version
// 5 if it is refused.
var textPositions = []struct {
	name string
	v3   bool // it is there in 3.1.1 too
	says packet.Reason
	try  func(h *testServer, v packet.Version, s string) packet.Reason // what the server says; 0xFF: the end
}{
	{"a topic, QoS 0", true, packet.Success, func(h *testServer, v packet.Version, s string) packet.Reason {
		return h.publishOnce(v, &packet.Publish{Topic: "t/" + s})
	}},
	{"a topic, QoS 1", true, packet.TopicNameInvalid, func(h *testServer, v packet.Version, s string) packet.Reason {
		return h.publishOnce(v, &packet.Publish{Topic: "t/" + s, QoS: 1, ID: 7})
	}},
	{"a topic, QoS 2", true, packet.TopicNameInvalid, func(h *testServer, v packet.Version, s string) packet.Reason {
		return h.publishOnce(v, &packet.Publish{Topic: "t/" + s, QoS: 2, ID: 7})
	}},
	{"a retained topic", true, packet.TopicNameInvalid, func(h *testServer, v packet.Version, s string) packet.Reason {
		return h.publishOnce(v, &packet.Publish{Topic: "t/" + s, QoS: 1, ID: 7, Retain: true})
	}},
	{"a response topic", false, packet.TopicNameInvalid, func(h *testServer, v packet.Version, s string) packet.Reason {
		p := &packet.Publish{Topic: "t", QoS: 1, ID: 7}
		p.Properties.SetText(packet.ResponseTopic, "r/"+s)
		return h.publishOnce(v, p)
	}},
	{"a content type", false, packet.ImplementationSpecificError, func(h *testServer, v packet.Version, s string) packet.Reason {
		p := &packet.Publish{Topic: "t", QoS: 1, ID: 7}
		p.Properties.SetText(packet.ContentType, s)
		return h.publishOnce(v, p)
	}},
	{"a user property's name", false, packet.ImplementationSpecificError, func(h *testServer, v packet.Version, s string) packet.Reason {
		p := &packet.Publish{Topic: "t", QoS: 1, ID: 7}
		p.Properties.User = []packet.UserProp{{Name: s, Value: "x"}}
		return h.publishOnce(v, p)
	}},
	{"a user property's value", false, packet.ImplementationSpecificError, func(h *testServer, v packet.Version, s string) packet.Reason {
		p := &packet.Publish{Topic: "t", QoS: 1, ID: 7}
		p.Properties.User = []packet.UserProp{{Name: "x", Value: s}}
		return h.publishOnce(v, p)
	}},
	{"a will's topic", true, packet.TopicNameInvalid, func(h *testServer, v packet.Version, s string) packet.Reason {
		return h.connectWithWill(v, &packet.Will{Topic: "t/" + s})
	}},
	{"a will's response topic", false, packet.TopicNameInvalid, func(h *testServer, v packet.Version, s string) packet.Reason {
		w := &packet.Will{Topic: "t"}
		w.Properties.SetText(packet.ResponseTopic, "r/"+s)
		return h.connectWithWill(v, w)
	}},
	{"a will's user property", false, packet.MalformedPacket, func(h *testServer, v packet.Version, s string) packet.Reason {
		w := &packet.Will{Topic: "t"}
		w.Properties.User = []packet.UserProp{{Name: "x", Value: s}}
		return h.connectWithWill(v, w)
	}},
	{"a filter", true, packet.TopicFilterInvalid, func(h *testServer, v packet.Version, s string) packet.Reason {
		r := h.connect(v, "lamp", h.token("lamp", time.Hour)).subscribe(1, "t/"+s)[0]
		if !r.Failed() {
			r = packet.Success
		}
		return r
	}},
	{"a group's name", true, packet.TopicFilterInvalid, func(h *testServer, v packet.Version, s string) packet.Reason {
		r := h.connect(v, "lamp", h.token("lamp", time.Hour)).subscribe(1, "$share/"+s+"/t")[0]
		if !r.Failed() {
			r = packet.Success
		}
		return r
	}},
}

const endMark packet.Reason = 0xFF

// publishOnce publishes p as a client, and returns the response.
func (srv *testServer) publishOnce(v packet.Version, p *packet.Publish) packet.Reason {
	srv.t.Helper()
	c := srv.connect(v, "lamp", srv.token("lamp", time.Hour))
	c.send(p, &packet.Ping{})
	for q := range c.got {
		switch q := q.(type) {
		case *packet.Ack:
			if q.Reason != packet.NoMatchingSubscribers {
				return q.Reason
			}
		case *packet.Ping:
			return packet.Success
		}
	}
	return endMark
}

// connectWithWill connects a client with a will, and returns the response.
func (srv *testServer) connectWithWill(v packet.Version, w *packet.Will) packet.Reason {
	srv.t.Helper()
	c := srv.dialRaw(v)
	p := hello(v, "lamp", srv.token("lamp", time.Hour))
	p.Will = w
	c.send(p)
	return want[*packet.Connack](c).Code
}

func TestControlCharactersAreRefused(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		for _, place := range textPositions {
			if v == packet.V311 && !place.v3 {
				continue
			}
			for _, allowed := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, version %d, allowed %v", place.name, v, allowed), func(t *testing.T) {
					for i, some := range [][]rune{advisedAgainst, allowedRunes} {
						for _, r := range some {
							synctest.Test(t, func(t *testing.T) {
								srv := newTestServer(t, mqtt.Options{ControlCharacters: allowed})
								defer srv.close()
								subscriber := srv.device("ear")
								subscriber.subscribe(1, "#")
								want := place.says
								switch {
								case allowed || i == 1:
									want = packet.Success
								case v == packet.V311 && strings.Contains(place.name, "will"):
									want = 5
								case v == packet.V311 && want == packet.TopicFilterInvalid:
									want = packet.UnspecifiedError
								case v == packet.V311:
									want = endMark
								}
								if got := place.try(srv, v, "a"+string(r)+"b"); got != want {
									t.Errorf("%U: %#x, want %#x", r, got, want)
								}
								if !allowed && i == 0 && place.name != "a filter" && place.name != "a group's name" {
									subscriber.wantNothing()
								}
							})
						}
					}
				})
			}
		}
	}
}

// What was retained before such topics were refused is not given, and is there again
// where they are allowed.
func TestRetainedControlCharactersAreNotDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{ControlCharacters: true})
		defer func() { srv.close() }()
		pub := srv.device("pub")
		for _, topic := range []string{"bad/\x01", "good"} {
			pub.send(&packet.Publish{Topic: topic, QoS: 1, ID: pub.id(), Retain: true, Payload: []byte("x")})
			want[*packet.Ack](pub)
		}
		for _, allowed := range []bool{false, true} {
			srv.crash(mqtt.Options{ControlCharacters: allowed})
			subscriber := srv.device("ear")
			subscriber.subscribe(1, "#")
			topics := subscriber.receive().Topic
			if allowed {
				topics += " " + subscriber.receive().Topic
			}
			subscriber.wantNothing()
			if want := map[bool][]string{false: {"good"}, true: {"good bad/\x01", "bad/\x01 good"}}[allowed]; topics != want[0] && topics != want[len(want)-1] {
				t.Errorf("allowed %v: given %q", allowed, topics)
			}
		}
	})
}

func TestMalformedUnsubscribeFilterIsReported(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		c := srv.device("lamp")
		c.subscribe(1, "a", "$watchword/auth")
		c.send(&packet.Unsubscribe{ID: 9, Filters: []string{"a/#/b", "a", "b", "a+", "$share/g", "$share//a", "$share/g+/a", "$watchword/auth", strings.Repeat("/", 64)}})
		ack := want[*packet.Unsuback](c)
		if got, want := fmt.Sprint(ack.Codes), fmt.Sprint([]packet.Reason{packet.TopicFilterInvalid, packet.Success, packet.NoSubscriptionExisted, packet.TopicFilterInvalid, packet.TopicFilterInvalid, packet.TopicFilterInvalid, packet.TopicFilterInvalid, packet.Success, packet.TopicFilterInvalid}); got != want {
			t.Errorf("codes %v, want %v", got, want)
		}
	})
}

func TestAnEmptyResponseTopicIsAProtocolError(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		c := srv.device("lamp")
		p := &packet.Publish{Topic: "t", QoS: 1, ID: 7}
		p.Properties.SetText(packet.ResponseTopic, "")
		c.send(p)
		c.wantDisconnect(packet.ProtocolError)
		w := &packet.Will{Topic: "t"}
		w.Properties.SetText(packet.ResponseTopic, "")
		if r := srv.connectWithWill(packet.V5, w); r != packet.ProtocolError {
			t.Errorf("a will's: %#x", r)
		}
	})
}

// A CONNECT of version 5 that cannot be read is answered, whatever is wrong with it; one of
// 3.1.1 is not (3.1.1, MQTT-3.1.4-1).
func TestAConnectThatCannotBeReadIsAnswered(t *testing.T) {
	long := func(p *packet.Connect) { p.Password = []byte(strings.Repeat("x", 20<<10)) }
	for name, tc := range map[string]struct {
		edit   func(p *packet.Connect)
		spoil  func(b []byte) []byte
		reason packet.Reason
	}{
		"too long":                             {long, nil, packet.PacketTooLarge},
		"a property twice":                     {nil, func(b []byte) []byte { return append(b[:12:12], append([]byte{4, 0x17, 1, 0x17, 1}, b[13:]...)...) }, packet.ProtocolError},
		"an unknown property":                  {nil, func(b []byte) []byte { return append(b[:12:12], append([]byte{4, 0x7E, 1, 0x7E, 1}, b[13:]...)...) }, packet.MalformedPacket},
		"a will's topic with a wildcard":       {func(p *packet.Connect) { p.Will = &packet.Will{Topic: "a/#"} }, nil, packet.TopicNameInvalid},
		"a client id that is no UTF-8":         {func(p *packet.Connect) { p.ClientID = "lamp\xff" }, nil, packet.MalformedPacket},
		"authentication data without a method": {func(p *packet.Connect) { p.Properties.SetData(packet.AuthenticationData, []byte("x")) }, nil, packet.ProtocolError},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				p := hello(packet.V5, "lamp", srv.token("lamp", time.Hour))
				if tc.edit != nil {
					tc.edit(p)
				}
				b := packet.Append(nil, p, packet.V5)
				if tc.spoil != nil {
					if b = tc.spoil(b); b[1] >= 124 { // four bytes more, in one byte
						t.Fatal("the packet is too long to be spoiled so")
					}
					b[1] += 4
				}
				c := srv.dialRaw(packet.V5)
				go func() { _, _ = c.nc.Write(b) }() // the server may read no more of it
				if ack := want[*packet.Connack](c); ack.Code != tc.reason {
					t.Errorf("CONNACK %#x, want %#x", ack.Code, tc.reason)
				}
				if q, open := <-c.got; open {
					t.Errorf("then %T", q)
				}
			})
		})
	}
	inBubble(t, func(t *testing.T, srv *testServer) {
		p := hello(packet.V311, "lamp", srv.token("lamp", time.Hour))
		long(p)
		c := srv.dialRaw(packet.V311)
		go c.send(p)
		if q, open := <-c.got; open {
			t.Errorf("version 3.1.1 is told %T", q)
		}
	})
}

// A client with a maximum packet size below that of its CONNACK is refused before anything is done.
func TestClientThatCannotTakeConnackIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "lamp", "held")
		small := func(n uint32) func(p *packet.Connect) {
			return func(p *packet.Connect) { p.Properties.SetNumber(packet.MaximumPacketSize, n) }
		}
		for n := uint32(5); n < 19; n++ {
			srv.refusedConnect(packet.V5, "lamp", srv.token("lamp", time.Hour), packet.PacketTooLarge, small(n))
		}
		if r := srv.device("pub").publish(1, "held", "x"); r != packet.Success {
			t.Errorf("no client receives what it subscribed to: %#x", r)
		}
		srv.connect(packet.V5, "lamp", srv.token("lamp", time.Hour), small(19))
	})
}
