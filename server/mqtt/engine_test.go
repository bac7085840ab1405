package mqtt_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
)

func TestConnectIsRefusedWithTheRightCode(t *testing.T) {
	for name, c := range map[string]struct {
		edit      func(*packet.Connect)
		v5, v3    packet.Reason
		v5Only    bool
		otherLife time.Duration
	}{
		"no password":                      {edit: func(p *packet.Connect) { p.HasPass, p.HasUser, p.Password = false, false, nil }, v5: packet.NotAuthorized, v3: 5},
		"a token that is not on record":    {edit: func(p *packet.Connect) { p.Password = []byte("token-x") }, v5: packet.NotAuthorized, v3: 5},
		"an expired token":                 {edit: func(*packet.Connect) {}, otherLife: -time.Second, v5: packet.NotAuthorized, v3: 5},
		"another's client id":              {edit: func(p *packet.Connect) { p.ClientID = "lamp-8" }, v5: packet.ClientIdentifierNotValid, v3: 2},
		"a client id that only begins so":  {edit: func(p *packet.Connect) { p.ClientID = "lamp-77" }, v5: packet.ClientIdentifierNotValid, v3: 2},
		"a suffix with a slash":            {edit: func(p *packet.Connect) { p.ClientID = "lamp-7/a/b" }, v5: packet.ClientIdentifierNotValid, v3: 2},
		"an empty suffix":                  {edit: func(p *packet.Connect) { p.ClientID = "lamp-7/" }, v5: packet.ClientIdentifierNotValid, v3: 2},
		"a will that may not be published": {edit: func(p *packet.Connect) { p.Will = &packet.Will{Topic: "devices/lamp-7/config"} }, v5: packet.NotAuthorized, v3: 5},
		"a will to the server itself":      {edit: func(p *packet.Connect) { p.Will = &packet.Will{Topic: "$watchword/hello"} }, v5: packet.TopicNameInvalid, v3: 5},
		"another authentication method":    {edit: func(p *packet.Connect) { p.Properties.SetText(packet.AuthenticationMethod, "SCRAM") }, v5: packet.BadAuthenticationMethod, v5Only: true},
	} {
		for _, v := range []packet.Version{packet.V5, packet.V311} {
			if v == packet.V311 && c.v5Only {
				continue
			}
			t.Run(name, func(t *testing.T) {
				inBubble(t, func(t *testing.T, srv *testServer) {
					life := time.Hour
					if c.otherLife != 0 {
						life = c.otherLife
					}
					p := hello(v, "lamp-7", srv.token("lamp-7", life))
					c.edit(p)
					cl := srv.dialRaw(v)
					cl.send(p)
					ack := want[*packet.Connack](cl)
					if code := map[packet.Version]packet.Reason{packet.V5: c.v5, packet.V311: c.v3}[v]; ack.Code != code {
						t.Errorf("code %#x, want %#x", ack.Code, code)
					}
					if reason, _ := ack.Properties.Text(packet.ReasonString); v == packet.V5 && reason == "" {
						t.Error("no reason string")
					}
					if _, open := <-cl.got; open {
						t.Error("the connection goes on")
					}
					if n := len(srv.guard.SessionPage(watchword.DefaultTenant, "", 1<<20)); n != 0 {
						t.Errorf("%d sessions left", n)
					}
				})
			})
		}
	}
}

func TestFirstPacketMustBeConnect(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		for name, p := range map[string]packet.Packet{"PINGREQ": &packet.Ping{}, "PUBLISH": &packet.Publish{Topic: "a"}, "AUTH": &packet.Auth{Reason: packet.ContinueAuthentication}} {
			c := srv.dialRaw(packet.V5)
			c.send(p)
			if p, open := <-c.got; open {
				t.Errorf("%s first: got %T, want the end", name, p)
			}
		}
		c := srv.dialRaw(packet.V311)
		b := packet.Append(nil, hello(packet.V311, "lamp-7", "x"), packet.V311)
		b[8] = 3 // MQTT 3.1
		_, _ = c.nc.Write(b)
		if ack := want[*packet.Connack](c); ack.Code != 1 {
			t.Errorf("an old version: %#x, want 1", ack.Code)
		}
	})
}

