package mqtt_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// sayThatLives publishes a message that expires in so many seconds; with QoS 2 it goes
// as far as PUBREC. It returns its identifier.
func (c *client) sayThatLives(qos byte, topic, payload string, seconds uint32) uint16 {
	c.t.Helper()
	p := &packet.Publish{Topic: topic, QoS: qos, ID: c.id(), Payload: []byte(payload)}
	p.Properties.SetNumber(packet.MessageExpiry, seconds)
	c.send(p)
	want[*packet.Ack](c)
	return p.ID
}

// MQTT-4.3.3-7, 4.4.0-1, 3.1.1: MQTT-4.4.0-1: what was sent comes again though its life
// has ended, and what was not does not come at all.
func TestWhatWasSentDoesNotExpire(t *testing.T) {
	inBoth(t, func(t *testing.T, h *house, v packet.Version) {
		two := func(p *packet.Connect) {
			lasts(p)
			if p.Version == packet.V5 {
				p.Properties.SetNumber(packet.ReceiveMaximum, 2)
			}
		}
		sub, pub := h.connect(v, "sub", h.token("sub", time.Hour), two), h.device("pub")
		sub.subscribe(2, "a")
		pub.sayThatLives(1, "a", "one", 10)
		pub.sayThatLives(2, "a", "two", 10)
		one, second := want[*packet.Publish](sub), want[*packet.Publish](sub)
		if v == packet.V5 {
			pub.sayThatLives(1, "a", "it waits for room, and is not sent", 10)
			sub.silent()
		}
		sub.vanish()
		synctest.Wait()
		pub.sayThatLives(1, "a", "nobody was there", 10)
		for range 2 { // and after the second connection over a third
			time.Sleep(20 * time.Second)
			sub = h.connect(v, "sub", h.token("sub", time.Hour), two)
			first, then := want[*packet.Publish](sub), want[*packet.Publish](sub)
			if !first.Dup || first.ID != one.ID || string(first.Payload) != "one" ||
				!then.Dup || then.ID != second.ID || then.QoS != 2 || string(then.Payload) != "two" {
				t.Errorf("%+v %+v", first, then)
			}
			sub.silent()
			sub.vanish()
			synctest.Wait()
		}
		h.back(v, "sub").takesAll(2)
		if n := h.store.waiting(); n != 0 {
			t.Errorf("%d messages are left", n)
		}
	})
}

// MQTT-4.3.3-7, -13: the exchange goes on though the message has expired, on both sides.
func TestAnExchangeGoesOnThoughTheMessageExpired(t *testing.T) {
	for name, away := range map[string]bool{"somebody hears it": false, "nobody is there": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				pub := h.device("pub")
				h.away(packet.V5, "sub", "a")
				var sub *client
				if !away {
					sub = h.back(packet.V5, "sub")
				}
				id := pub.sayThatLives(2, "a", "x", 10)
				var p *packet.Publish
				if !away {
					p = want[*packet.Publish](sub)
				}
				time.Sleep(20 * time.Second)
				pub.send(&packet.Ack{Kind: packet.PUBREL, ID: id})
				if comp := want[*packet.Ack](pub); comp.Kind != packet.PUBCOMP || comp.ID != id || comp.Reason != packet.Success {
					t.Errorf("%+v", comp)
				}
				if !away {
					sub.send(&packet.Ack{Kind: packet.PUBREC, ID: p.ID})
					if rel := want[*packet.Ack](sub); rel.Kind != packet.PUBREL || rel.ID != p.ID || rel.Reason != packet.Success {
						t.Errorf("%+v", rel)
					}
					sub.send(&packet.Ack{Kind: packet.PUBCOMP, ID: p.ID})
					sub.silent()
				}
			})
		})
	}
}

// said is the first answer of a receiver that refuses.
func said(p *packet.Publish, r packet.Reason) *packet.Ack {
	return &packet.Ack{Kind: packet.PUBACK + packet.Type(p.QoS-1), ID: p.ID, Reason: r}
}

// refusing is some of the reasons with which a receiver may refuse.
var refusing = []packet.Reason{packet.Unspecified, packet.Implementation, packet.NotAuthorized, packet.QuotaExceeded, packet.BadPayloadFormat}

// MQTT-4.4.0-2.
func TestWhatWasRefusedDoesNotComeAgain(t *testing.T) {
	for _, r := range refusing {
		t.Run(fmt.Sprintf("%#x", byte(r)), func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				h.away(packet.V5, "sub", "a")
				sub, pub := h.back(packet.V5, "sub"), h.device("pub")
				pub.publish(1, "a", "one")
				pub.twice("a", "two")
				sub.send(said(want[*packet.Publish](sub), r))
				sub.send(said(want[*packet.Publish](sub), r))
				sub.silent()
				sub.vanish()
				synctest.Wait()
				sub = h.back(packet.V5, "sub")
				sub.silent()
				pub.publish(1, "a", "three")
				sub.hears("a", "three")
				synctest.Wait()
				if n := h.store.waiting(); n != 0 {
					t.Errorf("%d messages are left", n)
				}
			})
		})
	}
}

