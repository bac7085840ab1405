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

func (c *testClient) nextLost() (out []string) {
	for _, u := range c.ack.Properties.User {
		if u.Name == "lost" {
			out = append(out, u.Value)
		}
	}
	return out
}

func TestOfflineSessionLosesDeniedSubscriptions(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "sub", "a/#", "b", "a/1")
		pub := srv.device("pub")
		publish := func(topics ...string) {
			for _, topic := range topics {
				pub.publish(1, topic, topic)
			}
		}
		publish("a/1", "b", "a/2")
		srv.policy(`publish = ["#"]`, `subscribe = ["b", "a/1"]`)
		publish("a/2", "b")
		srv.policy(`publish = ["#"]`, `subscribe = ["#"]`) // too late for what was lost
		publish("a/3", "a/1")
		sub := srv.reconnect(packet.V5, "sub")
		if got := sub.receiveAll(4); !slices.Equal(got, []string{"a/1", "b", "b", "a/1"}) {
			t.Errorf("%v", got)
		}
		sub.wantNothing()
		if l := sub.nextLost(); !slices.Equal(l, []string{"a/#"}) {
			t.Errorf("told %q", l)
		}
		if n := srv.store.waiting(); n != 0 {
			t.Errorf("%d messages are left", n)
		}
		sub.closeAbruptly()
		synctest.Wait()
		if l := srv.reconnect(packet.V5, "sub").nextLost(); len(l) > 0 {
			t.Errorf("told twice: %q", l)
		}
	})
}

// The same over a restart: what was lost stays lost.
func TestLossesSurviveRestart(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "sub", "a/#", "b")
		pub := srv.device("pub")
		pub.publish(1, "a/1", "lost")
		srv.policy(`publish = ["#"]`, `subscribe = ["b"]`)
		pub.publish(1, "b", "kept")
		srv.crash(mqtt.Options{})
		srv.policy(`publish = ["#"]`, `subscribe = ["#"]`)
		srv.device("pub").publish(1, "a/2", "too late")
		sub := srv.reconnect(packet.V5, "sub")
		if got := sub.receiveAll(1); got[0] != "kept" {
			t.Errorf("%v", got)
		}
		sub.wantNothing()
		if l := sub.nextLost(); !slices.Equal(l, []string{"a/#"}) {
			t.Errorf("told %q", l)
		}
	})
}

// A client that cannot get a report of a loss must subscribe again (session present 0), and keeps what it still may have:
// subscriptions, and their queued messages.
func TestSmallPacketClientKeepsSessionWithoutLossReport(t *testing.T) {
	var many []string
	for n := range 33 {
		many = append(many, fmt.Sprint("x/", n))
	}
	for _, crash := range []bool{false, true} {
		for name, c := range map[string]struct {
			v    packet.Version
			lost []string
		}{
			"3.1.1":                             {packet.V311, []string{"a"}},
			"5, more losses than CONNACK names": {packet.V5, many},
		} {
			t.Run(fmt.Sprint(name, " crash ", crash), func(t *testing.T) {
				inBubble(t, func(t *testing.T, srv *testServer) {
					sub := srv.connect(c.v, "sub", srv.token("sub", time.Hour), persistentSession)
					sub.subscribe(2, append([]string{"b/#", "c"}, c.lost...)...)
					pub := srv.device("pub")
					pub.publish(1, "b/1", "under way")
					want[*packet.Publish](sub) // and no acknowledgement
					sub.closeAbruptly()
					synctest.Wait()
					pub.publish(1, c.lost[0], "taken")
					pub.publish(1, "b/2", "one")
					pub.publish(1, "c", "two")
					srv.policy(`publish = ["#"]`, `subscribe = ["b/#", "c"]`)
					pub.publish(1, c.lost[0], "taken")
					pub.publish(1, "b/3", "three")
					synctest.Wait()
					if crash {
						srv.crash(mqtt.Options{})
						pub = srv.device("pub")
					}
					sub = srv.connect(c.v, "sub", srv.token("sub", time.Hour), persistentSession)
					if sub.ack.SessionPresent {
						t.Error("session present, though a subscription is gone that it was not told of")
					}
					if got := sub.receiveAll(4); !slices.Equal(got, []string{"under way", "one", "two", "three"}) {
						t.Errorf("%v", got)
					}
					sub.wantNothing()
					codes := sub.subscribe(1, c.lost[0], "b/#")
					if !codes[0].Failed() || codes[1].Failed() {
						t.Errorf("%#x", codes)
					}
					pub.publish(1, "c", "it subscribes to it still")
					sub.wantMessage("c", "it subscribes to it still")
					// It has read the report, which is not repeated.
					sub.send(&packet.Ping{})
					want[*packet.Ping](sub)
					sub.closeAbruptly()
					synctest.Wait()
					if c := srv.connect(c.v, "sub", srv.token("sub", time.Hour), persistentSession); !c.ack.SessionPresent {
						t.Error("told again")
					}
					if n := srv.store.waiting(); n != 0 {
						t.Errorf("%d messages are left in the store", n)
					}
				})
			})
		}
	}
}

