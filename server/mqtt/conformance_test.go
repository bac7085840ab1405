package mqtt_test

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// Statements of the standards that no other test holds: docs/mqtt-conformance.md names
// them all. Those of MQTT 3.1.1 have its name before them where their numbers are others.

// wantClosed takes the end of the connection, at once, and no packet before it.
func (c *testClient) wantClosed() {
	c.t.Helper()
	from := time.Now()
	if p, open := <-c.got; open {
		c.t.Fatalf("got %T %+v, want the end", p, p)
	}
	if d := time.Since(from); d > 2*time.Second { // one second is for the peer to read the packet
		c.t.Fatalf("the end took %s", d)
	}
}

// inBothVersions runs a test in a bubble for each version.
func inBothVersions(t *testing.T, f func(t *testing.T, srv *testServer, v packet.Version)) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		t.Run(fmt.Sprint("version ", v), func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) { f(t, srv, v) })
		})
	}
}

// text is a property that is a string, "" where it is not there.
func text(p *packet.Properties, id packet.Property) string {
	s, _ := p.Text(id)
	return s
}

// explained reports whether an answer says why.
func explained(p packet.Packet) bool {
	var ps *packet.Properties
	switch p := p.(type) {
	case *packet.Connack:
		ps = &p.Properties
	case *packet.Ack:
		ps = &p.Properties
	case *packet.Suback:
		ps = &p.Properties
	case *packet.Disconnect:
		ps = &p.Properties
	}
	return text(ps, packet.ReasonString) != "" || len(ps.User) > 0
}

// MQTT-3.1.2-1, -2, -3, 3.1.4-1, 3.1.1: the same.
func TestMalformedConnectClosesConnection(t *testing.T) {
	for name, x := range map[string]struct {
		spoil func(b []byte) []byte
		says  packet.Reason // of a CONNACK of version 3.1.1; 0 for none
	}{
		"the reserved flag":         {func(b []byte) []byte { b[9] |= 1; return b }, 0},
		"a will of QoS 3":           {func(b []byte) []byte { b[9] |= 4 | 3<<3; return b }, 0},
		"flags of a will not there": {func(b []byte) []byte { b[9] |= 1 << 3; return b }, 0},
		"a flag of the header":      {func(b []byte) []byte { b[0] |= 1; return b }, 0},
		"bytes after it":            {func(b []byte) []byte { b[1]++; return append(b, 0) }, 0},
		"it is cut off":             {func(b []byte) []byte { b[1]--; return b[:len(b)-1] }, 0},
		"another protocol":          {func(b []byte) []byte { b[7] = 'U'; return b }, 1},
		"version 3":                 {func(b []byte) []byte { b[8] = 3; return b }, 1},
		"version 6":                 {func(b []byte) []byte { b[8] = 6; return b }, 1},
		"version 0x84":              {func(b []byte) []byte { b[8] = 0x84; return b }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			inBothVersions(t, func(t *testing.T, srv *testServer, v packet.Version) {
				reads := packet.V311 // as which it parses received packets
				if v == packet.V5 && x.says == 0 {
					reads = packet.V5
				}
				c := srv.dialRaw(reads)
				_, _ = c.nc.Write(x.spoil(packet.Append(nil, hello(v, "lamp-7", srv.token("lamp-7", time.Hour)), v)))
				if x.says != 0 {
					if ack := want[*packet.Connack](c); ack.Code != x.says {
						t.Errorf("return code %d, want %d", ack.Code, x.says)
					}
				}
				if reads == packet.V5 {
					if ack := want[*packet.Connack](c); ack.Code != packet.MalformedPacket || !ack.Properties.Empty() {
						t.Errorf("%+v, want 0x81 alone", ack)
					}
				}
				c.wantClosed()
				if n := len(srv.guard.SubjectSessions(watchword.DefaultTenant, "lamp-7")); n != 0 {
					t.Errorf("%d sessions", n)
				}
			})
		})
	}
}

// MQTT-3.1.4-6, 3.1.1: MQTT-3.1.4-5.
func TestPacketsAfterRefusedConnectAreIgnored(t *testing.T) {
	inBothVersions(t, func(t *testing.T, srv *testServer, v packet.Version) {
		subscriber := srv.device("ear")
		subscriber.subscribe(0, "#")
		good := hello(v, "lamp-7", srv.token("lamp-7", time.Hour))
		for _, refused := range []*packet.Connect{hello(v, "lamp-7", "token-x"), hello(v, "lamp-8", string(good.Password))} {
			for _, more := range [][]packet.Packet{{&packet.Publish{Topic: "a"}}, {good, &packet.Publish{Topic: "a"}}} {
				c := srv.dialRaw(v)
				c.send(append([]packet.Packet{refused}, more...)...) // in one write
				if ack := want[*packet.Connack](c); ack.Code == packet.Success {
					t.Error("it was taken")
				}
				c.wantClosed()
				subscriber.wantNothing()
			}
		}
	})
}

// MQTT-3.1.3-7, 3.2.2-16.
func TestAssignedClientIdentifier(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		nameless := func(p *packet.Connect) { p.ClientID = ""; persistentSession(p) }
		one, two := srv.device("lamp-7", nameless), srv.device("lamp-7", nameless)
		name, other := text(&one.ack.Properties, packet.AssignedClientIdentifier), text(&two.ack.Properties, packet.AssignedClientIdentifier)
		if name == "" || name == other {
			t.Errorf("assigned %q and %q", name, other)
		}
		one.subscribe(1, "a")
		one.wantNothing() // its place is free
		one.closeAbruptly()
		synctest.Wait()
		pub := srv.device("pub")
		pub.publish(1, "a", "x")
		one = srv.device("lamp-7", persistentSession, func(p *packet.Connect) { p.ClientID = name })
		if !one.ack.SessionPresent {
			t.Error("no session present")
		}
		if again := text(&one.ack.Properties, packet.AssignedClientIdentifier); again != "" {
			t.Errorf("assigned %q to a client that had a name", again)
		}
		one.wantMessage("a", "x")
		two.wantNothing()
	})
}

