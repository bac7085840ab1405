package mqtt_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword/mqtt"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// The connections of one subject share what they may remember; another subject has its own, and
// what ends with a connection is given back.
func TestConnectionsOfOneSubjectShareWhatTheyRemember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, mqtt.Options{SubjectConnectionBytes: 48 << 10})
		defer h.close()
		sub := h.device("sub")
		sub.subscribe(0, "#")
		topic := func(n int) string { return fmt.Sprint(strings.Repeat("x", 996), n) }
		// fill has c use so many aliases, each for another topic, and returns how many were taken.
		fill := func(c *client, most int) int {
			for n := 1; n <= most; n++ {
				c.send(aliased(topic(n), uint32(n)))
				c.send(&packet.Ping{})
				switch p := next(c).(type) {
				case *packet.Ping:
					sub.hears(topic(n), "")
				case *packet.Disconnect:
					if why, _ := p.Properties.Text(packet.ReasonString); p.Reason != packet.QuotaExceeded || !strings.Contains(why, "(limits.subject_connection_bytes)") {
						t.Errorf("DISCONNECT %#x %q", byte(p.Reason), why)
					}
					return n - 1
				default:
					t.Fatalf("got %T", p)
				}
			}
			return most
		}
		token := h.token("lamp", time.Hour)
		first, second := h.connect(packet.V5, "lamp", token), h.connect(packet.V5, "lamp/2", token)
		if n := fill(first, 40); n != 40 {
			t.Fatalf("the first has room for %d", n)
		}
		if n := fill(second, 64); n < 4 || n > 20 { // 4 KiB free, and what is left of 48
			t.Errorf("the second has room for %d", n)
		}
		other := h.device("other")
		if n := fill(other, 40); n != 40 {
			t.Errorf("another subject has room for %d", n)
		}
		first.send(aliased("", 40)) // what it has, it keeps
		sub.hears(topic(40), "")
		for range 100 { // one alias for other topics takes no more than one
			first.send(aliased(topic(41), 1), aliased(topic(42), 1))
			sub.hears(topic(41), "")
			sub.hears(topic(42), "")
		}
		first.vanish()
		synctest.Wait()
		first = h.connect(packet.V5, "lamp", token)
		if n := fill(first, 40); n != 40 {
			t.Errorf("when the first has ended there is room for %d", n)
		}
		for _, c := range []*client{first, second, other} {
			c.vanish()
		}
		synctest.Wait()
		if n := h.broker.Stats().ConnectionBytes; n != 0 {
			t.Errorf("%d bytes are charged for nothing", n)
		}
	})
}

// Identifiers of QoS 2 that were not released are the session's: they are charged while it is
// away and after a restart, until they are released.
func TestIdentifiersThatWereNotReleasedAreCharged(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		c := h.device("lamp", lasts)
		const open = 250
		for n := range open {
			c.send(&packet.Publish{Topic: "a", QoS: 2, ID: uint16(n + 1)})
			if ack := want[*packet.Ack](c); ack.Kind != packet.PUBREC || ack.Reason.Failed() {
				t.Fatalf("PUBREC %#x", byte(ack.Reason))
			}
		}
		charged := h.broker.Stats().ConnectionBytes
		if charged < 4<<10 || charged > 16<<10 {
			t.Fatalf("%d bytes are charged for %d identifiers", charged, open)
		}
		still := func(when string) {
			t.Helper()
			if n := h.broker.Stats().ConnectionBytes; n != charged {
				t.Errorf("%d bytes are charged %s, %d before", n, when, charged)
			}
		}
		c.vanish()
		synctest.Wait()
		still("while it is away")
		h.crash(mqtt.Options{SubjectConnectionBytes: 1}) // what is there is there
		still("after a restart")
		c = h.back(packet.V5, "lamp")
		for n := range open {
			if n == open/2 {
				still("when half of them are released: a map does not shrink")
			}
			c.send(&packet.Ack{Kind: packet.PUBREL, ID: uint16(n + 1)})
			if ack := want[*packet.Ack](c); ack.Kind != packet.PUBCOMP || ack.Reason.Failed() {
				t.Fatalf("PUBCOMP %#x", byte(ack.Reason))
			}
		}
		if n := h.broker.Stats().ConnectionBytes; n != 0 {
			t.Errorf("%d bytes are charged when all are released", n)
		}
	})
}

// A client of version 3.1.1 cannot be told that there is no room for an identifier.
func TestWithoutRoomForAnIdentifierAnOldClientIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, mqtt.Options{SubjectConnectionBytes: 4 << 10})
		defer h.close()
		c := h.connect(packet.V311, "lamp", h.token("lamp", time.Hour))
		const fit = 2 * (4 << 10) / 36 // as many are free
		for n := range fit {
			c.send(&packet.Publish{Topic: "a", QoS: 2, ID: uint16(n + 1)})
			want[*packet.Ack](c)
		}
		c.send(&packet.Publish{Topic: "a", QoS: 2, ID: fit + 1})
		c.ended(0)
	})
}

// A client that takes aliases for which its subject has no room gets topics as they are.
func TestWithoutRoomForAliasesTopicsGoAsTheyAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, mqtt.Options{SubjectConnectionBytes: 8 << 10})
		defer h.close()
		sub := h.device("sub", func(p *packet.Connect) { p.Properties.SetNumber(packet.TopicAliasMaximum, 1000) })
		sub.subscribe(0, "#")
		pub := h.device("pub")
		aliases := map[uint32]string{}
		for round := range 2 {
			for n := range 64 {
				topic := fmt.Sprint(strings.Repeat("x", 900), n)
				pub.publish(0, topic, "")
				p := want[*packet.Publish](sub)
				alias, there := p.Properties.Number(packet.TopicAlias)
				switch {
				case there && p.Topic != "":
					aliases[alias] = p.Topic
				case there:
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
func TestAnswersThatWaitForTheDiskAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "sub", "a")
		pub := h.connect(packet.V311, "pub", h.token("pub", time.Hour))
		before := h.broker.Stats().Received
		h.store.shut()
		const most, sent = 1024, 1500
		go func() {
			for n := range sent {
				pub.send(&packet.Publish{Topic: "a", QoS: 1, ID: uint16(n + 1)})
			}
		}()
		synctest.Wait()
		if n := h.broker.Stats().Received - before; n != most {
			t.Errorf("%d were read", n)
		}
		h.store.open()
		for n := range sent {
			if ack := want[*packet.Ack](pub); ack.ID != uint16(n+1) {
				t.Fatalf("PUBACK %d, want %d", ack.ID, n+1)
			}
		}
	})
}
