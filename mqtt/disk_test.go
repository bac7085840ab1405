package mqtt_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/mqtt"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// A publish whose write failed may be said again, and is then taken.
func TestAFailedWriteDoesNotPoisonAPublish(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "sub", "a")
		pub := h.connect(packet.V311, "pub", h.token("pub", time.Hour), lasts)
		h.store.shut()
		p := &packet.Publish{Topic: "a", QoS: 2, ID: 5, Payload: []byte("x")}
		pub.send(p)
		synctest.Wait()
		h.store.fail(true)
		pub.ended(0)
		h.store.fail(false)
		time.Sleep(5 * time.Second)
		pub = h.back(packet.V311, "pub")
		p.Dup = true
		pub.send(p)
		if a := want[*packet.Ack](pub); a.Kind != packet.PUBREC || a.ID != 5 {
			t.Errorf("%+v", a)
		}
	})
}

// What came behind a write that failed fails with it; who waits for the next ones is not
// held up by it.
func TestWhatFailedBehindAWriteHoldsNobodyUp(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		sub := h.connect(packet.V5, "sub", h.token("sub", time.Hour), lasts)
		sub.subscribe(2, "a")
		h.away(packet.V5, "other", "b")
		first, second := h.device("first"), h.device("second")
		synctest.Wait()
		h.store.shut()
		first.send(&packet.Publish{Topic: "b", QoS: 1, ID: 1, Payload: []byte("being written")})
		synctest.Wait()
		second.send(&packet.Publish{Topic: "a", QoS: 2, ID: 1, Payload: []byte("behind it")})
		sub.silent()
		h.store.fail(true)
		if a := want[*packet.Ack](first); !a.Reason.Failed() {
			t.Errorf("%+v", a)
		}
		if a := want[*packet.Ack](second); !a.Reason.Failed() {
			t.Errorf("%+v", a)
		}
		synctest.Wait()
		if s := h.broker.States(watchword.DefaultTenant, "sub"); s[0].Messages != 0 || s[0].Bytes != 0 {
			t.Errorf("%+v", s[0])
		}
		h.store.fail(false)
		time.Sleep(time.Second)
		second.twice("a", "after it")
		if p := sub.takes(); string(p.Payload) != "after it" {
			t.Errorf("%s", p.Payload)
		}
	})
}

func TestCarryDoesNotLie(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "sub", "a")
		h.store.fail(true)
		for range 2 { // the first finds it out, the second knows
			if h.publish(&bus.Document{Name: "a", Payload: []byte("x")}) == nil {
				t.Error("nil, and not kept")
			}
		}
		h.store.fail(false)
	})
}

func TestCarryAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, mqtt.Options{})
		h.away(packet.V5, "sub", "a")
		h.close()
		done := make(chan error, 1)
		go func() { done <- h.publish(&bus.Document{Name: "a", Payload: []byte("x")}) }()
		if err := <-done; err == nil {
			t.Error("nil, and not kept")
		}
	})
}

// A session goes on when what its client said last is on the disk, and not before: or
// what it says again is answered as if it were.
func TestWhoComesBackWaitsForTheDisk(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		pub := h.connect(packet.V5, "pub", h.token("pub", time.Hour), lasts)
		pub.send(&packet.Publish{Topic: "a", QoS: 2, ID: 5, Payload: []byte("one")})
		want[*packet.Ack](pub)
		h.store.shut()
		pub.send(&packet.Ack{Kind: packet.PUBREL, ID: 5})
		synctest.Wait()
		pub.vanish()
		synctest.Wait()
		c := h.raw(packet.V5)
		p := hello(packet.V5, "pub", h.token("pub", time.Hour))
		lasts(p)
		c.send(p, &packet.Ack{Kind: packet.PUBREL, ID: 5})
		c.silent()
		h.store.open()
		if ack := want[*packet.Connack](c); !ack.SessionPresent {
			t.Error("no session")
		}
		if comp := want[*packet.Ack](c); comp.Kind != packet.PUBCOMP {
			t.Errorf("%+v", comp)
		}
	})
}

// What is too large for its receiver is passed over, and leaves no trace of itself.
func TestWhatIsNeverSentGrowsNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		c := h.connect(packet.V5, "sub", h.token("sub", time.Hour), lasts, func(p *packet.Connect) { p.Properties.SetNumber(packet.MaximumPacketSize, 200) })
		c.subscribe(1, "a")
		pub := h.device("pub")
		big := strings.Repeat("x", 300)
		for range 3000 {
			pub.publish(1, "a", big)
		}
		synctest.Wait()
		for _, s := range h.store.sessions {
			if n := len(s.Progress); n > 1000 {
				t.Errorf("%d bytes of progress", n)
			}
		}
	})
}

