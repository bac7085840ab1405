package mqtt_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// Each bound that a client can meet, and the word for it: the table of docs/operations.md.
func TestEachLimitHasItsReasonCode(t *testing.T) {
	big := strings.Repeat("x", 900)
	disconnected := func(t *testing.T, c *testClient) packet.Reason { return want[*packet.Disconnect](c).Reason }
	refused := func(srv *testServer, p *packet.Connect) packet.Reason {
		c := srv.dialRaw(packet.V5)
		c.send(p)
		return want[*packet.Connack](c).Code
	}
	// unread is a client that has said what it wants, and reads nothing.
	unread := func(t *testing.T, srv *testServer) *testClient {
		mine, theirs := net2()
		srv.broker.Handle(theirs)
		c := &testClient{t: t, v: packet.V5, nc: mine, got: make(chan packet.Packet, 4096)}
		go c.send(hello(packet.V5, "slow", srv.token("slow", time.Hour)), &packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "a"}}})
		synctest.Wait()
		return c
	}
	cut := func(t *testing.T, srv *testServer, payload string, limit int) packet.Reason {
		c := unread(t, srv)
		pub := srv.device("pub")
		for range limit {
			pub.publish(0, "a", payload)
		}
		synctest.Wait()
		if n := srv.broker.Stats().SlowClosed; n != 1 {
			t.Errorf("%d were cut", n)
		}
		go c.read()
		want[*packet.Connack](c)
		for {
			if d, ok := next(c).(*packet.Disconnect); ok {
				return d.Reason
			}
		}
	}
	for name, x := range map[string]struct {
		o    any // mqtt.Options, or bus.Options
		what func(t *testing.T, srv *testServer) packet.Reason
		want packet.Reason
	}{
		"packet_bytes": {mqtt.Options{PacketBytes: 1000}, func(t *testing.T, srv *testServer) packet.Reason {
			c := srv.device("a")
			if n, _ := c.ack.Properties.Number(packet.MaximumPacketSize); n != 1000 {
				t.Errorf("CONNACK says %d", n)
			}
			c.send(&packet.Publish{Topic: "a", Payload: []byte(big + big)})
			return disconnected(t, c)
		}, packet.PacketTooLarge},
		"queue_messages, reading too slowly": {mqtt.Options{QueueMessages: 20}, func(t *testing.T, srv *testServer) packet.Reason {
			return cut(t, srv, "x", 200)
		}, packet.QuotaExceeded},
		"queue_bytes, reading too slowly": {mqtt.Options{QueueBytes: 4000}, func(t *testing.T, srv *testServer) packet.Reason {
			return cut(t, srv, big, 200)
		}, packet.QuotaExceeded},
		"subject_queue_bytes, reading too slowly": {mqtt.Options{SubjectQueueBytes: 100_000}, func(t *testing.T, srv *testServer) packet.Reason {
			r := cut(t, srv, big, 200)
			synctest.Wait()
			if n := srv.broker.Stats().QueuedBytes; n != 0 {
				t.Errorf("%d bytes are charged for nothing", n)
			}
			return r
		}, packet.QuotaExceeded},
		"subject_queue_bytes, small messages": {mqtt.Options{SubjectQueueBytes: 100_000}, func(t *testing.T, srv *testServer) packet.Reason {
			return cut(t, srv, "", 600) // which take much more than their bytes
		}, packet.QuotaExceeded},
		"queued_bytes, reading too slowly": {mqtt.Options{QueuedBytes: 100_000}, func(t *testing.T, srv *testServer) packet.Reason {
			return cut(t, srv, big, 200)
		}, packet.QuotaExceeded},
		"queue_messages, away": {mqtt.Options{QueueMessages: 3}, func(_ *testing.T, srv *testServer) (r packet.Reason) {
			srv.leaveOffline(packet.V5, "sub", "a")
			for pub, n := srv.device("pub"), 0; n < 4; n++ {
				r = pub.publish(1, "a", "x")
			}
			return r
		}, packet.QuotaExceeded},
		"queue_bytes, away": {mqtt.Options{QueueBytes: 2500}, func(_ *testing.T, srv *testServer) (r packet.Reason) {
			srv.leaveOffline(packet.V5, "sub", "a")
			for pub, n := srv.device("pub"), 0; n < 3; n++ {
				r = pub.publish(1, "a", big)
			}
			return r
		}, packet.QuotaExceeded},
		"offline_bytes": {mqtt.Options{OfflineBytes: 1500}, func(_ *testing.T, srv *testServer) (r packet.Reason) {
			srv.leaveOffline(packet.V5, "one", "a")
			srv.leaveOffline(packet.V5, "two", "b")
			pub := srv.device("pub")
			for range 2 { // the second is the one too many; what follows is refused to all
				pub.publish(1, "a", big)
				synctest.Wait()
			}
			return pub.publish(1, "b", "x")
		}, packet.QuotaExceeded},
		"subject_offline_bytes": {mqtt.Options{SubjectOfflineBytes: 64 << 10}, func(_ *testing.T, srv *testServer) (r packet.Reason) {
			srv.leaveOffline(packet.V5, "sub", "a")
			for pub, n := srv.device("pub"), 0; n < 500 && r != packet.QuotaExceeded; n++ {
				r = pub.publish(1, "a", big)
			}
			return r
		}, packet.QuotaExceeded},
		"sessions": {mqtt.Options{PersistentSessions: 1}, func(_ *testing.T, srv *testServer) packet.Reason {
			srv.leaveOffline(packet.V5, "one", "a")
			p := hello(packet.V5, "two", srv.token("two", time.Hour))
			persistentSession(p)
			return refused(srv, p)
		}, packet.QuotaExceeded},
		"retained_messages": {bus.Options{RetainedMessages: 1}, func(_ *testing.T, srv *testServer) packet.Reason {
			pub := srv.device("pub")
			pub.retain("a", "x")
			return pub.retain("b", "x")
		}, packet.QuotaExceeded},
		"retained_bytes": {bus.Options{RetainedBytes: 1500}, func(_ *testing.T, srv *testServer) packet.Reason {
			pub := srv.device("pub")
			pub.retain("a", big)
			return pub.retain("b", big)
		}, packet.QuotaExceeded},
		"token_rate": {mqtt.Options{ConnectRate: 5}, func(_ *testing.T, srv *testServer) (r packet.Reason) {
			for token := srv.token("a", time.Hour); r != packet.ConnectionRateExceeded; {
				if r = refused(srv, hello(packet.V5, "a", token)); r != packet.Success && r != packet.ConnectionRateExceeded {
					return r
				}
			}
			return r
		}, packet.ConnectionRateExceeded},
		"subscriptions of one connection": {mqtt.Options{}, func(_ *testing.T, srv *testServer) (r packet.Reason) {
			c := srv.device("a")
			for n := range 1025 {
				r = c.subscribe(0, fmt.Sprint("a/", n))[0]
			}
			return r
		}, packet.QuotaExceeded},
		"subject_subscription_bytes": {bus.Options{SubjectSubscriptionBytes: 10_000}, func(t *testing.T, srv *testServer) (r packet.Reason) {
			c := srv.device("a")
			c.subscribe(0, strings.Repeat("x/", 20)) // its own other filters have room
			c.send(&packet.Subscribe{ID: 77, Filters: []packet.Filter{{Topic: "b"}, {Topic: strings.Repeat("y/", 20)}, {Topic: "c"}}})
			ack := want[*packet.Suback](c)
			if reason, _ := ack.Properties.Text(packet.ReasonString); ack.Codes[0] != 0 || ack.Codes[2] != 0 || !strings.Contains(reason, "limits.subject_subscription_bytes") {
				t.Errorf("SUBACK %v %q", ack.Codes, reason)
			}
			return ack.Codes[1]
		}, packet.QuotaExceeded},
		"subscription_bytes": {bus.Options{SubscriptionBytes: 10_000}, func(_ *testing.T, srv *testServer) packet.Reason {
			srv.device("a").subscribe(0, strings.Repeat("x/", 20))
			return srv.device("b").subscribe(0, strings.Repeat("y/", 20))[0]
		}, packet.QuotaExceeded},
		"receive maximum": {mqtt.Options{}, func(t *testing.T, srv *testServer) packet.Reason {
			c := srv.device("a")
			for n := range mqtt.ReceiveMaximum + 1 {
				c.send(&packet.Publish{Topic: "a", QoS: 2, ID: uint16(n + 1)})
			}
			for {
				if d, ok := next(c).(*packet.Disconnect); ok {
					return d.Reason
				}
			}
		}, packet.ReceiveMaximumExceeded},
		"topic aliases": {mqtt.Options{}, func(t *testing.T, srv *testServer) packet.Reason {
			c := srv.device("a")
			c.send(aliased("a", 65))
			return disconnected(t, c)
		}, packet.TopicAliasInvalid},
		"subject_connection_bytes, aliases": {mqtt.Options{SubjectConnectionBytes: 20_000}, func(t *testing.T, srv *testServer) packet.Reason {
			c := srv.device("a")
			for n := 1; n <= 64; n++ {
				c.send(aliased(fmt.Sprint(big, n), uint32(n)))
			}
			d := want[*packet.Disconnect](c)
			if reason, _ := d.Properties.Text(packet.ReasonString); !strings.Contains(reason, "(limits.subject_connection_bytes)") {
				t.Errorf("it says %q", reason)
			}
			synctest.Wait()
			if n := srv.broker.Stats().ConnectionBytes; n != 0 {
				t.Errorf("%d bytes are charged for nothing", n)
			}
			return d.Reason
		}, packet.QuotaExceeded},
		"connection_bytes, QoS 2": {mqtt.Options{ConnectionBytes: 3000}, func(t *testing.T, srv *testServer) packet.Reason {
			c := srv.device("a")
			for n := range mqtt.ReceiveMaximum {
				c.send(&packet.Publish{Topic: "a", QoS: 2, ID: uint16(n + 1)})
				if ack := want[*packet.Ack](c); ack.Reason.Failed() {
					return ack.Reason
				}
			}
			return 0
		}, packet.QuotaExceeded},
		"sessions of one subject": {mqtt.Options{}, func(_ *testing.T, srv *testServer) packet.Reason {
			token := srv.token("a", time.Hour)
			for n := range 8 {
				srv.connect(packet.V5, fmt.Sprint("a/", n), token)
			}
			return refused(srv, hello(packet.V5, "a", token))
		}, packet.QuotaExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o, _ := x.o.(mqtt.Options)
				limits, _ := x.o.(bus.Options)
				srv := newTestServer(t, o, limits)
				defer srv.close()
				if r := x.what(t, srv); r != x.want {
					t.Errorf("%#x, want %#x", byte(r), byte(x.want))
				}
			})
		})
	}
}