// 3.1.1: MQTT-3.1.3-6, -8.
func TestEmptyClientIdentifierInV311(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		token := srv.token("lamp-7", time.Hour)
		one, two := srv.connect(packet.V311, "", token), srv.connect(packet.V311, "", token)
		for _, c := range []*testClient{one, two} {
			c.subscribe(1, "a")
		}
		one.publish(1, "a", "x")
		one.wantMessage("a", "x")
		two.wantMessage("a", "x")
		c := srv.dialRaw(packet.V311)
		p := hello(packet.V311, "", token)
		p.CleanStart = false
		c.send(p)
		if ack := want[*packet.Connack](c); ack.Code != 2 {
			t.Errorf("return code %d, want 2", ack.Code)
		}
		c.wantClosed()
	})
}

// MQTT-3.1.2-14, -15, 3.1.1: MQTT-3.1.2-16, -17.
func TestRetainedWill(t *testing.T) {
	for _, retain := range []bool{false, true} {
		inBothVersions(t, func(t *testing.T, srv *testServer, v packet.Version) {
			subscriber := srv.device("ear")
			subscriber.subscribe(1, "will")
			srv.connect(v, "lamp-7", srv.token("lamp-7", time.Hour), func(p *packet.Connect) {
				p.Will = &packet.Will{Topic: "will", QoS: 1, Retain: retain, Payload: []byte("gone")}
			}).closeAbruptly()
			if p := subscriber.receiveAndAck(); p.Retain || string(p.Payload) != "gone" {
				t.Errorf("%+v", p)
			}
			later := srv.device("later")
			later.subscribe(1, "will")
			if retain {
				if p := later.receiveAndAck(); !p.Retain || string(p.Payload) != "gone" {
					t.Errorf("%+v", p)
				}
			}
			later.wantNothing()
		})
	}
}

// MQTT-3.1.3-10.
func TestWillUserPropertiesKeepOrder(t *testing.T) {
	user := []packet.UserProp{{Name: "b", Value: "1"}, {Name: "a", Value: "2"}, {Name: "c", Value: ""}, {Name: "b", Value: "0"}, {Name: "", Value: "5"}}
	for name, edit := range map[string]func(*packet.Connect){"for the connection": func(*packet.Connect) {}, "lasting": persistentSession} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				subscriber := srv.device("ear")
				subscriber.subscribe(1, "will")
				srv.device("lamp-7", edit, func(p *packet.Connect) {
					p.Will = &packet.Will{Topic: "will", QoS: 1}
					p.Will.Properties.User = user
				}).closeAbruptly()
				if p := subscriber.receiveAndAck(); !slices.Equal(p.Properties.User, user) {
					t.Errorf("%v", p.Properties.User)
				}
			})
		})
	}
}

// MQTT-3.1.2-8, -10: DISCONNECT with 0x00 drops a will, and no other word does.
func TestOnlyNormalDisconnectDropsWill(t *testing.T) {
	for _, r := range []packet.Reason{
		packet.Success, packet.DisconnectWithWill, packet.UnspecifiedError, packet.MalformedPacket, packet.ProtocolError, packet.ImplementationSpecificError, packet.TopicNameInvalid,
		packet.ReceiveMaximumExceeded, packet.TopicAliasInvalid, packet.PacketTooLarge, packet.MessageRateTooHigh, packet.QuotaExceeded, packet.AdministrativeAction, packet.PayloadFormatInvalid,
	} {
		for _, edit := range []func(*packet.Connect){func(*packet.Connect) {}, persistentSession} {
			t.Run(fmt.Sprintf("%#x", byte(r)), func(t *testing.T) {
				inBubble(t, func(t *testing.T, srv *testServer) {
					subscriber := srv.device("ear")
					subscriber.subscribe(1, "will")
					c := srv.device("lamp-7", edit, func(p *packet.Connect) { p.Will = &packet.Will{Topic: "will", QoS: 1, Payload: []byte("gone")} })
					c.send(&packet.Disconnect{Reason: r})
					c.wantClosed()
					if r != packet.Success {
						subscriber.wantMessage("will", "gone")
					}
					time.Sleep(2 * time.Hour) // also when the session ends
					if r == packet.Success && len(subscriber.got) > 1 {
						t.Errorf("%d packets, want its own DISCONNECT at most", len(subscriber.got))
					}
				})
			})
		}
	}
}

