package mqtt_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/session"
)

// retainAll publishes one retained message to each topic.
func (c *client) retainAll(topics ...string) {
	c.t.Helper()
	for _, topic := range topics {
		if r := c.retain(topic, "kept"); r.Failed() {
			c.t.Fatalf("%s: %#x %v", topic, r, c.last)
		}
	}
}

// gets subscribes anew and fails unless these topics are given, and nothing else.
func (h *house) gets(filter string, want ...string) {
	h.t.Helper()
	sub := h.device("asks")
	var got []string
	sub.send(&packet.Subscribe{ID: sub.id(), Filters: []packet.Filter{{Topic: filter, QoS: 1}}})
	for {
		synctest.Wait()
		p, ok := wantOrNothing(sub)
		if !ok {
			break
		}
		if p, ok := p.(*packet.Publish); ok {
			got = append(got, p.Topic)
			sub.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
		}
	}
	sub.vanish()
	slices.Sort(got)
	if slices.Sort(want); !slices.Equal(got, want) {
		h.t.Fatalf("%s: given %q, want %q", filter, got, want)
	}
}

func wantOrNothing(c *client) (packet.Packet, bool) {
	select {
	case p, ok := <-c.got:
		return p, ok
	default:
		return nil, false
	}
}

// kept fails unless so many retained messages are in memory and in the store.
func (h *house) kept(n int) {
	h.t.Helper()
	synctest.Wait()
	h.store.mu.Lock()
	stored := len(h.store.retained)
	h.store.mu.Unlock()
	if s := h.broker.Stats(); s.Retained != int64(n) || stored != n || n == 0 && s.RetainedBytes != 0 {
		h.t.Fatalf("%d retained of %d bytes, %d in the store, want %d", s.Retained, s.RetainedBytes, stored, n)
	}
}

// reborn revokes a subject, and enrolls it anew.
func (h *house) reborn(id watchword.SubjectID) {
	h.mu.Lock()
	h.roll[id].Incarnation++
	h.roll[id].State = watchword.Active
	h.mu.Unlock()
	h.guard.SubjectChanged(context.Background(), watchword.DefaultTenant, id)
}

// deleted takes a subject off the roll.
func (h *house) deleted(id watchword.SubjectID) {
	h.mu.Lock()
	delete(h.roll, id)
	h.mu.Unlock()
	h.guard.SubjectChanged(context.Background(), watchword.DefaultTenant, id)
}

// A retained message is given while its publisher may publish it at that moment.
func TestRetainedMessagesAreGivenWhileTheirOwnerMayPublish(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.device("one").retainAll("a/1", "b/1")
		h.device("two").retainAll("a/2", "b/2")
		h.gets("#", "a/1", "a/2", "b/1", "b/2")

		h.policy(`publish = ["b/#"]`, `subscribe = ["#"]`)
		h.gets("#", "b/1", "b/2")
		h.gets("a/1")
		h.policy(`publish = ["#"]`, `subscribe = ["#"]`, `deny publish = ["b/2"]`)
		h.gets("#", "a/1", "a/2", "b/1")
		h.policy(`publish = ["#"]`, `subscribe = ["#"]`)

		h.state("two", watchword.Suspended)
		h.gets("#", "a/1", "b/1")
		h.kept(4)
		h.state("two", watchword.Active)
		h.gets("#", "a/1", "a/2", "b/1", "b/2")

		h.state("one", watchword.Revoked)
		h.gets("#", "a/2", "b/2")
		h.kept(2)
		h.deleted("two")
		h.gets("#")
		h.kept(0)
	})
}

// What another publishes to a topic is that one's.
func TestWhoPublishesLastOwnsTheRetainedMessage(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.device("one").retainAll("a", "b", "c")
		two := h.device("two")
		two.retainAll("a")
		two.retain("b", "")
		h.state("one", watchword.Suspended)
		h.gets("#", "a")
		h.state("one", watchword.Active)
		h.state("two", watchword.Revoked)
		h.gets("#", "c")
		h.kept(1)
	})
}