// A client that publishes above limits.publish_rate is read more slowly: nothing is refused, and nothing is lost.
func TestFastPublisherIsDelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{PublishRate: 10})
		defer srv.close()
		sub := srv.device("sub")
		sub.subscribe(0, "a")
		pub := srv.device("pub")
		from := time.Now()
		go func() {
			for n := 1; n <= 100; n++ {
				pub.send(&packet.Publish{Topic: "a", Payload: fmt.Append(nil, n)})
			}
		}()
		for n := 1; n <= 100; n++ {
			sub.wantMessage("a", fmt.Sprint(n))
		}
		if d := time.Since(from); d < 7*time.Second || d > 9*time.Second { // two seconds' worth may come at once
			t.Errorf("100 messages at 10 a second took %v", d)
		}
	})
}

// What the subscriptions of a client that is away take counts as before, also after a
// restart, until its session ends.
func TestOfflineSubscriptionsAreCounted(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "one", "a/b/c", "$share/g/a/b", "x/#")
		n := srv.broker.Stats().SubscriptionBytes
		if n < 1000 {
			t.Fatalf("%d bytes are counted", n)
		}
		srv.limits.SubjectSubscriptionBytes = 100
		srv.crash(mqtt.Options{}) // stored data stays
		if m := srv.broker.Stats().SubscriptionBytes; m != n {
			t.Errorf("%d bytes are counted after a restart, %d before", m, n)
		}
		c := srv.reconnect(packet.V5, "one")
		if code := c.subscribe(0, "y")[0]; code != packet.QuotaExceeded {
			t.Errorf("one more above the bound: %#x", byte(code))
		}
		if code := c.subscribe(0, "x/#")[0]; code != packet.Success {
			t.Errorf("one that stands, once more: %#x", byte(code))
		}
		c.closeAbruptly()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if m := srv.broker.Stats().SubscriptionBytes; m != 0 {
			t.Errorf("%d bytes are counted when the session has ended", m)
		}
	})
}

