package mqtt_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

func (c *client) lost() (out []string) {
	for _, u := range c.ack.Properties.User {
		if u.Name == "lost" {
			out = append(out, u.Value)
		}
	}
	return out
}

func TestWhoIsAwayLosesWhatPolicyTakes(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "sub", "a/#", "b", "a/1")
		pub := h.device("pub")
		publish := func(topics ...string) {
			for _, topic := range topics {
				pub.publish(1, topic, topic)
			}
		}
		publish("a/1", "b", "a/2")
		h.policy(`publish = ["#"]`, `subscribe = ["b", "a/1"]`)
		publish("a/2", "b")
		h.policy(`publish = ["#"]`, `subscribe = ["#"]`) // too late for what was lost
		publish("a/3", "a/1")
		sub := h.back(packet.V5, "sub")
		if got := sub.takesAll(4); !slices.Equal(got, []string{"a/1", "b", "b", "a/1"}) {
			t.Errorf("%v", got)
		}
		sub.silent()
		if l := sub.lost(); !slices.Equal(l, []string{"a/#"}) {
			t.Errorf("told %q", l)
		}
		if n := h.store.waiting(); n != 0 {
			t.Errorf("%d messages are left", n)
		}
		sub.vanish()
		synctest.Wait()
		if l := h.back(packet.V5, "sub").lost(); len(l) > 0 {
			t.Errorf("told twice: %q", l)
		}
	})
}

// The same over a restart: what was lost stays lost.
func TestWhatIsLostStaysLostOverARestart(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "sub", "a/#", "b")
		pub := h.device("pub")
		pub.publish(1, "a/1", "lost")
		h.policy(`publish = ["#"]`, `subscribe = ["b"]`)
		pub.publish(1, "b", "kept")
		h.crash(mqtt.Options{})
		h.policy(`publish = ["#"]`, `subscribe = ["#"]`)
		h.device("pub").publish(1, "a/2", "too late")
		sub := h.back(packet.V5, "sub")
		if got := sub.takesAll(1); got[0] != "kept" {
			t.Errorf("%v", got)
		}
		sub.silent()
		if l := sub.lost(); !slices.Equal(l, []string{"a/#"}) {
			t.Errorf("told %q", l)
		}
	})
}

// A client that cannot be told of a loss is told to subscribe anew (session present 0),
// and keeps what it still may have: subscriptions, and what waits by them.
func TestAClientThatCannotBeToldKeepsWhatItMayHave(t *testing.T) {
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
				inBubble(t, func(t *testing.T, h *house) {
					sub := h.connect(c.v, "sub", h.token("sub", time.Hour), lasts)
					sub.subscribe(2, append([]string{"b/#", "c"}, c.lost...)...)
					pub := h.device("pub")
					pub.publish(1, "b/1", "under way")
					want[*packet.Publish](sub) // and no acknowledgement
					sub.vanish()
					synctest.Wait()
					pub.publish(1, c.lost[0], "taken")
					pub.publish(1, "b/2", "one")
					pub.publish(1, "c", "two")
					h.policy(`publish = ["#"]`, `subscribe = ["b/#", "c"]`)
					pub.publish(1, c.lost[0], "taken")
					pub.publish(1, "b/3", "three")
					synctest.Wait()
					if crash {
						h.crash(mqtt.Options{})
						pub = h.device("pub")
					}
					sub = h.connect(c.v, "sub", h.token("sub", time.Hour), lasts)
					if sub.ack.SessionPresent {
						t.Error("session present, though a subscription is gone that it was not told of")
					}
					if got := sub.takesAll(4); !slices.Equal(got, []string{"under way", "one", "two", "three"}) {
						t.Errorf("%v", got)
					}
					sub.silent()
					codes := sub.subscribe(1, c.lost[0], "b/#")
					if !codes[0].Failed() || codes[1].Failed() {
						t.Errorf("%#x", codes)
					}
					pub.publish(1, "c", "it subscribes to it still")
					sub.hears("c", "it subscribes to it still")
					// It has heard: what is told once is not told again.
					sub.send(&packet.Ping{})
					want[*packet.Ping](sub)
					sub.vanish()
					synctest.Wait()
					if c := h.connect(c.v, "sub", h.token("sub", time.Hour), lasts); !c.ack.SessionPresent {
						t.Error("told again")
					}
					if n := h.store.waiting(); n != 0 {
						t.Errorf("%d messages are left in the store", n)
					}
				})
			})
		}
	}
}