func TestConnackStatesServerLimits(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		c := srv.device("lamp-7", func(p *packet.Connect) {
			p.ClientID = ""
			p.Properties.SetNumber(packet.SessionExpiryInterval, 30*24*3600)
		})
		for id, n := range map[packet.Property]uint32{
			packet.SessionExpiryInterval: 7 * 24 * 3600, packet.ServerKeepAlive: 18 * 3600, packet.TopicAliasMaximum: 64,
			packet.ReceiveMaximum: mqtt.ReceiveMaximum, packet.MaximumPacketSize: 64 << 10,
		} {
			if got, ok := c.ack.Properties.Number(id); !ok || got != n {
				t.Errorf("property %#x: %d (%v), want %d", id, got, ok, n)
			}
		}
		if id, _ := c.ack.Properties.Text(packet.AssignedClientIdentifier); !strings.HasPrefix(id, "lamp-7/") {
			t.Errorf("assigned client id %q", id)
		}
	})
}

func TestMessagesReachSubscribers(t *testing.T) {
	for _, from := range []packet.Version{packet.V311, packet.V5} {
		for _, to := range []packet.Version{packet.V311, packet.V5} {
			inBubble(t, func(t *testing.T, srv *testServer) {
				pub := srv.connect(from, "pub", srv.token("pub", time.Hour))
				sub := srv.connect(to, "sub", srv.token("sub", time.Hour))
				if codes := sub.subscribe(1, "plant/+/lux", "plant/7/#"); codes[0] != 1 || codes[1] != 1 {
					t.Fatalf("codes %v", codes)
				}
				for _, qos := range []byte{0, 1} {
					if r := pub.publish(qos, "plant/7/lux", "42"); r != packet.Success {
						t.Errorf("reason %#x", r)
					}
					if m := sub.receiveAndAck(); m.QoS != qos || m.Retain || m.Dup || string(m.Payload) != "42" || m.Topic != "plant/7/lux" {
						t.Errorf("got %+v", m)
					}
					sub.wantNothing() // under two filters, and once is enough
				}
				if r := pub.publish(1, "nobody/here", "x"); from == packet.V5 && r != packet.NoMatchingSubscribers {
					t.Errorf("no subscriber: %#x", r)
				}
				sub.send(&packet.Unsubscribe{ID: 9, Filters: []string{"plant/+/lux", "plant/7/#", "never"}})
				if u := want[*packet.Unsuback](sub); to == packet.V5 && (u.Codes[0] != 0 || u.Codes[2] != packet.NoSubscriptionExisted) {
					t.Errorf("codes %v", u.Codes)
				}
				pub.publish(1, "plant/7/lux", "43")
				sub.wantNothing()
			})
		}
	}
}

func TestPropertiesAreForwarded(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		pub, sub := srv.device("pub"), srv.device("sub")
		old := srv.connect(packet.V311, "old", srv.token("old", time.Hour))
		sub.subscribe(1, "q")
		old.subscribe(1, "q")
		p := &packet.Publish{Topic: "q", QoS: 1, ID: 5, Payload: []byte("ask")}
		p.Properties.SetText(packet.ResponseTopic, "answers/pub")
		p.Properties.SetText(packet.ContentType, "text/plain")
		p.Properties.SetData(packet.CorrelationData, []byte{1, 2, 3})
		p.Properties.SetNumber(packet.PayloadFormatIndicator, 1)
		p.Properties.User = []packet.UserProp{{Name: "b", Value: "1"}, {Name: "a", Value: "2"}, {Name: "b", Value: "3"}}
		pub.send(p)
		got := sub.receiveAndAck()
		if s, _ := got.Properties.Text(packet.ResponseTopic); s != "answers/pub" {
			t.Errorf("response topic %q", s)
		}
		if b, _ := got.Properties.Data(packet.CorrelationData); string(b) != "\x01\x02\x03" {
			t.Errorf("correlation data %x", b)
		}
		if len(got.Properties.User) != 3 || got.Properties.User[2] != (packet.UserProp{Name: "b", Value: "3"}) {
			t.Errorf("user properties %v", got.Properties.User)
		}
		old.wantMessage("q", "ask")
	})
}

