package mqtt_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/mqtt"
)

func TestOneGroupMemberGetsEachMessage(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		pub := srv.device("pub")
		var members []*testClient
		for n := range 4 {
			c := srv.device(watchword.SubjectID(fmt.Sprint("m", n)))
			c.subscribe(1, "$share/g/a/#")
			members = append(members, c)
		}
		other, plain := srv.device("other"), srv.device("plain")
		other.subscribe(1, "$share/h/a/#")
		plain.subscribe(1, "a/+", "$share/g2/a/b")
		const each = 50
		for range each * 4 {
			pub.publish(1, "a/b", "x")
			synctest.Wait()
		}
		for n, c := range members {
			c.receiveAll(each)
			c.wantNothing()
			if n == 0 {
				c.send(&packet.Unsubscribe{ID: c.id(), Filters: []string{"$share/g/a/#"}})
				want[*packet.Unsuback](c)
			}
		}
		other.receiveAll(4 * each)
		plain.receiveAll(8 * each) // a group's copy is one of its own
		for range 30 {
			pub.publish(1, "a/b", "x")
		}
		members[0].wantNothing()
		for _, c := range members[1:] {
			c.receiveAll(10)
		}
		// A member with more outstanding work gets less.
		slow := 0
		for range 30 {
			pub.publish(1, "a/b", "x")
			synctest.Wait()
			for _, c := range members[2:] {
				if len(c.got) > 0 {
					c.receive()
				}
			}
			slow = max(slow, len(members[1].got))
			synctest.Wait()
		}
		if slow != 1 {
			t.Errorf("%d messages for a client that takes none", slow)
		}
	})
}

func TestSharedGroupContinuesAfterMemberLeaves(t *testing.T) {
	for name, goes := range map[string]func(srv *testServer, c *testClient){
		"it vanishes": func(_ *testServer, c *testClient) { c.closeAbruptly() },
		"it unsubscribes": func(_ *testServer, c *testClient) {
			c.send(&packet.Unsubscribe{ID: c.id(), Filters: []string{"$share/g/a"}})
		},
		"it loses its right": func(srv *testServer, _ *testClient) {
			srv.policy(`publish = ["#"]`, `subscribe = ["x/#"]`)
		},
		"it is suspended": func(srv *testServer, _ *testClient) { srv.state("m0", watchword.Suspended) },
	} {
		for _, edit := range []func(*packet.Connect){func(*packet.Connect) {}, persistentSession} {
			t.Run(name, func(t *testing.T) {
				inBubble(t, func(t *testing.T, srv *testServer) {
					srv.policy(`publish = ["#"]`, `subscribe = ["#"]`)
					pub := srv.device("pub")
					one := srv.device("m0", edit, func(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 1) })
					one.subscribe(1, "$share/g/a")
					for n := 1; n <= 5; n++ {
						pub.publish(1, "a", fmt.Sprint(n))
					}
					want[*packet.Publish](one) // and no acknowledgement
					two := srv.device("m1")
					if name == "it loses its right" { // the member that has it keeps it
						srv.policy(`publish = ["#"]`, `subscribe = ["x/#"]`)
						synctest.Wait()
						return
					}
					two.subscribe(1, "$share/g/a")
					goes(srv, one)
					got := two.receiveAll(5)
					if slices.Sort(got); !slices.Equal(got, sequence(1, 5)) {
						t.Errorf("%v", got)
					}
					two.wantNothing()
				})
			})
		}
	}
}

func TestOfflineSharedGroupStoresMessages(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "m0", "$share/g/a")
		pub := srv.device("pub")
		for n := 1; n <= 3; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		two := srv.device("m1")
		two.subscribe(1, "$share/g/a")
		for n := 4; n <= 6; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		// Queued messages belong to the group: the first member gets them, and newer ones after them.
		if got := two.receiveAll(6); !slices.Equal(got, sequence(1, 6)) {
			t.Errorf("%v", got)
		}
		two.wantNothing()
		srv.reconnect(packet.V5, "m0").wantNothing()
	})
}

