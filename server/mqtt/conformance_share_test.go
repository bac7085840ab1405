package mqtt_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// publishWithExpiry publishes a message that expires in so many seconds; with QoS 2 up to PUBREC. It returns its
// identifier.
func (c *testClient) publishWithExpiry(qos byte, topic, payload string, seconds uint32) uint16 {
	c.t.Helper()
	p := &packet.Publish{Topic: topic, QoS: qos, ID: c.id(), Payload: []byte(payload)}
	p.Properties.SetNumber(packet.MessageExpiryInterval, seconds)
	c.send(p)
	want[*packet.Ack](c)
	return p.ID
}

// MQTT-4.3.3-7, 4.4.0-1, 3.1.1: MQTT-4.4.0-1: a sent message is sent again after its expiry, and one that was not sent is
// dropped.
func TestSentMessageDoesNotExpire(t *testing.T) {
	inBothVersions(t, func(t *testing.T, srv *testServer, v packet.Version) {
		two := func(p *packet.Connect) {
			persistentSession(p)
			if p.Version == packet.V5 {
				p.Properties.SetNumber(packet.ReceiveMaximum, 2)
			}
		}
		sub, pub := srv.connect(v, "sub", srv.token("sub", time.Hour), two), srv.device("pub")
		sub.subscribe(2, "a")
		pub.publishWithExpiry(1, "a", "one", 10)
		pub.publishWithExpiry(2, "a", "two", 10)
		one, second := want[*packet.Publish](sub), want[*packet.Publish](sub)
		if v == packet.V5 {
			pub.publishWithExpiry(1, "a", "it waits for room, and is not sent", 10)
			sub.wantNothing()
		}
		sub.closeAbruptly()
		synctest.Wait()
		pub.publishWithExpiry(1, "a", "no client was there", 10)
		for range 2 { // and after the second connection over a third
			time.Sleep(20 * time.Second)
			sub = srv.connect(v, "sub", srv.token("sub", time.Hour), two)
			first, then := want[*packet.Publish](sub), want[*packet.Publish](sub)
			if !first.Dup || first.ID != one.ID || string(first.Payload) != "one" ||
				!then.Dup || then.ID != second.ID || then.QoS != 2 || string(then.Payload) != "two" {
				t.Errorf("%+v %+v", first, then)
			}
			sub.wantNothing()
			sub.closeAbruptly()
			synctest.Wait()
		}
		srv.reconnect(v, "sub").receiveAll(2)
		if n := srv.store.waiting(); n != 0 {
			t.Errorf("%d messages are left", n)
		}
	})
}

// MQTT-4.3.3-7, -13: the exchange is completed after the message has expired, on both sides.
func TestInflightMessageCompletesAfterExpiry(t *testing.T) {
	for name, offline := range map[string]bool{"a client receives it": false, "no client is there": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				pub := srv.device("pub")
				srv.leaveOffline(packet.V5, "sub", "a")
				var sub *testClient
				if !offline {
					sub = srv.reconnect(packet.V5, "sub")
				}
				id := pub.publishWithExpiry(2, "a", "x", 10)
				var p *packet.Publish
				if !offline {
					p = want[*packet.Publish](sub)
				}
				time.Sleep(20 * time.Second)
				pub.send(&packet.Ack{Kind: packet.PUBREL, ID: id})
				if comp := want[*packet.Ack](pub); comp.Kind != packet.PUBCOMP || comp.ID != id || comp.Reason != packet.Success {
					t.Errorf("%+v", comp)
				}
				if !offline {
					sub.send(&packet.Ack{Kind: packet.PUBREC, ID: p.ID})
					if rel := want[*packet.Ack](sub); rel.Kind != packet.PUBREL || rel.ID != p.ID || rel.Reason != packet.Success {
						t.Errorf("%+v", rel)
					}
					sub.send(&packet.Ack{Kind: packet.PUBCOMP, ID: p.ID})
					sub.wantNothing()
				}
			})
		})
	}
}