// After session present 0, identifiers of unreleased QoS 2 publishes of the earlier session are free: the client may use
// one for another message.
func TestCleanStartFreesPacketIdentifiers(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		subscriber := srv.device("ear")
		subscriber.subscribe(1, "q")
		sub := srv.connect(packet.V311, "sub", srv.token("sub", time.Hour), persistentSession)
		sub.subscribe(1, "a", "b")
		sub.send(&packet.Publish{Topic: "q", QoS: 2, ID: 7, Payload: []byte("first")})
		want[*packet.Ack](sub)
		subscriber.wantMessage("q", "first")
		sub.closeAbruptly()
		synctest.Wait()
		srv.policy(`publish = ["#"]`, `subscribe = ["b", "q"]`)
		sub = srv.connect(packet.V311, "sub", srv.token("sub", time.Hour), persistentSession)
		sub.send(&packet.Publish{Topic: "q", QoS: 2, ID: 7, Payload: []byte("second")})
		want[*packet.Ack](sub)
		subscriber.wantMessage("q", "second")
	})
}

func TestSuspendedSubjectKeepsSession(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "sub", "a")
		pub := srv.device("pub")
		pub.publish(1, "a", "before")
		srv.state("sub", watchword.Suspended)
		if r := pub.publish(1, "a", "meanwhile"); r != packet.NoMatchingSubscribers {
			t.Errorf("%#x", r)
		}
		srv.state("sub", watchword.Active)
		pub.publish(1, "a", "after")
		sub := srv.reconnect(packet.V5, "sub")
		if got := sub.receiveAll(2); !slices.Equal(got, []string{"before", "after"}) {
			t.Errorf("%v", got)
		}
		// While it is there, the same.
		synctest.Wait()
		srv.state("sub", watchword.Suspended)
		sub.wantDisconnect(packet.AdministrativeAction)
		pub.publish(1, "a", "meanwhile")
		srv.state("sub", watchword.Active)
		sub = srv.reconnect(packet.V5, "sub")
		sub.wantNothing()
	})
}

func TestSessionEndsWithItsSubject(t *testing.T) {
	for name, online := range map[string]bool{"away": false, "there": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				srv.leaveOffline(packet.V5, "sub", "a")
				pub := srv.device("pub")
				pub.publish(1, "a", "x")
				if online {
					srv.reconnect(packet.V5, "sub").receive()
				}
				srv.state("sub", watchword.Revoked)
				synctest.Wait()
				if s := srv.broker.Stats(); s.PersistentSessions != 0 || s.Subscriptions != 0 || srv.store.waiting() != 0 {
					t.Errorf("%d sessions, %d subscriptions, %d messages are left", s.PersistentSessions, s.Subscriptions, srv.store.waiting())
				}
				srv.state("sub", watchword.Active)
				if c := srv.connect(packet.V5, "sub", srv.token("sub", time.Hour), persistentSession); c.ack.SessionPresent {
					t.Error("it is there again")
				}
			})
		})
	}
}