// Nothing of an earlier life comes back, also where the server was not there when that
// ended.
func TestRetainedMessagesOfAnEarlierLifeAreGone(t *testing.T) {
	for name, end := range map[string]func(h *house){
		"enrolled anew": func(h *house) { h.reborn("one") },
		"deleted":       func(h *house) { h.deleted("one") },
		"revoked":       func(h *house) { h.state("one", watchword.Revoked) },
		"revoked while the server was down": func(h *house) {
			h.mu.Lock()
			h.roll["one"].Incarnation++
			h.mu.Unlock()
			h.crash(mqtt.Options{})
		},
		"deleted, and the server killed before all was written": func(h *house) {
			h.store.shut()
			h.deleted("one")
			synctest.Wait()
			h.crash(mqtt.Options{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				one := h.device("one")
				for n := range 3000 { // more than one step
					one.retainAll(fmt.Sprintf("a/%d", n))
				}
				one.vanish()
				h.device("two").retainAll("b")
				end(h)
				h.kept(1) // nobody needs to ask for them
				h.gets("#", "b")
				h.reborn0("one")
				h.gets("#", "b")
			})
		})
	}
}

// reborn0 has a subject stand, and live anew.
func (h *house) reborn0(id watchword.SubjectID) {
	h.token(id, time.Hour)
	h.mu.Lock()
	h.roll[id].Incarnation = 7
	h.mu.Unlock()
	h.state(id, watchword.Active)
}

// Owners survive the server; what was stored before owners were kept has none, and is
// given until another takes its place.
func TestOwnersSurvive(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.device("one").retainAll("a", "old", "older")
		h.kept(3)
		h.store.mu.Lock()
		for _, topic := range []string{"old", "older"} {
			r := h.store.retained[topic]
			r.Subject, r.Incarnation = "", 0
			h.store.retained[topic] = r
		}
		h.store.mu.Unlock()
		h.crash(mqtt.Options{})
		h.state("one", watchword.Suspended)
		h.gets("#", "old", "older")
		h.device("two").retainAll("old")
		h.state("two", watchword.Suspended)
		h.gets("#", "older")
		h.state("one", watchword.Active)
		h.gets("#", "a", "older")
		h.deleted("one")
		h.deleted("two")
		h.gets("#", "older")
		h.kept(1)
	})
}

func TestARetainedWillHasAnOwner(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		one := h.device("one", func(p *packet.Connect) {
			p.Will = &packet.Will{Topic: "w", QoS: 1, Retain: true, Payload: []byte("gone")}
		})
		one.vanish()
		synctest.Wait()
		h.gets("#", "w")
		h.state("one", watchword.Suspended)
		h.gets("#")
		h.deleted("one")
		h.kept(0)
	})
}

// Who is being given much is given no more of what an edit has taken, from the moment
// that it is answered.
func TestAnEditReachesWhoIsBeingGiven(t *testing.T) {
	for name, edit := range map[string]func(h *house){
		"policy":     func(h *house) { h.policy(`publish = ["m"]`, `subscribe = ["#"]`) },
		"suspension": func(h *house) { h.state("one", watchword.Suspended) },
		"revocation": func(h *house) { h.state("one", watchword.Revoked) },
		"deletion":   func(h *house) { h.deleted("one") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const all, room = 6000, 100
				h := newHouse(t, mqtt.Options{QueueMessages: room, SubjectRetainedMessages: all + 1, SubjectRetainedBytes: 1 << 30})
				defer h.close()
				one := h.device("one")
				for n := range all {
					one.publish0(fmt.Sprintf("t/%04d", n))
				}
				one.retainAll("t/last")
				sub := h.device("sub") // which reads as many as its channel holds
				sub.send(&packet.Subscribe{ID: sub.id(), Filters: []packet.Filter{{Topic: "#"}}})
				synctest.Wait()
				held := len(sub.got)
				edit(h)
				two := h.device("two")
				two.publish(1, "m", "marker")
				n := 0
				for {
					p, ok := next(sub).(*packet.Publish)
					if ok && p.Topic == "m" {
						break
					}
					n++
				}
				if n < held || n > held+2*room {
					t.Errorf("%d came, of which %d before the edit", n, held)
				}
			})
		})
	}
}

// publish0 publishes a retained message with QoS 0.
func (c *client) publish0(topic string) {
	c.send(&packet.Publish{Topic: topic, Retain: true, Payload: []byte("x")})
}