// ackOf is the first answer of a receiver that refuses.
func ackOf(p *packet.Publish, r packet.Reason) *packet.Ack {
	return &packet.Ack{Kind: packet.PUBACK + packet.Type(p.QoS-1), ID: p.ID, Reason: r}
}

// failureReasons is some of the reasons with which a receiver may refuse.
var failureReasons = []packet.Reason{packet.UnspecifiedError, packet.ImplementationSpecificError, packet.NotAuthorized, packet.QuotaExceeded, packet.PayloadFormatInvalid}

// MQTT-4.4.0-2.
func TestRefusedMessageIsNotRedelivered(t *testing.T) {
	for _, r := range failureReasons {
		t.Run(fmt.Sprintf("%#x", byte(r)), func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				srv.leaveOffline(packet.V5, "sub", "a")
				sub, pub := srv.reconnect(packet.V5, "sub"), srv.device("pub")
				pub.publish(1, "a", "one")
				pub.publishQoS2("a", "two")
				sub.send(ackOf(want[*packet.Publish](sub), r))
				sub.send(ackOf(want[*packet.Publish](sub), r))
				sub.wantNothing()
				sub.closeAbruptly()
				synctest.Wait()
				sub = srv.reconnect(packet.V5, "sub")
				sub.wantNothing()
				pub.publish(1, "a", "three")
				sub.wantMessage("a", "three")
				synctest.Wait()
				if n := srv.store.waiting(); n != 0 {
					t.Errorf("%d messages are left", n)
				}
			})
		})
	}
}

// MQTT-4.8.2-3.
func TestEachMemberHasItsOwnQoS(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		pub := srv.device("pub")
		var members []*testClient
		for n := range byte(3) {
			c := srv.device(watchword.SubjectID(fmt.Sprint("m", n)))
			if codes := c.subscribe(n, "$share/g/a"); codes[0] != packet.Reason(n) {
				t.Errorf("asked for %d, got %#x", n, codes[0])
			}
			members = append(members, c)
		}
		for published := range byte(3) {
			received := map[int]int{}
			for range 15 {
				if published == 2 {
					pub.publishQoS2("a", "x")
				} else {
					pub.publish(published, "a", "x")
				}
				synctest.Wait()
				for granted, c := range members {
					if len(c.got) == 0 {
						continue
					}
					if p := c.receive(); p.QoS != min(byte(granted), published) {
						t.Errorf("granted %d, published %d: came with %d", granted, published, p.QoS)
					}
					received[granted]++
				}
			}
			if len(received) != 3 || received[0]+received[1]+received[2] != 15 {
				t.Errorf("published %d: received %v", published, received)
			}
		}
	})
}

// inflightPair is a group of two, m0 and m1; m0 was sent a message with QoS 2, and m1 nothing.
func (srv *testServer) inflightPair(edit func(*packet.Connect)) (m0, m1, pub *testClient, sent *packet.Publish) {
	srv.t.Helper()
	m0, pub = srv.device("m0", edit), srv.device("pub")
	m0.subscribe(2, "$share/g/a")
	pub.publishQoS2("a", "x")
	sent = want[*packet.Publish](m0)
	m1 = srv.device("m1", edit)
	m1.subscribe(2, "$share/g/a")
	return m0, m1, pub, sent
}