func TestSessionBelongsToOneIncarnation(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V5, "sub", "a")
		srv.device("pub").publish(1, "a", "x")
		srv.mu.Lock()
		srv.subjects["sub"].Incarnation = 2 // enrolled again, and the guard was not notified
		srv.mu.Unlock()
		raw := srv.token("sub", time.Hour)
		srv.mu.Lock()
		p := srv.tokens[raw]
		p.Incarnation = 2
		srv.tokens[raw] = p
		srv.mu.Unlock()
		if c := srv.connect(packet.V5, "sub", raw, persistentSession); c.ack.SessionPresent {
			t.Error("the session of an earlier life")
		}
	})
}

// delayedWill makes a CONNECT with a delayed will.
func delayedWill(delay uint32) func(*packet.Connect) {
	return func(p *packet.Connect) {
		persistentSession(p)
		p.Will = &packet.Will{Topic: "will", QoS: 1, Payload: []byte("gone")}
		p.Will.Properties.SetNumber(packet.WillDelayInterval, delay)
		p.Will.Properties.SetNumber(packet.MessageExpiryInterval, 100)
	}
}

func TestDelayedWills(t *testing.T) {
	for name, c := range map[string]struct {
		then func(srv *testServer, c *testClient)
		in   time.Duration // until the will; 0: never
	}{
		"it stays away": {func(_ *testServer, c *testClient) { c.closeAbruptly() }, time.Minute},
		"it comes back": {func(srv *testServer, c *testClient) {
			c.closeAbruptly()
			synctest.Wait()
			srv.connect(packet.V5, "lamp", srv.token("lamp", 3*time.Hour), persistentSession)
		}, 0},
		"it begins anew": {func(srv *testServer, c *testClient) {
			c.closeAbruptly()
			synctest.Wait()
			srv.connect(packet.V5, "lamp", srv.token("lamp", 3*time.Hour))
		}, time.Nanosecond},
		"it is taken over": {func(srv *testServer, _ *testClient) {
			srv.connect(packet.V5, "lamp", srv.token("lamp", 3*time.Hour), persistentSession)
		}, 0},
		"it says goodbye": {func(_ *testServer, c *testClient) { c.send(&packet.Disconnect{}) }, 0},
		"it says so":      {func(_ *testServer, c *testClient) { c.send(&packet.Disconnect{Reason: packet.DisconnectWithWill}) }, time.Minute},
		"its session ends first": {func(_ *testServer, c *testClient) {
			d := &packet.Disconnect{Reason: packet.DisconnectWithWill}
			d.Properties.SetNumber(packet.SessionExpiryInterval, 10)
			c.send(d)
		}, 10 * time.Second},
		"it is suspended": {func(srv *testServer, c *testClient) {
			c.closeAbruptly()
			synctest.Wait()
			srv.state("lamp", watchword.Suspended)
			srv.state("lamp", watchword.Active)
		}, 0},
		"it is revoked": {func(srv *testServer, c *testClient) {
			c.closeAbruptly()
			synctest.Wait()
			srv.state("lamp", watchword.Revoked)
		}, 0},
		"its right goes": {func(srv *testServer, c *testClient) {
			c.closeAbruptly()
			synctest.Wait()
			srv.policy(`subscribe = ["#"]`)
			srv.policy(`publish = ["#"]`, `subscribe = ["#"]`)
		}, 0},
		"its right goes while it is there": {func(srv *testServer, c *testClient) {
			srv.policy(`subscribe = ["#"]`)
			srv.policy(`publish = ["#"]`, `subscribe = ["#"]`)
			c.closeAbruptly()
		}, 0},
		"it is suspended while it is there": {func(srv *testServer, _ *testClient) {
			srv.state("lamp", watchword.Suspended)
			srv.state("lamp", watchword.Active)
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				subscriber := srv.connect(packet.V5, "ear", srv.token("ear", 5*time.Hour))
				subscriber.subscribe(1, "will", "$watchword/auth")
				lamp := srv.connect(packet.V5, "lamp", srv.token("lamp", 3*time.Hour), delayedWill(60))
				from := time.Now()
				c.then(srv, lamp)
				synctest.Wait()
				var got *packet.Publish
				for end := time.After(2 * time.Hour); got == nil; {
					select {
					case p := <-subscriber.got:
						if m, ok := p.(*packet.Publish); ok && m.Topic == "will" {
							got = m
						}
						continue
					case <-end:
					}
					break
				}
				after := time.Since(from)
				switch {
				case got == nil && c.in != 0:
					t.Error("no will")
				case got != nil && c.in == 0:
					t.Errorf("a will after %v", after)
				case got != nil && (after < c.in-time.Nanosecond || after > c.in+2*time.Second):
					t.Errorf("a will after %v, want %v", after, c.in)
				}
				if got != nil {
					if n, _ := got.Properties.Number(packet.MessageExpiryInterval); n < 98 || n > 100 {
						t.Errorf("it lives for %d seconds", n)
					}
				}
			})
		})
	}
}

