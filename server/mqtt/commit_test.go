package mqtt_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// A publish whose write failed may be said again, and is then taken.
func TestFailedCommitDoesNotAffectLaterPublish(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "sub", "a")
		pub := srv.connect(packet.V311, "pub", srv.token("pub", time.Hour), persistentSession)
		srv.store.block()
		p := &packet.Publish{Topic: "a", QoS: 2, ID: 5, Payload: []byte("x")}
		pub.send(p)
		synctest.Wait()
		srv.store.fail(true)
		pub.wantDisconnect(0)
		srv.store.fail(false)
		time.Sleep(5 * time.Second)
		pub = srv.reconnect(packet.V311, "pub")
		p.Dup = true
		pub.send(p)
		if a := want[*packet.Ack](pub); a.Kind != packet.PUBREC || a.ID != 5 {
			t.Errorf("%+v", a)
		}
	})
}

// Writes after a failed write fail with it; clients that wait for the next ones are not delayed by it.
func TestFailureAfterWriteBlocksNobody(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		sub := srv.connect(packet.V5, "sub", srv.token("sub", time.Hour), persistentSession)
		sub.subscribe(2, "a")
		srv.leaveOffline(packet.V5, "other", "b")
		first, second := srv.device("first"), srv.device("second")
		synctest.Wait()
		srv.store.block()
		first.send(&packet.Publish{Topic: "b", QoS: 1, ID: 1, Payload: []byte("being written")})
		synctest.Wait()
		second.send(&packet.Publish{Topic: "a", QoS: 2, ID: 1, Payload: []byte("behind it")})
		sub.wantNothing()
		srv.store.fail(true)
		if a := want[*packet.Ack](first); !a.Reason.Failed() {
			t.Errorf("%+v", a)
		}
		if a := want[*packet.Ack](second); !a.Reason.Failed() {
			t.Errorf("%+v", a)
		}
		synctest.Wait()
		if s := srv.broker.SessionStates(watchword.DefaultTenant, "sub"); s[0].Messages != 0 || s[0].Bytes != 0 {
			t.Errorf("%+v", s[0])
		}
		srv.store.fail(false)
		time.Sleep(time.Second)
		second.publishQoS2("a", "after it")
		if p := sub.receive(); string(p.Payload) != "after it" {
			t.Errorf("%s", p.Payload)
		}
	})
}

func TestPublishReportsFailure(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "sub", "a")
		srv.store.fail(true)
		for range 2 { // the first finds it out, the second knows
			if srv.publish(&bus.Document{Name: "a", Payload: []byte("x")}) == nil {
				t.Error("nil, and not kept")
			}
		}
		srv.store.fail(false)
	})
}

func TestPublishAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{})
		srv.leaveOffline(packet.V5, "sub", "a")
		srv.close()
		done := make(chan error, 1)
		go func() { done <- srv.publish(&bus.Document{Name: "a", Payload: []byte("x")}) }()
		if err := <-done; err == nil {
			t.Error("nil, and not kept")
		}
	})
}

// A session is resumed when the last packets of its client are on the disk, and not before: otherwise repeated packets
// would be answered as if they were.
func TestReconnectWaitsForCommit(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		pub := srv.connect(packet.V5, "pub", srv.token("pub", time.Hour), persistentSession)
		pub.send(&packet.Publish{Topic: "a", QoS: 2, ID: 5, Payload: []byte("one")})
		want[*packet.Ack](pub)
		srv.store.block()
		pub.send(&packet.Ack{Kind: packet.PUBREL, ID: 5})
		synctest.Wait()
		pub.closeAbruptly()
		synctest.Wait()
		c := srv.dialRaw(packet.V5)
		p := hello(packet.V5, "pub", srv.token("pub", time.Hour))
		persistentSession(p)
		c.send(p, &packet.Ack{Kind: packet.PUBREL, ID: 5})
		c.wantNothing()
		srv.store.unblock()
		if ack := want[*packet.Connack](c); !ack.SessionPresent {
			t.Error("no session")
		}
		if comp := want[*packet.Ack](c); comp.Kind != packet.PUBCOMP {
			t.Errorf("%+v", comp)
		}
	})
}

// What is too large for its receiver is passed over, and leaves no trace of itself.
func TestUnsentMessagesGrowNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		c := srv.connect(packet.V5, "sub", srv.token("sub", time.Hour), persistentSession, func(p *packet.Connect) { p.Properties.SetNumber(packet.MaximumPacketSize, 200) })
		c.subscribe(1, "a")
		pub := srv.device("pub")
		big := strings.Repeat("x", 300)
		for range 3000 {
			pub.publish(1, "a", big)
		}
		synctest.Wait()
		for _, s := range srv.store.sessions {
			if n := len(s.Progress); n > 1000 {
				t.Errorf("%d bytes of progress", n)
			}
		}
	})
}