// MQTT-4.8.2-4: QoS 2 that is under way waits for its member, before PUBREC and after it.
func TestInflightWaitsForMember(t *testing.T) {
	for _, received := range []bool{false, true} {
		t.Run(fmt.Sprint("received ", received), func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				m0, m1, pub, sent := srv.inflightPair(persistentSession)
				if received {
					m0.send(&packet.Ack{Kind: packet.PUBREC, ID: sent.ID})
					want[*packet.Ack](m0)
				}
				m0.closeAbruptly()
				m1.wantNothing()
				pub.publishQoS2("a", "y")
				m1.receive() // the group continues
				time.Sleep(30 * time.Minute)
				m1.wantNothing()
				m0 = srv.reconnect(packet.V5, "m0")
				if !received {
					if p := want[*packet.Publish](m0); !p.Dup || p.QoS != 2 || p.ID != sent.ID || string(p.Payload) != "x" {
						t.Errorf("%+v", p)
					}
					m0.send(&packet.Ack{Kind: packet.PUBREC, ID: sent.ID})
				}
				if rel := want[*packet.Ack](m0); rel.Kind != packet.PUBREL || rel.ID != sent.ID {
					t.Errorf("%+v", rel)
				}
				m0.send(&packet.Ack{Kind: packet.PUBCOMP, ID: sent.ID})
				m0.wantNothing()
				m1.wantNothing()
			})
		})
	}
}

// MQTT-4.8.2-5: and no other member gets it when that one's session ends.
func TestInflightEndsWithMember(t *testing.T) {
	for name, x := range map[string]struct {
		edit func(*packet.Connect)
		ends func(srv *testServer, m0 *testClient)
	}{
		"with its connection": {func(*packet.Connect) {}, func(_ *testServer, m0 *testClient) { m0.closeAbruptly() }},
		"with its last words": {persistentSession, func(_ *testServer, m0 *testClient) {
			d := &packet.Disconnect{}
			d.Properties.SetNumber(packet.SessionExpiryInterval, 0)
			m0.send(d)
		}},
		"by a clean start": {persistentSession, func(srv *testServer, _ *testClient) { srv.device("m0").closeAbruptly() }},
		"by one when it was away": {persistentSession, func(srv *testServer, m0 *testClient) {
			m0.closeAbruptly()
			synctest.Wait()
			srv.device("m0").closeAbruptly()
		}},
		"when its time has come": {persistentSession, func(_ *testServer, m0 *testClient) { m0.closeAbruptly(); time.Sleep(61 * time.Minute) }},
		"when it is revoked":     {persistentSession, func(srv *testServer, _ *testClient) { srv.state("m0", watchword.Revoked) }},
		"when it is revoked and away": {persistentSession, func(srv *testServer, m0 *testClient) {
			m0.closeAbruptly()
			synctest.Wait()
			srv.state("m0", watchword.Revoked)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				m0, _, _, _ := srv.inflightPair(x.edit)
				m2 := srv.connect(packet.V5, "m2", srv.token("m2", 3*time.Hour))
				m2.subscribe(2, "$share/g/a")
				x.ends(srv, m0)
				m2.wantNothing()
				srv.state("m0", watchword.Active)
				m0 = srv.connect(packet.V5, "m0", srv.token("m0", time.Hour), persistentSession)
				if m0.ack.SessionPresent {
					t.Error("a session is present")
				}
				m0.subscribe(2, "$share/g/a")
				m0.wantNothing()
			})
		})
	}
}

// MQTT-4.8.2-6: what a member refuses is for no other, nor when its session ends.
func TestRefusedSharedMessageIsNotRedistributed(t *testing.T) {
	for _, r := range failureReasons {
		for _, edit := range []func(*packet.Connect){func(*packet.Connect) {}, persistentSession} {
			t.Run(fmt.Sprintf("%#x", byte(r)), func(t *testing.T) {
				inBubble(t, func(t *testing.T, srv *testServer) {
					m0, pub := srv.device("m0", edit), srv.device("pub")
					m0.subscribe(2, "$share/g/a")
					pub.publish(1, "a", "one")
					pub.publishQoS2("a", "two")
					one, two := want[*packet.Publish](m0), want[*packet.Publish](m0)
					m1 := srv.device("m1")
					m1.subscribe(2, "$share/g/a")
					m0.send(ackOf(one, r), ackOf(two, r))
					m0.wantNothing()
					m1.wantNothing()
					m0.closeAbruptly()
					m1.wantNothing()
					srv.device("m0").wantNothing() // it began anew
					m1.wantNothing()
				})
			})
		}
	}
}