// MQTT-4.8.2-3.
func TestEachMemberHasItsOwnQoS(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		pub := h.device("pub")
		var members []*client
		for n := range byte(3) {
			c := h.device(watchword.SubjectID(fmt.Sprint("m", n)))
			if codes := c.subscribe(n, "$share/g/a"); codes[0] != packet.Reason(n) {
				t.Errorf("asked for %d, got %#x", n, codes[0])
			}
			members = append(members, c)
		}
		for published := range byte(3) {
			heard := map[int]int{}
			for range 15 {
				if published == 2 {
					pub.twice("a", "x")
				} else {
					pub.publish(published, "a", "x")
				}
				synctest.Wait()
				for granted, c := range members {
					if len(c.got) == 0 {
						continue
					}
					if p := c.takes(); p.QoS != min(byte(granted), published) {
						t.Errorf("granted %d, published %d: came with %d", granted, published, p.QoS)
					}
					heard[granted]++
				}
			}
			if len(heard) != 3 || heard[0]+heard[1]+heard[2] != 15 {
				t.Errorf("published %d: heard %v", published, heard)
			}
		}
	})
}

// underWay is a group of two, m0 and m1; m0 was sent a message with QoS 2, and m1 nothing.
func (h *house) underWay(edit func(*packet.Connect)) (m0, m1, pub *client, sent *packet.Publish) {
	h.t.Helper()
	m0, pub = h.device("m0", edit), h.device("pub")
	m0.subscribe(2, "$share/g/a")
	pub.twice("a", "x")
	sent = want[*packet.Publish](m0)
	m1 = h.device("m1", edit)
	m1.subscribe(2, "$share/g/a")
	return m0, m1, pub, sent
}

// MQTT-4.8.2-4: QoS 2 that is under way waits for its member, before PUBREC and after it.
func TestWhatIsUnderWayWaitsForItsMember(t *testing.T) {
	for _, received := range []bool{false, true} {
		t.Run(fmt.Sprint("received ", received), func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				m0, m1, pub, sent := h.underWay(lasts)
				if received {
					m0.send(&packet.Ack{Kind: packet.PUBREC, ID: sent.ID})
					want[*packet.Ack](m0)
				}
				m0.vanish()
				m1.silent()
				pub.twice("a", "y")
				m1.takes() // the group goes on
				time.Sleep(30 * time.Minute)
				m1.silent()
				m0 = h.back(packet.V5, "m0")
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
				m0.silent()
				m1.silent()
			})
		})
	}
}

// MQTT-4.8.2-5: and is nobody else's where that one's session ends.
func TestWhatIsUnderWayEndsWithItsMember(t *testing.T) {
	for name, x := range map[string]struct {
		edit func(*packet.Connect)
		ends func(h *house, m0 *client)
	}{
		"with its connection": {func(*packet.Connect) {}, func(_ *house, m0 *client) { m0.vanish() }},
		"with its last words": {lasts, func(_ *house, m0 *client) {
			d := &packet.Disconnect{}
			d.Properties.SetNumber(packet.SessionExpiry, 0)
			m0.send(d)
		}},
		"by a clean start":            {lasts, func(h *house, _ *client) { h.device("m0").vanish() }},
		"by one when it was away":     {lasts, func(h *house, m0 *client) { m0.vanish(); synctest.Wait(); h.device("m0").vanish() }},
		"when its time has come":      {lasts, func(_ *house, m0 *client) { m0.vanish(); time.Sleep(61 * time.Minute) }},
		"when it is revoked":          {lasts, func(h *house, _ *client) { h.state("m0", watchword.Revoked) }},
		"when it is revoked and away": {lasts, func(h *house, m0 *client) { m0.vanish(); synctest.Wait(); h.state("m0", watchword.Revoked) }},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				m0, _, _, _ := h.underWay(x.edit)
				m2 := h.connect(packet.V5, "m2", h.token("m2", 3*time.Hour))
				m2.subscribe(2, "$share/g/a")
				x.ends(h, m0)
				m2.silent()
				h.state("m0", watchword.Active)
				m0 = h.connect(packet.V5, "m0", h.token("m0", time.Hour), lasts)
				if m0.ack.SessionPresent {
					t.Error("a session is present")
				}
				m0.subscribe(2, "$share/g/a")
				m0.silent()
			})
		})
	}
}

// MQTT-4.8.2-6: what a member refuses is for no other, nor when its session ends.
func TestWhatAMemberRefusesGoesToNoOther(t *testing.T) {
	for _, r := range refusing {
		for _, edit := range []func(*packet.Connect){func(*packet.Connect) {}, lasts} {
			t.Run(fmt.Sprintf("%#x", byte(r)), func(t *testing.T) {
				inBubble(t, func(t *testing.T, h *house) {
					m0, pub := h.device("m0", edit), h.device("pub")
					m0.subscribe(2, "$share/g/a")
					pub.publish(1, "a", "one")
					pub.twice("a", "two")
					one, two := want[*packet.Publish](m0), want[*packet.Publish](m0)
					m1 := h.device("m1")
					m1.subscribe(2, "$share/g/a")
					m0.send(said(one, r), said(two, r))
					m0.silent()
					m1.silent()
					m0.vanish()
					m1.silent()
					h.device("m0").silent() // it began anew
					m1.silent()
				})
			})
		}
	}
}
