package mqtt_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/clockjump"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// persistentSession makes a CONNECT whose session outlives its connection by an hour.
func persistentSession(p *packet.Connect) {
	p.CleanStart = false
	if p.Version == packet.V5 {
		p.Properties.SetNumber(packet.SessionExpiryInterval, 3600)
	}
}

// leaveOffline connects a device whose session lasts, subscribes at QoS 2, and vanishes.
func (srv *testServer) leaveOffline(v packet.Version, id watchword.SubjectID, filters ...string) {
	srv.t.Helper()
	c := srv.connect(v, string(id), srv.token(id, time.Hour), persistentSession)
	if c.ack.SessionPresent {
		srv.t.Fatal("a session was there")
	}
	c.subscribe(2, filters...)
	c.closeAbruptly()
	synctest.Wait()
}

// reconnect connects it again.
func (srv *testServer) reconnect(v packet.Version, id watchword.SubjectID) *testClient {
	srv.t.Helper()
	c := srv.connect(v, string(id), srv.token(id, time.Hour), persistentSession)
	if !c.ack.SessionPresent {
		srv.t.Fatal("no session present")
	}
	return c
}

// publishQoS2 publishes with QoS 2, all four packets of it, and returns the reason of PUBREC.
func (c *testClient) publishQoS2(topic, payload string) packet.Reason {
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

// receive receives one message, whatever its QoS asks for.
func (c *testClient) receive() *packet.Publish {
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

func (c *testClient) receiveAll(n int) (payloads []string) {
	c.t.Helper()
	for range n {
		payloads = append(payloads, string(c.receive().Payload))
	}
	return payloads
}

func sequence(from, to int) (out []string) {
	for n := from; n <= to; n++ {
		out = append(out, fmt.Sprint(n))
	}
	return out
}

func TestQoS2GoesThroughOnce(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		inBubble(t, func(t *testing.T, srv *testServer) {
			sub := srv.connect(v, "sub", srv.token("sub", time.Hour))
			sub.subscribe(2, "a")
			pub := srv.connect(v, "pub", srv.token("pub", time.Hour))
			if r := pub.publishQoS2("a", "one"); r != packet.Success {
				t.Errorf("reason %#x", r)
			}
			if p := sub.receive(); p.QoS != 2 || string(p.Payload) != "one" {
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
			sub.receive()
			sub.wantNothing()
			pub.send(&packet.Ack{Kind: packet.PUBREL, ID: 77})
			want[*packet.Ack](pub)
			p.Dup = false
			pub.send(p)
			want[*packet.Ack](pub)
			sub.receive()
			// An unknown identifier is answered too.
			pub.send(&packet.Ack{Kind: packet.PUBREL, ID: 9999}, &packet.Ack{Kind: packet.PUBREC, ID: 8888})
			comp, rel := want[*packet.Ack](pub), want[*packet.Ack](pub)
			if comp.Kind != packet.PUBCOMP || rel.Kind != packet.PUBREL || v == packet.V5 && (comp.Reason != packet.PacketIdentifierNotFound || rel.Reason != packet.PacketIdentifierNotFound) {
				t.Errorf("%+v %+v", comp, rel)
			}
			pub.send(&packet.Ack{Kind: packet.PUBCOMP, ID: 8888})
			pub.wantNothing()
		})
	}
}

func TestRefusedQoS2IsNotStored(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.policy(`publish = ["ok"]`)
		c := srv.device("lamp-7")
		for range 2 {
			c.send(&packet.Publish{Topic: "no", QoS: 2, ID: 5})
			if a := want[*packet.Ack](c); a.Kind != packet.PUBREC || a.Reason != packet.NotAuthorized {
				t.Errorf("%+v", a)
			}
		}
		if r := c.publishQoS2("ok", "x"); r != packet.NoMatchingSubscribers {
			t.Errorf("%#x", r)
		}
	})
}

func TestReceiverMayRefuse(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		sub := srv.device("sub", func(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 1) })
		sub.subscribe(2, "a")
		pub := srv.device("pub")
		pub.publishQoS2("a", "1")
		pub.publishQoS2("a", "2")
		p := want[*packet.Publish](sub)
		sub.wantNothing()
		sub.send(&packet.Ack{Kind: packet.PUBREC, ID: p.ID, Reason: packet.QuotaExceeded})
		if p := sub.receive(); string(p.Payload) != "2" {
			t.Errorf("%s", p.Payload)
		}
		sub.wantNothing()
	})
}

