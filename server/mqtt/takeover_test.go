package mqtt_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// oneAtATime is for a CONNECT of a client that takes one message at a time.
func oneAtATime(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 1) }

// takeoverPair is the moment before a message of a shared group is handed on: m0 has it, and
// has not acknowledged it, m1 is the other member and, where full, takes no more now.
func (srv *testServer) takeoverPair(full bool) (m0, m1 *testClient) {
	srv.t.Helper()
	m0 = srv.connect(packet.V5, "m0", srv.token("m0", time.Hour), persistentSession)
	m0.subscribe(1, "$share/g/a")
	pub := srv.device("pub")
	pub.publish(1, "a", "one")
	want[*packet.Publish](m0)
	edits := []func(*packet.Connect){persistentSession}
	if full {
		edits = append(edits, oneAtATime)
	}
	m1 = srv.connect(packet.V5, "m1", srv.token("m1", time.Hour), edits...)
	m1.subscribe(1, "$share/g/a", "own")
	if full {
		pub.publish(1, "own", "x")
		want[*packet.Publish](m1)
	}
	synctest.Wait()
	return m0, m1
}

// A message that cannot be written with its new member stays its old one's.
func TestUncommittedRedistribution(t *testing.T) {
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprint("full ", full), func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				m0, m1 := srv.takeoverPair(full)
				srv.store.block()
				m0.closeAbruptly()
				synctest.Wait()
				srv.store.fail(true)
				if !full {
					m1.closeAbruptly()
				}
				synctest.Wait()
				time.Sleep(2 * time.Second)
				srv.store.fail(false)
				time.Sleep(time.Minute)
				if full {
					m1.send(&packet.Ack{Kind: packet.PUBACK, ID: 1})
				}
				received := len(m1.got)
				m0 = srv.reconnect(packet.V5, "m0")
				if !full {
					m1 = srv.reconnect(packet.V5, "m1")
				}
				synctest.Wait()
				if received+len(m0.got)+len(m1.got) == 0 {
					t.Error("an acknowledged message is lost")
				}
			})
		})
	}
}

func TestCrashDuringTakeover(t *testing.T) {
	for range 20 { // whose write is first is not the test's to say
		inBubble(t, func(t *testing.T, srv *testServer) {
			m0, _ := srv.takeoverPair(true)
			srv.store.mu.Lock()
			srv.store.last = true
			srv.store.mu.Unlock()
			m0.closeAbruptly()
			synctest.Wait()
			srv.crash(mqtt.Options{})
			m0, m1 := srv.reconnect(packet.V5, "m0"), srv.reconnect(packet.V5, "m1")
			m1.receive() // its own, that it did not acknowledge
			synctest.Wait()
			if len(m0.got)+len(m1.got) == 0 {
				t.Error("an acknowledged message is lost by a crash")
			}
		})
	}
}

// A session whose end meets a crash: the group has what it had.
func TestASessionThatEndsAtACrash(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "m0", "$share/g/a")
		srv.device("pub").publish(1, "a", "one")
		srv.leaveOffline(packet.V5, "m1", "$share/g/a")
		synctest.Wait()
		srv.store.mu.Lock()
		srv.store.last, srv.store.slow = true, time.Second // what is written before the message is read, is all
		srv.store.mu.Unlock()
		srv.state("m0", watchword.Revoked)
		time.Sleep(2 * time.Second)
		srv.crash(mqtt.Options{})
		srv.state("m0", watchword.Revoked) // also where its end was not written
		synctest.Wait()
		m1 := srv.reconnect(packet.V5, "m1")
		synctest.Wait()
		if len(m1.got) == 0 {
			t.Error("an acknowledged message is lost by a crash")
		}
	})
}

