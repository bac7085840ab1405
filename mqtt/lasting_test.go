package mqtt_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/wall"
	"github.com/watchword-iot/watchword/mqtt"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// lasts makes a CONNECT whose session outlives its connection by an hour.
func lasts(p *packet.Connect) {
	p.CleanStart = false
	if p.Version == packet.V5 {
		p.Properties.SetNumber(packet.SessionExpiry, 3600)
	}
}

// away connects a device whose session lasts, subscribes at QoS 2, and vanishes.
func (h *house) away(v packet.Version, id watchword.SubjectID, filters ...string) {
	h.t.Helper()
	c := h.connect(v, string(id), h.token(id, time.Hour), lasts)
	if c.ack.SessionPresent {
		h.t.Fatal("a session was there")
	}
	c.subscribe(2, filters...)
	c.vanish()
	synctest.Wait()
}

// back connects it again.
func (h *house) back(v packet.Version, id watchword.SubjectID) *client {
	h.t.Helper()
	c := h.connect(v, string(id), h.token(id, time.Hour), lasts)
	if !c.ack.SessionPresent {
		h.t.Fatal("no session present")
	}
	return c
}

// twice publishes with QoS 2, all four packets of it, and returns the reason of PUBREC.
func (c *client) twice(topic, payload string) packet.Reason {
	c.t.Helper()
	id := c.id()
	c.send(&packet.Publish{Topic: topic, QoS: 2, ID: id, Payload: []byte(payload)})
	rec := want[*packet.Ack](c)
	if rec.Kind != packet.PUBREC || rec.ID != id {
		c.t.Fatalf("%s for %d, want PUBREC for %d", rec.Kind, rec.ID, id)
	}
	if rec.Reason.Failed() {
		return rec.Reason
	}
	c.send(&packet.Ack{Kind: packet.PUBREL, ID: id})
	if comp := want[*packet.Ack](c); comp.Kind != packet.PUBCOMP || comp.ID != id {
		c.t.Fatalf("%s for %d, want PUBCOMP for %d", comp.Kind, comp.ID, id)
	}
	return rec.Reason
}

// takes receives one message, whatever its QoS asks for.
func (c *client) takes() *packet.Publish {
	c.t.Helper()
	p := want[*packet.Publish](c)
	switch p.QoS {
	case 1:
		c.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
	case 2:
		c.send(&packet.Ack{Kind: packet.PUBREC, ID: p.ID})
		rel, ok := next(c).(*packet.Ack)
		for ; !ok; rel, ok = next(c).(*packet.Ack) { // what was on its way meanwhile
			c.ahead = append(c.ahead, c.last)
		}
		if rel.Kind != packet.PUBREL || rel.ID != p.ID {
			c.t.Fatalf("%s for %d, want PUBREL for %d", rel.Kind, rel.ID, p.ID)
		}
		c.send(&packet.Ack{Kind: packet.PUBCOMP, ID: p.ID})
	}
	return p
}

func (c *client) takesAll(n int) (payloads []string) {
	c.t.Helper()
	for range n {
		payloads = append(payloads, string(c.takes().Payload))
	}
	return payloads
}

func numbers(from, to int) (out []string) {
	for n := from; n <= to; n++ {
		out = append(out, fmt.Sprint(n))
	}
	return out
}

func TestQoS2GoesThroughOnce(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		inBubble(t, func(t *testing.T, h *house) {
			sub := h.connect(v, "sub", h.token("sub", time.Hour))
			sub.subscribe(2, "a")
			pub := h.connect(v, "pub", h.token("pub", time.Hour))
			if r := pub.twice("a", "one"); r != packet.Success {
				t.Errorf("reason %#x", r)
			}
			if p := sub.takes(); p.QoS != 2 || string(p.Payload) != "one" {
				t.Errorf("%+v", p)
			}
			// Said again before PUBREL it is one message, after it another one.
			p := &packet.Publish{Topic: "a", QoS: 2, ID: 77, Payload: []byte("two")}
			pub.send(p)
			want[*packet.Ack](pub)
			p.Dup = true
			pub.send(p)
			if a := want[*packet.Ack](pub); a.Kind != packet.PUBREC || a.ID != 77 {
				t.Errorf("%+v", a)
			}
			sub.takes()
			sub.silent()
			pub.send(&packet.Ack{Kind: packet.PUBREL, ID: 77})
			want[*packet.Ack](pub)
			p.Dup = false
			pub.send(p)
			want[*packet.Ack](pub)
			sub.takes()
			// What nobody knows is answered all the same.
			pub.send(&packet.Ack{Kind: packet.PUBREL, ID: 9999}, &packet.Ack{Kind: packet.PUBREC, ID: 8888})
			comp, rel := want[*packet.Ack](pub), want[*packet.Ack](pub)
			if comp.Kind != packet.PUBCOMP || rel.Kind != packet.PUBREL || v == packet.V5 && (comp.Reason != packet.IDNotFound || rel.Reason != packet.IDNotFound) {
				t.Errorf("%+v %+v", comp, rel)
			}
			pub.send(&packet.Ack{Kind: packet.PUBCOMP, ID: 8888})
			pub.silent()
		})
	}
}