func TestNoLocalAndRetainAsPublished(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		c := srv.device("lamp-7")
		c.send(&packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "a", QoS: 1, NoLocal: true}, {Topic: "b", QoS: 1}, {Topic: "devices/+/state", QoS: 1, RetainAsPublished: true}}})
		want[*packet.Suback](c)
		c.publish(1, "a", "not to me")
		c.send(&packet.Publish{Topic: "b", Payload: []byte("to me")})
		c.wantMessage("b", "to me")
		c.send(&packet.Publish{Topic: "devices/lamp-7/state", Payload: []byte(`{}`), Retain: true})
		if m := c.receiveAndAck(); !m.Retain {
			t.Error("the retain flag was not kept")
		}
	})
}

func TestRefusedPublishIsNotAcknowledgedAsSuccess(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.policy(`publish = ["ok/#"]`, `subscribe = ["#"]`, `deny publish = ["ok/not"]`)
		sub := srv.device("sub")
		sub.subscribe(0, "#")
		c := srv.device("lamp-7")
		for _, topic := range []string{"other", "ok/not", "devices/lamp-7/commands", "devices/lamp-7/config", "$SYS/x", "$watchword/x"} {
			if r := c.publish(1, topic, "x"); r != packet.NotAuthorized {
				t.Errorf("%s: %#x, want 0x87", topic, r)
			}
			c.publish(0, topic, "x")
		}
		c.wantNothing()
		sub.wantNothing()
		if r := c.publish(1, "ok/yes", "x"); r != packet.Success {
			t.Errorf("the connection does not go on: %#x", r)
		}
		sub.wantMessage("ok/yes", "x")
		for _, qos := range []byte{0, 1} {
			old := srv.connect(packet.V311, "old", srv.token("old", time.Hour))
			old.send(&packet.Publish{Topic: "other", QoS: qos, ID: uint16(qos)})
			old.wantDisconnect(0)
		}
		sub.wantNothing()
		if s := srv.broker.Stats(); s.Refusals[watchword.Denied] == 0 {
			t.Errorf("refusals are not counted: %+v", s)
		}
	})
}

func TestServerPacketsFromClientCloseConnection(t *testing.T) {
	for name, c := range map[string]struct {
		p    packet.Packet
		want packet.Reason
	}{
		"an alias that is too high":  {aliased("a", 65), packet.TopicAliasInvalid},
		"an alias of nothing":        {aliased("", 1), packet.ProtocolError},
		"a subscription identifier":  {identified(), packet.ProtocolError},
		"CONNECT again":              {hello(packet.V5, "lamp-7", "x"), packet.ProtocolError},
		"AUTH without a method":      {&packet.Auth{Reason: packet.ReAuthenticate}, packet.ProtocolError},
		"what only servers send":     {&packet.Suback{ID: 1, Codes: []packet.Reason{0}}, packet.ProtocolError},
		"a packet that is too large": {&packet.Publish{Topic: "a", Payload: make([]byte, 64<<10)}, packet.PacketTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				cl := srv.device("lamp-7")
				go cl.send(c.p)
				cl.wantDisconnect(c.want)
			})
		})
	}
}

func aliased(topic string, alias uint32) packet.Packet {
	p := &packet.Publish{Topic: topic}
	p.Properties.SetNumber(packet.TopicAlias, alias)
	return p
}

func identified() packet.Packet {
	p := &packet.Publish{Topic: "a"}
	p.Properties.Subscriptions = []uint32{7}
	return p
}

func TestSubscriptionsAreAnsweredOneByOne(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.policy(`subscribe = ["ok/#", "devices/${id}/#"]`, `deny subscribe = ["ok/secret/#"]`)
		filters := []string{"ok/a", "ok/#", "ok/secret", "else", "#", "$share/g/ok/a", "a/#/b", "$watchword/auth", "$watchword/hello", "$watchword/#", "devices/lamp-7/config", "devices/lamp-8/config"}
		codes := []packet.Reason{1, 0x87, 0x87, 0x87, 0x87, 1, 0x8F, 1, 0x87, 0x87, 1, 0x87}
		c := srv.device("lamp-7")
		for i, got := range c.subscribe(1, filters...) {
			if got != codes[i] {
				t.Errorf("%s: %#x, want %#x", filters[i], got, codes[i])
			}
		}
		old := srv.connect(packet.V311, "old", srv.token("old", time.Hour))
		for i, got := range old.subscribe(2, "ok/a", "else", "$share/g/ok/a") {
			if w := []packet.Reason{2, 0x80, 2}[i]; got != w {
				t.Errorf("3.1.1, filter %d: %#x, want %#x", i, got, w)
			}
		}
		if codes := c.subscribe(0, "devices/lamp-7/commands"); codes[0] != packet.ImplementationSpecificError {
			t.Errorf("commands with QoS 0: %#x", codes[0])
		}
	})
}