// The connections of one subject share what may wait for it; another subject has its own,
// and what is read is given back.
func TestOneSubjectsConnectionsShareItsQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{SubjectQueueBytes: 320 << 10})
		defer srv.close()
		deaf := func(id, token string) *testClient {
			mine, theirs := net2()
			srv.broker.Handle(theirs)
			c := &testClient{t: t, v: packet.V5, nc: mine, got: make(chan packet.Packet, 4096)}
			go c.send(hello(packet.V5, id, token), &packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "a"}}})
			synctest.Wait()
			return c
		}
		token := srv.token("slow", time.Hour)
		all := []*testClient{deaf("slow", token), deaf("slow/2", token), deaf("slow/3", token), deaf("other", srv.token("other", time.Hour))}
		pub := srv.device("pub")
		for range 150 { // 170 KiB for each: of one subject, one has no room
			pub.publish(0, "a", strings.Repeat("x", 900))
		}
		synctest.Wait()
		if n := srv.broker.Stats().SlowClosed; n < 1 || n > 2 {
			t.Errorf("%d were cut", n)
		}
		for _, c := range all {
			go c.read()
		}
		time.Sleep(time.Second)
		encoded, cut := 0, 0
		for _, c := range all {
			received := 0
			for len(c.got) > 0 {
				switch p := next(c).(type) {
				case *packet.Publish:
					received++
				case *packet.Disconnect:
					cut++
					if reason, _ := p.Properties.Text(packet.ReasonString); p.Reason != packet.QuotaExceeded || !strings.Contains(reason, "limits.subject_queue_bytes") {
						t.Errorf("DISCONNECT %#x %q", p.Reason, reason)
					}
				}
			}
			if received == 150 {
				encoded++
			}
		}
		if encoded+cut != len(all) || cut == 0 || encoded < 2 {
			t.Errorf("%d received all, %d were cut", encoded, cut)
		}
		if n := srv.broker.Stats().QueuedBytes; n != 0 {
			t.Errorf("%d bytes are charged for what was read", n)
		}
	})
}

