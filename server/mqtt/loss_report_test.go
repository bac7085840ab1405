package mqtt_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
)

func (c *testClient) droppedNotice() string {
	for _, u := range c.ack.Properties.User {
		if u.Name == "dropped" {
			return u.Value
		}
	}
	return ""
}

// loseSubscription makes a session that is away, which loses one of its subscriptions and a message.
func (srv *testServer) loseSubscription(v packet.Version) {
	srv.t.Helper()
	srv.leaveOffline(v, "sub", "a", "b")
	pub := srv.device("pub")
	for range 3 {
		pub.publish(1, "b", "x")
	}
	srv.policy(`publish = ["#"]`, `subscribe = ["b"]`)
}

// A loss counts as reported when the client has read it, not when CONNACK was built: until then each CONNACK reports it,
// also after a restart.
func TestLossIsReportedUntilConfirmed(t *testing.T) {
	ways := map[string]struct {
		then func(srv *testServer, c *testClient)
		read bool
	}{
		"the line breaks": {func(_ *testServer, c *testClient) { c.closeAbruptly() }, false},
		"it subscribes, and is gone": {func(_ *testServer, c *testClient) {
			c.send(&packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "c"}}})
			for range 3 { // two messages and SUBACK
				next(c)
			}
			c.closeAbruptly()
		}, false},
		"it publishes, and is gone": {func(_ *testServer, c *testClient) { c.publish(0, "c", "x"); c.closeAbruptly() }, false},
		"it says goodbye":           {func(_ *testServer, c *testClient) { c.send(&packet.Disconnect{}) }, false},
		"the server is killed":      {func(srv *testServer, _ *testClient) { srv.crash(mqtt.Options{QueueMessages: 2}) }, false},
		"it acknowledges a message": {func(_ *testServer, c *testClient) { c.receive(); c.closeAbruptly() }, true},
		"it pings": {func(_ *testServer, c *testClient) {
			c.send(&packet.Ping{})
			want[*packet.Publish](c)
			c.closeAbruptly()
		}, true},
		"it pings, and is taken over": {func(_ *testServer, c *testClient) { c.send(&packet.Ping{}) }, true},
		"it acknowledges what is none": {func(_ *testServer, c *testClient) {
			c.send(&packet.Ack{Kind: packet.PUBACK, ID: 60_000})
			c.closeAbruptly()
		}, false},
		"it pings, and the server is killed": {func(srv *testServer, c *testClient) {
			c.send(&packet.Ping{})
			synctest.Wait()
			srv.crash(mqtt.Options{QueueMessages: 2})
		}, true},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newTestServer(t, mqtt.Options{QueueMessages: 2})
				defer func() { srv.close() }()
				srv.loseSubscription(packet.V5)
				for range 2 { // it reconnects, and disconnects again
					c := srv.reconnect(packet.V5, "sub")
					if !slices.Equal(c.nextLost(), []string{"a"}) || c.droppedNotice() != "1" {
						t.Fatalf("told %q, dropped %q", c.nextLost(), c.droppedNotice())
					}
					synctest.Wait() // the server knows that its CONNACK is written
					way.then(srv, c)
					synctest.Wait()
					if way.read {
						break
					}
				}
				c := srv.reconnect(packet.V5, "sub")
				if reported := len(c.nextLost()) > 0 || c.droppedNotice() != ""; reported == way.read {
					t.Errorf("told %q, dropped %q; it had read it: %v", c.nextLost(), c.droppedNotice(), way.read)
				}
			})
		})
	}
}

// Packets in one write with CONNECT were sent before CONNACK was read.
func TestPingSentWithConnectConfirmsNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.loseSubscription(packet.V5)
		c := srv.dialRaw(packet.V5)
		p := hello(packet.V5, "sub", srv.token("sub", time.Hour))
		persistentSession(p)
		c.send(p, &packet.Ping{})
		want[*packet.Connack](c)
		c.closeAbruptly()
		synctest.Wait()
		if l := srv.reconnect(packet.V5, "sub").nextLost(); !slices.Equal(l, []string{"a"}) {
			t.Errorf("told %q", l)
		}
	})
}

// Where CONNACK had no room for it, nothing was said.
func TestDroppedNoticeDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{QueueMessages: 2})
		defer srv.close()
		srv.leaveOffline(packet.V5, "sub", "b")
		pub := srv.device("pub")
		for range 3 {
			pub.publish(1, "b", "x")
		}
		c := srv.connect(packet.V5, "sub", srv.token("sub", time.Hour), persistentSession, func(p *packet.Connect) { p.Properties.SetNumber(packet.MaximumPacketSize, 60) })
		if c.droppedNotice() != "" {
			t.Fatalf("%+v", c.ack)
		}
		c.receiveAll(2)
		c.closeAbruptly()
		synctest.Wait()
		if c := srv.reconnect(packet.V5, "sub"); c.droppedNotice() != "1" {
			t.Errorf("dropped %q", c.droppedNotice())
		}
	})
}