// What a client of an earlier session had sent with QoS 2 and not released is not known to
// one that was told to begin anew: it may use the identifier for another message.
func TestIdentifiersAreFreeForWhoBeginsAnew(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ear := h.device("ear")
		ear.subscribe(1, "q")
		sub := h.connect(packet.V311, "sub", h.token("sub", time.Hour), lasts)
		sub.subscribe(1, "a", "b")
		sub.send(&packet.Publish{Topic: "q", QoS: 2, ID: 7, Payload: []byte("first")})
		want[*packet.Ack](sub)
		ear.hears("q", "first")
		sub.vanish()
		synctest.Wait()
		h.policy(`publish = ["#"]`, `subscribe = ["b", "q"]`)
		sub = h.connect(packet.V311, "sub", h.token("sub", time.Hour), lasts)
		sub.send(&packet.Publish{Topic: "q", QoS: 2, ID: 7, Payload: []byte("second")})
		want[*packet.Ack](sub)
		ear.hears("q", "second")
	})
}

func TestWhoIsSuspendedComesBackWithWhatItHad(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "sub", "a")
		pub := h.device("pub")
		pub.publish(1, "a", "before")
		h.state("sub", watchword.Suspended)
		if r := pub.publish(1, "a", "meanwhile"); r != packet.NoSubscribers {
			t.Errorf("%#x", r)
		}
		h.state("sub", watchword.Active)
		pub.publish(1, "a", "after")
		sub := h.back(packet.V5, "sub")
		if got := sub.takesAll(2); !slices.Equal(got, []string{"before", "after"}) {
			t.Errorf("%v", got)
		}
		// While it is there, the same.
		synctest.Wait()
		h.state("sub", watchword.Suspended)
		sub.ended(packet.Administrative)
		pub.publish(1, "a", "meanwhile")
		h.state("sub", watchword.Active)
		sub = h.back(packet.V5, "sub")
		sub.silent()
	})
}

func TestASessionGoesWithItsSubject(t *testing.T) {
	for name, there := range map[string]bool{"away": false, "there": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				h.away(packet.V5, "sub", "a")
				pub := h.device("pub")
				pub.publish(1, "a", "x")
				if there {
					h.back(packet.V5, "sub").takes()
				}
				h.state("sub", watchword.Revoked)
				synctest.Wait()
				if s := h.broker.Stats(); s.Lasting != 0 || s.Subscriptions != 0 || h.store.waiting() != 0 {
					t.Errorf("%d sessions, %d subscriptions, %d messages are left", s.Lasting, s.Subscriptions, h.store.waiting())
				}
				h.state("sub", watchword.Active)
				if c := h.connect(packet.V5, "sub", h.token("sub", time.Hour), lasts); c.ack.SessionPresent {
					t.Error("it is there again")
				}
			})
		})
	}
}

func TestASessionIsOfOneLifeOfItsSubject(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "sub", "a")
		h.device("pub").publish(1, "a", "x")
		h.mu.Lock()
		h.roll["sub"].Incarnation = 2 // enrolled again, and nobody told the guard
		h.mu.Unlock()
		raw := h.token("sub", time.Hour)
		h.mu.Lock()
		p := h.tokens[raw]
		p.Incarnation = 2
		h.tokens[raw] = p
		h.mu.Unlock()
		if c := h.connect(packet.V5, "sub", raw, lasts); c.ack.SessionPresent {
			t.Error("the session of an earlier life")
		}
	})
}

// wills makes a CONNECT with a delayed will.
func wills(delay uint32) func(*packet.Connect) {
	return func(p *packet.Connect) {
		lasts(p)
		p.Will = &packet.Will{Topic: "will", QoS: 1, Payload: []byte("gone")}
		p.Will.Properties.SetNumber(packet.WillDelay, delay)
		p.Will.Properties.SetNumber(packet.MessageExpiry, 100)
	}
}

func TestDelayedWills(t *testing.T) {
	for name, c := range map[string]struct {
		then func(h *house, c *client)
		in   time.Duration // until the will; 0: never
	}{
		"it stays away": {func(_ *house, c *client) { c.vanish() }, time.Minute},
		"it comes back": {func(h *house, c *client) {
			c.vanish()
			synctest.Wait()
			h.connect(packet.V5, "lamp", h.token("lamp", 3*time.Hour), lasts)
		}, 0},
		"it begins anew": {func(h *house, c *client) {
			c.vanish()
			synctest.Wait()
			h.connect(packet.V5, "lamp", h.token("lamp", 3*time.Hour))
		}, time.Nanosecond},
		"it is taken over": {func(h *house, _ *client) { h.connect(packet.V5, "lamp", h.token("lamp", 3*time.Hour), lasts) }, 0},
		"it says goodbye":  {func(_ *house, c *client) { c.send(&packet.Disconnect{}) }, 0},
		"it says so":       {func(_ *house, c *client) { c.send(&packet.Disconnect{Reason: packet.WithWill}) }, time.Minute},
		"its session ends first": {func(_ *house, c *client) {
			d := &packet.Disconnect{Reason: packet.WithWill}
			d.Properties.SetNumber(packet.SessionExpiry, 10)
			c.send(d)
		}, 10 * time.Second},
		"it is suspended": {func(h *house, c *client) {
			c.vanish()
			synctest.Wait()
			h.state("lamp", watchword.Suspended)
			h.state("lamp", watchword.Active)
		}, 0},
		"it is revoked": {func(h *house, c *client) { c.vanish(); synctest.Wait(); h.state("lamp", watchword.Revoked) }, 0},
		"its right goes": {func(h *house, c *client) {
			c.vanish()
			synctest.Wait()
			h.policy(`subscribe = ["#"]`)
			h.policy(`publish = ["#"]`, `subscribe = ["#"]`)
		}, 0},
		"its right goes while it is there": {func(h *house, c *client) {
			h.policy(`subscribe = ["#"]`)
			h.policy(`publish = ["#"]`, `subscribe = ["#"]`)
			c.vanish()
		}, 0},
		"it is suspended while it is there": {func(h *house, _ *client) { h.state("lamp", watchword.Suspended); h.state("lamp", watchword.Active) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				ear := h.connect(packet.V5, "ear", h.token("ear", 5*time.Hour))
				ear.subscribe(1, "will", "$watchword/auth")
				lamp := h.connect(packet.V5, "lamp", h.token("lamp", 3*time.Hour), wills(60))
				from := time.Now()
				c.then(h, lamp)
				synctest.Wait()
				var got *packet.Publish
				for end := time.After(2 * time.Hour); got == nil; {
					select {
					case p := <-ear.got:
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
					if n, _ := got.Properties.Number(packet.MessageExpiry); n < 98 || n > 100 {
						t.Errorf("it lives for %d seconds", n)
					}
				}
			})
		})
	}
}