// MQTT-3.1.2-22, 3.1.1: MQTT-3.1.2-24: a part of a packet is no sign of life.
func TestPartialPacketDoesNotExtendKeepAlive(t *testing.T) {
	inBothVersions(t, func(t *testing.T, srv *testServer, v packet.Version) {
		c := srv.connect(v, "lamp-7", srv.token("lamp-7", time.Hour), func(p *packet.Connect) { p.KeepAlive = 8 })
		from, done := time.Now(), make(chan struct{})
		go func() {
			defer close(done)
			for _, b := range packet.Append(nil, &packet.Publish{Topic: "a", Payload: make([]byte, 100)}, v) {
				if _, err := c.nc.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		c.wantDisconnect(packet.KeepAliveTimeout)
		if d := time.Since(from); d < 10*time.Second || d > 14*time.Second {
			t.Errorf("it took %s", d)
		}
		c.closeAbruptly()
		<-done
	})
}

// MQTT-3.2.0-1, 3.14.0-1: a client without CONNACK gets no other packet.
func TestNoNoticeBeforeConnack(t *testing.T) {
	for name, end := range map[string]func(srv *testServer, c *testClient){
		"it breaks the rules":   func(_ *testServer, c *testClient) { c.send(&packet.Ping{Response: true}) },
		"what it sends is none": func(_ *testServer, c *testClient) { _, _ = c.nc.Write([]byte{0, 0}) },
		"it is revoked":         func(srv *testServer, _ *testClient) { srv.state("lamp-7", watchword.Revoked) },
		"its token ends":        func(*testServer, *testClient) { time.Sleep(2 * time.Hour) },
		"another takes its place": func(srv *testServer, _ *testClient) {
			p := hello(packet.V5, "lamp-7", srv.token("lamp-7", time.Hour))
			persistentSession(p)
			srv.dialRaw(packet.V5).send(p)
		},
		"the server goes": func(srv *testServer, _ *testClient) {
			srv.guard.Close(watchword.Refuse(watchword.Unavailable, "going down"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				srv.store.block()
				c := srv.dialRaw(packet.V5)
				p := hello(packet.V5, "lamp-7", srv.token("lamp-7", time.Hour))
				persistentSession(p)
				c.send(p)
				c.wantNothing() // it waits for the disk
				end(srv, c)
				time.Sleep(10 * time.Second)
				srv.store.unblock()
				c.wantClosed()
			})
		})
	}
}

// MQTT-3.1.2-29: a client that wants no problem information gets it only in CONNACK and DISCONNECT.
func TestRequestProblemInformationOff(t *testing.T) {
	for name, what := range map[string]func(srv *testServer, c *testClient) packet.Packet{
		"PUBACK": func(_ *testServer, c *testClient) packet.Packet {
			c.send(&packet.Publish{Topic: "no", QoS: 1, ID: 1})
			return next(c)
		},
		"PUBREC": func(_ *testServer, c *testClient) packet.Packet {
			c.send(&packet.Publish{Topic: "no", QoS: 2, ID: 1})
			return next(c)
		},
		"SUBACK": func(_ *testServer, c *testClient) packet.Packet {
			c.send(&packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "no"}}})
			return next(c)
		},
		"PUBACK of what is not written": func(srv *testServer, c *testClient) packet.Packet {
			srv.leaveOffline(packet.V5, "sub", "ok")
			srv.store.fail(true)
			c.send(&packet.Publish{Topic: "ok", QoS: 1, ID: 1})
			return next(c)
		},
	} {
		for _, wants := range []uint32{0, 1} {
			t.Run(fmt.Sprint(name, " ", wants), func(t *testing.T) {
				inBubble(t, func(t *testing.T, srv *testServer) {
					srv.policy(`publish = ["ok"]`, `subscribe = ["ok"]`)
					c := srv.device("lamp-7", func(p *packet.Connect) { p.Properties.SetNumber(packet.RequestProblemInformation, wants) })
					if p := what(srv, c); explained(p) != (wants == 1) {
						t.Errorf("%T %+v", p, p)
					}
				})
			})
		}
	}
}

// refusals is every response with a reason string, to a client that connects with edit.
var refusals = map[string]func(h *testServer, edit func(*packet.Connect)) packet.Packet{
	"CONNACK": func(h *testServer, edit func(*packet.Connect)) packet.Packet {
		c, p := h.dialRaw(packet.V5), hello(packet.V5, "lamp-7", "token-x")
		edit(p)
		c.send(p)
		return next(c)
	},
	"PUBACK": func(h *testServer, edit func(*packet.Connect)) packet.Packet {
		c := h.device("lamp-7", edit)
		c.send(&packet.Publish{Topic: "no", QoS: 1, ID: 1})
		return next(c)
	},
	"PUBREC": func(h *testServer, edit func(*packet.Connect)) packet.Packet {
		c := h.device("lamp-7", edit)
		c.send(&packet.Publish{Topic: "no", QoS: 2, ID: 1})
		return next(c)
	},
	"SUBACK": func(h *testServer, edit func(*packet.Connect)) packet.Packet {
		c := h.device("lamp-7", edit)
		c.send(&packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "no"}}})
		return next(c)
	},
	"DISCONNECT": func(h *testServer, edit func(*packet.Connect)) packet.Packet {
		c := h.device("lamp-7", edit)
		c.send(aliased("", 7))
		return next(c)
	},
	"PUBACK of what is not written": func(h *testServer, edit func(*packet.Connect)) packet.Packet {
		c := h.device("lamp-7", edit)
		h.leaveOffline(packet.V5, "sub", "ok")
		h.store.fail(true)
		c.send(&packet.Publish{Topic: "ok", QoS: 1, ID: 1})
		return next(c)
	},
}

// reason is what an answer says, however it explains it.
func reason(p packet.Packet) packet.Reason {
	switch p := p.(type) {
	case *packet.Connack:
		return p.Code
	case *packet.Ack:
		return p.Reason
	case *packet.Suback:
		return p.Codes[0]
	case *packet.Disconnect:
		return p.Reason
	}
	return packet.Success
}

