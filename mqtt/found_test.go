package mqtt_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/session"
)

// What a fresh reader of the engine found.

func withWill(delay uint32) func(p *packet.Connect) {
	return func(p *packet.Connect) {
		p.Will = &packet.Will{Topic: "will", Payload: []byte("gone"), QoS: 1}
		p.Will.Properties.SetNumber(packet.WillDelay, delay)
	}
}

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
		for range 3 {
			pub = h.back(packet.V311, "pub")
			p.Dup = true
			pub.send(p)
			synctest.Wait()
			_, ok := <-pub.got
			if ok {
				return
			}
			time.Sleep(time.Minute)
		}
		t.Error("never accepted though the store is well")
	})
}

func TestAnOldClientThatIsClosedForALossBeginsAnew(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		c := h.connect(packet.V311, "sub", h.token("sub", time.Hour), lasts)
		c.subscribe(1, "a", "b")
		h.policy(`publish = ["#"]`, `subscribe = ["b"]`)
		c.ended(0)
		synctest.Wait()
		c = h.connect(packet.V311, "sub", h.token("sub", time.Hour), lasts)
		if c.ack.SessionPresent {
			t.Error("3.1.1: session present, though subscription a is gone")
		}
	})
}

func TestWhoIsClosedForALossHearsWhichWhenItIsBack(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		c := h.connect(packet.V5, "sub", h.token("sub", time.Hour), lasts)
		c.subscribe(1, "a", "b")
		h.policy(`publish = ["#"]`, `subscribe = ["b"]`)
		want[*packet.Disconnect](c)
		synctest.Wait()
		c = h.connect(packet.V5, "sub", h.token("sub", time.Hour), lasts)
		for _, u := range c.ack.Properties.User {
			if u.Name == "lost" {
				return
			}
		}
		t.Error("not told which")
	})
}

func TestAWillThatFellDueWhileTheServerWasDown(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		hear := func() *client { c := h.device("hear"); c.subscribe(1, "will"); return c }
		_ = hear
		c := h.connect(packet.V5, "w", h.token("w", time.Hour), lasts, withWill(10))
		c.vanish()
		synctest.Wait()
		old := h.store
		h.store = old.cut()
		old.fail(true)
		h.close()
		time.Sleep(20 * time.Second)
		h.start(mqtt.Options{})
		x := hear()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if len(x.got) == 0 {
			t.Error("will never published")
		}
	})
}

func TestAWillWhoseSessionACleanStartEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		x := h.device("hear")
		x.subscribe(1, "will")
		h.connect(packet.V5, "w", h.token("w", time.Hour), lasts, withWill(10))
		h.device("w") // clean start
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(x.got) == 0 {
			t.Error("will never published")
		}
	})
}

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
		n := 0
		for _, s := range h.store.sessions {
			n = max(n, len(s.Progress))
		}
		if n > 1000 {
			t.Error("grows")
		}
	})
}

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

func TestCarryDoesNotLie(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "sub", "a")
		h.store.fail(true)
		_ = h.broker.Carry(watchword.DefaultTenant, "a", "", []byte("1"))
		err2 := h.broker.Carry(watchword.DefaultTenant, "a", "", []byte("2"))
		h.store.fail(false)
		if err2 == nil {
			t.Error("nil, and not kept")
		}
	})
}

func TestWhatIsRefusedIsNotRetained(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		pub := h.device("d1")
		p := &packet.Publish{Topic: "devices/d1/events/x", QoS: 1, ID: 9, Retain: true, Payload: []byte(strings.Repeat("x", 33<<10))}
		pub.send(p)
		if r := want[*packet.Ack](pub).Reason; !r.Failed() {
			t.Errorf("%#x", r)
		}
		s := h.device("s")
		s.subscribe(1, "devices/d1/events/x")
		synctest.Wait()
		if len(s.got) > 0 {
			t.Error("refused and retained")
		}
	})
}

// badRoll fails while bad.
type badRoll struct {
	*house
	bad atomic.Bool
}

