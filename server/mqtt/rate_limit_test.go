package mqtt_test

import (
	"crypto/ed25519"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// numbered is n publishes to a topic whose payloads are their numbers, from 1.
func numbered(topic string, n int) (out []packet.Packet) {
	for i := range n {
		out = append(out, &packet.Publish{Topic: topic, Payload: fmt.Append(nil, i+1)})
	}
	return out
}

// What came in one read is held back for as long as the excess takes, and no longer. What
// needs no place in the order is answered meanwhile.
func TestOnlyExcessPublishesAreDelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{PublishRate: 1000})
		defer srv.close()
		sub, pub := srv.device("sub"), srv.device("pub")
		sub.subscribe(0, "a")
		pub.subscribe(1, "b")
		from := time.Now()
		go pub.send(append(numbered("a", 2400), &packet.Ping{})...)
		want[*packet.Ping](pub)
		srv.device("other").publish(1, "b", "x")
		pub.wantMessage("b", "x") // and its PUBACK is taken
		if d := time.Since(from); d > 0 {
			t.Errorf("PINGREQ was answered after %v", d)
		}
		for n := 1; n <= 2400; n++ {
			sub.wantMessage("a", fmt.Sprint(n))
			if d := time.Since(from); n == 2000 && d > 0 {
				t.Errorf("the 2,000th, within the burst, came after %v", d)
			}
		}
		if d := time.Since(from); d != 400*time.Millisecond {
			t.Errorf("400 too many at 1,000 a second took %v", d)
		}
		pub.publish(1, "a", "the last")
		sub.wantMessage("a", "the last")
		if d := time.Since(from); d > 402*time.Millisecond {
			t.Errorf("one that came after all was there after %v", d)
		}
		if n := srv.broker.Stats().DelayedPublishes; n < 400 || n > 401 {
			t.Errorf("%d were held back", n)
		}
	})
}

// The connections of one subject share its rate, and its burst, in turns. Another subject
// has its own.
func TestConnectionsOfOneSubjectShareItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{PublishRate: 1000})
		defer srv.close()
		sub := srv.device("sub")
		sub.subscribe(0, "#")
		token := srv.token("pub", time.Hour)
		first := srv.connect(packet.V5, "pub", token)
		first.send(numbered("first", 2000)...) // the burst is gone
		for n := 1; n <= 2000; n++ {
			sub.wantMessage("first", fmt.Sprint(n))
		}
		from := time.Now()
		const each, conns = 200, 4
		for n := range conns {
			c := srv.connect(packet.V5, fmt.Sprint("pub/", n), token)
			go c.send(numbered(fmt.Sprint(n), each)...)
		}
		got := [conns]int{}
		for n := 1; n <= each*conns; n++ {
			p := sub.receiveAndAck()
			var owner, number int
			if _, err := fmt.Sscan(p.Topic+" "+string(p.Payload), &owner, &number); err != nil {
				t.Fatal(err)
			}
			if got[owner]++; number != got[owner] {
				t.Fatalf("%d of %d came as its number %d", number, owner, got[owner])
			}
			if n == each { // a quarter of all: each had its turns
				for owner, has := range got {
					if has < each/conns-10 || has > each/conns+10 {
						t.Errorf("of the first %d, %d are of %d", each, has, owner)
					}
				}
			}
		}
		if d := time.Since(from); d != 800*time.Millisecond {
			t.Errorf("800 of four connections at 1,000 a second took %v", d)
		}
		from = time.Now()
		srv.device("another").publish(0, "x", "y")
		if sub.wantMessage("x", "y"); time.Since(from) > 0 {
			t.Errorf("another subject waited for %v", time.Since(from))
		}
	})
}