// After a restart of the server, the wills of clients that do not reconnect are published.
func TestWillsSurvive(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.connect(packet.V5, "lamp", srv.token("lamp", time.Hour), delayedWill(0))
		back := srv.connect(packet.V5, "back", srv.token("back", time.Hour), delayedWill(0))
		waits := srv.connect(packet.V5, "waits", srv.token("waits", time.Hour), delayedWill(600))
		waits.closeAbruptly()
		synctest.Wait()
		_ = back
		srv.crash(mqtt.Options{})
		subscriber := srv.device("ear")
		subscriber.subscribe(1, "will")
		srv.connect(packet.V5, "back", srv.token("back", time.Hour), persistentSession)
		subscriber.wantNothing()
		from := time.Now()
		subscriber.receive()
		if after := time.Since(from); after > time.Minute || after < 55*time.Second {
			t.Errorf("after %v", after)
		}
		subscriber.receive()
		if after := time.Since(from); after > 600*time.Second || after < 590*time.Second {
			t.Errorf("after %v", after)
		}
		subscriber.wantNothing()
	})
}

// A will that fell due while the server was down is published when it is up.
func TestWillDueDuringDowntime(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		c := srv.connect(packet.V5, "lamp", srv.token("lamp", time.Hour), delayedWill(10))
		c.closeAbruptly()
		synctest.Wait()
		old := srv.store
		srv.store = old.freeze()
		old.fail(true)
		srv.close()
		time.Sleep(20 * time.Second)
		srv.start(mqtt.Options{})
		subscriber := srv.device("ear")
		subscriber.subscribe(1, "will")
		subscriber.receive()
	})
}

// A clean start ends the session before it, and its will is due (MQTT 5.0 §3.1.3.2.2).
func TestAWillWhoseSessionACleanStartEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		subscriber := srv.device("ear")
		subscriber.subscribe(1, "will")
		srv.connect(packet.V5, "lamp", srv.token("lamp", time.Hour), delayedWill(10))
		srv.device("lamp")
		subscriber.receive()
	})
}

// A client is disconnected because of a loss: one of 3.1.1 begins again, one of 5 gets the report.
func TestLossIsReportedOnReconnect(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				c := srv.connect(v, "sub", srv.token("sub", time.Hour), persistentSession)
				c.subscribe(1, "a", "b")
				srv.policy(`publish = ["#"]`, `subscribe = ["b"]`)
				c.wantDisconnect(packet.NotAuthorized)
				synctest.Wait()
				c = srv.connect(v, "sub", srv.token("sub", time.Hour), persistentSession)
				if v == packet.V311 && c.ack.SessionPresent {
					t.Error("session present, though a subscription is gone")
				}
				if l := c.nextLost(); v == packet.V5 && !slices.Equal(l, []string{"a"}) {
					t.Errorf("told %q", l)
				}
			})
		})
	}
}

// One whose session begins anew for a loss leaves its groups what waited for it.
func TestCleanStartRedistributesGroupMessages(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.leaveOffline(packet.V311, "m0", "$share/g/a", "b")
		pub := srv.device("pub")
		for n := 1; n <= 10; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		m1 := srv.device("m1")
		m1.subscribe(1, "$share/g/a")
		srv.policy(`publish = ["#"]`, `subscribe = ["a"]`)
		synctest.Wait()
		if m0 := srv.connect(packet.V311, "m0", srv.token("m0", time.Hour), persistentSession); m0.ack.SessionPresent {
			t.Error("session present, though a subscription is gone")
		}
		if got := m1.receiveAll(10); !slices.Equal(got, sequence(1, 10)) {
			t.Errorf("%v", got)
		}
	})
}