// A notice in $watchword/auth counts when it was acknowledged.
func TestLossNoticeCountsOnceAcknowledged(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		for _, qos := range []byte{0, 1} {
			for _, acknowledged := range []bool{true, false} {
				t.Run(fmt.Sprintf("version %d, QoS %d, acknowledged %v", v, qos, acknowledged), func(t *testing.T) {
					inBubble(t, func(t *testing.T, srv *testServer) {
						c := srv.connect(v, "sub", srv.token("sub", time.Hour), persistentSession)
						c.subscribe(1, "a", "b")
						c.subscribe(qos, "$watchword/auth")
						pub := srv.device("pub")
						pub.publish(1, "b", "before")
						before := want[*packet.Publish](c)
						srv.policy(`publish = ["#"]`, `subscribe = ["b"]`)
						notice := want[*packet.Publish](c)
						c.send(&packet.Ack{Kind: packet.PUBACK, ID: before.ID}) // says nothing of what came after it
						pub.publish(1, "b", "x")
						p := want[*packet.Publish](c)
						if acknowledged && qos == 1 {
							c.send(&packet.Ack{Kind: packet.PUBACK, ID: notice.ID})
						} else if acknowledged {
							c.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID}) // what came after it
						}
						c.closeAbruptly()
						synctest.Wait()
						c = srv.connect(v, "sub", srv.token("sub", time.Hour), persistentSession)
						if v == packet.V311 {
							return // 3.1.1 has no such report
						}
						if reported := c.nextLost(); acknowledged != (len(reported) == 0) {
							t.Errorf("told %q", reported)
						}
					})
				})
			}
		}
	}
}

// What is subscribed to again is not said to be lost.
func TestResubscribedFilterIsNotLost(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.loseSubscription(packet.V5)
		srv.policy(`publish = ["#"]`, `subscribe = ["#"]`)
		c := srv.reconnect(packet.V5, "sub")
		c.send(&packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "a"}}})
		for range 4 { // three messages and SUBACK
			next(c)
		}
		c.closeAbruptly()
		synctest.Wait()
		c = srv.reconnect(packet.V5, "sub")
		if l := c.nextLost(); len(l) > 0 {
			t.Errorf("told %q", l)
		}
	})
}

// Only the holder of the session gets the report of its losses.
func TestOnlySessionHolderSeesLosses(t *testing.T) {
	narrow := []watchword.Permission{permission("topic:b", "pub", "sub")}
	for name, tc := range map[string]struct {
		first, then []watchword.Permission
		restart     bool
		told        bool
	}{
		"the holder":                {told: true},
		"one with a narrowed token": {then: narrow},

		"one with a narrowed token, after a restart":  {then: narrow, restart: true},
		"a holder who always had a narrowed token":    {first: []watchword.Permission{permission("topic:a", "sub"), permission("topic:b", "sub")}, then: narrow, told: true},
		"that holder, after a restart":                {first: []watchword.Permission{permission("topic:a", "sub"), permission("topic:b", "sub")}, then: narrow, restart: true, told: true},
		"a whole token, of a session that was narrow": {first: []watchword.Permission{permission("topic:a", "sub"), permission("topic:b", "sub")}, told: true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				c := srv.connect(packet.V5, "sub", srv.token("sub", time.Hour, tc.first...), persistentSession)
				c.subscribe(1, "a", "b")
				c.closeAbruptly()
				synctest.Wait()
				srv.policy(`publish = ["#"]`, `subscribe = ["b"]`)
				srv.device("pub").publish(1, "b", "x")
				if tc.restart {
					srv.crash(mqtt.Options{})
				}
				c = srv.connect(packet.V5, "sub", srv.token("sub", time.Hour, tc.then...), persistentSession)
				if reported := len(c.nextLost()) > 0; !c.ack.SessionPresent || reported != tc.told {
					t.Fatalf("session present %v, told %q", c.ack.SessionPresent, c.nextLost())
				}
				c.receive()
				c.closeAbruptly()
				synctest.Wait()
				c = srv.reconnect(packet.V5, "sub")
				if reported := len(c.nextLost()) > 0; reported == tc.told {
					t.Errorf("then the holder was told %q", c.nextLost())
				}
			})
		})
	}
}