// The sessions of one subject share what may wait for it; another subject has its own, what
// is acknowledged or ends makes room, and what was stored stays after a restart.
func TestSessionsOfOneSubjectShareOfflineQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := mqtt.Options{SubjectOfflineBytes: 128 << 10}
		srv := newTestServer(t, o)
		defer func() { srv.close() }()
		srv.leaveOffline(packet.V5, "slow", "a")
		token := srv.token("slow", time.Hour)
		second := srv.connect(packet.V5, "slow/2", token, persistentSession)
		second.subscribe(1, "b")
		second.closeAbruptly()
		srv.leaveOffline(packet.V5, "other", "c")
		big := strings.Repeat("x", 900)
		var pub *testClient
		fill := func(topic string) (n int) {
			for ; n < 500; n++ {
				pub.send(&packet.Publish{Topic: topic, QoS: 1, ID: pub.id(), Payload: []byte(big)})
				ack := want[*packet.Ack](pub)
				if ack.Reason == packet.QuotaExceeded {
					if reason, _ := ack.Properties.Text(packet.ReasonString); !strings.Contains(reason, "(limits.subject_offline_bytes)") {
						t.Errorf("PUBACK says %q", reason)
					}
					return n
				}
			}
			return n
		}
		pub = srv.device("pub")
		const all = (16<<10 + 128<<10) / (900 + 1 + 2*64)
		if n := fill("a"); n != all {
			t.Errorf("%d messages wait for one session, want %d", n, all)
		}
		if n := fill("b"); n != 16<<10/(900+1+2*64) {
			t.Errorf("%d messages wait for the other", n)
		}
		if n := fill("c"); n != all {
			t.Errorf("%d messages wait for another subject, want %d", n, all)
		}

		srv.crash(o)
		pub = srv.device("pub")
		if n := fill("a"); n != 0 {
			t.Errorf("%d messages more after a restart", n)
		}
		srv.crash(mqtt.Options{SubjectOfflineBytes: 64 << 10})
		pub = srv.device("pub")
		slow := srv.reconnect(packet.V5, "slow")
		if got := slow.receiveAll(all); len(got) != all {
			t.Errorf("%d of %d messages are left above a bound", len(got), all)
		}
		slow.closeAbruptly()
		synctest.Wait()
		if n := fill("b"); n < 50 || n >= all { // 64 KiB and 16 of the session itself, less what waits there
			t.Errorf("%d messages have room when the first session is empty", n)
		}
		time.Sleep(2 * time.Hour) // the sessions end
		synctest.Wait()
		srv.leaveOffline(packet.V5, "slow", "a")
		pub = srv.device("pub")
		if n := fill("a"); n != (16<<10+64<<10)/(900+1+2*64) {
			t.Errorf("%d messages have room when the sessions have ended", n)
		}
	})
}

// A message counts the subscription identifiers that go with it.
func TestSubscriptionIdentifiersThatWaitAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{SubjectOfflineBytes: 128 << 10})
		defer srv.close()
		c := srv.connect(packet.V5, "slow", srv.token("slow", time.Hour), persistentSession)
		const levels = 8
		for n := range 1 << levels {
			filter := make([]string, levels)
			for i := range filter {
				if filter[i] = "a"; n>>i&1 == 1 {
					filter[i] = "+"
				}
			}
			s := &packet.Subscribe{ID: c.id(), Filters: []packet.Filter{{Topic: strings.Join(filter, "/"), QoS: 1}}}
			s.Properties.Subscriptions = []uint32{uint32(n + 1)}
			c.send(s)
			want[*packet.Suback](c)
		}
		c.closeAbruptly()
		synctest.Wait()
		pub, n := srv.device("pub"), 0
		for ; n < 500 && pub.publish(1, strings.TrimSuffix(strings.Repeat("a/", levels), "/"), "") == packet.Success; n++ {
		}
		if n < 50 || n > (16<<10+128<<10)/(4<<levels) {
			t.Errorf("%d messages with %d identifiers each have room", n, 1<<levels)
		}
	})
}