func (b *badRoll) Today(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (*watchword.Subject, *policy.Grant, error) {
	if b.bad.Load() && id != "pub" && id != "hear" {
		return nil, nil, watchword.Refuse(watchword.Unavailable, "roll")
	}
	return b.house.Today(ctx, t, id)
}

func rollHouse(t *testing.T, h *house) *badRoll {
	h.close()
	r := &badRoll{house: h}
	h.guard = session.NewGuard(r, session.GuardOptions{})
	h.broker = mqtt.New(mqtt.Parts{Office: h, Guard: h.guard, Hub: h.hub, Store: h.store, Options: mqtt.Options{KeepAlive: 18 * time.Hour}})
	if err := h.broker.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// a moment's failure of the roll at a disconnect
func TestWhereNobodyCanSayWhatWaitsGoesOnToWait(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		r := rollHouse(t, h)
		c := h.connect(packet.V5, "sub", h.token("sub", time.Hour), lasts)
		c.subscribe(1, "a")
		r.bad.Store(true)
		c.vanish()
		synctest.Wait()
		r.bad.Store(false)
		time.Sleep(5 * time.Minute)
		if r := h.device("pub").publish(1, "a", "x"); r != packet.Success {
			t.Errorf("%#x", r)
		}
		c = h.back(packet.V5, "sub")
		synctest.Wait()
		if len(c.got) == 0 {
			t.Error("acknowledged and not kept")
		}
	})
}

// nil authority at the end of the session
func TestASessionThatEndsWhereNobodyCanSay(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		r := rollHouse(t, h)
		c := h.connect(packet.V5, "w", h.token("w", time.Hour), lasts, withWill(100000))
		r.bad.Store(true)
		c.vanish()
		synctest.Wait()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
	})
}

// will published at the end although the right was taken and the roll could not be read
func TestNoWillUnderAnOldAuthority(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		r := rollHouse(t, h)
		x := h.connect(packet.V5, "hear", h.token("hear", 24*time.Hour))
		x.subscribe(1, "#")
		c := h.connect(packet.V5, "w", h.token("w", time.Hour), lasts, withWill(100000))
		c.vanish()
		synctest.Wait()
		r.bad.Store(true)
		h.policy(`publish = ["x"]`, `subscribe = ["#"]`)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		for len(x.got) > 0 {
			p := <-x.got
			if m, ok := p.(*packet.Publish); ok {
				t.Errorf("%s published without right", m.Topic)
			}
		}
	})
}

// the same by UNSUBSCRIBE, with a full window so that the backlog is there
func TestGroupsThatOverlap(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "m0", "$share/a/x/#", "$share/b/x/+", "hold")
		b1 := h.device("b1")
		b1.subscribe(1, "$share/b/x/+")
		pub := h.device("pub")
		for n := range 200 { // fills what is fetched at first
			pub.publish(1, "hold", fmt.Sprint(n))
		}
		for n := range 3 {
			pub.publish(1, "x/1", fmt.Sprint(n))
			b1.takes()
		}
		c := h.connect(packet.V5, "m0", h.token("m0", time.Hour), lasts, func(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 1) })
		want[*packet.Publish](c)
		synctest.Wait()
		c.send(&packet.Unsubscribe{ID: c.id(), Filters: []string{"$share/b/x/+"}})
		want[*packet.Unsuback](c)
		synctest.Wait()
		if n := len(b1.got); n > 0 {
			t.Errorf("group b hears %d of the messages again that were group a's, and a's member has them no more", n)
		}
	})
}

// what was fetched from the shelf is no group's any more
func TestWhatWasFetchedIsStillTheGroups(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "m0", "$share/g/a")
		pub := h.device("pub")
		for n := 1; n <= 5; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		c := h.connect(packet.V5, "m0", h.token("m0", time.Hour), lasts, func(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 1) })
		want[*packet.Publish](c)
		synctest.Wait()
		// the same token state, narrower rights for m0 alone
		m1 := h.device("m1")
		m1.subscribe(1, "$share/g/a")
		tok := h.token("m0", time.Hour, watchword.Permission{Resource: "topic:b", Actions: []string{"pub", "sub"}})
		c.vanish()
		synctest.Wait()
		h.connect(packet.V5, "m0", tok, lasts)
		synctest.Wait()
		if len(m1.got) < 5 {
			t.Errorf("m1 got %d of 5", len(m1.got))
		}
	})
}