// The roll is asked for an owner once, however much is given, until something changes.
func TestAnOwnerIsAskedForOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		for _, id := range []watchword.SubjectID{"one", "two"} {
			c := h.device(id)
			for n := range 200 {
				c.retainAll(fmt.Sprintf("%s/%d", id, n))
			}
			c.vanish()
		}
		asked := func() int {
			h.mu.Lock()
			defer h.mu.Unlock()
			n := h.asked["one"] + h.asked["two"]
			h.asked["one"], h.asked["two"] = 0, 0
			return n
		}
		give := func() {
			sub := h.device("sub")
			sub.given(400, packet.Filter{Topic: "#"})
			sub.vanish()
		}
		asked()
		give()
		give()
		if n := asked(); n != 2 {
			t.Errorf("asked %d times for two owners", n)
		}
		h.state("two", watchword.Active)
		asked()
		synctest.Wait()
		asked()
		give()
		if n := asked(); n != 0 {
			t.Errorf("asked %d times for what was told", n)
		}
		h.policy(`publish = ["#"]`, `subscribe = ["#"]`)
		asked()
		give()
		give()
		if n := asked(); n != 2 {
			t.Errorf("asked %d times for two owners under another policy", n)
		}
	})
}

// One subject cannot take what others may retain, over however many connections, and is
// told which bound it met.
func TestRetainedMessagesAreSharedBySubject(t *testing.T) {
	for name, o := range map[string]mqtt.Options{
		"messages": {SubjectRetainedMessages: 3, RetainedMessages: 7},
		"bytes":    {SubjectRetainedBytes: 2048, RetainedBytes: 5000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, o)
				defer h.close()
				fill := func(id watchword.SubjectID) (n int, why string) {
					for part := range 2 { // the second connection has no share of its own
						c := h.connect(packet.V5, fmt.Sprint(id, "/", part), h.token(id, time.Hour))
						for ; n < 20; n++ {
							if r := c.retain(fmt.Sprint(id, "/", n), strings.Repeat("x", 100)); r != packet.Success && r != packet.NoSubscribers {
								if r != packet.QuotaExceeded {
									t.Fatalf("%#x", r)
								}
								why, _ = c.last.(*packet.Ack).Properties.Text(packet.ReasonString)
								break
							}
						}
						c.vanish()
						synctest.Wait()
					}
					return n, why
				}
				first, why := fill("one")
				if first == 0 || first == 20 || !strings.Contains(why, "(limits.subject_retained_"+name+")") {
					t.Errorf("%d, then %q", first, why)
				}
				if n, why := fill("two"); n != first || !strings.Contains(why, "(limits.subject_retained_"+name+")") {
					t.Errorf("%d of the second subject, %d of the first, then %q", n, first, why)
				}
				if n, why := fill("three"); n == 0 || n >= first || !strings.Contains(why, "(limits.retained_"+name+")") {
					t.Errorf("%d of the third subject, then %q", n, why)
				}
				h.deleted("one")
				synctest.Wait()
				if n, _ := fill("four"); n < first-1 {
					t.Errorf("%d of another when the first is gone, and %d of the first", n, first)
				}
				old := h.connect(packet.V311, "two", h.token("two", time.Hour))
				old.send(&packet.Publish{Topic: "two/more", QoS: 1, ID: 1, Retain: true, Payload: make([]byte, 100)})
				old.ended(0)
			})
		})
	}
}

// A retained message that takes the place of another's moves to the account of who
// published it.
func TestAReplacedMessageIsInOneAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, mqtt.Options{SubjectRetainedMessages: 2})
		defer h.close()
		one, two := h.device("one"), h.device("two")
		one.retainAll("a", "b")
		two.retainAll("a")
		one.retainAll("c")
		two.retainAll("b")
		if r := two.retain("c", "x"); r != packet.QuotaExceeded {
			t.Errorf("%#x", r)
		}
		one.retainAll("d")
		if r := one.retain("e", "x"); r != packet.QuotaExceeded {
			t.Errorf("%#x", r)
		}
		two.retain("a", "")
		two.retainAll("c")
		one.retainAll("e")
	})
}

