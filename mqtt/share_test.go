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
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/mqtt"
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
		// What waited is the group's: who comes first gets it, and what came since behind it.
		if got := two.takesAll(6); !slices.Equal(got, numbers(1, 6)) {
			t.Errorf("%v", got)
		}
		two.silent()
		h.back(packet.V5, "m0").silent()
	})
}

// What came while no member was there waits for the group: whoever comes first gets all of
// it, in order, also what lies with several members and is more than is moved at once.
func TestWhoComesFirstGetsWhatWaitsForTheGroup(t *testing.T) {
	for name, c := range map[string]struct {
		n     int
		crash bool
		comes func(h *house) *client
	}{
		"one of the four":                   {12, false, func(h *house) *client { return h.back(packet.V5, "m2") }},
		"one of the four, more than a page": {700, false, func(h *house) *client { return h.back(packet.V5, "m2") }},
		"one of the four, after a crash":    {300, true, func(h *house) *client { return h.back(packet.V5, "m2") }},
		"another, whose session does not last": {300, false, func(h *house) *client {
			c := h.device("m9")
			c.subscribe(1, "$share/g/a")
			return c
		}},
		"another, that takes one at a time": {300, false, func(h *house) *client {
			c := h.device("m9", oneAtATime)
			c.subscribe(1, "$share/g/a")
			return c
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				for n := range 4 {
					h.away(packet.V5, watchword.SubjectID(fmt.Sprint("m", n)), "$share/g/a", fmt.Sprint("own", n))
				}
				pub := h.device("pub")
				for n := 1; n <= c.n; n++ {
					pub.publish(1, "a", fmt.Sprint(n))
				}
				for n := range 4 {
					pub.publish(1, fmt.Sprint("own", n), "x")
				}
				if c.crash {
					h.crash(mqtt.Options{})
				}
				first := c.comes(h)
				own := 0
				var got []string
				for len(got) < c.n {
					m := first.takes()
					if m.Topic != "a" {
						own++
						continue
					}
					got = append(got, string(m.Payload))
				}
				if !slices.Equal(got, numbers(1, c.n)) {
					t.Errorf("%v", got)
				}
				first.silent()
				for n := range 4 { // what is their own is still there, and nothing of the group's
					if n == 2 && own == 1 {
						continue
					}
					m := h.back(packet.V5, watchword.SubjectID(fmt.Sprint("m", n)))
					m.hears(fmt.Sprint("own", n), "x")
					m.silent()
				}
				synctest.Wait()
				if n := h.store.waiting(); n != 0 {
					t.Errorf("%d messages are left in the store", n)
				}
			})
		})
	}
}

// What lay in the store for a member that was busy is its group's when its connection ends:
// a member that is there and had nothing to do gets it.
func TestWhatWaitsWithABusyMemberIsTheGroupsWhenItGoes(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		m0 := h.connect(packet.V5, "m0", h.token("m0", time.Hour), lasts, oneAtATime)
		m0.subscribe(1, "$share/g/a")
		pub := h.device("pub")
		for n := 1; n <= 600; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		m1 := h.device("m1")
		m1.subscribe(1, "$share/g/a")
		m1.silent()
		m0.vanish()
		got := m1.takesAll(600)
		slices.SortFunc(got, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
		if !slices.Equal(got, numbers(1, 600)) {
			t.Errorf("%v", got)
		}
		m1.silent()
	})
}

// The same where nothing of it was fetched yet.
func TestWhatWasNotFetchedYetIsTheGroups(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "m0", "$share/g/a")
		pub := h.device("pub")
		for n := 1; n <= 5; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		synctest.Wait()
		h.store.mu.Lock()
		h.store.slow = time.Minute
		h.store.mu.Unlock()
		m0 := h.back(packet.V5, "m0")
		m1 := h.device("m1")
		m1.subscribe(1, "$share/g/a")
		m1.silent()
		m0.vanish()
		if got := m1.takesAll(5); !slices.Equal(got, numbers(1, 5)) {
			t.Errorf("%v", got)
		}
		m1.silent()
	})
}

// What waits for a group cuts nobody off who has no room for it yet.
func TestWhatWaitsForAGroupOverwhelmsNobody(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.crash(mqtt.Options{QueueBytes: 2_000})
		h.away(packet.V5, "m0", "$share/g/a")
		pub := h.device("pub")
		pub.publish(1, "a", strings.Repeat("x", 1_500))
		m1 := h.device("m1", oneAtATime)
		m1.subscribe(1, "own")
		pub.publish(1, "own", "1")
		pub.publish(1, "own", strings.Repeat("y", 600))
		first := want[*packet.Publish](m1)
		m1.subscribe(1, "$share/g/a")
		m1.silent()
		m1.send(&packet.Ack{Kind: packet.PUBACK, ID: first.ID})
		m1.hears("own", strings.Repeat("y", 600))
		m1.hears("a", strings.Repeat("x", 1_500))
		m1.silent()
	})
}