// Delayed packets keep their order, whatever follows them, and DISCONNECT and the end of the connection follow them. More
// than the limit is not read, and no client counts as silent meanwhile.
func TestDelayedPublishesKeepOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{PublishRate: 100})
		defer srv.close()
		sub := srv.device("sub")
		sub.subscribe(0, "a", "will")
		pub := srv.device("pub", func(p *packet.Connect) {
			p.KeepAlive, p.Will = 2, &packet.Will{Topic: "will", Payload: []byte("x")}
		})
		all := append(numbered("a", 500), &packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "a"}}})
		all = append(all, numbered("a", 3)...)
		all = append(all, &packet.Publish{Topic: "a", QoS: 1, ID: 7, Payload: make([]byte, 60<<10)}) // it fills what is held
		all = append(all, numbered("a", 1000)...)
		all = append(all, &packet.Publish{Topic: "a", QoS: 2, ID: 8, Payload: []byte("twice")}, &packet.Publish{Topic: "a", QoS: 2, ID: 8, Payload: []byte("twice")}, &packet.Ack{Kind: packet.PUBREL, ID: 8})
		all = append(all, &packet.Disconnect{})
		from := time.Now()
		go pub.send(all...)
		received := func(what string) {
			t.Helper()
			if p := sub.receiveAndAck(); p.Topic != "a" || string(p.Payload) != what {
				t.Fatalf("got %q of %d bytes on %s, want %q", p.Payload[:min(len(p.Payload), 10)], len(p.Payload), p.Topic, what)
			}
		}
		for n := 1; n <= 500; n++ {
			received(fmt.Sprint(n))
		}
		want[*packet.Suback](pub)
		for n := 1; n <= 3; n++ {
			received(fmt.Sprint(n))
			if p := want[*packet.Publish](pub); string(p.Payload) != fmt.Sprint(n) {
				t.Fatalf("the first that its own subscription brings is %q", p.Payload)
			}
		}
		if p := sub.receiveAndAck(); len(p.Payload) != 60<<10 {
			t.Fatalf("%d bytes", len(p.Payload))
		}
		for n := 1; n <= 1000; n++ {
			received(fmt.Sprint(n))
		}
		received("twice") // once
		if d := time.Since(from); d < 13*time.Second || d > 14*time.Second {
			t.Errorf("1,506 at 100 a second took %v", d)
		}
		synctest.Wait()
		srv.device("marker").publish(0, "a", "the end") // and no will
		received("the end")
	})
}

// Packets that a client sent before its connection broke are not lost, and its will follows them.
func TestDelayedPublishesPrecedeWill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{PublishRate: 10})
		defer srv.close()
		sub := srv.device("sub")
		sub.subscribe(0, "a", "will")
		pub := srv.device("pub", func(p *packet.Connect) { p.Will = &packet.Will{Topic: "will", Payload: []byte("x")} })
		pub.send(numbered("a", 50)...)
		pub.closeAbruptly()
		for n := 1; n <= 50; n++ {
			sub.wantMessage("a", fmt.Sprint(n))
		}
		sub.wantMessage("will", "x")
	})
}

// A client that said DISCONNECT has no will any more, also where its connection ends before
// what it said before is passed on.
func TestDelayedDisconnectIsHonored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{PublishRate: 10})
		defer srv.close()
		sub := srv.device("sub")
		sub.subscribe(0, "will")
		token := srv.token("pub", time.Hour)
		pub := srv.connect(packet.V5, "pub", token, func(p *packet.Connect) { p.Will = &packet.Will{Topic: "will", Payload: []byte("x")} })
		pub.send(append(numbered("a", 50), &packet.Disconnect{})...)
		synctest.Wait()
		again := srv.connect(packet.V5, "pub", token)
		again.publish(0, "will", "marker")
		sub.wantMessage("will", "marker")
	})
}