// The server went; who does not come back is missed.
func TestWillsSurvive(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.connect(packet.V5, "lamp", h.token("lamp", time.Hour), wills(0))
		back := h.connect(packet.V5, "back", h.token("back", time.Hour), wills(0))
		waits := h.connect(packet.V5, "waits", h.token("waits", time.Hour), wills(600))
		waits.vanish()
		synctest.Wait()
		_ = back
		h.crash(mqtt.Options{})
		ear := h.device("ear")
		ear.subscribe(1, "will")
		h.connect(packet.V5, "back", h.token("back", time.Hour), lasts)
		ear.silent()
		from := time.Now()
		ear.takes()
		if after := time.Since(from); after > time.Minute || after < 55*time.Second {
			t.Errorf("after %v", after)
		}
		ear.takes()
		if after := time.Since(from); after > 600*time.Second || after < 590*time.Second {
			t.Errorf("after %v", after)
		}
		ear.silent()
	})
}

// A will that fell due while the server was down is published when it is up.
func TestAWillThatFellDueWhileTheServerWasDown(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		c := h.connect(packet.V5, "lamp", h.token("lamp", time.Hour), wills(10))
		c.vanish()
		synctest.Wait()
		old := h.store
		h.store = old.cut()
		old.fail(true)
		h.close()
		time.Sleep(20 * time.Second)
		h.start(mqtt.Options{})
		ear := h.device("ear")
		ear.subscribe(1, "will")
		ear.takes()
	})
}

// A clean start ends the session before it, and its will is due (MQTT 5.0 §3.1.3.2.2).
func TestAWillWhoseSessionACleanStartEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ear := h.device("ear")
		ear.subscribe(1, "will")
		h.connect(packet.V5, "lamp", h.token("lamp", time.Hour), wills(10))
		h.device("lamp")
		ear.takes()
	})
}

// Who is closed for a loss: one of 3.1.1 begins anew, one of 5 hears which it was.
func TestWhoIsClosedForALossIsToldWhenItIsBack(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				c := h.connect(v, "sub", h.token("sub", time.Hour), lasts)
				c.subscribe(1, "a", "b")
				h.policy(`publish = ["#"]`, `subscribe = ["b"]`)
				c.ended(packet.NotAuthorized)
				synctest.Wait()
				c = h.connect(v, "sub", h.token("sub", time.Hour), lasts)
				if v == packet.V311 && c.ack.SessionPresent {
					t.Error("session present, though a subscription is gone")
				}
				if l := c.lost(); v == packet.V5 && !slices.Equal(l, []string{"a"}) {
					t.Errorf("told %q", l)
				}
			})
		})
	}
}

// One whose session begins anew for a loss leaves its groups what waited for it.
func TestWhoBeginsAnewLeavesItsGroupsWhatTheyHad(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V311, "m0", "$share/g/a", "b")
		pub := h.device("pub")
		for n := 1; n <= 10; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		m1 := h.device("m1")
		m1.subscribe(1, "$share/g/a")
		h.policy(`publish = ["#"]`, `subscribe = ["a"]`)
		synctest.Wait()
		if m0 := h.connect(packet.V311, "m0", h.token("m0", time.Hour), lasts); m0.ack.SessionPresent {
			t.Error("session present, though a subscription is gone")
		}
		if got := m1.takesAll(10); !slices.Equal(got, numbers(1, 10)) {
			t.Errorf("%v", got)
		}
	})
}