// Two members that come share what waits, and neither gets what the other has.
func TestMembersShareWhatWaits(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "m0", "$share/g/a")
		h.away(packet.V5, "m1", "$share/g/a")
		pub := h.device("pub")
		for n := 1; n <= 1000; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		one, two := h.back(packet.V5, "m0"), h.back(packet.V5, "m1")
		seen := map[string]bool{}
		for range 1000 {
			var c *client
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
			p := c.takes()
			if seen[string(p.Payload)] {
				t.Errorf("%s twice", p.Payload)
			}
			seen[string(p.Payload)] = true
		}
		one.silent()
		two.silent()
	})
}

// The bounds of a group's queue are those of its members' sessions: the newest messages
// find no room, and it is told once for each.
func TestAGroupThatIsAwayIsFull(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.crash(mqtt.Options{QueueMessages: 10})
		h.away(packet.V5, "m0", "$share/g/a")
		h.away(packet.V5, "m1", "$share/g/a")
		pub := h.device("pub")
		for n := 1; n <= 25; n++ {
			reason := packet.Success
			if n > 20 {
				reason = packet.QuotaExceeded
			}
			if r := pub.publish(1, "a", fmt.Sprint(n)); r != reason {
				t.Errorf("%d: %#x", n, r)
			}
		}
		if s := h.broker.Stats(); s.Dropped != 5 {
			t.Errorf("%d found no room", s.Dropped)
		}
		first := h.device("m9")
		first.subscribe(1, "$share/g/a")
		if got := first.takesAll(20); !slices.Equal(got, numbers(1, 20)) { // also over two sessions
			t.Errorf("%v", got)
		}
		first.silent()
		one, two := h.back(packet.V5, "m0"), h.back(packet.V5, "m1")
		one.silent()
		two.silent()
		if told := one.dropped() + two.dropped(); told != "5" {
			t.Errorf("%q are told", told)
		}
	})
}

// A member that comes gets what waits only while it may have it; and with the last member
// the queue of the group ends.
func TestWhatEndsTheQueueOfAGroup(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(h *house)
		gets int
		left int // in the store
	}{
		"a member's session ends": {func(h *house) { h.device("m0") }, 4, 0},
		"a member unsubscribes":   {func(h *house) { h.unsubscribe("m0", "$share/g/a") }, 4, 0},
		"the last session ends":   {func(h *house) { h.device("m0"); h.device("m1") }, 0, 0},
		// What it was sent is completed with it (MQTT 5.0 §3.10.4).
		"the last one unsubscribes": {func(h *house) { h.unsubscribe("m0", "$share/g/a"); h.unsubscribe("m1", "$share/g/a") }, 0, 4},
		"its messages expire":       {func(*house) { time.Sleep(200 * time.Second) }, 0, 0},
		"the right goes":            {func(h *house) { h.policy(`publish = ["#"]`, `subscribe = ["b"]`) }, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				h.away(packet.V5, "m0", "$share/g/a")
				h.away(packet.V5, "m1", "$share/g/a")
				pub := h.device("pub")
				for n := range 4 {
					p := &packet.Publish{Topic: "a", QoS: 1, ID: pub.id(), Payload: fmt.Append(nil, n)}
					p.Properties.SetNumber(packet.MessageExpiry, 100)
					pub.send(p)
					want[*packet.Ack](pub)
				}
				c.end(h)
				synctest.Wait()
				last := h.device("m9")
				codes := last.subscribe(1, "$share/g/a", "b")
				if codes[0].Failed() != (name == "the right goes") {
					t.Errorf("%#x", codes)
				}
				last.takesAll(c.gets)
				last.silent()
				if n := h.store.waiting(); n != c.left {
					t.Errorf("%d messages are left in the store, want %d", n, c.left)
				}
			})
		})
	}
}

// unsubscribe has a client come, unsubscribe, and go again.
func (h *house) unsubscribe(id watchword.SubjectID, filter string) {
	h.t.Helper()
	c := h.back(packet.V5, id)
	synctest.Wait() // it is sent what waits
	c.send(&packet.Unsubscribe{ID: c.id(), Filters: []string{filter}})
	synctest.Wait()
	c.vanish()
	synctest.Wait()
}

// A group for which there is no room is not made: its member is refused, and nothing is counted.
func TestAGroupWithoutRoom(t *testing.T) {
	made, refused := 0, 0
	for bound := int64(100); bound <= 3000; bound += 100 {
		synctest.Test(t, func(t *testing.T) {
			h := newHouse(t, mqtt.Options{}, bus.Options{SubjectSubscriptionBytes: bound})
			defer h.close()
			c := h.device("sub")
			switch code := c.subscribe(1, "$share/g/a")[0]; code {
			case 1:
				made++
				h.device("pub").publish(1, "a", "x")
				c.hears("a", "x")
			case packet.QuotaExceeded:
				refused++
				if n := h.broker.Stats().SubscriptionBytes; n != 0 {
					t.Errorf("bound of %d: refused, and %d bytes are counted", bound, n)
				}
			default:
				t.Errorf("bound of %d: %#x", bound, code)
			}
			if n := h.broker.Stats().SubscriptionBytes; n > bound {
				t.Errorf("bound of %d: %d bytes are counted", bound, n)
			}
		})
	}
	if made < 3 || refused < 3 {
		t.Errorf("%d made, %d refused: the bounds do not try both", made, refused)
	}
}