// MQTT-3.2.2-19, -20, 3.4.2-2, 3.5.2-2, 3.9.2-1, 3.14.2-3: explanations are left out
// where the client's packets are too small for them, and not one byte before.
func TestReasonStringsAreLeftOutWhenTooLarge(t *testing.T) {
	limit := func(n int) func(*packet.Connect) {
		return func(p *packet.Connect) { p.Properties.SetNumber(packet.MaximumPacketSize, uint32(n)) }
	}
	hear := func(t *testing.T, what func(*testServer, func(*packet.Connect)) packet.Packet, edit func(*packet.Connect)) (p packet.Packet) {
		inBubble(t, func(_ *testing.T, srv *testServer) {
			srv.policy(`publish = ["ok"]`, `subscribe = ["ok"]`)
			p = what(srv, edit)
		})
		return p
	}
	for name, what := range refusals {
		var encoded packet.Packet
		t.Run(name+" to a client that takes all", func(t *testing.T) {
			if encoded = hear(t, what, func(*packet.Connect) {}); !explained(encoded) {
				t.Fatalf("it explains nothing: %+v", encoded)
			}
		})
		size := len(packet.Append(nil, encoded, packet.V5))
		for _, less := range []int{0, 1} {
			t.Run(fmt.Sprint(name, " of ", size, " to a client that takes ", size-less), func(t *testing.T) {
				p := hear(t, what, limit(size-less))
				if reason(p) != reason(encoded) || explained(p) != (less == 0) {
					t.Errorf("%T %+v", p, p)
				}
			})
		}
	}
}

// MQTT-3.2.2-19, -20: a client that connects too often is not read, and gets a CONNACK of the smallest maximum packet size.
func TestConnectRateRefusalIsBare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{ConnectRate: 5})
		defer srv.close()
		for token := srv.token("lamp-7", time.Hour); ; {
			c, p := srv.dialRaw(packet.V5), hello(packet.V5, "lamp-7", token)
			c.send(p)
			ack := want[*packet.Connack](c)
			if ack.Code == packet.Success {
				continue
			}
			if n := len(packet.Append(nil, ack, packet.V5)); ack.Code != packet.ConnectionRateExceeded || n > 5 {
				t.Errorf("%#x in %d bytes", ack.Code, n)
			}
			c.wantClosed()
			return
		}
	})
}

// MQTT-3.1.2-24: what is too large without explanations too is not sent, and is the end.
func TestOversizedResponseClosesConnection(t *testing.T) {
	filters := strings.Split(strings.Repeat("a ", 39)+"a", " ")
	for name, p := range map[string]packet.Packet{
		"SUBACK": func() packet.Packet {
			s := &packet.Subscribe{ID: 1}
			for _, f := range filters {
				s.Filters = append(s.Filters, packet.Filter{Topic: f})
			}
			return s
		}(),
		"SUBACK of refusals": func() packet.Packet {
			s := &packet.Subscribe{ID: 1}
			for range filters {
				s.Filters = append(s.Filters, packet.Filter{Topic: "no/#/no"})
			}
			return s
		}(),
		"UNSUBACK": &packet.Unsubscribe{ID: 1, Filters: filters},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				c := srv.device("lamp-7", func(p *packet.Connect) { p.Properties.SetNumber(packet.MaximumPacketSize, 40) })
				c.send(p)
				c.wantDisconnect(packet.PacketTooLarge)
			})
		})
	}
}

// MQTT-4.12.0-3, -5, -6, 4.12.1-1.
func TestAuthenticationMethodMustNotChange(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	begin := func(srv *testServer) *testClient {
		srv.proofKey = pub
		c := srv.dialRaw(packet.V5)
		p := hello(packet.V5, "lamp-7", "")
		withAce(srv.token("lamp-7", time.Hour), nil)(p)
		c.send(p)
		return c
	}
	method := func(t *testing.T, c *testClient) {
		t.Helper()
		a := want[*packet.Auth](c)
		if m := text(&a.Properties, packet.AuthenticationMethod); m != "ace" {
			t.Errorf("AUTH %#x names %q", a.Reason, m)
		}
		c.ahead = append([]packet.Packet{a}, c.ahead...)
	}
	another := func(r packet.Reason, m string) *packet.Auth {
		a := &packet.Auth{Reason: r}
		a.Properties.SetText(packet.AuthenticationMethod, m)
		a.Properties.SetData(packet.AuthenticationData, make([]byte, 32))
		return a
	}
	t.Run("it is named each time", func(t *testing.T) {
		inBubble(t, func(t *testing.T, srv *testServer) {
			c := begin(srv)
			method(t, c)
			c.prove(key)
			if ack := want[*packet.Connack](c); ack.Code != packet.Success || text(&ack.Properties, packet.AuthenticationMethod) != "ace" {
				t.Fatalf("%+v", ack)
			}
			c.reauthenticate(srv.token("lamp-7", time.Hour))
			method(t, c)
			c.prove(key)
			method(t, c)
			if a := want[*packet.Auth](c); a.Reason != packet.Success {
				t.Errorf("%#x", a.Reason)
			}
			c.wantNothing()
		})
	})
	t.Run("another method, or no 0x18, before CONNACK", func(t *testing.T) {
		for _, a := range []*packet.Auth{another(packet.ContinueAuthentication, "SCRAM"), another(packet.ReAuthenticate, "ace"), another(packet.Success, "ace")} {
			inBubble(t, func(t *testing.T, srv *testServer) {
				c := begin(srv)
				want[*packet.Auth](c)
				c.send(a)
				if ack := want[*packet.Connack](c); ack.Code != packet.ProtocolError {
					t.Errorf("%#x", ack.Code)
				}
				c.wantClosed()
			})
		}
	})
	t.Run("another method, or no 0x19, in session", func(t *testing.T) {
		for _, a := range []*packet.Auth{another(packet.ReAuthenticate, "SCRAM"), another(packet.ContinueAuthentication, "ace"), another(packet.Success, "ace")} {
			inBubble(t, func(t *testing.T, srv *testServer) {
				c := begin(srv)
				c.prove(key)
				want[*packet.Connack](c)
				c.send(a)
				c.wantDisconnect(packet.ProtocolError)
			})
		}
	})
	t.Run("none where none was asked for", func(t *testing.T) {
		inBubble(t, func(t *testing.T, srv *testServer) {
			c := srv.device("lamp-7")
			if m, online := c.ack.Properties.Text(packet.AuthenticationMethod); online {
				t.Errorf("CONNACK names %q", m)
			}
			c.wantNothing()
			r, p := srv.dialRaw(packet.V5), hello(packet.V5, "lamp-7", "token-x")
			r.send(p)
			ack := want[*packet.Connack](r)
			if m, online := ack.Properties.Text(packet.AuthenticationMethod); online {
				t.Errorf("a refusal names %q", m)
			}
		})
	})
}