func TestWills(t *testing.T) {
	withWill := func(p *packet.Connect) {
		p.Will = &packet.Will{Topic: "wills/lamp-7", Payload: []byte("gone"), QoS: 1}
		p.KeepAlive = 10
	}
	for name, c := range map[string]struct {
		end   func(t *testing.T, srv *testServer, c *testClient)
		comes bool
	}{
		"the connection broke":    {func(_ *testing.T, _ *testServer, c *testClient) { c.closeAbruptly() }, true},
		"the client said goodbye": {func(_ *testing.T, _ *testServer, c *testClient) { c.send(&packet.Disconnect{}) }, false},
		"the client asked for it": {func(_ *testing.T, _ *testServer, c *testClient) {
			c.send(&packet.Disconnect{Reason: packet.DisconnectWithWill})
		}, true},
		"the client was silent":      {func(_ *testing.T, _ *testServer, _ *testClient) { time.Sleep(16 * time.Second) }, true},
		"the client was taken over":  {func(_ *testing.T, srv *testServer, _ *testClient) { srv.device("lamp-7") }, true},
		"the client broke the rules": {func(_ *testing.T, _ *testServer, c *testClient) { c.send(&packet.Publish{Topic: "a", QoS: 2, ID: 1}) }, true},
		"the device was revoked":     {func(_ *testing.T, srv *testServer, _ *testClient) { srv.state("lamp-7", watchword.Revoked) }, false},
		"the token ended": {func(_ *testing.T, _ *testServer, c *testClient) {
			for range 400 {
				time.Sleep(9 * time.Second)
				c.send(&packet.Ping{})
			}
		}, false},
		"its topic was taken away before": {func(_ *testing.T, srv *testServer, c *testClient) {
			srv.policy(`subscribe = ["#"]`)
			srv.policy(`subscribe = ["#"]`, `publish = ["#"]`)
			c.closeAbruptly()
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				sub := srv.connect(packet.V5, "sub", srv.token("sub", 24*time.Hour))
				sub.subscribe(1, "wills/#")
				cl := srv.device("lamp-7", withWill)
				c.end(t, srv, cl)
				if c.comes {
					sub.wantMessage("wills/lamp-7", "gone")
				}
				sub.wantNothing()
			})
		})
	}
}

func TestKeepAliveTimeout(t *testing.T) {
	t.Run("CONNECT must come in ten seconds", func(t *testing.T) {
		inBubble(t, func(t *testing.T, srv *testServer) {
			c := srv.dialRaw(packet.V5)
			_, _ = c.nc.Write([]byte{0x10}) // trickling does not help
			start := time.Now()
			if p, open := <-c.got; open {
				t.Errorf("got %T", p)
			}
			if d := time.Since(start); d < 10*time.Second || d > 12*time.Second {
				t.Errorf("it took %s", d)
			}
		})
	})
	t.Run("one and a half keep-alives", func(t *testing.T) {
		inBubble(t, func(t *testing.T, srv *testServer) {
			c := srv.device("lamp-7", func(p *packet.Connect) { p.KeepAlive = 8 })
			for range 20 {
				time.Sleep(8 * time.Second)
				c.send(&packet.Ping{})
				want[*packet.Ping](c)
			}
			start := time.Now()
			c.wantDisconnect(packet.KeepAliveTimeout)
			if d := time.Since(start); d < 10*time.Second || d > 14*time.Second {
				t.Errorf("it took %s", d)
			}
		})
	})
	t.Run("the token's end", func(t *testing.T) {
		inBubble(t, func(t *testing.T, srv *testServer) {
			c := srv.connect(packet.V5, "lamp-7", srv.token("lamp-7", time.Minute))
			time.Sleep(time.Minute - time.Nanosecond)
			c.wantNothing()
			c.wantDisconnect(packet.MaximumConnectTime)
		})
	})
}