// Messages that arrive without a connected member are queued for the group: the first member gets all of them, in order,
// also those in several sessions and more than are moved at once.
func TestFirstMemberOnlineGetsGroupBacklog(t *testing.T) {
	for name, c := range map[string]struct {
		n     int
		crash bool
		comes func(srv *testServer) *testClient
	}{
		"one of the four":                   {12, false, func(srv *testServer) *testClient { return srv.reconnect(packet.V5, "m2") }},
		"one of the four, more than a page": {700, false, func(srv *testServer) *testClient { return srv.reconnect(packet.V5, "m2") }},
		"one of the four, after a crash":    {300, true, func(srv *testServer) *testClient { return srv.reconnect(packet.V5, "m2") }},
		"another, whose session does not last": {300, false, func(srv *testServer) *testClient {
			c := srv.device("m9")
			c.subscribe(1, "$share/g/a")
			return c
		}},
		"another, that takes one at a time": {300, false, func(srv *testServer) *testClient {
			c := srv.device("m9", oneAtATime)
			c.subscribe(1, "$share/g/a")
			return c
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				for n := range 4 {
					srv.leaveOffline(packet.V5, watchword.SubjectID(fmt.Sprint("m", n)), "$share/g/a", fmt.Sprint("own", n))
				}
				pub := srv.device("pub")
				for n := 1; n <= c.n; n++ {
					pub.publish(1, "a", fmt.Sprint(n))
				}
				for n := range 4 {
					pub.publish(1, fmt.Sprint("own", n), "x")
				}
				if c.crash {
					srv.crash(mqtt.Options{})
				}
				first := c.comes(srv)
				own := 0
				var got []string
				for len(got) < c.n {
					m := first.receive()
					if m.Topic != "a" {
						own++
						continue
					}
					got = append(got, string(m.Payload))
				}
				if !slices.Equal(got, sequence(1, c.n)) {
					t.Errorf("%v", got)
				}
				first.wantNothing()
				for n := range 4 { // what is their own is still there, and nothing of the group's
					if n == 2 && own == 1 {
						continue
					}
					m := srv.reconnect(packet.V5, watchword.SubjectID(fmt.Sprint("m", n)))
					m.wantMessage(fmt.Sprint("own", n), "x")
					m.wantNothing()
				}
				synctest.Wait()
				if n := srv.store.waiting(); n != 0 {
					t.Errorf("%d messages are left in the store", n)
				}
			})
		})
	}
}

// What lay in the store for a member that was busy is its group's when its connection ends:
// a member that is there and had nothing to do gets it.
func TestBusyMembersMessagesAreRedistributed(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		m0 := srv.connect(packet.V5, "m0", srv.token("m0", time.Hour), persistentSession, oneAtATime)
		m0.subscribe(1, "$share/g/a")
		pub := srv.device("pub")
		for n := 1; n <= 600; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		m1 := srv.device("m1")
		m1.subscribe(1, "$share/g/a")
		m1.wantNothing()
		m0.closeAbruptly()
		got := m1.receiveAll(600)
		slices.SortFunc(got, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
		if !slices.Equal(got, sequence(1, 600)) {
			t.Errorf("%v", got)
		}
		m1.wantNothing()
	})
}

// The same where nothing of it was fetched yet.
func TestUnfetchedMessagesAreRedistributed(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "m0", "$share/g/a")
		pub := srv.device("pub")
		for n := 1; n <= 5; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		synctest.Wait()
		srv.store.mu.Lock()
		srv.store.slow = time.Minute
		srv.store.mu.Unlock()
		m0 := srv.reconnect(packet.V5, "m0")
		m1 := srv.device("m1")
		m1.subscribe(1, "$share/g/a")
		m1.wantNothing()
		m0.closeAbruptly()
		if got := m1.receiveAll(5); !slices.Equal(got, sequence(1, 5)) {
			t.Errorf("%v", got)
		}
		m1.wantNothing()
	})
}

// A backlog of a group disconnects no member that has no room for it yet.
func TestGroupBacklogIsPaced(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.crash(mqtt.Options{QueueBytes: 2_000})
		srv.leaveOffline(packet.V5, "m0", "$share/g/a")
		pub := srv.device("pub")
		pub.publish(1, "a", strings.Repeat("x", 1_500))
		m1 := srv.device("m1", oneAtATime)
		m1.subscribe(1, "own")
		pub.publish(1, "own", "1")
		pub.publish(1, "own", strings.Repeat("y", 600))
		first := want[*packet.Publish](m1)
		m1.subscribe(1, "$share/g/a")
		m1.wantNothing()
		m1.send(&packet.Ack{Kind: packet.PUBACK, ID: first.ID})
		m1.wantMessage("own", strings.Repeat("y", 600))
		m1.wantMessage("a", strings.Repeat("x", 1_500))
		m1.wantNothing()
	})
}

// Two members that come share what waits, and neither gets what the other has.
func TestMembersShareStoredMessages(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "m0", "$share/g/a")
		srv.leaveOffline(packet.V5, "m1", "$share/g/a")
		pub := srv.device("pub")
		for n := 1; n <= 1000; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		one, two := srv.reconnect(packet.V5, "m0"), srv.reconnect(packet.V5, "m1")
		seen := map[string]bool{}
		for range 1000 {
			var c *testClient
			for synctest.Wait(); c == nil; {
				switch {
				case len(one.got) > 0:
					c = one
				case len(two.got) > 0:
					c = two
				default:
					t.Fatalf("%d came", len(seen))
				}
			}
			p := c.receive()
			if seen[string(p.Payload)] {
				t.Errorf("%s twice", p.Payload)
			}
			seen[string(p.Payload)] = true
		}
		one.wantNothing()
		two.wantNothing()
	})
}