// Of a client that sends too much no more is read than is held back. It need not say that
// it is alive meanwhile.
func TestDelayedPacketsStopReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{PublishRate: 10})
		defer srv.close()
		sub := srv.device("sub")
		sub.subscribe(0, "a")
		pub := srv.device("pub", func(p *packet.Connect) { p.KeepAlive = 1 })
		const each, all = 256, 1280 // of which 32 come at once
		var sent atomic.Int64
		var done sync.WaitGroup
		done.Go(func() {
			for range all / 32 {
				pub.send(slices.Repeat([]packet.Packet{&packet.Publish{Topic: "a", Payload: make([]byte, each)}}, 32)...)
				sent.Add(8)
			}
			for range 60 { // it says that it is alive when it has nothing else to say
				time.Sleep(time.Second / 2)
				pub.send(&packet.Ping{})
			}
		})
		synctest.Wait()
		if n := sent.Load(); n < 5+64 || n > 5+64+17 { // the burst, 64 KiB, and one read
			t.Errorf("%d KiB were read at once", n)
		}
		for range all {
			sub.receiveAndAck()
		}
		testwait.All(t, "all that is sent", &done)
		pub.send(&packet.Publish{Topic: "a", Payload: []byte("it lives")})
		sub.wantMessage("a", "it lives")
	})
}

// A connection that is closed by the server, or taken over, drops what is held back; its
// accounts are forgotten when they are full again.
func TestDelayedPublishesEndWithConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{PublishRate: 10, ControlRate: 1000})
		defer srv.close()
		sub := srv.device("sub")
		sub.subscribe(0, "a")
		token := srv.token("pub", time.Hour)
		pub := srv.connect(packet.V5, "pub", token)
		go pub.send(numbered("a", 100)...)
		for n := 1; n <= 25; n++ {
			sub.wantMessage("a", fmt.Sprint(n))
		}
		again := srv.connect(packet.V5, "pub", token)
		pub.wantDisconnect(packet.SessionTakenOver)
		again.publish(0, "a", "again")
		sub.wantMessage("a", "again")
		srv.state("pub", watchword.Revoked)
		again.wantDisconnect(packet.NotAuthorized)
		sub.closeAbruptly()
		synctest.Wait()
		time.Sleep(10 * time.Second)
		srv.device("marker").closeAbruptly() // one that disconnects later does not matter
		synctest.Wait()
		if n := srv.broker.Accounts(time.Now().Add(time.Minute)); n > 0 {
			t.Errorf("%d accounts are remembered", n)
		}
	})
}

