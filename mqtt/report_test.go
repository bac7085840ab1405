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

func (c *client) dropped() string {
	for _, u := range c.ack.Properties.User {
		if u.Name == "dropped" {
			return u.Value
		}
	}
	return ""
}

// loses makes a session that is away, which loses one of its subscriptions and a message.
func (h *house) loses(v packet.Version) {
	h.t.Helper()
	h.away(v, "sub", "a", "b")
	pub := h.device("pub")
	for range 3 {
		pub.publish(1, "b", "x")
	}
	h.policy(`publish = ["#"]`, `subscribe = ["b"]`)
}

// A loss counts as told when the client has read it, not when CONNACK was made: until
// then each CONNACK says it, also over a restart.
func TestALossIsSaidUntilItWasRead(t *testing.T) {
	ways := map[string]struct {
		then func(h *house, c *client)
		read bool
	}{
		"the line breaks": {func(_ *house, c *client) { c.vanish() }, false},
		"it subscribes, and is gone": {func(_ *house, c *client) {
			c.send(&packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "c"}}})
			for range 3 { // two messages and SUBACK
				next(c)
			}
			c.vanish()
		}, false},
		"it publishes, and is gone":    {func(_ *house, c *client) { c.publish(0, "c", "x"); c.vanish() }, false},
		"it says goodbye":              {func(_ *house, c *client) { c.send(&packet.Disconnect{}) }, false},
		"the server is killed":         {func(h *house, _ *client) { h.crash(mqtt.Options{QueueMessages: 2}) }, false},
		"it acknowledges a message":    {func(_ *house, c *client) { c.takes(); c.vanish() }, true},
		"it pings":                     {func(_ *house, c *client) { c.send(&packet.Ping{}); want[*packet.Publish](c); c.vanish() }, true},
		"it pings, and is taken over":  {func(_ *house, c *client) { c.send(&packet.Ping{}) }, true},
		"it acknowledges what is none": {func(_ *house, c *client) { c.send(&packet.Ack{Kind: packet.PUBACK, ID: 60_000}); c.vanish() }, false},
		"it pings, and the server is killed": {func(h *house, c *client) {
			c.send(&packet.Ping{})
			synctest.Wait()
			h.crash(mqtt.Options{QueueMessages: 2})
		}, true},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, mqtt.Options{QueueMessages: 2})
				defer func() { h.close() }()
				h.loses(packet.V5)
				for range 2 { // it comes back, and is gone again
					c := h.back(packet.V5, "sub")
					if !slices.Equal(c.lost(), []string{"a"}) || c.dropped() != "1" {
						t.Fatalf("told %q, dropped %q", c.lost(), c.dropped())
					}
					synctest.Wait() // the server knows that its CONNACK is written
					way.then(h, c)
					synctest.Wait()
					if way.read {
						break
					}
				}
				c := h.back(packet.V5, "sub")
				if told := len(c.lost()) > 0 || c.dropped() != ""; told == way.read {
					t.Errorf("told %q, dropped %q; it had read it: %v", c.lost(), c.dropped(), way.read)
				}
			})
		})
	}
}

// What comes in one piece with CONNECT was sent before CONNACK was read.
func TestAPingBesideConnectHasReadNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.loses(packet.V5)
		c := h.raw(packet.V5)
		p := hello(packet.V5, "sub", h.token("sub", time.Hour))
		lasts(p)
		c.send(p, &packet.Ping{})
		want[*packet.Connack](c)
		c.vanish()
		synctest.Wait()
		if l := h.back(packet.V5, "sub").lost(); !slices.Equal(l, []string{"a"}) {
			t.Errorf("told %q", l)
		}
	})
}