// The limits of a group's queue are those of its members' sessions: the newest messages are dropped, and reported once
// each.
func TestOfflineSharedGroupRefusesWhenFull(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.crash(mqtt.Options{QueueMessages: 10})
		srv.leaveOffline(packet.V5, "m0", "$share/g/a")
		srv.leaveOffline(packet.V5, "m1", "$share/g/a")
		pub := srv.device("pub")
		for n := 1; n <= 25; n++ {
			reason := packet.Success
			if n > 20 {
				reason = packet.QuotaExceeded
			}
			if r := pub.publish(1, "a", fmt.Sprint(n)); r != reason {
				t.Errorf("%d: %#x", n, r)
			}
		}
		if s := srv.broker.Stats(); s.Dropped != 5 {
			t.Errorf("%d found no room", s.Dropped)
		}
		first := srv.device("m9")
		first.subscribe(1, "$share/g/a")
		if got := first.receiveAll(20); !slices.Equal(got, sequence(1, 20)) { // also over two sessions
			t.Errorf("%v", got)
		}
		first.wantNothing()
		one, two := srv.reconnect(packet.V5, "m0"), srv.reconnect(packet.V5, "m1")
		one.wantNothing()
		two.wantNothing()
		if reported := one.droppedNotice() + two.droppedNotice(); reported != "5" {
			t.Errorf("%q are told", reported)
		}
	})
}

// A member that connects gets queued messages only while it may have them; and with the last member the queue of the group
// is deleted.
func TestSharedGroupQueueEnd(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(srv *testServer)
		gets int
		left int // in the store
	}{
		"a member's session ends": {func(srv *testServer) { srv.device("m0") }, 4, 0},
		"a member unsubscribes":   {func(srv *testServer) { srv.unsubscribe("m0", "$share/g/a") }, 4, 0},
		"the last session ends":   {func(srv *testServer) { srv.device("m0"); srv.device("m1") }, 0, 0},
		// What it was sent is completed with it (MQTT 5.0 §3.10.4).
		"the last one unsubscribes": {func(srv *testServer) { srv.unsubscribe("m0", "$share/g/a"); srv.unsubscribe("m1", "$share/g/a") }, 0, 4},
		"its messages expire":       {func(*testServer) { time.Sleep(200 * time.Second) }, 0, 0},
		"the right goes":            {func(srv *testServer) { srv.policy(`publish = ["#"]`, `subscribe = ["b"]`) }, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				srv.leaveOffline(packet.V5, "m0", "$share/g/a")
				srv.leaveOffline(packet.V5, "m1", "$share/g/a")
				pub := srv.device("pub")
				for n := range 4 {
					p := &packet.Publish{Topic: "a", QoS: 1, ID: pub.id(), Payload: fmt.Append(nil, n)}
					p.Properties.SetNumber(packet.MessageExpiryInterval, 100)
					pub.send(p)
					want[*packet.Ack](pub)
				}
				c.end(srv)
				synctest.Wait()
				last := srv.device("m9")
				codes := last.subscribe(1, "$share/g/a", "b")
				if codes[0].Failed() != (name == "the right goes") {
					t.Errorf("%#x", codes)
				}
				last.receiveAll(c.gets)
				last.wantNothing()
				if n := srv.store.waiting(); n != c.left {
					t.Errorf("%d messages are left in the store, want %d", n, c.left)
				}
			})
		})
	}
}

// unsubscribe has a client come, unsubscribe, and go again.
func (srv *testServer) unsubscribe(id watchword.SubjectID, filter string) {
	srv.t.Helper()
	c := srv.reconnect(packet.V5, id)
	synctest.Wait() // it is sent what waits
	c.send(&packet.Unsubscribe{ID: c.id(), Filters: []string{filter}})
	synctest.Wait()
	c.closeAbruptly()
	synctest.Wait()
}

// A group for which there is no room is not made: its member is refused, and nothing is counted.
func TestSharedGroupWithoutRoom(t *testing.T) {
	made, refused := 0, 0
	for bound := int64(100); bound <= 3000; bound += 100 {
		synctest.Test(t, func(t *testing.T) {
			srv := newTestServer(t, mqtt.Options{}, bus.Options{SubjectSubscriptionBytes: bound})
			defer srv.close()
			c := srv.device("sub")
			switch code := c.subscribe(1, "$share/g/a")[0]; code {
			case 1:
				made++
				srv.device("pub").publish(1, "a", "x")
				c.wantMessage("a", "x")
			case packet.QuotaExceeded:
				refused++
				if n := srv.broker.Stats().SubscriptionBytes; n != 0 {
					t.Errorf("bound of %d: refused, and %d bytes are counted", bound, n)
				}
			default:
				t.Errorf("bound of %d: %#x", bound, code)
			}
			if n := srv.broker.Stats().SubscriptionBytes; n > bound {
				t.Errorf("bound of %d: %d bytes are counted", bound, n)
			}
		})
	}
	if made < 3 || refused < 3 {
		t.Errorf("%d made, %d refused: the bounds do not try both", made, refused)
	}
}