// Messages that other members of a group have taken leave no trace in an offline session that has queued messages of its
// own.
func TestRedistributedMessagesGrowNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "away", "own", "$share/g/q")
		pub := srv.device("pub")
		pub.publish(1, "own", "first")
		const rounds, each = 15, 40
		for range rounds {
			for n := range each {
				pub.publish(1, "q", fmt.Sprint(n))
			}
			c := srv.device("there")
			c.subscribe(1, "$share/g/q")
			for range each {
				c.receive()
			}
			synctest.Wait()
			c.closeAbruptly()
			synctest.Wait()
		}
		pub.publish(1, "own", "last")
		synctest.Wait()
		for _, s := range srv.store.sessions {
			if n := len(s.Progress); n > 100 {
				t.Errorf("%d bytes of progress", n)
			}
		}
		srv.crash(mqtt.Options{})
		c := srv.reconnect(packet.V5, "away")
		for _, text := range []string{"first", "last"} {
			if m := c.receive(); string(m.Payload) != text {
				t.Errorf("got %s %q, want %q", m.Topic, m.Payload, text)
			}
		}
		c.wantNothing()
	})
}

// A disk that is slow makes no room: what is to be written counts among what waits.
func TestUncommittedMessagesCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{OfflineBytes: 10_000})
		defer srv.close()
		srv.leaveOffline(packet.V5, "sub", "a")
		pub := srv.device("pub")
		srv.store.block()
		for range 20 {
			pub.send(&packet.Publish{Topic: "a", QoS: 1, ID: pub.id(), Payload: []byte(strings.Repeat("x", 900))})
		}
		synctest.Wait()
		if s := srv.broker.Stats(); s.OfflineBytes < 9000 || s.OfflineBytes > 11_000 || s.OfflineMessages != 11 {
			t.Errorf("%d messages of %d bytes wait", s.OfflineMessages, s.OfflineBytes)
		}
		srv.store.unblock()
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
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "sub", "a")
		pub := srv.device("pub")
		took := 0
		for range 100 {
			p := &packet.Publish{Topic: "a", QoS: 1, ID: pub.id(), Payload: []byte("x")}
			p.Properties.User = []packet.UserProp{{Name: "n", Value: strings.Repeat("v", 30000)}}
			pub.send(p)
			if !want[*packet.Ack](pub).Reason.Failed() {
				took++
			}
		}
		if took < 30 || took > 35 { // of 30 kB each, a megabyte
			t.Errorf("%d were taken", took)
		}
		bytes := func() int { return srv.broker.SessionStates(watchword.DefaultTenant, "sub")[0].Bytes }
		if n := bytes(); n < took*30000 {
			t.Errorf("%d bytes are counted", n)
		}
		srv.crash(mqtt.Options{})
		c := srv.reconnect(packet.V5, "sub")
		c.receiveAll(took)
		synctest.Wait()
		if n := bytes(); n != 0 {
			t.Errorf("%d bytes when nothing waits", n)
		}
	})
}

// A full offline session disconnects no publisher.
func TestFullOfflineSessionClosesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{QueueMessages: 3})
		defer srv.close()
		srv.leaveOffline(packet.V5, "sub", "a")
		pub := srv.connect(packet.V311, "pub", srv.token("pub", time.Hour))
		for range 4 {
			pub.publish(1, "a", "x")
		}
	})
}

// A session that began in the place of another whose end was not written is the one.
func TestLaterSessionWins(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "sub", "a")
		srv.device("pub").publish(1, "a", "of the first")
		old := srv.store.freeze()
		srv.store.unblock()
		srv.connect(packet.V5, "sub", srv.token("sub", time.Hour), persistentSession, func(p *packet.Connect) { p.CleanStart = true }).subscribe(1, "b")
		srv.device("pub").publish(1, "b", "of the second")
		synctest.Wait()
		maps.Copy(srv.store.sessions, old.sessions)
		maps.Copy(srv.store.subs, old.subs)
		maps.Copy(srv.store.messages, old.messages)
		srv.crash(mqtt.Options{})
		if n := srv.broker.Stats().PersistentSessions; n != 1 {
			t.Errorf("%d sessions", n)
		}
		sub := srv.reconnect(packet.V5, "sub")
		sub.wantMessage("b", "of the second")
		sub.wantNothing()
		synctest.Wait()
		if n := len(srv.store.sessions); n != 1 {
			t.Errorf("%d sessions in the store", n)
		}
	})
}