func TestTakeoverIsNotHeldUpByAStalledPeer(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		mine, theirs := net2()
		srv.broker.Handle(theirs)
		stalled := &testClient{t: t, v: packet.V5, nc: mine}
		go stalled.send(hello(packet.V5, "lamp-7", srv.token("lamp-7", time.Hour))) // and reads nothing, not even CONNACK
		synctest.Wait()
		start := time.Now()
		c := srv.device("lamp-7")
		c.subscribe(1, "a")
		c.publish(1, "a", "x")
		if d := time.Since(start); d != 0 {
			t.Errorf("it took %s", d)
		}
		time.Sleep(time.Minute)
		if s := srv.broker.Stats(); s.Connections != 1 || s.Clients != 1 || s.Takeovers != 1 {
			t.Errorf("%+v", s)
		}
		if n := len(srv.guard.SubjectSessions(watchword.DefaultTenant, "lamp-7")); n != 1 {
			t.Errorf("%d sessions", n)
		}
	})
}

func TestSlowClientIsDisconnectedAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{QueueMessages: 100})
		defer srv.close()
		mine, theirs := net2()
		srv.broker.Handle(theirs)
		slow := &testClient{t: t, v: packet.V5, nc: mine, got: make(chan packet.Packet, 4096)}
		go slow.send(hello(packet.V5, "slow", srv.token("slow", time.Hour)), &packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "#"}}})
		quick, pub := srv.device("quick"), srv.device("pub")
		quick.subscribe(0, "#")
		// Its CONNACK is in its way: what follows piles up.
		first := make([]byte, 1)
		if _, err := mine.Read(first); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for i := range 300 {
			pub.publish(0, "a", "x")
			if m := quick.receiveAndAck(); m.Topic != "a" {
				t.Fatalf("message %d: %+v", i, m)
			}
		}
		time.Sleep(time.Minute)
		if s := srv.broker.Stats(); s.SlowClosed != 1 || s.Connections != 2 {
			t.Errorf("%+v", s)
		}
		quick.wantNothing()
	})
}

func TestFlowControlAndPacketIdentifiers(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		sub := srv.device("sub", func(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 2) })
		sub.subscribe(1, "a")
		pub := srv.device("pub")
		for range 5 {
			pub.publish(1, "a", "x")
		}
		one, two := want[*packet.Publish](sub), want[*packet.Publish](sub)
		sub.wantNothing()
		// Its own publishes use the same identifiers, and disturb nothing.
		sub.next = one.ID - 1
		sub.publish(1, "b", "mine")
		sub.wantNothing()
		sub.send(&packet.Ack{Kind: packet.PUBACK, ID: two.ID})
		three := want[*packet.Publish](sub)
		sub.wantNothing()
		sub.send(&packet.Ack{Kind: packet.PUBACK, ID: one.ID}, &packet.Ack{Kind: packet.PUBACK, ID: three.ID}, &packet.Ack{Kind: packet.PUBACK, ID: 999})
		want[*packet.Publish](sub)
		want[*packet.Publish](sub)
		sub.wantNothing()
		// 65,535 identifiers, and around.
		wide := srv.device("wide")
		wide.subscribe(1, "w")
		held := uint16(0)
		for i := range 70_000 {
			pub.publish(1, "w", "x")
			m := want[*packet.Publish](wide)
			if i == 10 {
				held = m.ID // not acknowledged until it is met again
				continue
			}
			if m.ID == held || m.ID == 0 {
				t.Fatalf("identifier %d is in use", m.ID)
			}
			wide.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
			if i == 65_000 {
				wide.send(&packet.Ack{Kind: packet.PUBACK, ID: held})
				held = 0
			}
		}
	})
}

func TestMaximumPacketSizeIsRespected(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		sub := srv.device("sub", func(p *packet.Connect) { p.Properties.SetNumber(packet.MaximumPacketSize, 100) })
		sub.subscribe(1, "a")
		pub := srv.device("pub")
		pub.publish(1, "a", strings.Repeat("x", 100))
		pub.publish(1, "a", "small")
		sub.wantMessage("a", "small")
		sub.wantNothing()
	})
}