// MQTT-1.5.4-3, 3.1.1: MQTT-1.5.3-3.
func TestByteOrderMarkIsNotStripped(t *testing.T) {
	const mark = "\xEF\xBB\xBF"
	inBothVersions(t, func(t *testing.T, srv *testServer, v packet.Version) {
		sub, plain, pub := srv.connect(v, "sub", srv.token("sub", time.Hour)), srv.device("plain"), srv.connect(v, "pub", srv.token("pub", time.Hour))
		sub.subscribe(1, mark+"a/"+mark)
		plain.subscribe(1, "a/#", mark+"a/b")
		pub.publish(1, mark+"a/"+mark, mark+"x")
		sub.wantMessage(mark+"a/"+mark, mark+"x")
		pub.publish(1, "a/"+mark, "y")
		plain.wantMessage("a/"+mark, "y")
		sub.wantNothing()
		plain.wantNothing()
	})
}

// MQTT-3.3.1-3, 3.1.1: MQTT-3.3.1-3.
func TestDuplicateFlagIsNotForwarded(t *testing.T) {
	inBothVersions(t, func(t *testing.T, srv *testServer, v packet.Version) {
		for _, to := range []packet.Version{packet.V311, packet.V5} {
			sub := srv.connect(to, "sub", srv.token("sub", time.Hour))
			sub.subscribe(2, "a")
			for _, edit := range []func(*packet.Connect){func(*packet.Connect) {}, persistentSession} {
				pub := srv.connect(v, "pub", srv.token("pub", time.Hour), edit)
				for _, qos := range []byte{1, 2} {
					pub.send(&packet.Publish{Topic: "a", QoS: qos, ID: pub.id(), Dup: true, Payload: []byte("x")})
					want[*packet.Ack](pub)
					if p := sub.receive(); p.Dup || p.QoS != qos {
						t.Errorf("%+v", p)
					}
				}
			}
			sub.wantNothing()
		}
	})
}

// MQTT-3.3.1-6, -7, -8, -12, -13, 3.1.1: MQTT-3.3.1-5, -7, -9, -10, -11, -12.
func TestLiveAndStoredMessages(t *testing.T) {
	kept := func(qos byte, payload string) *packet.Publish {
		return &packet.Publish{Topic: "a", QoS: qos, Retain: true, Payload: []byte(payload)}
	}
	plain := func(qos byte, payload string) *packet.Publish {
		return &packet.Publish{Topic: "a", QoS: qos, Payload: []byte(payload)}
	}
	for name, x := range map[string]struct {
		said  []*packet.Publish
		later string // and its QoS; "" for nothing
	}{
		"one is kept":                               {[]*packet.Publish{kept(1, "1")}, "1 QoS 1"},
		"the last one is kept":                      {[]*packet.Publish{kept(1, "1"), kept(2, "2")}, "2 QoS 2"},
		"an empty one is received, and removes":     {[]*packet.Publish{kept(1, "1"), kept(1, "")}, ""},
		"an empty one with QoS 0":                   {[]*packet.Publish{kept(1, "1"), kept(0, "")}, ""},
		"an empty one of what is not there":         {[]*packet.Publish{kept(1, "")}, ""},
		"without RETAIN nothing is kept":            {[]*packet.Publish{plain(1, "1")}, ""},
		"without RETAIN nothing is replaced":        {[]*packet.Publish{kept(1, "1"), plain(1, "2"), plain(0, "3")}, "1 QoS 1"},
		"without RETAIN nothing is removed":         {[]*packet.Publish{kept(1, "1"), plain(1, ""), plain(0, "")}, "1 QoS 1"},
		"one with QoS 0 takes the place of another": {[]*packet.Publish{kept(1, "1"), kept(0, "2")}, "2 QoS 0"},
		"and the other way round":                   {[]*packet.Publish{kept(0, "1"), kept(1, "2")}, "2 QoS 1"},
	} {
		t.Run(name, func(t *testing.T) {
			inBothVersions(t, func(t *testing.T, srv *testServer, v packet.Version) {
				sub, as := srv.connect(v, "sub", srv.token("sub", time.Hour)), srv.device("as")
				sub.subscribe(2, "a")
				as.retainedFor(0, packet.Filter{Topic: "a", QoS: 2, RetainAsPublished: true})
				pub := srv.connect(v, "pub", srv.token("pub", time.Hour))
				for _, p := range x.said {
					if p.ID = 0; p.QoS > 0 {
						p.ID = pub.id()
					}
					pub.send(p)
					if p.QoS > 0 {
						want[*packet.Ack](pub)
					}
					if got := sub.receive(); got.Retain || got.QoS != p.QoS || string(got.Payload) != string(p.Payload) {
						t.Errorf("received %+v, want %+v", got, p)
					}
					if got := as.receive(); got.Retain != p.Retain || string(got.Payload) != string(p.Payload) {
						t.Errorf("as published: received %+v, want %+v", got, p)
					}
				}
				sub.wantNothing()
				later := srv.connect(v, "later", srv.token("later", time.Hour))
				later.subscribe(2, "a")
				if x.later != "" {
					if p := later.receive(); !p.Retain || fmt.Sprintf("%s QoS %d", p.Payload, p.QoS) != x.later {
						t.Errorf("kept is %+v, want %s", p, x.later)
					}
				}
				later.wantNothing()
			})
		})
	}
}

