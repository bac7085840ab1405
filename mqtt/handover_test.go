package mqtt_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

// oneAtATime is for a CONNECT of a client that takes one message at a time.
func oneAtATime(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 1) }

// handOver is the moment before a message of a shared group is handed on: m0 has it, and
// has not acknowledged it, m1 is the other member and, where full, takes no more now.
func (h *house) handOver(full bool) (m0, m1 *client) {
	h.t.Helper()
	m0 = h.connect(packet.V5, "m0", h.token("m0", time.Hour), lasts)
	m0.subscribe(1, "$share/g/a")
	pub := h.device("pub")
	pub.publish(1, "a", "one")
	want[*packet.Publish](m0)
	edits := []func(*packet.Connect){lasts}
	if full {
		edits = append(edits, oneAtATime)
	}
	m1 = h.connect(packet.V5, "m1", h.token("m1", time.Hour), edits...)
	m1.subscribe(1, "$share/g/a", "own")
	if full {
		pub.publish(1, "own", "x")
		want[*packet.Publish](m1)
	}
	synctest.Wait()
	return m0, m1
}

// A message that cannot be written with its new member stays its old one's.
func TestAHandOverThatIsNotWritten(t *testing.T) {
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprint("full ", full), func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				m0, m1 := h.handOver(full)
				h.store.shut()
				m0.vanish()
				synctest.Wait()
				h.store.fail(true)
				if !full {
					m1.vanish()
				}
				synctest.Wait()
				time.Sleep(2 * time.Second)
				h.store.fail(false)
				time.Sleep(time.Minute)
				if full {
					m1.send(&packet.Ack{Kind: packet.PUBACK, ID: 1})
				}
				heard := len(m1.got)
				m0 = h.back(packet.V5, "m0")
				if !full {
					m1 = h.back(packet.V5, "m1")
				}
				synctest.Wait()
				if heard+len(m0.got)+len(m1.got) == 0 {
					t.Error("an acknowledged message is lost")
				}
			})
		})
	}
}

func TestACrashAtTheHandOver(t *testing.T) {
	for range 20 { // whose write is first is not the test's to say
		inBubble(t, func(t *testing.T, h *house) {
			m0, _ := h.handOver(true)
			h.store.mu.Lock()
			h.store.last = true
			h.store.mu.Unlock()
			m0.vanish()
			synctest.Wait()
			h.crash(mqtt.Options{})
			m0, m1 := h.back(packet.V5, "m0"), h.back(packet.V5, "m1")
			m1.takes() // its own, that it did not acknowledge
			synctest.Wait()
			if len(m0.got)+len(m1.got) == 0 {
				t.Error("an acknowledged message is lost by a crash")
			}
		})
	}
}

// A session whose end meets a crash: the group has what it had.
func TestASessionThatEndsAtACrash(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "m0", "$share/g/a")
		h.device("pub").publish(1, "a", "one")
		h.away(packet.V5, "m1", "$share/g/a")
		synctest.Wait()
		h.store.mu.Lock()
		h.store.last, h.store.slow = true, time.Second // what is written before the message is read, is all
		h.store.mu.Unlock()
		h.state("m0", watchword.Revoked)
		time.Sleep(2 * time.Second)
		h.crash(mqtt.Options{})
		h.state("m0", watchword.Revoked) // also where its end was not written
		synctest.Wait()
		m1 := h.back(packet.V5, "m1")
		synctest.Wait()
		if len(m1.got) == 0 {
			t.Error("an acknowledged message is lost by a crash")
		}
	})
}

// One of the messages of two groups that a session has is handed on to the group whose it
// is, though the filters overlap.
func TestGroupsThatOverlap(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "m0", "$share/a/x/#", "$share/b/x/+", "hold")
		b1 := h.device("b1")
		b1.subscribe(1, "$share/b/x/+")
		pub := h.device("pub")
		for n := range 200 { // more than is fetched at first
			pub.publish(1, "hold", fmt.Sprint(n))
		}
		for n := range 3 {
			pub.publish(1, "x/1", fmt.Sprint(n))
			b1.takes()
		}
		c := h.connect(packet.V5, "m0", h.token("m0", time.Hour), lasts, oneAtATime)
		first := want[*packet.Publish](c)
		synctest.Wait()
		c.send(&packet.Unsubscribe{ID: c.id(), Filters: []string{"$share/b/x/+"}})
		want[*packet.Unsuback](c)
		b1.silent() // none of group a's is group b's
		c.send(&packet.Ack{Kind: packet.PUBACK, ID: first.ID})
		c.takesAll(199)
		if got := c.takesAll(3); got[0] != "0" || got[2] != "2" {
			t.Errorf("group a heard %v", got)
		}
		c.silent()
	})
}

// What was fetched from the shelf for a member is its group's still.
func TestWhatWasFetchedIsStillTheGroups(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.away(packet.V5, "m0", "$share/g/a")
		pub := h.device("pub")
		for n := 1; n <= 5; n++ {
			pub.publish(1, "a", fmt.Sprint(n))
		}
		c := h.connect(packet.V5, "m0", h.token("m0", time.Hour), lasts, oneAtATime)
		want[*packet.Publish](c)
		m1 := h.device("m1")
		m1.subscribe(1, "$share/g/a")
		c.vanish()
		synctest.Wait()
		h.device("m0") // begins anew
		m1.takesAll(5)
		m1.silent()
	})
}

// Who has worked off what it had is as free as who is new.
func TestAGroupSeesWhoHasTakenWhatItHad(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		nc, theirs := net2()
		h.broker.Handle(theirs)
		slow := &client{t: t, v: packet.V5, nc: nc, got: make(chan packet.Packet, 4096)}
		go slow.send(hello(packet.V5, "m0", h.token("m0", time.Hour)), &packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: "$share/g/a"}}})
		pub := h.device("pub")
		synctest.Wait() // m0 reads nothing yet, also not its CONNACK
		for range 50 {
			pub.publish(0, "a", "x")
		}
		synctest.Wait()
		m1 := h.device("m1")
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
func TestASessionThatEndsLeavesItsGroupAllItHad(t *testing.T) {
	for name, ends := range map[string]func(h *house, m0 *client){
		"by DISCONNECT": func(_ *house, m0 *client) {
			d := &packet.Disconnect{}
			d.Properties.SetNumber(packet.SessionExpiry, 0)
			m0.send(d)
		},
		"by a clean start": func(h *house, m0 *client) {
			m0.vanish()
			synctest.Wait()
			h.device("m0")
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				const all = 600
				m0 := h.connect(packet.V5, "m0", h.token("m0", time.Hour), lasts, oneAtATime)
				m0.subscribe(1, "$share/g/a")
				pub := h.device("pub")
				for n := range all {
					pub.publish(1, "a", fmt.Sprint(n))
				}
				m1 := h.device("m1")
				m1.subscribe(1, "$share/g/a")
				ends(h, m0)
				m1.takesAll(all)
				m1.silent()
			})
		})
	}
}