// Every packet type and every topic of the server's own: its cost in limits.control_rate of its subject, whichever
// connection it uses, or why it costs nothing.
func TestEveryActHasARate(t *testing.T) {
	const rate, burst = 10, 20
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	own := func(topic string, payload func(srv *testServer) string) act {
		return act{10, func(srv *testServer, c *testClient) {
			c.publish(1, topic, payload(srv))
			for len(c.ahead) == 0 && len(c.got) > 0 { // what is said about it
				next(c)
			}
		}}
	}
	fresh := func(srv *testServer) string { return srv.token("lamp-7", time.Hour) }
	acts := map[string]act{
		"SUBSCRIBE":        {1, func(_ *testServer, c *testClient) { c.subscribe(0, "a") }},
		"SUBSCRIBE of two": {2, func(_ *testServer, c *testClient) { c.subscribe(0, "a", "b") }},
		"UNSUBSCRIBE": {1, func(_ *testServer, c *testClient) {
			c.send(&packet.Unsubscribe{ID: c.id(), Filters: []string{"a"}})
			want[*packet.Unsuback](c)
		}},
		"AUTH": {20, func(srv *testServer, c *testClient) {
			c.reauthenticate(srv.token("lamp-7", time.Hour))
			c.prove(key)
			want[*packet.Auth](c)
		}},
		"$watchword/auth":               own("$watchword/auth", fresh),
		"$watchword/auth, refused":      own("$watchword/auth", func(*testServer) string { return "nothing" }),
		"$watchword/hello":              own("$watchword/hello", func(*testServer) string { return `{"nonce":"","epoch":1,"seq":0}` }),
		"$watchword/hello, refused":     own("$watchword/hello", func(*testServer) string { return "{" }),
		"$watchword/another, refused":   own("$watchword/x", func(*testServer) string { return "" }),
		"$watchword/hello by its alias": {10, aliasedHello},
		"$state, reported":              own("devices/lamp-7/state", func(*testServer) string { return `{"on":true}` }),
		"receipt, refused":              {1, func(_ *testServer, c *testClient) { c.publish(1, "devices/lamp-7/receipts", "x") }},
		"SUBSCRIBE of one, again and again": {1, func(_ *testServer, c *testClient) {
			c.subscribe(0, slices.Repeat([]string{"a"}, 50)...)
		}},
		"UNSUBSCRIBE of two, again and again": {2, func(_ *testServer, c *testClient) {
			c.send(&packet.Unsubscribe{ID: c.id(), Filters: slices.Repeat([]string{"a", "b"}, 20)})
			if n := len(want[*packet.Unsuback](c).Codes); n != 40 {
				c.t.Errorf("%d codes", n)
			}
		}},
		"$state, refused": own("devices/lamp-7/state", func(*testServer) string { return "{" }),
		"PUBLISH":         {0, func(_ *testServer, c *testClient) { c.publish(1, "a", "x") }}, // by limits.publish_rate
		"PUBREL of nothing": {0, func(_ *testServer, c *testClient) {
			c.send(&packet.Ack{Kind: packet.PUBREL, ID: 1})
			want[*packet.Ack](c)
		}},
		"PUBREC of nothing": {0, func(_ *testServer, c *testClient) {
			c.send(&packet.Ack{Kind: packet.PUBREC, ID: 1})
			want[*packet.Ack](c)
		}},
		"PUBACK and PUBCOMP of nothing": {0, func(_ *testServer, c *testClient) {
			c.send(&packet.Ack{Kind: packet.PUBACK, ID: 1}, &packet.Ack{Kind: packet.PUBCOMP, ID: 1})
		}},
		"PINGREQ":                           {0, func(_ *testServer, c *testClient) { c.send(&packet.Ping{}); want[*packet.Ping](c) }},
		"CONNECT and DISCONNECT, see below": {0, func(*testServer, *testClient) {}},
	}
	servers := []packet.Type{packet.CONNACK, packet.SUBACK, packet.UNSUBACK, packet.PINGRESP}
	for p := packet.CONNECT; p <= packet.AUTH; p++ {
		if slices.Contains(servers, p) { // a client that sends one is cut
			continue
		}
		if !slices.ContainsFunc(slices.Collect(maps.Keys(acts)), func(name string) bool {
			return slices.Contains(strings.Fields(strings.ReplaceAll(name, ",", "")), p.String())
		}) {
			t.Errorf("nothing says what %s costs", p)
		}
	}
	for name, a := range acts {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := mqtt.Options{ControlRate: rate}
				if name[0] == '$' {
					o.PublishRate = 1 // and 10 at once: enough for one each second, once
				}
				srv := newTestServer(t, o)
				defer srv.close()
				srv.proofKey = pub
				token := srv.token("lamp-7", 10*time.Minute)
				var cs [2]*testClient
				for n, id := range []string{"lamp-7", "lamp-7/2"} {
					cs[n] = srv.dialRaw(packet.V5)
					p := hello(packet.V5, id, token)
					if name == "AUTH" {
						withAce(token, nil)(p)
					}
					cs[n].send(p)
					if name == "AUTH" {
						cs[n].prove(key)
					}
					want[*packet.Connack](cs[n])
				}
				time.Sleep(10 * time.Second) // the burst is there again
				from := time.Now()
				const acts = 30
				for n := range acts {
					a.do(srv, cs[n%2])
				}
				least := max(0, time.Duration(acts*a.cost-burst)*time.Second/rate)
				if d := time.Since(from); d < least || d > least+time.Millisecond*10 {
					t.Errorf("%d of them took %v, want %v", acts, d, least)
				}
			})
		})
	}
	t.Run("CONNECT", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			srv := newTestServer(t, mqtt.Options{ControlRate: rate})
			defer srv.close()
			for n := range 6 {
				c := srv.dialRaw(packet.V5)
				c.send(hello(packet.V5, "lamp-7", srv.token("lamp-7", time.Hour)))
				code := want[*packet.Connack](c).Code
				if ok := n < 2 || n == 4; ok != (code == packet.Success) || !ok && code != packet.ConnectionRateExceeded {
					t.Errorf("CONNECT %d: %#x", n, byte(code))
				}
				if n == 3 {
					time.Sleep(time.Second) // it is paid by now
				}
			}
		})
	})
}