// MQTT-3.3.2-4, -15, -16, -17, -18, -20: these properties are forwarded unchanged, by every way of delivery.
func TestPayloadPropertiesAreForwarded(t *testing.T) {
	for name, hear := range map[string]func(srv *testServer, publish func()) *packet.Publish{
		"now": func(srv *testServer, publish func()) *packet.Publish {
			sub := srv.device("sub")
			sub.subscribe(1, "a")
			publish()
			return sub.receive()
		},
		"by a short word for the topic": func(srv *testServer, publish func()) *packet.Publish {
			sub := srv.device("sub", func(p *packet.Connect) { p.Properties.SetNumber(packet.TopicAliasMaximum, 1) })
			sub.subscribe(1, "a")
			publish()
			return sub.receive()
		},
		"when it is back": func(srv *testServer, publish func()) *packet.Publish {
			srv.leaveOffline(packet.V5, "sub", "a")
			publish()
			return srv.reconnect(packet.V5, "sub").receive()
		},
		"retained": func(srv *testServer, publish func()) *packet.Publish {
			publish()
			sub := srv.device("sub")
			sub.subscribe(1, "a")
			return sub.receive()
		},
		"retained, after a crash": func(srv *testServer, publish func()) *packet.Publish {
			publish()
			srv.crash(mqtt.Options{})
			sub := srv.device("sub")
			sub.subscribe(1, "a")
			return sub.receive()
		},
	} {
		for format := range uint32(3) { // 2 is for none
			t.Run(fmt.Sprint(name, " ", format), func(t *testing.T) {
				inBubble(t, func(t *testing.T, srv *testServer) {
					user := []packet.UserProp{{Name: "b", Value: "1"}, {Name: "a", Value: "2"}, {Name: "b", Value: "3"}}
					p := hear(srv, func() {
						p := &packet.Publish{Topic: "a", QoS: 1, ID: 5, Retain: true, Payload: []byte("x")}
						if format < 2 {
							p.Properties.SetNumber(packet.PayloadFormatIndicator, format)
						}
						p.Properties.SetText(packet.ContentType, "text/plain")
						p.Properties.SetText(packet.ResponseTopic, "r")
						p.Properties.SetData(packet.CorrelationData, []byte{0, 1, 2})
						p.Properties.User = user
						pub := srv.device("pub")
						pub.send(p)
						want[*packet.Ack](pub)
					})
					if n, online := p.Properties.Number(packet.PayloadFormatIndicator); online != (format < 2) || online && n != format {
						t.Errorf("payload format %d (%v), want %d", n, online, format)
					}
					if s := text(&p.Properties, packet.ContentType); s != "text/plain" {
						t.Errorf("content type %q", s)
					}
					if s := text(&p.Properties, packet.ResponseTopic); s != "r" {
						t.Errorf("response topic %q", s)
					}
					if b, _ := p.Properties.Data(packet.CorrelationData); string(b) != "\x00\x01\x02" {
						t.Errorf("correlation data %x", b)
					}
					if !slices.Equal(p.Properties.User, user) {
						t.Errorf("user properties %v", p.Properties.User)
					}
				})
			})
		}
	}
}

// MQTT-3.1.2-26, -27, 3.3.2-8, -11.
func TestTheServersAliasesAreWithinTheClientsMaximum(t *testing.T) {
	for _, limit := range []uint32{0, 1, 2, 100} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				sub := srv.device("sub", func(p *packet.Connect) {
					if limit > 0 {
						p.Properties.SetNumber(packet.TopicAliasMaximum, limit)
					}
				})
				sub.subscribe(1, "#")
				pub := srv.device("pub")
				names, short := map[uint32]string{}, 0
				for n := range 400 {
					topic := fmt.Sprint("t/", n%130)
					pub.publish(byte(n%2), topic, "x")
					p := sub.receive()
					alias, online := p.Properties.Number(packet.TopicAlias)
					if online && (alias == 0 || alias > limit) {
						t.Fatalf("alias %d", alias)
					}
					switch {
					case p.Topic == "":
						p.Topic = names[alias]
						short++
					case online:
						names[alias] = p.Topic
					}
					if p.Topic != topic {
						t.Fatalf("alias %d stands for %q, want %q", alias, p.Topic, topic)
					}
				}
				if (short > 0) != (limit > 0) {
					t.Errorf("%d topics were left out", short)
				}
			})
		})
	}
}

