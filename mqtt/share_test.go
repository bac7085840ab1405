package mqtt_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

func TestOfAGroupOneGetsEachMessage(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		pub := h.device("pub")
		var members []*client
		for n := range 4 {
			c := h.device(watchword.SubjectID(fmt.Sprint("m", n)))
			c.subscribe(1, "$share/g/a/#")
			members = append(members, c)
		}
		other, plain := h.device("other"), h.device("plain")
		other.subscribe(1, "$share/h/a/#")
		plain.subscribe(1, "a/+", "$share/g2/a/b")
		const each = 50
		for range each * 4 {
			pub.publish(1, "a/b", "x")
			synctest.Wait()
		}
		for n, c := range members {
			c.takesAll(each)
			c.silent()
			if n == 0 {
				c.send(&packet.Unsubscribe{ID: c.id(), Filters: []string{"$share/g/a/#"}})
				want[*packet.Unsuback](c)
			}
		}
		other.takesAll(4 * each)
		plain.takesAll(8 * each) // a group's copy is one of its own
		for range 30 {
			pub.publish(1, "a/b", "x")
		}
		members[0].silent()
		for _, c := range members[1:] {
			c.takesAll(10)
		}
		// Who has more to do gets less.
		slow := 0
		for range 30 {
			pub.publish(1, "a/b", "x")
			synctest.Wait()
			for _, c := range members[2:] {
				if len(c.got) > 0 {
					c.takes()
				}
			}
			slow = max(slow, len(members[1].got))
			synctest.Wait()
		}
		if slow != 1 {
			t.Errorf("%d messages for who takes none", slow)
		}
	})
}

func TestAGroupGoesOnWithoutAMember(t *testing.T) {
	for name, goes := range map[string]func(h *house, c *client){
		"it vanishes":     func(_ *house, c *client) { c.vanish() },
		"it unsubscribes": func(_ *house, c *client) { c.send(&packet.Unsubscribe{ID: c.id(), Filters: []string{"$share/g/a"}}) },
		"it loses its right": func(h *house, _ *client) {
			h.policy(`publish = ["#"]`, `subscribe = ["x/#"]`)
		},
		"it is suspended": func(h *house, _ *client) { h.state("m0", watchword.Suspended) },
	} {
		for _, edit := range []func(*packet.Connect){func(*packet.Connect) {}, lasts} {
			t.Run(name, func(t *testing.T) {
				inBubble(t, func(t *testing.T, h *house) {
					h.policy(`publish = ["#"]`, `subscribe = ["#"]`)
					pub := h.device("pub")
					one := h.device("m0", edit, func(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 1) })
					one.subscribe(1, "$share/g/a")
					for n := 1; n <= 5; n++ {
						pub.publish(1, "a", fmt.Sprint(n))
					}
					want[*packet.Publish](one) // and no acknowledgement
					two := h.device("m1")
					if name == "it loses its right" { // who has it keeps it
						h.policy(`publish = ["#"]`, `subscribe = ["x/#"]`)
						synctest.Wait()
						return
					}
					two.subscribe(1, "$share/g/a")
					goes(h, one)
					got := two.takesAll(5)
					if slices.Sort(got); !slices.Equal(got, numbers(1, 5)) {
						t.Errorf("%v", got)
					}
					two.silent()
				})
			})
		}
	}
}

func TestAGroupThatIsAwayWaits(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "m0", "$share/g/a")
		pub := h.device("pub")
		for n := 1; n <= 3; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		two := h.device("m1")
		two.subscribe(1, "$share/g/a")
		for n := 4; n <= 6; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		if got := two.takesAll(3); !slices.Equal(got, numbers(4, 6)) {
			t.Errorf("%v", got)
		}
		two.silent()
		// What waits for a member whose right goes is the group's.
		h.state("m0", watchword.Revoked)
		if got := two.takesAll(3); !slices.Equal(got, numbers(1, 3)) {
			t.Errorf("%v", got)
		}
	})
}