// Where CONNACK had no room for it, nothing was said.
func TestWhatHadNoRoomWasNotSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, mqtt.Options{QueueMessages: 2})
		defer h.close()
		h.away(packet.V5, "sub", "b")
		pub := h.device("pub")
		for range 3 {
			pub.publish(1, "b", "x")
		}
		c := h.connect(packet.V5, "sub", h.token("sub", time.Hour), lasts, func(p *packet.Connect) { p.Properties.SetNumber(packet.MaximumPacketSize, 60) })
		if c.dropped() != "" {
			t.Fatalf("%+v", c.ack)
		}
		c.takesAll(2)
		c.vanish()
		synctest.Wait()
		if c := h.back(packet.V5, "sub"); c.dropped() != "1" {
			t.Errorf("dropped %q", c.dropped())
		}
	})
}

// A notice in $watchword/auth counts when it was acknowledged.
func TestANoticeOfALossCountsWhenItWasAcknowledged(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		for _, qos := range []byte{0, 1} {
			for _, acknowledged := range []bool{true, false} {
				t.Run(fmt.Sprintf("version %d, QoS %d, acknowledged %v", v, qos, acknowledged), func(t *testing.T) {
					inBubble(t, func(t *testing.T, h *house) {
						c := h.connect(v, "sub", h.token("sub", time.Hour), lasts)
						c.subscribe(1, "a", "b")
						c.subscribe(qos, "$watchword/auth")
						pub := h.device("pub")
						pub.publish(1, "b", "before")
						before := want[*packet.Publish](c)
						h.policy(`publish = ["#"]`, `subscribe = ["b"]`)
						notice := want[*packet.Publish](c)
						c.send(&packet.Ack{Kind: packet.PUBACK, ID: before.ID}) // says nothing of what came after it
						pub.publish(1, "b", "x")
						p := want[*packet.Publish](c)
						if acknowledged && qos == 1 {
							c.send(&packet.Ack{Kind: packet.PUBACK, ID: notice.ID})
						} else if acknowledged {
							c.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID}) // what came after it
						}
						c.vanish()
						synctest.Wait()
						c = h.connect(v, "sub", h.token("sub", time.Hour), lasts)
						if v == packet.V311 {
							return // it cannot be told there
						}
						if told := c.lost(); acknowledged != (len(told) == 0) {
							t.Errorf("told %q", told)
						}
					})
				})
			}
		}
	}
}

// What is subscribed to again is not said to be lost.
func TestWhatStandsAgainIsNotLost(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.loses(packet.V5)
		h.policy(`publish = ["#"]`, `subscribe = ["#"]`)
		c := h.back(packet.V5, "sub")
		c.send(&packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "a"}}})
		for range 4 { // three messages and SUBACK
			next(c)
		}
		c.vanish()
		synctest.Wait()
		c = h.back(packet.V5, "sub")
		if l := c.lost(); len(l) > 0 {
			t.Errorf("told %q", l)
		}
	})
}

// Only who held the session is told what it lost.
func TestOnlyTheHolderIsToldWhatWasLost(t *testing.T) {
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
			inBubble(t, func(t *testing.T, h *house) {
				c := h.connect(packet.V5, "sub", h.token("sub", time.Hour, tc.first...), lasts)
				c.subscribe(1, "a", "b")
				c.vanish()
				synctest.Wait()
				h.policy(`publish = ["#"]`, `subscribe = ["b"]`)
				h.device("pub").publish(1, "b", "x")
				if tc.restart {
					h.crash(mqtt.Options{})
				}
				c = h.connect(packet.V5, "sub", h.token("sub", time.Hour, tc.then...), lasts)
				if told := len(c.lost()) > 0; !c.ack.SessionPresent || told != tc.told {
					t.Fatalf("session present %v, told %q", c.ack.SessionPresent, c.lost())
				}
				c.takes()
				c.vanish()
				synctest.Wait()
				c = h.back(packet.V5, "sub")
				if told := len(c.lost()) > 0; told == tc.told {
					t.Errorf("then the holder was told %q", c.lost())
				}
			})
		})
	}
}