// act is something that a client does, and what it costs.
type act struct {
	cost int
	do   func(h *testServer, c *testClient)
}

func aliasedHello(_ *testServer, c *testClient) {
	p := &packet.Publish{QoS: 1, ID: c.id(), Payload: []byte(`{"nonce":"","epoch":1,"seq":0}`)}
	if p.ID == 1 { // the first of this connection
		p.Topic = "$watchword/hello"
	}
	p.Properties.SetNumber(packet.TopicAlias, 1)
	c.send(p)
	want[*packet.Ack](c)
}

// The options that are said last for a filter are those that stay, also where they were said before.
func TestLastOfEqualFiltersWins(t *testing.T) {
	inBothVersions(t, func(t *testing.T, srv *testServer, v packet.Version) {
		pub, c := srv.device("pub"), srv.connect(v, "sub", srv.token("sub", time.Hour))
		for _, last := range []byte{0, 1} {
			p := &packet.Subscribe{ID: c.id()}
			codes := []packet.Reason{0, 1, 0, 1, packet.Reason(last)}
			for _, qos := range codes {
				p.Filters = append(p.Filters, packet.Filter{Topic: "a", QoS: byte(qos)})
			}
			c.send(p)
			if got := want[*packet.Suback](c).Codes; !slices.Equal(got, codes) {
				t.Errorf("%v, want %v", got, codes)
			}
			pub.publish(1, "a", "x")
			m := want[*packet.Publish](c)
			if m.QoS != last {
				t.Errorf("it comes with QoS %d, want %d", m.QoS, last)
			}
			if m.QoS > 0 {
				c.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
			}
		}
	})
}

// One filter a thousand times is one subscription, and brings what is retained once. Each
// time has its code, and options that differ are put in place in turn.
func TestEqualFiltersOfOneSubscribeCountOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.device("pub").retain("a", "kept")
		c := srv.device("sub")
		p := &packet.Subscribe{ID: 1}
		for n := range 1000 {
			f := packet.Filter{Topic: "a", QoS: 1}
			switch {
			case n%2 == 1:
				f = packet.Filter{Topic: "a/#/b"}
			case n == 998:
				f.QoS = 0
			}
			p.Filters = append(p.Filters, f)
		}
		c.send(p)
		codes := want[*packet.Suback](c).Codes
		for n, code := range codes {
			good := packet.Reason(1)
			switch {
			case n%2 == 1:
				good = packet.TopicFilterInvalid
			case n == 998:
				good = 0
			}
			if code != good {
				t.Fatalf("code %d is %#x, want %#x", n, byte(code), byte(good))
			}
		}
		if len(codes) != 1000 {
			t.Errorf("%d codes", len(codes))
		}
		if m := c.receiveAndAck(); string(m.Payload) != "kept" || m.QoS != 0 {
			t.Errorf("got %q with QoS %d", m.Payload, m.QoS)
		}
		c.wantNothing()
		if n := srv.broker.Stats().Subscriptions; n != 1 {
			t.Errorf("%d subscriptions", n)
		}
	})
}