// A client with several matching filters gets each message once, at their highest QoS, with many concurrent publishers.
func TestSeveralFiltersOneCopyAtTheHighestQoS(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		const publishers, each = 4, 50
		sub := srv.device("sub")
		sub.subscribe(0, "plant/#", "+/lux")
		sub.subscribe(1, "plant/+")
		var all []*testClient
		for i := range publishers {
			all = append(all, srv.device(watchword.SubjectID(fmt.Sprintf("pub-%d", i))))
		}
		for i, p := range all {
			go func() {
				for n := range each {
					p.send(&packet.Publish{Topic: "plant/lux", QoS: 1, ID: p.id(), Payload: fmt.Appendf(nil, "%d/%d", i, n)})
				}
			}()
		}
		received := map[string]int{}
		for range publishers * each {
			m := sub.receiveAndAck()
			if m.QoS != 1 {
				t.Errorf("%q came with QoS %d", m.Payload, m.QoS)
			}
			received[string(m.Payload)]++
		}
		sub.wantNothing()
		if len(received) != publishers*each {
			t.Errorf("received %d different messages, want %d", len(received), publishers*each)
		}
	})
}

// A receiver that always has something to take does not make its queue longer and longer.
func TestBusyQueueDoesNotGrow(t *testing.T) {
	for name, edits := range map[string][]func(*packet.Connect){"there": {oneAtATime}, "lasting": {oneAtATime, persistentSession}} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				sub := srv.connect(packet.V5, "sub", srv.token("sub", time.Hour), edits...)
				sub.subscribe(1, "a")
				pub := srv.device("pub")
				for range 3 {
					pub.publish(1, "a", "x")
				}
				memory := func() int {
					synctest.Wait()
					return srv.broker.SessionStates(watchword.DefaultTenant, "sub")[0].MemoryBytes
				}
				from := memory()
				for range 5000 {
					pub.publish(1, "a", "x")
					sub.receiveAndAck()
				}
				if n := memory(); n > from+1000 {
					t.Errorf("%d bytes, and then %d", from, n)
				}
			})
		})
	}
}

// If CONNACK is larger than the client accepts, or refuses, no packet of the session is sent (MQTT 5.0 §3.2).
func TestNothingIsSentBeforeConnack(t *testing.T) {
	for name, edit := range map[string]func(*packet.Connect){
		"too large": func(p *packet.Connect) { p.Properties.SetNumber(packet.MaximumPacketSize, 10) },
		"refused":   func(p *packet.Connect) { p.Will = &packet.Will{Topic: "not/mine", QoS: 1} },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				srv.policy(`publish = ["a"]`, `subscribe = ["#"]`)
				srv.leaveOffline(packet.V5, "d", "a")
				c := srv.reconnect(packet.V5, "d")
				pub := srv.device("pub")
				pub.publishQoS2("a", "x")
				m := want[*packet.Publish](c)
				c.send(&packet.Ack{Kind: packet.PUBREC, ID: m.ID})
				want[*packet.Ack](c) // PUBREL, and no more of it
				pub.publishQoS2("a", "y")
				c.closeAbruptly()
				synctest.Wait()
				c = srv.dialRaw(packet.V5)
				p := hello(packet.V5, "d", srv.token("d", time.Hour))
				persistentSession(p)
				edit(p)
				c.send(p)
				for x := range c.got {
					if ack, ok := x.(*packet.Connack); !ok || !ack.Code.Failed() {
						t.Errorf("got %T %+v", x, x)
					}
				}
				srv.reconnect(packet.V5, "d").wantOnly(1, 1)
			})
		})
	}
}

// wantOnly reads packets and expects so many publishes and PUBRELs.
func (c *testClient) wantOnly(publishes, rels int) {
	c.t.Helper()
	synctest.Wait()
	for len(c.got) > 0 {
		switch (<-c.got).(type) {
		case *packet.Publish:
			publishes--
		case *packet.Ack:
			rels--
		}
	}
	if publishes != 0 || rels != 0 {
		c.t.Errorf("%d publishes and %d PUBRELs too few", publishes, rels)
	}
}