// One of the messages of two groups that a session has is handed on to the group whose it
// is, though the filters overlap.
func TestGroupsThatOverlap(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "m0", "$share/a/x/#", "$share/b/x/+", "hold")
		b1 := srv.device("b1")
		b1.subscribe(1, "$share/b/x/+")
		pub := srv.device("pub")
		for n := range 200 { // more than is fetched at first
			pub.publish(1, "hold", fmt.Sprint(n))
		}
		for n := range 3 {
			pub.publish(1, "x/1", fmt.Sprint(n))
			b1.receive()
		}
		c := srv.connect(packet.V5, "m0", srv.token("m0", time.Hour), persistentSession, oneAtATime)
		first := want[*packet.Publish](c)
		synctest.Wait()
		c.send(&packet.Unsubscribe{ID: c.id(), Filters: []string{"$share/b/x/+"}})
		want[*packet.Unsuback](c)
		b1.wantNothing() // none of group a's is group b's
		c.send(&packet.Ack{Kind: packet.PUBACK, ID: first.ID})
		c.receiveAll(199)
		if got := c.receiveAll(3); got[0] != "0" || got[2] != "2" {
			t.Errorf("group a received %v", got)
		}
		c.wantNothing()
	})
}

// What was fetched from the store for a member still belongs to its group.
func TestFetchedMessagesAreRedistributed(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "m0", "$share/g/a")
		pub := srv.device("pub")
		for n := 1; n <= 5; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		c := srv.connect(packet.V5, "m0", srv.token("m0", time.Hour), persistentSession, oneAtATime)
		want[*packet.Publish](c)
		m1 := srv.device("m1")
		m1.subscribe(1, "$share/g/a")
		c.closeAbruptly()
		synctest.Wait()
		srv.device("m0") // begins anew
		m1.receiveAll(5)
		m1.wantNothing()
	})
}

// A member that has finished its work counts as free as a new one.
func TestSharedGroupSeesAcknowledgedMessages(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		nc, theirs := net2()
		srv.broker.Handle(theirs)
		slow := &testClient{t: t, v: packet.V5, nc: nc, got: make(chan packet.Packet, 4096)}
		go slow.send(hello(packet.V5, "m0", srv.token("m0", time.Hour)), &packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "$share/g/a"}}})
		pub := srv.device("pub")
		synctest.Wait() // m0 reads nothing yet, also not its CONNACK
		for range 50 {
			pub.publish(0, "a", "x")
		}
		synctest.Wait()
		m1 := srv.device("m1")
		m1.subscribe(0, "$share/g/a")
		go slow.read()
		want[*packet.Connack](slow)
		want[*packet.Suback](slow)
		for range 50 {
			want[*packet.Publish](slow)
		}
		for range 40 {
			pub.publish(0, "a", "y")
			synctest.Wait()
		}
		if n := len(m1.got); n < 15 || n > 25 {
			t.Errorf("%d of 40 for one of two who have nothing to do", n)
		}
	})
}

// A member whose session ends has more than was fetched for it: all of it is the group's.
func TestEndedSessionRedistributesToGroup(t *testing.T) {
	for name, ends := range map[string]func(srv *testServer, m0 *testClient){
		"by DISCONNECT": func(_ *testServer, m0 *testClient) {
			d := &packet.Disconnect{}
			d.Properties.SetNumber(packet.SessionExpiryInterval, 0)
			m0.send(d)
		},
		"by a clean start": func(srv *testServer, m0 *testClient) {
			m0.closeAbruptly()
			synctest.Wait()
			srv.device("m0")
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				const all = 600
				m0 := srv.connect(packet.V5, "m0", srv.token("m0", time.Hour), persistentSession, oneAtATime)
				m0.subscribe(1, "$share/g/a")
				pub := srv.device("pub")
				for n := range all {
					pub.publish(1, "a", fmt.Sprint(n))
				}
				m1 := srv.device("m1")
				m1.subscribe(1, "$share/g/a")
				ends(srv, m0)
				m1.receiveAll(all)
				m1.wantNothing()
			})
		})
	}
}
