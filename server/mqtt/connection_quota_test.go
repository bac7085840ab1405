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

// The connections of one subject share what they may remember; another subject has its own, and
// what ends with a connection is given back.
func TestConnectionsOfOneSubjectShareMemoryQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{SubjectConnectionBytes: 48 << 10})
		defer srv.close()
		sub := srv.device("sub")
		sub.subscribe(0, "#")
		topic := func(n int) string { return fmt.Sprint(strings.Repeat("x", 996), n) }
		// fill has c use so many aliases, each for another topic, and returns how many were taken.
		fill := func(c *testClient, limit int) int {
			for n := 1; n <= limit; n++ {
				c.send(aliased(topic(n), uint32(n)))
				c.send(&packet.Ping{})
				switch p := next(c).(type) {
				case *packet.Ping:
					sub.wantMessage(topic(n), "")
				case *packet.Disconnect:
					if reason, _ := p.Properties.Text(packet.ReasonString); p.Reason != packet.QuotaExceeded || !strings.Contains(reason, "(limits.subject_connection_bytes)") {
						t.Errorf("DISCONNECT %#x %q", byte(p.Reason), reason)
					}
					return n - 1
				default:
					t.Fatalf("got %T", p)
				}
			}
			return limit
		}
		token := srv.token("lamp", time.Hour)
		first, second := srv.connect(packet.V5, "lamp", token), srv.connect(packet.V5, "lamp/2", token)
		if n := fill(first, 40); n != 40 {
			t.Fatalf("the first has room for %d", n)
		}
		if n := fill(second, 64); n < 4 || n > 20 { // 4 KiB free, and what is left of 48
			t.Errorf("the second has room for %d", n)
		}
		other := srv.device("other")
		if n := fill(other, 40); n != 40 {
			t.Errorf("another subject has room for %d", n)
		}
		first.send(aliased("", 40)) // what it has, it keeps
		sub.wantMessage(topic(40), "")
		for range 100 { // one alias for other topics takes no more than one
			first.send(aliased(topic(41), 1), aliased(topic(42), 1))
			sub.wantMessage(topic(41), "")
			sub.wantMessage(topic(42), "")
		}
		first.closeAbruptly()
		synctest.Wait()
		first = srv.connect(packet.V5, "lamp", token)
		if n := fill(first, 40); n != 40 {
			t.Errorf("when the first has ended there is room for %d", n)
		}
		for _, c := range []*testClient{first, second, other} {
			c.closeAbruptly()
		}
		synctest.Wait()
		if n := srv.broker.Stats().ConnectionBytes; n != 0 {
			t.Errorf("%d bytes are charged for nothing", n)
		}
	})
}

// Identifiers of QoS 2 that were not released are the session's: they are charged while it is
// away and after a restart, until they are released.
func TestIdentifiersThatWereNotReleasedAreCharged(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		c := srv.device("lamp", persistentSession)
		const open = 250
		for n := range open {
			c.send(&packet.Publish{Topic: "a", QoS: 2, ID: uint16(n + 1)})
			if ack := want[*packet.Ack](c); ack.Kind != packet.PUBREC || ack.Reason.Failed() {
				t.Fatalf("PUBREC %#x", byte(ack.Reason))
			}
		}
		charged := srv.broker.Stats().ConnectionBytes
		if charged < 4<<10 || charged > 16<<10 {
			t.Fatalf("%d bytes are charged for %d identifiers", charged, open)
		}
		still := func(when string) {
			t.Helper()
			if n := srv.broker.Stats().ConnectionBytes; n != charged {
				t.Errorf("%d bytes are charged %s, %d before", n, when, charged)
			}
		}
		c.closeAbruptly()
		synctest.Wait()
		still("while it is away")
		srv.crash(mqtt.Options{SubjectConnectionBytes: 1}) // what is there is there
		still("after a restart")
		c = srv.reconnect(packet.V5, "lamp")
		for n := range open {
			if n == open/2 {
				still("when half of them are released: a map does not shrink")
			}
			c.send(&packet.Ack{Kind: packet.PUBREL, ID: uint16(n + 1)})
			if ack := want[*packet.Ack](c); ack.Kind != packet.PUBCOMP || ack.Reason.Failed() {
				t.Fatalf("PUBCOMP %#x", byte(ack.Reason))
			}
		}
		if n := srv.broker.Stats().ConnectionBytes; n != 0 {
			t.Errorf("%d bytes are charged when all are released", n)
		}
	})
}

// Version 3.1.1 has no code for missing memory for an identifier.
func TestV311ClosedWithoutIdentifierQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{SubjectConnectionBytes: 4 << 10})
		defer srv.close()
		c := srv.connect(packet.V311, "lamp", srv.token("lamp", time.Hour))
		const fit = 2 * (4 << 10) / 36 // as many are free
		for n := range fit {
			c.send(&packet.Publish{Topic: "a", QoS: 2, ID: uint16(n + 1)})
			want[*packet.Ack](c)
		}
		c.send(&packet.Publish{Topic: "a", QoS: 2, ID: fit + 1})
		c.wantDisconnect(0)
	})
}

// A client that takes aliases for which its subject has no room gets topics as they are.
func TestNoAliasWithoutQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{SubjectConnectionBytes: 8 << 10})
		defer srv.close()
		sub := srv.device("sub", func(p *packet.Connect) { p.Properties.SetNumber(packet.TopicAliasMaximum, 1000) })
		sub.subscribe(0, "#")
		pub := srv.device("pub")
		aliases := map[uint32]string{}
		for round := range 2 {
			for n := range 64 {
				topic := fmt.Sprint(strings.Repeat("x", 900), n)
				pub.publish(0, topic, "")
				p := want[*packet.Publish](sub)
				alias, online := p.Properties.Number(packet.TopicAlias)
				switch {
				case online && p.Topic != "":
					aliases[alias] = p.Topic
				case online:
					p.Topic = aliases[alias]
				}
				if p.Topic != topic {
					t.Fatalf("round %d: got %.20q… by the alias %d", round, p.Topic, alias)
				}
			}
		}
		if n := len(aliases); n < 8 || n > 14 { // 4 KiB free, and 8
			t.Errorf("%d aliases", n)
		}
	})
}

// What waits for the disk to be answered is bounded by reading no more.
func TestPendingResponsesAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "sub", "a")
		pub := srv.connect(packet.V311, "pub", srv.token("pub", time.Hour))
		before := srv.broker.Stats().Received
		srv.store.block()
		const most, sent = 1024, 1500
		go func() {
			for n := range sent {
				pub.send(&packet.Publish{Topic: "a", QoS: 1, ID: uint16(n + 1)})
			}
		}()
		synctest.Wait()
		if n := srv.broker.Stats().Received - before; n != most {
			t.Errorf("%d were read", n)
		}
		srv.store.unblock()
		for n := range sent {
			if ack := want[*packet.Ack](pub); ack.ID != uint16(n+1) {
				t.Fatalf("PUBACK %d, want %d", ack.ID, n+1)
			}
		}
	})
}