func TestStoredMessagesArriveInOrder(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		inBubble(t, func(t *testing.T, srv *testServer) {
			srv.leaveOffline(v, "sub", "a/#")
			pub := srv.device("pub")
			var sent []string
			for n := 1; n <= 700; n++ { // more than the queue holds at once
				s := fmt.Sprint(n)
				if sent = append(sent, s); n%3 == 0 {
					pub.publishQoS2("a/x", s)
				} else if r := pub.publish(1, "a/x", s); r != packet.Success {
					t.Fatalf("reason %#x", r)
				}
				pub.publish(0, "a/x", "no client waits for this")
			}
			synctest.Wait() // the last one with QoS 0 is handled before the client is back
			sub := srv.reconnect(v, "sub")
			if got := sub.receiveAll(700); !slices.Equal(got, sent) {
				t.Errorf("got %v", got)
			}
			sub.wantNothing()
			if n := srv.store.waiting(); n != 0 {
				t.Errorf("%d messages are left in the store", n)
			}
			// And live, behind them.
			pub.publishQoS2("a/x", "live")
			if p := sub.receive(); string(p.Payload) != "live" || p.Dup {
				t.Errorf("%+v", p)
			}
		})
	}
}

func TestUnacknowledgedIsRedelivered(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "sub", "a")
		pub := srv.device("pub")
		pub.publish(1, "a", "one")
		pub.publishQoS2("a", "two")
		pub.publishQoS2("a", "three")
		sub := srv.reconnect(packet.V5, "sub")
		one, two, three := want[*packet.Publish](sub), want[*packet.Publish](sub), want[*packet.Publish](sub)
		sub.send(&packet.Ack{Kind: packet.PUBREC, ID: two.ID})
		if rel := want[*packet.Ack](sub); rel.Kind != packet.PUBREL {
			t.Fatalf("%+v", rel)
		}
		sub.closeAbruptly()
		synctest.Wait()
		sub = srv.reconnect(packet.V5, "sub")
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
		sub.wantNothing()
		sub.closeAbruptly()
		synctest.Wait()
		srv.reconnect(packet.V5, "sub").wantNothing()
		if n := srv.store.waiting(); n != 0 {
			t.Errorf("%d messages are left", n)
		}
	})
}

func TestSessionExpires(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "sub", "a")
		time.Sleep(59 * time.Minute)
		srv.reconnect(packet.V5, "sub").closeAbruptly()
		synctest.Wait()
		time.Sleep(time.Hour)
		synctest.Wait()
		c := srv.connect(packet.V5, "sub", srv.token("sub", time.Hour), persistentSession)
		if c.ack.SessionPresent {
			t.Error("it is there after its end")
		}
		if r := srv.device("pub").publish(1, "a", "x"); r != packet.NoMatchingSubscribers {
			t.Errorf("a client receives it: %#x", r)
		}
		// With its last words a client says otherwise.
		d := &packet.Disconnect{}
		d.Properties.SetNumber(packet.SessionExpiryInterval, 0)
		c.send(d)
		synctest.Wait()
		if c := srv.connect(packet.V5, "sub", srv.token("sub", time.Hour), persistentSession); c.ack.SessionPresent {
			t.Error("it is there though its client ended it")
		}
		if s := srv.broker.Stats(); s.PersistentSessions != 1 {
			t.Errorf("%d sessions last", s.PersistentSessions)
		}
		// Clean start begins anew; an end that CONNECT did not have is an error.
		c = srv.device("sub")
		if c.ack.SessionPresent {
			t.Error("a session after a clean start")
		}
		d = &packet.Disconnect{}
		d.Properties.SetNumber(packet.SessionExpiryInterval, 1)
		c.send(d)
		c.wantDisconnect(packet.ProtocolError)
		synctest.Wait()
		if s := srv.broker.Stats(); s.PersistentSessions != 0 {
			t.Errorf("%d sessions last", s.PersistentSessions)
		}
	})
}

func TestPersistentSessionsPerSubjectAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		token := srv.token("lamp-7", time.Hour)
		for n := range 8 {
			srv.connect(packet.V5, fmt.Sprint("lamp-7/", n), token, persistentSession).closeAbruptly()
			synctest.Wait()
		}
		c := srv.dialRaw(packet.V5)
		p := hello(packet.V5, "lamp-7", token)
		persistentSession(p)
		c.send(p)
		if ack := want[*packet.Connack](c); ack.Code != packet.QuotaExceeded {
			t.Errorf("%#x", ack.Code)
		}
		srv.connect(packet.V5, "lamp-7", token).closeAbruptly() // one that does not last
		srv.connect(packet.V5, "lamp-7/3", token).closeAbruptly()
		synctest.Wait()
		srv.connect(packet.V5, "lamp-7", token, persistentSession)
	})
}

func TestNoAcknowledgementBeforeCommit(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "sub", "a")
		pub := srv.device("pub")
		srv.store.block()
		pub.send(&packet.Publish{Topic: "a", QoS: 1, ID: 1}, &packet.Publish{Topic: "b", QoS: 1, ID: 2}, &packet.Publish{Topic: "a", QoS: 2, ID: 3})
		pub.wantNothing() // the second one waits for nothing, but answers keep their order
		srv.store.unblock()
		for n, kind := range []packet.Type{packet.PUBACK, packet.PUBACK, packet.PUBREC} {
			if a := want[*packet.Ack](pub); a.Kind != kind || int(a.ID) != n+1 {
				t.Errorf("%+v, want %s", a, kind)
			}
		}
		// A new session, or subscription, is not announced before it is stored.
		srv.store.block()
		c := srv.dialRaw(packet.V5)
		p := hello(packet.V5, "lamp-7", srv.token("lamp-7", time.Hour))
		persistentSession(p)
		c.send(p, &packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "a", QoS: 1}}})
		c.wantNothing()
		srv.store.unblock()
		want[*packet.Connack](c)
		want[*packet.Suback](c)
		// Nor does a receiver get with QoS 2 what may be gone.
		sub := srv.reconnect(packet.V5, "sub")
		sub.receive()
		sub.receive()
		srv.store.block()
		pub.send(&packet.Publish{Topic: "a", QoS: 2, ID: 4, Payload: []byte("x")})
		sub.wantNothing()
		srv.store.unblock()
		sub.receive()
	})
}

func TestUnwritableMessageIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "sub", "a")
		live := srv.device("live")
		live.subscribe(1, "#")
		pub, old := srv.device("pub"), srv.connect(packet.V311, "old", srv.token("old", time.Hour))
		srv.store.fail(true)
		for range 2 { // the first one finds out
			if r := pub.publish(1, "a", "lost"); r != packet.ImplementationSpecificError {
				t.Errorf("reason %#x", r)
			}
			live.receive()
		}
		if r := pub.publish(1, "b", "no offline client receives this"); r != packet.Success {
			t.Errorf("reason %#x", r)
		}
		live.receive()
		old.send(&packet.Publish{Topic: "a", QoS: 1, ID: 1})
		old.wantDisconnect(0)
		live.receive()
		srv.store.fail(false)
		time.Sleep(time.Second)
		synctest.Wait()
		if r := pub.publish(1, "a", "kept"); r != packet.Success {
			t.Errorf("reason %#x", r)
		}
		sub := srv.reconnect(packet.V5, "sub")
		if p := sub.receive(); string(p.Payload) != "kept" {
			t.Errorf("%s", p.Payload)
		}
		sub.wantNothing()
	})
}

func TestFullSessionKeepsOldestMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{QueueMessages: 10})
		defer srv.close()
		srv.leaveOffline(packet.V5, "sub", "a")
		pub := srv.device("pub")
		for n := 1; n <= 13; n++ {
			want := packet.Success
			if n > 10 {
				want = packet.QuotaExceeded // no session accepted it
			}
			if r := pub.publish(1, "a", fmt.Sprint(n)); r != want {
				t.Errorf("message %d: %#x", n, r)
			}
		}
		srv.leaveOffline(packet.V5, "other", "a")
		if r := pub.publish(1, "a", "14"); r != packet.Success {
			t.Errorf("where a client takes it: %#x", r)
		}
		sub := srv.reconnect(packet.V5, "sub")
		if !slices.Contains(sub.ack.Properties.User, packet.UserProp{Name: "dropped", Value: "4"}) {
			t.Errorf("%+v", sub.ack.Properties.User)
		}
		if got := sub.receiveAll(10); !slices.Equal(got, sequence(1, 10)) {
			t.Errorf("%v", got)
		}
		sub.wantNothing()
		if s := srv.broker.Stats(); s.Dropped != 4 {
			t.Errorf("%d counted", s.Dropped)
		}
	})
}