// What other members of a group have taken leaves no trace with one who is away, and has
// something of its own that waits.
func TestWhatOthersTookGrowsNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "away", "own", "$share/g/q")
		pub := h.device("pub")
		pub.publish(1, "own", "first")
		const rounds, each = 15, 40
		for range rounds {
			for n := range each {
				pub.publish(1, "q", fmt.Sprint(n))
			}
			c := h.device("there")
			c.subscribe(1, "$share/g/q")
			for range each {
				c.takes()
			}
			synctest.Wait()
			c.vanish()
			synctest.Wait()
		}
		pub.publish(1, "own", "last")
		synctest.Wait()
		for _, s := range h.store.sessions {
			if n := len(s.Progress); n > 100 {
				t.Errorf("%d bytes of progress", n)
			}
		}
		h.crash(mqtt.Options{})
		c := h.back(packet.V5, "away")
		for _, text := range []string{"first", "last"} {
			if m := c.takes(); string(m.Payload) != text {
				t.Errorf("got %s %q, want %q", m.Topic, m.Payload, text)
			}
		}
		c.silent()
	})
}

// A disk that is slow makes no room: what is to be written counts among what waits.
func TestWhatIsNotWrittenYetCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, mqtt.Options{KeptBytes: 10_000})
		defer h.close()
		h.away(packet.V5, "sub", "a")
		pub := h.device("pub")
		h.store.shut()
		for range 20 {
			pub.send(&packet.Publish{Topic: "a", QoS: 1, ID: pub.id(), Payload: []byte(strings.Repeat("x", 900))})
		}
		synctest.Wait()
		if s := h.broker.Stats(); s.WaitingBytes < 9000 || s.WaitingBytes > 11_000 || s.Waiting != 11 {
			t.Errorf("%d messages of %d bytes wait", s.Waiting, s.WaitingBytes)
		}
		h.store.open()
		full := 0
		for range 20 {
			if ack := want[*packet.Ack](pub); ack.Reason == packet.QuotaExceeded {
				full++
			}
		}
		if full != 9 {
			t.Errorf("%d found no room", full)
		}
	})
}

// Properties count as payload does.
func TestPropertiesCount(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "sub", "a")
		pub := h.device("pub")
		took := 0
		for range 100 {
			p := &packet.Publish{Topic: "a", QoS: 1, ID: pub.id(), Payload: []byte("x")}
			p.Properties.User = []packet.Pair{{Name: "n", Value: strings.Repeat("v", 30000)}}
			pub.send(p)
			if !want[*packet.Ack](pub).Reason.Failed() {
				took++
			}
		}
		if took < 30 || took > 35 { // of 30 kB each, a megabyte
			t.Errorf("%d were taken", took)
		}
		bytes := func() int { return h.broker.States(watchword.DefaultTenant, "sub")[0].Bytes }
		if n := bytes(); n < took*30000 {
			t.Errorf("%d bytes are counted", n)
		}
		h.crash(mqtt.Options{})
		c := h.back(packet.V5, "sub")
		c.takesAll(took)
		synctest.Wait()
		if n := bytes(); n != 0 {
			t.Errorf("%d bytes when nothing waits", n)
		}
	})
}

// Who is away and full ends nobody of those who publish.
func TestWhoIsAwayAndFullEndsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, mqtt.Options{QueueMessages: 3})
		defer h.close()
		h.away(packet.V5, "sub", "a")
		pub := h.connect(packet.V311, "pub", h.token("pub", time.Hour))
		for range 4 {
			pub.publish(1, "a", "x")
		}
	})
}

// A session that began in the place of another whose end was not written is the one.
func TestTheLaterOfTwoSessionsIsTheOne(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "sub", "a")
		h.device("pub").publish(1, "a", "of the first")
		old := h.store.cut()
		h.store.open()
		h.connect(packet.V5, "sub", h.token("sub", time.Hour), lasts, func(p *packet.Connect) { p.CleanStart = true }).subscribe(1, "b")
		h.device("pub").publish(1, "b", "of the second")
		synctest.Wait()
		maps.Copy(h.store.sessions, old.sessions)
		maps.Copy(h.store.subs, old.subs)
		maps.Copy(h.store.messages, old.messages)
		h.crash(mqtt.Options{})
		if n := h.broker.Stats().Lasting; n != 1 {
			t.Errorf("%d sessions", n)
		}
		sub := h.back(packet.V5, "sub")
		sub.hears("b", "of the second")
		sub.silent()
		synctest.Wait()
		if n := len(h.store.sessions); n != 1 {
			t.Errorf("%d sessions in the store", n)
		}
	})
}