// MQTT-3.3.2-7.
func TestAliasesEndWithTheirConnection(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		aliases := func(p *packet.Connect) { persistentSession(p); p.Properties.SetNumber(packet.TopicAliasMaximum, 5) }
		c, subscriber := srv.device("lamp-7", aliases), srv.device("ear")
		c.subscribe(1, "a")
		subscriber.subscribe(0, "#")
		for n := range 2 {
			c.send(aliased([]string{"a", ""}[n], 1))
			subscriber.wantMessage("a", "")
			if p := c.receive(); (p.Topic == "a") != (n == 0) {
				t.Errorf("message %d: %+v", n, p)
			}
		}
		// Another connection, and then a new one of the same session.
		other := srv.device("other")
		other.send(aliased("", 1))
		other.wantDisconnect(packet.ProtocolError)
		c.closeAbruptly()
		synctest.Wait()
		c = srv.device("lamp-7", aliases)
		if !c.ack.SessionPresent {
			t.Error("no session present")
		}
		srv.device("pub").publish(1, "a", "x")
		c.wantMessage("a", "x") // with its topic
		subscriber.wantMessage("a", "x")
		c.send(aliased("", 1))
		c.wantDisconnect(packet.ProtocolError)
		subscriber.wantNothing()
	})
}

// MQTT-3.3.2-12.
func TestTopicAliasesExhausted(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		c, subscriber := srv.device("lamp-7"), srv.device("ear")
		subscriber.subscribe(0, "#")
		limit, _ := c.ack.Properties.Number(packet.TopicAliasMaximum)
		for n := limit; n > 0; n-- {
			c.send(aliased(fmt.Sprint("t/", n), n))
			subscriber.wantMessage(fmt.Sprint("t/", n), "")
		}
		for n := range limit {
			c.send(aliased("", n+1))
			subscriber.wantMessage(fmt.Sprint("t/", n+1), "")
		}
		c.send(aliased("else", limit), aliased("", limit))
		subscriber.wantMessage("else", "")
		subscriber.wantMessage("else", "")
	})
}

// MQTT-3.3.4-3, -4, -5.
func TestSubscriptionIdentifiersAreForwarded(t *testing.T) {
	for name, x := range map[string]struct {
		edit func(*packet.Connect)
		gone bool // while the messages come
	}{
		"there":          {func(*packet.Connect) {}, false},
		"there, lasting": {persistentSession, false},
		"away":           {persistentSession, true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				sub, pub := srv.device("sub", x.edit), srv.device("pub")
				ask := func(filter string, ids ...uint32) {
					p := &packet.Subscribe{ID: sub.id(), Filters: []packet.Filter{{Topic: filter, QoS: 1}}}
					p.Properties.Subscriptions = ids
					sub.send(p)
					want[*packet.Suback](sub)
				}
				// Each group of messages is the result of one publish.
				received := func(topic string, copies ...[]uint32) {
					t.Helper()
					if x.gone {
						sub.closeAbruptly()
						synctest.Wait()
					}
					pub.publish(1, topic, "x")
					if x.gone {
						sub = srv.reconnect(packet.V5, "sub")
					}
					var got [][]uint32
					for range copies {
						ids := slices.Clone(sub.receive().Properties.Subscriptions)
						slices.Sort(ids)
						got = append(got, ids)
					}
					slices.SortFunc(got, slices.Compare)
					if !slices.EqualFunc(got, copies, slices.Equal) {
						t.Errorf("%s: %v, want %v", topic, got, copies)
					}
					sub.wantNothing()
				}
				ask("one/#", 7)
				received("one/x", []uint32{7})
				ask("one/+", 268_435_455)
				received("one/x", []uint32{7, 268_435_455})
				received("one/x/y", []uint32{7})
				ask("+/x") // and none
				received("one/x", []uint32{7, 268_435_455})
				received("two/x", nil)
				ask("$share/g/one/x", 9)
				received("one/x", []uint32{7, 268_435_455}, []uint32{9})
				ask("one/+", 5) // the same again
				received("one/z", []uint32{5, 7})
				ask("one/+")
				received("one/z", []uint32{7})
			})
		})
	}
}

// MQTT-3.3.4-3: also of what was retained.
func TestRetainedCarriesSubscriptionIdentifier(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.device("pub").retain("a", "x")
		sub := srv.device("sub")
		p := &packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "a", QoS: 1}}}
		p.Properties.Subscriptions = []uint32{3}
		sub.send(p)
		want[*packet.Suback](sub)
		if got := sub.receive().Properties.Subscriptions; !slices.Equal(got, []uint32{3}) {
			t.Errorf("%v", got)
		}
	})
}

// MQTT-3.8.4-3, -8, 3.1.1: MQTT-3.8.4-3, -6: the lower QoS counts, that of the
// subscription as it was said last.
func TestDeliveryQoSIsTheMinimum(t *testing.T) {
	inBothVersions(t, func(t *testing.T, srv *testServer, v packet.Version) {
		sub, pub := srv.connect(v, "sub", srv.token("sub", time.Hour)), srv.connect(v, "pub", srv.token("pub", time.Hour))
		for _, granted := range []byte{1, 0, 2, 0, 1, 2, 1} {
			if codes := sub.subscribe(granted, "a"); codes[0] != packet.Reason(granted) {
				t.Errorf("asked for %d, got %#x", granted, codes[0])
			}
			for published := range byte(3) {
				pub.send(&packet.Publish{Topic: "a", QoS: published, ID: uint16(published), Payload: []byte("x")})
				if published > 0 {
					want[*packet.Ack](pub)
				}
				if published == 2 {
					pub.send(&packet.Ack{Kind: packet.PUBREL, ID: 2})
					want[*packet.Ack](pub)
				}
				if p := sub.receive(); p.QoS != min(granted, published) {
					t.Errorf("granted %d, published %d: came with %d", granted, published, p.QoS)
				}
				sub.wantNothing() // once
			}
		}
		if s := srv.broker.Stats(); s.Subscriptions != 1 {
			t.Errorf("%d subscriptions", s.Subscriptions)
		}
	})
}