// What waits for a slow disk is counted too: setting and removing again makes no room.
func TestWhatWaitsToBeWrittenIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const share = 10_000
		h := newHouse(t, mqtt.Options{SubjectRetainedBytes: share})
		defer h.close()
		one := h.device("one")
		synctest.Wait()
		h.store.shut()
		for n := range 200 {
			topic := fmt.Sprint(n)
			one.publish0(topic)
			one.send(&packet.Publish{Topic: topic, Retain: true})
			one.send(&packet.Publish{Topic: topic + "/never", Retain: true})
		}
		synctest.Wait()
		s := h.broker.Stats()
		if s.RetainedBytes < share*8/10 || s.RetainedBytes > share*11/10 {
			t.Errorf("%d bytes of %d", s.RetainedBytes, share)
		}
		h.device("two").publish0("other")
		h.store.open()
		synctest.Wait()
		h.kept(1)
		one.retainAll("again")
	})
}

// What fails to be written, and is written again, is counted once.
func TestWhatIsWrittenAgainIsCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, mqtt.Options{})
		defer h.close()
		one := h.device("one")
		synctest.Wait()
		h.store.shut()
		for range 2 { // one is being written, one waits for it
			one.publish0("a")
			synctest.Wait()
		}
		h.store.fail(true)
		synctest.Wait()
		h.store.fail(false)
		time.Sleep(time.Second)
		h.kept(1)
		one.retain("a", "")
		h.kept(0)
	})
}

// While nothing can be written nothing is retained: it would be lost, or pile up.
func TestNothingIsRetainedThatCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, mqtt.Options{})
		defer h.close()
		one := h.device("one")
		h.store.fail(true)
		one.publish0("a") // finds out
		synctest.Wait()
		if r := one.retain("b", "x"); r != packet.ServerUnavailable && r != packet.Implementation {
			t.Errorf("%#x", r)
		}
		h.store.fail(false)
		time.Sleep(time.Second)
		one.retainAll("c")
		h.gets("#", "a", "c")
		h.kept(2)
	})
}

// stalled connects a device that reads no more than two packets ahead.
func (h *house) stalled(id watchword.SubjectID) *client {
	h.t.Helper()
	mine, theirs := net.Pipe()
	h.broker.Handle(theirs)
	c := &client{t: h.t, v: packet.V5, nc: mine, got: make(chan packet.Packet, 2)}
	go c.read()
	c.send(hello(packet.V5, string(id), h.token(id, time.Hour)))
	want[*packet.Connack](c)
	return c
}

// What is removed while it waits to be given is not given, and what came since comes once.
func TestWhatChangesWhileItIsGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const all, room = 100, 4
		h := newHouse(t, mqtt.Options{QueueMessages: room, SubjectRetainedBytes: 1 << 30})
		defer h.close()
		one := h.device("one")
		topics := []string{"z"}
		for n := range all {
			topics = append(topics, fmt.Sprintf("t/%02d", n))
		}
		for _, topic := range topics {
			if r := one.retain(topic, strings.Repeat("x", 20<<10)); r.Failed() { // so much that each write carries one
				t.Fatalf("%#x", r)
			}
		}
		sub := h.stalled("sub")
		sub.send(&packet.Subscribe{ID: sub.id(), Filters: []packet.Filter{{Topic: "#"}}})
		synctest.Wait()
		for _, topic := range topics[1:] {
			if err := h.broker.DeleteRetained(t.Context(), watchword.DefaultTenant, topic, func(session.Retained) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
		one.retain("z", "newer") // which the subscriber hears, and is not given too
		count := map[string]int{}
		for {
			synctest.Wait()
			p, ok := wantOrNothing(sub)
			if !ok {
				break
			}
			if p, ok := p.(*packet.Publish); ok {
				count[p.Topic]++
			}
		}
		if len(count) > 4+2*room || count["z"] != 1 {
			t.Errorf("%d topics came, z %d times", len(count), count["z"])
		}
	})
}

// Who gives finds out too that an owner is gone.
func TestAnOwnerWhoIsGoneIsFoundByWhoGives(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.device("one").retainAll("a", "b")
		h.mu.Lock()
		h.roll["one"].Incarnation++ // and nobody is told
		h.mu.Unlock()
		h.policy(`publish = ["#"]`, `subscribe = ["#"]`)
		h.gets("#")
		h.kept(0)
	})
}