// crash between the end of a connection and the hand-over
func TestAHandOverThatIsNotWritten(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		m0 := h.connect(packet.V5, "m0", h.token("m0", time.Hour), lasts)
		m0.subscribe(1, "$share/g/a")
		pub := h.device("pub")
		pub.publish(1, "a", "one")
		want[*packet.Publish](m0) // not acknowledged
		m1 := h.connect(packet.V5, "m1", h.token("m1", time.Hour), lasts)
		m1.subscribe(1, "$share/g/a")
		synctest.Wait()
		// one write fails at the hand-over
		h.store.shut()
		m0.vanish()
		synctest.Wait()
		h.store.fail(true)
		m1.vanish()
		synctest.Wait()
		h.store.fail(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		a, b := h.back(packet.V5, "m0"), h.back(packet.V5, "m1")
		synctest.Wait()
		if len(a.got)+len(b.got)+len(m1.got) == 0 {
			t.Error("one is lost")
		}
	})
}

func TestCarryAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, mqtt.Options{})
		h.away(packet.V5, "sub", "a")
		h.close()
		done := make(chan error, 1)
		go func() { done <- h.broker.Carry(watchword.DefaultTenant, "a", "", []byte("x")) }()
		synctest.Wait()
		select {
		case <-done:
		default:
			t.Error("Carry hangs for ever")
		}
	})
}

// one who is away and full: what its publishers over 3.1.1 get
func TestWhoIsAwayAndFullEndsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, mqtt.Options{QueueMessages: 3})
		defer h.close()
		h.away(packet.V5, "sub", "a")
		pub := h.connect(packet.V311, "pub", h.token("pub", time.Hour))
		for range 3 {
			pub.publish(1, "a", "x")
		}
		pub.send(&packet.Publish{Topic: "a", QoS: 1, ID: 77})
		_, ok := <-pub.got
		if !ok {
			t.Error("closed")
		}
	})
}

func fullMember(h *house, v string) *client {
	m1 := h.connect(packet.V5, v, h.token(watchword.SubjectID(v), time.Hour), lasts, func(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 1) })
	m1.subscribe(1, "$share/g/a", "own")
	return m1
}

func TestAHandOverThatFailsToAFullMember(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		m0 := h.connect(packet.V5, "m0", h.token("m0", time.Hour), lasts)
		m0.subscribe(1, "$share/g/a")
		pub := h.device("pub")
		pub.publish(1, "a", "one")
		want[*packet.Publish](m0) // not acknowledged
		m1 := fullMember(h, "m1")
		pub.publish(1, "own", "x")
		want[*packet.Publish](m1)
		synctest.Wait()
		h.store.shut()
		m0.vanish()
		synctest.Wait()
		h.store.fail(true)
		synctest.Wait()
		time.Sleep(2 * time.Second)
		h.store.fail(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		m1.send(&packet.Ack{Kind: packet.PUBACK, ID: 1})
		m0 = h.back(packet.V5, "m0")
		synctest.Wait()
		if len(m0.got)+len(m1.got) == 0 {
			t.Error("an acknowledged message is lost")
		}
	})
}

func TestACrashAtTheHandOver(t *testing.T) {
	for range 20 {
		inBubble(t, func(t *testing.T, h *house) {
			m0 := h.connect(packet.V5, "m0", h.token("m0", time.Hour), lasts)
			m0.subscribe(1, "$share/g/a")
			pub := h.device("pub")
			pub.publish(1, "a", "one")
			want[*packet.Publish](m0) // not acknowledged
			m1 := fullMember(h, "m1")
			pub.publish(1, "own", "x")
			want[*packet.Publish](m1)
			synctest.Wait()
			h.store.mu.Lock()
			h.store.last = true
			h.store.mu.Unlock()
			m0.vanish()
			synctest.Wait()
			h.crash(mqtt.Options{})
			m0, m1 = h.back(packet.V5, "m0"), h.back(packet.V5, "m1")
			m1.takes() // own
			synctest.Wait()
			if len(m0.got)+len(m1.got) == 0 {
				t.Error("an acknowledged message is lost by a crash")
			}
		})
	}
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