// MQTT-3.8.4-3: the other options count too.
func TestLastSubscriptionOptionsApply(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		c := srv.device("lamp-7")
		for _, f := range []packet.Filter{{NoLocal: true}, {}, {RetainAsPublished: true}, {NoLocal: true}, {}} {
			f.Topic, f.QoS, f.RetainHandling = "a", 1, 2
			c.retainedFor(0, f)
			c.send(&packet.Publish{Topic: "a", Retain: true, Payload: []byte("x")})
			if !f.NoLocal {
				if p := c.receive(); p.Retain != f.RetainAsPublished {
					t.Errorf("%+v: RETAIN %v", f, p.Retain)
				}
			}
			c.wantNothing()
		}
	})
}

// MQTT-3.8.4-4, 3.1.1: MQTT-3.8.4-3.
func TestReplacedSubscriptionLosesNoMessages(t *testing.T) {
	inBothVersions(t, func(t *testing.T, srv *testServer, v packet.Version) {
		const many = 300
		for _, edit := range []func(*packet.Connect){func(*packet.Connect) {}, persistentSession} {
			sub, pub := srv.connect(v, "sub", srv.token("sub", time.Hour), edit), srv.device("pub")
			sub.subscribe(1, "a")
			go func() {
				for n := 1; n <= many; n++ {
					pub.send(&packet.Publish{Topic: "a", QoS: 1, ID: pub.id(), Payload: fmt.Append(nil, n)})
					<-pub.got
				}
			}()
			var got []string
			hear := func(p packet.Packet) (answered bool) {
				if m, ok := p.(*packet.Publish); ok {
					got = append(got, string(m.Payload))
					sub.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
					return false
				}
				return true
			}
			for n := range 2 * many { // until the end, or beyond it
				sub.send(&packet.Subscribe{ID: sub.id(), Filters: []packet.Filter{{Topic: "a", QoS: byte(1 + n%2)}}})
				for !hear(next(sub)) {
				}
			}
			for len(got) < many {
				hear(next(sub))
			}
			if !slices.Equal(got, sequence(1, many)) {
				t.Errorf("received %v", got)
			}
			sub.closeAbruptly()
			pub.closeAbruptly()
			synctest.Wait()
		}
	})
}

// MQTT-3.10.4-3, 3.1.1: the same: what is under way is brought to its end, over another
// connection too.
func TestInflightOutlivesSubscription(t *testing.T) {
	for _, again := range []bool{false, true} {
		inBothVersions(t, func(t *testing.T, srv *testServer, v packet.Version) {
			sub, pub := srv.connect(v, "sub", srv.token("sub", time.Hour), persistentSession), srv.device("pub")
			sub.subscribe(2, "a")
			pub.publish(1, "a", "one")
			pub.publishQoS2("a", "two")
			one, two := want[*packet.Publish](sub), want[*packet.Publish](sub)
			sub.send(&packet.Unsubscribe{ID: 9, Filters: []string{"a"}})
			want[*packet.Unsuback](sub)
			pub.publish(1, "a", "three")
			sub.wantNothing()
			if again {
				sub.closeAbruptly()
				synctest.Wait()
				sub = srv.reconnect(v, "sub")
				first, second := want[*packet.Publish](sub), want[*packet.Publish](sub)
				if !first.Dup || first.ID != one.ID || !second.Dup || second.ID != two.ID {
					t.Errorf("%+v %+v", first, second)
				}
			}
			sub.send(&packet.Ack{Kind: packet.PUBREC, ID: two.ID}, &packet.Ack{Kind: packet.PUBACK, ID: one.ID})
			if rel := want[*packet.Ack](sub); rel.Kind != packet.PUBREL || rel.ID != two.ID || rel.Reason != packet.Success {
				t.Errorf("%+v", rel)
			}
			sub.send(&packet.Ack{Kind: packet.PUBCOMP, ID: two.ID})
			sub.wantNothing()
			sub.closeAbruptly()
			synctest.Wait()
			srv.reconnect(v, "sub").wantNothing()
			if n := srv.store.waiting(); n != 0 {
				t.Errorf("%d messages are left", n)
			}
		})
	}
}

// MQTT-4.7.2-1, 3.1.1: the same.
func TestWildcardGetsNoServerTopics(t *testing.T) {
	inBothVersions(t, func(t *testing.T, srv *testServer, v packet.Version) {
		srv.policy(`publish = ["#", "$lab/#"]`, `subscribe = ["#", "$lab/#"]`)
		all := watchword.Permission{Resource: "topic:#", Actions: []string{"pub", "sub"}}
		lab := watchword.Permission{Resource: "topic:$lab/#", Actions: []string{"pub", "sub"}}
		pub := srv.connect(packet.V5, "pub", srv.token("pub", time.Hour, all, lab))
		if r := pub.retain("$lab/a", "x"); r.Failed() {
			t.Fatalf("%#x", r)
		}
		pub.retain("lab/a", "y")
		sub := srv.connect(v, "sub", srv.token("sub", time.Hour, all, lab))
		for _, filter := range []string{"#", "+/a", "+/#", "+/+"} {
			if codes := sub.subscribe(1, filter); codes[0] != 1 {
				t.Fatalf("%s: %#x", filter, codes[0])
			}
			sub.wantMessage("lab/a", "y")
			sub.wantNothing()
		}
		for _, filter := range []string{"$lab/#", "$lab/+", "$lab/a"} {
			sub.subscribe(1, filter)
			sub.wantMessage("$lab/a", "x")
			sub.wantNothing()
		}
	})
}