func TestARefusedQoS2IsNotKept(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.policy(`publish = ["ok"]`)
		c := h.device("lamp-7")
		for range 2 {
			c.send(&packet.Publish{Topic: "no", QoS: 2, ID: 5})
			if a := want[*packet.Ack](c); a.Kind != packet.PUBREC || a.Reason != packet.NotAuthorized {
				t.Errorf("%+v", a)
			}
		}
		if r := c.twice("ok", "x"); r != packet.NoSubscribers {
			t.Errorf("%#x", r)
		}
	})
}

func TestAReceiverMaySayNo(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		sub := h.device("sub", func(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 1) })
		sub.subscribe(2, "a")
		pub := h.device("pub")
		pub.twice("a", "1")
		pub.twice("a", "2")
		p := want[*packet.Publish](sub)
		sub.silent()
		sub.send(&packet.Ack{Kind: packet.PUBREC, ID: p.ID, Reason: packet.QuotaExceeded})
		if p := sub.takes(); string(p.Payload) != "2" {
			t.Errorf("%s", p.Payload)
		}
		sub.silent()
	})
}

func TestWhatWaitsComesInOrder(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		inBubble(t, func(t *testing.T, h *house) {
			h.away(v, "sub", "a/#")
			pub := h.device("pub")
			var sent []string
			for n := 1; n <= 700; n++ { // more than the queue holds at once
				s := fmt.Sprint(n)
				if sent = append(sent, s); n%3 == 0 {
					pub.twice("a/x", s)
				} else if r := pub.publish(1, "a/x", s); r != packet.Success {
					t.Fatalf("reason %#x", r)
				}
				pub.publish(0, "a/x", "nobody waits for this")
			}
			sub := h.back(v, "sub")
			if got := sub.takesAll(700); !slices.Equal(got, sent) {
				t.Errorf("got %v", got)
			}
			sub.silent()
			if n := h.store.waiting(); n != 0 {
				t.Errorf("%d messages are left on the shelf", n)
			}
			// And live, behind them.
			pub.twice("a/x", "live")
			if p := sub.takes(); string(p.Payload) != "live" || p.Dup {
				t.Errorf("%+v", p)
			}
		})
	}
}

func TestWhatWasNotAcknowledgedComesAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "sub", "a")
		pub := h.device("pub")
		pub.publish(1, "a", "one")
		pub.twice("a", "two")
		pub.twice("a", "three")
		sub := h.back(packet.V5, "sub")
		one, two, three := want[*packet.Publish](sub), want[*packet.Publish](sub), want[*packet.Publish](sub)
		sub.send(&packet.Ack{Kind: packet.PUBREC, ID: two.ID})
		if rel := want[*packet.Ack](sub); rel.Kind != packet.PUBREL {
			t.Fatalf("%+v", rel)
		}
		sub.vanish()
		synctest.Wait()
		sub = h.back(packet.V5, "sub")
		rel := want[*packet.Ack](sub)
		again, last := want[*packet.Publish](sub), want[*packet.Publish](sub)
		if rel.Kind != packet.PUBREL || rel.ID != two.ID {
			t.Errorf("%+v", rel)
		}
		if !again.Dup || again.ID != one.ID || string(again.Payload) != "one" || !last.Dup || last.ID != three.ID || last.QoS != 2 {
			t.Errorf("%+v %+v", again, last)
		}
		sub.send(&packet.Ack{Kind: packet.PUBCOMP, ID: rel.ID}, &packet.Ack{Kind: packet.PUBACK, ID: again.ID}, &packet.Ack{Kind: packet.PUBREC, ID: last.ID})
		want[*packet.Ack](sub)
		sub.send(&packet.Ack{Kind: packet.PUBCOMP, ID: last.ID})
		sub.silent()
		sub.vanish()
		synctest.Wait()
		h.back(packet.V5, "sub").silent()
		if n := h.store.waiting(); n != 0 {
			t.Errorf("%d messages are left", n)
		}
	})
}