func TestMessageExpiryIntervalIsReduced(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "sub", "a")
		pub := srv.device("pub")
		for n, life := range []uint32{10, 100} {
			p := &packet.Publish{Topic: "a", QoS: 1, ID: uint16(n + 1)}
			p.Properties.SetNumber(packet.MessageExpiryInterval, life)
			pub.send(p)
			want[*packet.Ack](pub)
		}
		time.Sleep(30 * time.Second)
		sub := srv.reconnect(packet.V5, "sub")
		p := sub.receive()
		if n, _ := p.Properties.Number(packet.MessageExpiryInterval); n != 70 {
			t.Errorf("%d seconds left, want 70", n)
		}
		sub.wantNothing()
		if n := srv.store.waiting(); n != 0 {
			t.Errorf("%d messages are left", n)
		}
	})
}

// Sessions expire and wills are due at a time of day: the timers of offline clients count monotonic time, which does not
// advance while the machine is paused.
func TestOfflineTimersSurviveMachinePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var paused atomic.Int64
		o := mqtt.Options{Now: func() time.Time { return time.Now().Add(time.Duration(paused.Load())) }}
		srv := newTestServer(t, o)
		defer func() {
			srv.store.unblock()
			srv.close()
		}()
		ears := srv.connect(packet.V5, "ears", srv.token("ears", 24*time.Hour))
		ears.subscribe(1, "will")
		srv.leaveOffline(packet.V5, "sub", "a") // for an hour
		srv.connect(packet.V5, "last", srv.token("last", 24*time.Hour), persistentSession, delayedWill(1800)).closeAbruptly()
		synctest.Wait()

		// At once, before any timer is set again: the session has expired.
		paused.Add(int64(61 * time.Minute))
		if c := srv.connect(packet.V5, "sub", srv.token("sub", 24*time.Hour), persistentSession); c.ack.SessionPresent {
			t.Error("a session is there after its end")
		}
		time.Sleep(clockjump.Late)
		if m := ears.receiveAndAck(); m.Topic != "will" {
			t.Errorf("got %s", m.Topic)
		}
		synctest.Wait()
		if s := srv.broker.Stats(); s.PersistentSessions != 1 { // that of sub
			t.Errorf("%d sessions last", s.PersistentSessions)
		}
		ears.wantNothing()
		srv.connect(packet.V5, "again", srv.token("again", 24*time.Hour), persistentSession).closeAbruptly()
		synctest.Wait()
		paused.Add(int64(59 * time.Minute))
		time.Sleep(clockjump.Late)
		synctest.Wait()
		if c := srv.connect(packet.V5, "again", srv.token("again", 24*time.Hour), persistentSession); !c.ack.SessionPresent {
			t.Error("a session is gone before its end")
		}
	})
}

// A subject has room for eight lasting sessions, however they end.
func TestPersistentSessionQuota(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		connect := func(n int, edit ...func(*packet.Connect)) packet.Reason {
			t.Helper()
			c := srv.dialRaw(packet.V5)
			p := hello(packet.V5, fmt.Sprintf("sub/%d", n), srv.token("sub", time.Hour))
			for _, e := range edit {
				e(p)
			}
			c.send(p)
			code := want[*packet.Connack](c).Code
			c.closeAbruptly()
			synctest.Wait()
			return code
		}
		const most = 8
		for n := range most {
			if code := connect(n, persistentSession); code != packet.Success {
				t.Fatalf("session %d: %#x", n, code)
			}
		}
		for round := range 3 {
			if code := connect(most+round, persistentSession); code != packet.QuotaExceeded {
				t.Errorf("round %d, one more: %#x, want %#x", round, code, packet.QuotaExceeded)
			}
			if code := connect(round); code != packet.Success { // a clean start, which ends with its connection
				t.Errorf("round %d, a clean start: %#x", round, code)
			}
			if code := connect(most+round, persistentSession); code != packet.Success {
				t.Errorf("round %d, one for the one that ended: %#x", round, code)
			}
		}
	})
}