func TestASessionEndsWhenItsTimeHasCome(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "sub", "a")
		time.Sleep(59 * time.Minute)
		h.back(packet.V5, "sub").vanish()
		synctest.Wait()
		time.Sleep(time.Hour)
		synctest.Wait()
		c := h.connect(packet.V5, "sub", h.token("sub", time.Hour), lasts)
		if c.ack.SessionPresent {
			t.Error("it is there after its end")
		}
		if r := h.device("pub").publish(1, "a", "x"); r != packet.NoSubscribers {
			t.Errorf("somebody hears: %#x", r)
		}
		// With its last words a client says otherwise.
		d := &packet.Disconnect{}
		d.Properties.SetNumber(packet.SessionExpiry, 0)
		c.send(d)
		synctest.Wait()
		if c := h.connect(packet.V5, "sub", h.token("sub", time.Hour), lasts); c.ack.SessionPresent {
			t.Error("it is there though its client ended it")
		}
		if s := h.broker.Stats(); s.Lasting != 1 {
			t.Errorf("%d sessions last", s.Lasting)
		}
		// Clean start begins anew; an end that CONNECT did not have is an error.
		c = h.device("sub")
		if c.ack.SessionPresent {
			t.Error("a session after a clean start")
		}
		d = &packet.Disconnect{}
		d.Properties.SetNumber(packet.SessionExpiry, 1)
		c.send(d)
		c.ended(packet.ProtocolError)
		synctest.Wait()
		if s := h.broker.Stats(); s.Lasting != 0 {
			t.Errorf("%d sessions last", s.Lasting)
		}
	})
}

func TestOneSubjectHasSoManySessions(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		token := h.token("lamp-7", time.Hour)
		for n := range 8 {
			h.connect(packet.V5, fmt.Sprint("lamp-7/", n), token, lasts).vanish()
			synctest.Wait()
		}
		c := h.raw(packet.V5)
		p := hello(packet.V5, "lamp-7", token)
		lasts(p)
		c.send(p)
		if ack := want[*packet.Connack](c); ack.Code != packet.QuotaExceeded {
			t.Errorf("%#x", ack.Code)
		}
		h.connect(packet.V5, "lamp-7", token).vanish() // one that does not last
		h.connect(packet.V5, "lamp-7/3", token).vanish()
		synctest.Wait()
		h.connect(packet.V5, "lamp-7", token, lasts)
	})
}

func TestNobodyIsToldBeforeItIsWritten(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "sub", "a")
		pub := h.device("pub")
		h.store.shut()
		pub.send(&packet.Publish{Topic: "a", QoS: 1, ID: 1}, &packet.Publish{Topic: "b", QoS: 1, ID: 2}, &packet.Publish{Topic: "a", QoS: 2, ID: 3})
		pub.silent() // the second one waits for nothing, but answers keep their order
		h.store.open()
		for n, kind := range []packet.Type{packet.PUBACK, packet.PUBACK, packet.PUBREC} {
			if a := want[*packet.Ack](pub); a.Kind != kind || int(a.ID) != n+1 {
				t.Errorf("%+v, want %s", a, kind)
			}
		}
		// Of a new session nobody hears before it is there, nor of a subscription.
		h.store.shut()
		c := h.raw(packet.V5)
		p := hello(packet.V5, "lamp-7", h.token("lamp-7", time.Hour))
		lasts(p)
		c.send(p, &packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "a", QoS: 1}}})
		c.silent()
		h.store.open()
		want[*packet.Connack](c)
		want[*packet.Suback](c)
		// Nor does a receiver get with QoS 2 what may be gone.
		sub := h.back(packet.V5, "sub")
		sub.takes()
		sub.takes()
		h.store.shut()
		pub.send(&packet.Publish{Topic: "a", QoS: 2, ID: 4, Payload: []byte("x")})
		sub.silent()
		h.store.open()
		sub.takes()
	})
}

func TestWhatCannotBeWrittenIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "sub", "a")
		live := h.device("live")
		live.subscribe(1, "#")
		pub, old := h.device("pub"), h.connect(packet.V311, "old", h.token("old", time.Hour))
		h.store.fail(true)
		for range 2 { // the first one finds out
			if r := pub.publish(1, "a", "lost"); r != packet.Implementation {
				t.Errorf("reason %#x", r)
			}
			live.takes()
		}
		if r := pub.publish(1, "b", "nobody who is away hears this"); r != packet.Success {
			t.Errorf("reason %#x", r)
		}
		live.takes()
		old.send(&packet.Publish{Topic: "a", QoS: 1, ID: 1})
		old.ended(0)
		live.takes()
		h.store.fail(false)
		time.Sleep(time.Second)
		synctest.Wait()
		if r := pub.publish(1, "a", "kept"); r != packet.Success {
			t.Errorf("reason %#x", r)
		}
		sub := h.back(packet.V5, "sub")
		if p := sub.takes(); string(p.Payload) != "kept" {
			t.Errorf("%s", p.Payload)
		}
		sub.silent()
	})
}

func TestAFullSessionTakesTheOldestMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, mqtt.Options{QueueMessages: 10})
		defer h.close()
		h.away(packet.V5, "sub", "a")
		pub := h.device("pub")
		for n := 1; n <= 13; n++ {
			want := packet.Success
			if n > 10 {
				want = packet.QuotaExceeded // nobody took it
			}
			if r := pub.publish(1, "a", fmt.Sprint(n)); r != want {
				t.Errorf("message %d: %#x", n, r)
			}
		}
		h.away(packet.V5, "other", "a")
		if r := pub.publish(1, "a", "14"); r != packet.Success {
			t.Errorf("where somebody takes it: %#x", r)
		}
		sub := h.back(packet.V5, "sub")
		if !slices.Contains(sub.ack.Properties.User, packet.Pair{Name: "dropped", Value: "4"}) {
			t.Errorf("%+v", sub.ack.Properties.User)
		}
		if got := sub.takesAll(10); !slices.Equal(got, numbers(1, 10)) {
			t.Errorf("%v", got)
		}
		sub.silent()
		if s := h.broker.Stats(); s.Dropped != 4 {
			t.Errorf("%d counted", s.Dropped)
		}
	})
}

func TestTheLifeOfAMessageIsCountedDown(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "sub", "a")
		pub := h.device("pub")
		for n, life := range []uint32{10, 100} {
			p := &packet.Publish{Topic: "a", QoS: 1, ID: uint16(n + 1)}
			p.Properties.SetNumber(packet.MessageExpiry, life)
			pub.send(p)
			want[*packet.Ack](pub)
		}
		time.Sleep(30 * time.Second)
		sub := h.back(packet.V5, "sub")
		p := sub.takes()
		if n, _ := p.Properties.Number(packet.MessageExpiry); n != 70 {
			t.Errorf("%d seconds left, want 70", n)
		}
		sub.silent()
		if n := h.store.waiting(); n != 0 {
			t.Errorf("%d messages are left", n)
		}
	})
}

// Sessions end and wills are due at a time of day: the clocks of clients that are away
// count monotonic time, and stand still while the machine does.
func TestTheTimeOfThoseWhoAreAwayGoesOnWhileTheMachineStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var paused atomic.Int64
		o := mqtt.Options{Now: func() time.Time { return time.Now().Add(time.Duration(paused.Load())) }}
		h := newHouse(t, o)
		defer func() {
			h.store.open()
			h.close()
		}()
		ears := h.connect(packet.V5, "ears", h.token("ears", 24*time.Hour))
		ears.subscribe(1, "will")
		h.away(packet.V5, "sub", "a") // for an hour
		h.connect(packet.V5, "last", h.token("last", 24*time.Hour), lasts, wills(1800)).vanish()
		synctest.Wait()

		// At once, before any clock is set anew: the session is over.
		paused.Add(int64(61 * time.Minute))
		if c := h.connect(packet.V5, "sub", h.token("sub", 24*time.Hour), lasts); c.ack.SessionPresent {
			t.Error("a session is there after its end")
		}
		time.Sleep(wall.Late)
		if m := ears.message(); m.Topic != "will" {
			t.Errorf("got %s", m.Topic)
		}
		synctest.Wait()
		if s := h.broker.Stats(); s.Lasting != 1 { // that of sub
			t.Errorf("%d sessions last", s.Lasting)
		}
		ears.silent()
		h.connect(packet.V5, "again", h.token("again", 24*time.Hour), lasts).vanish()
		synctest.Wait()
		paused.Add(int64(59 * time.Minute))
		time.Sleep(wall.Late)
		synctest.Wait()
		if c := h.connect(packet.V5, "again", h.token("again", 24*time.Hour), lasts); !c.ack.SessionPresent {
			t.Error("a session is gone before its end")
		}
	})
}

// A subject has room for eight lasting sessions, however they end.
func TestRoomForLastingSessions(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		connect := func(n int, edit ...func(*packet.Connect)) packet.Reason {
			t.Helper()
			c := h.raw(packet.V5)
			p := hello(packet.V5, fmt.Sprintf("sub/%d", n), h.token("sub", time.Hour))
			for _, e := range edit {
				e(p)
			}
			c.send(p)
			code := want[*packet.Connack](c).Code
			c.vanish()
			synctest.Wait()
			return code
		}
		const most = 8
		for n := range most {
			if code := connect(n, lasts); code != packet.Success {
				t.Fatalf("session %d: %#x", n, code)
			}
		}
		for round := range 3 {
			if code := connect(most+round, lasts); code != packet.QuotaExceeded {
				t.Errorf("round %d, one more: %#x, want %#x", round, code, packet.QuotaExceeded)
			}
			if code := connect(round); code != packet.Success { // a clean start, which ends with its connection
				t.Errorf("round %d, a clean start: %#x", round, code)
			}
			if code := connect(most+round, lasts); code != packet.Success {
				t.Errorf("round %d, one for the one that ended: %#x", round, code)
			}
		}
	})
}
