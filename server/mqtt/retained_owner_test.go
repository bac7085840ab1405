package mqtt_test

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/mqtt"
	"github.com/watchword-iot/watchword/server/session"
)

// retainAll publishes one retained message to each topic.
func (c *testClient) retainAll(topics ...string) {
	c.t.Helper()
	for _, topic := range topics {
		if r := c.retain(topic, "kept"); r.Failed() {
			c.t.Fatalf("%s: %#x %v", topic, r, c.last)
		}
	}
}

// wantRetained subscribes anew and fails unless these topics are given, and nothing else.
func (srv *testServer) wantRetained(filter string, want ...string) {
	srv.t.Helper()
	sub := srv.device("asks")
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
	sub.closeAbruptly()
	slices.Sort(got)
	if slices.Sort(want); !slices.Equal(got, want) {
		srv.t.Fatalf("%s: given %q, want %q", filter, got, want)
	}
}

func wantOrNothing(c *testClient) (packet.Packet, bool) {
	select {
	case p, ok := <-c.got:
		return p, ok
	default:
		return nil, false
	}
}

// wantRetainedCount fails unless so many retained messages are in memory and in the store.
func (srv *testServer) wantRetainedCount(n int) {
	srv.t.Helper()
	synctest.Wait()
	srv.store.mu.Lock()
	stored := len(srv.store.retained)
	srv.store.mu.Unlock()
	if s := srv.broker.Stats(); s.Retained != int64(n) || stored != n || n == 0 && s.RetainedBytes != 0 {
		srv.t.Fatalf("%d retained of %d bytes, %d in the store, want %d", s.Retained, s.RetainedBytes, stored, n)
	}
}

// reincarnate revokes a subject, and enrolls it anew.
func (srv *testServer) reincarnate(id watchword.SubjectID) {
	srv.mu.Lock()
	srv.subjects[id].Incarnation++
	srv.subjects[id].State = watchword.Active
	srv.mu.Unlock()
	srv.changed(watchword.SubjectChanged, string(id))
}

// deleteSubject removes a subject from the directory.
func (srv *testServer) deleteSubject(id watchword.SubjectID) {
	srv.mu.Lock()
	delete(srv.subjects, id)
	srv.mu.Unlock()
	srv.changed(watchword.SubjectChanged, string(id))
}

// A retained message is given while its publisher may publish it at that moment.
func TestRetainedDeliveredWhileOwnerMayPublish(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.device("one").retainAll("a/1", "b/1")
		srv.device("two").retainAll("a/2", "b/2")
		srv.wantRetained("#", "a/1", "a/2", "b/1", "b/2")

		srv.policy(`publish = ["b/#"]`, `subscribe = ["#"]`)
		srv.wantRetained("#", "b/1", "b/2")
		srv.wantRetained("a/1")
		srv.policy(`publish = ["#"]`, `subscribe = ["#"]`, `deny publish = ["b/2"]`)
		srv.wantRetained("#", "a/1", "a/2", "b/1")
		srv.policy(`publish = ["#"]`, `subscribe = ["#"]`)

		srv.state("two", watchword.Suspended)
		srv.wantRetained("#", "a/1", "b/1")
		srv.wantRetainedCount(4)
		srv.state("two", watchword.Active)
		srv.wantRetained("#", "a/1", "a/2", "b/1", "b/2")

		srv.state("one", watchword.Revoked)
		srv.wantRetained("#", "a/2", "b/2")
		srv.wantRetainedCount(2)
		srv.deleteSubject("two")
		srv.wantRetained("#")
		srv.wantRetainedCount(0)
	})
}

// What another publishes to a topic is that one's.
func TestLastPublisherOwnsRetained(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.device("one").retainAll("a", "b", "c")
		two := srv.device("two")
		two.retainAll("a")
		two.retain("b", "")
		srv.state("one", watchword.Suspended)
		srv.wantRetained("#", "a")
		srv.state("one", watchword.Active)
		srv.state("two", watchword.Revoked)
		srv.wantRetained("#", "c")
		srv.wantRetainedCount(1)
	})
}

// Nothing of an earlier incarnation is restored, also if the server was not running when that ended.
func TestRetainedOfEarlierIncarnationAreRemoved(t *testing.T) {
	for name, end := range map[string]func(srv *testServer){
		"enrolled anew": func(srv *testServer) { srv.reincarnate("one") },
		"deleted":       func(srv *testServer) { srv.deleteSubject("one") },
		"revoked":       func(srv *testServer) { srv.state("one", watchword.Revoked) },
		"revoked while the server was down": func(srv *testServer) {
			srv.mu.Lock()
			srv.subjects["one"].Incarnation++
			srv.mu.Unlock()
			srv.crash(mqtt.Options{})
		},
		"deleted, and the server killed before all was written": func(srv *testServer) {
			srv.store.block()
			srv.deleteSubject("one")
			synctest.Wait()
			srv.crash(mqtt.Options{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, srv *testServer) {
				one := srv.device("one")
				for n := range 3000 { // more than one step
					one.retainAll(fmt.Sprintf("a/%d", n))
				}
				one.closeAbruptly()
				srv.device("two").retainAll("b")
				end(srv)
				srv.wantRetainedCount(1) // without a request for them
				srv.wantRetained("#", "b")
				srv.activateThenReincarnate("one")
				srv.wantRetained("#", "b")
			})
		})
	}
}

// activateThenReincarnate makes a subject active, and then changes its incarnation.
func (srv *testServer) activateThenReincarnate(id watchword.SubjectID) {
	srv.token(id, time.Hour)
	srv.mu.Lock()
	srv.subjects[id].Incarnation = 7
	srv.mu.Unlock()
	srv.state(id, watchword.Active)
}

// Owners survive the server; what was stored before owners were kept has none, and is
// given until another takes its place.
func TestOwnersSurvive(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.device("one").retainAll("a", "old", "older")
		srv.wantRetainedCount(3)
		srv.store.mu.Lock()
		for _, topic := range []string{"old", "older"} {
			r := srv.store.retained[topic]
			r.Subject, r.Incarnation = "", 0
			srv.store.retained[topic] = r
		}
		srv.store.mu.Unlock()
		srv.crash(mqtt.Options{})
		srv.state("one", watchword.Suspended)
		srv.wantRetained("#", "old", "older")
		srv.device("two").retainAll("old")
		srv.state("two", watchword.Suspended)
		srv.wantRetained("#", "older")
		srv.state("one", watchword.Active)
		srv.wantRetained("#", "a", "older")
		srv.deleteSubject("one")
		srv.deleteSubject("two")
		srv.wantRetained("#", "older")
		srv.wantRetainedCount(1)
	})
}

func TestARetainedWillHasAnOwner(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		one := srv.device("one", func(p *packet.Connect) {
			p.Will = &packet.Will{Topic: "w", QoS: 1, Retain: true, Payload: []byte("gone")}
		})
		one.closeAbruptly()
		synctest.Wait()
		srv.wantRetained("#", "w")
		srv.state("one", watchword.Suspended)
		srv.wantRetained("#")
		srv.deleteSubject("one")
		srv.wantRetainedCount(0)
	})
}

// A long delivery of retained messages contains nothing more of what an edit has removed, from the moment that it is
// answered.
func TestEditReachesRetainedDelivery(t *testing.T) {
	for name, edit := range map[string]func(srv *testServer){
		"policy":     func(srv *testServer) { srv.policy(`publish = ["m"]`, `subscribe = ["#"]`) },
		"suspension": func(srv *testServer) { srv.state("one", watchword.Suspended) },
		"revocation": func(srv *testServer) { srv.state("one", watchword.Revoked) },
		"deletion":   func(srv *testServer) { srv.deleteSubject("one") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const all, room = 6000, 100
				srv := newTestServer(t, mqtt.Options{QueueMessages: room}, bus.Options{SubjectRetainedMessages: all + 1, SubjectRetainedBytes: 1 << 30})
				defer srv.close()
				one := srv.device("one")
				for n := range all {
					one.publish0(fmt.Sprintf("t/%04d", n))
				}
				one.retainAll("t/last")
				sub := srv.device("sub") // which reads as many as its channel holds
				sub.send(&packet.Subscribe{ID: sub.id(), Filters: []packet.Filter{{Topic: "#"}}})
				synctest.Wait()
				held := len(sub.got)
				edit(srv)
				two := srv.device("two")
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
func (c *testClient) publish0(topic string) {
	c.send(&packet.Publish{Topic: topic, Retain: true, Payload: []byte("x")})
}

// The directory is asked for an owner once, however many messages are delivered, until something changes.
func TestOwnerIsDecidedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		for _, id := range []watchword.SubjectID{"one", "two"} {
			c := srv.device(id)
			for n := range 200 {
				c.retainAll(fmt.Sprintf("%s/%d", id, n))
			}
			c.closeAbruptly()
		}
		asked := func() int {
			srv.mu.Lock()
			defer srv.mu.Unlock()
			n := srv.asked["one"] + srv.asked["two"]
			srv.asked["one"], srv.asked["two"] = 0, 0
			return n
		}
		give := func() {
			sub := srv.device("sub")
			sub.retainedFor(400, packet.Filter{Topic: "#"})
			sub.closeAbruptly()
		}
		asked()
		give()
		give()
		if n := asked(); n != 2 {
			t.Errorf("asked %d times for two owners", n)
		}
		srv.state("two", watchword.Active)
		asked()
		synctest.Wait()
		asked()
		give()
		if n := asked(); n != 0 {
			t.Errorf("asked %d times for what was told", n)
		}
		srv.policy(`publish = ["#"]`, `subscribe = ["#"]`)
		asked()
		give()
		give()
		if n := asked(); n != 2 {
			t.Errorf("asked %d times for two owners under another policy", n)
		}
	})
}

// One subject cannot use what others may retain, over however many connections, and gets the bound that it reached.
func TestRetainedMessagesAreSharedBySubject(t *testing.T) {
	for name, limits := range map[string]bus.Options{
		"messages": {SubjectRetainedMessages: 3, RetainedMessages: 7},
		"bytes":    {SubjectRetainedBytes: 2048, RetainedBytes: 5000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newTestServer(t, mqtt.Options{}, limits)
				defer srv.close()
				fill := func(id watchword.SubjectID) (n int, reason string) {
					for part := range 2 { // the second connection has no share of its own
						c := srv.connect(packet.V5, fmt.Sprint(id, "/", part), srv.token(id, time.Hour))
						for ; n < 20; n++ {
							if r := c.retain(fmt.Sprint(id, "/", n), strings.Repeat("x", 100)); r != packet.Success && r != packet.NoMatchingSubscribers {
								if r != packet.QuotaExceeded {
									t.Fatalf("%#x", r)
								}
								reason, _ = c.last.(*packet.Ack).Properties.Text(packet.ReasonString)
								break
							}
						}
						c.closeAbruptly()
						synctest.Wait()
					}
					return n, reason
				}
				first, reason := fill("one")
				if first == 0 || first == 20 || !strings.Contains(reason, "(limits.subject_retained_"+name+")") {
					t.Errorf("%d, then %q", first, reason)
				}
				if n, reason := fill("two"); n != first || !strings.Contains(reason, "(limits.subject_retained_"+name+")") {
					t.Errorf("%d of the second subject, %d of the first, then %q", n, first, reason)
				}
				if n, reason := fill("three"); n == 0 || n >= first || !strings.Contains(reason, "(limits.retained_"+name+")") {
					t.Errorf("%d of the third subject, then %q", n, reason)
				}
				srv.deleteSubject("one")
				synctest.Wait()
				if n, _ := fill("four"); n < first-1 {
					t.Errorf("%d of another when the first is gone, and %d of the first", n, first)
				}
				old := srv.connect(packet.V311, "two", srv.token("two", time.Hour))
				old.send(&packet.Publish{Topic: "two/more", QoS: 1, ID: 1, Retain: true, Payload: make([]byte, 100)})
				old.wantDisconnect(0)
			})
		})
	}
}

// A retained message that replaces another subject's is charged to its publisher.
func TestReplacedRetainedMessageIsChargedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{}, bus.Options{SubjectRetainedMessages: 2})
		defer srv.close()
		one, two := srv.device("one"), srv.device("two")
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
func TestUncommittedRetainedIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const share = 10_000
		srv := newTestServer(t, mqtt.Options{}, bus.Options{SubjectRetainedBytes: share})
		defer srv.close()
		one := srv.device("one")
		synctest.Wait()
		srv.store.block()
		for n := range 200 {
			topic := fmt.Sprint(n)
			one.publish0(topic)
			one.send(&packet.Publish{Topic: topic, Retain: true})
			one.send(&packet.Publish{Topic: topic + "/never", Retain: true})
		}
		synctest.Wait()
		s := srv.broker.Stats()
		if s.RetainedBytes < share*8/10 || s.RetainedBytes > share*11/10 {
			t.Errorf("%d bytes of %d", s.RetainedBytes, share)
		}
		srv.device("two").publish0("other")
		srv.store.unblock()
		synctest.Wait()
		srv.wantRetainedCount(1)
		one.retainAll("again")
	})
}

// What fails to be written, and is written again, is counted once.
func TestRewrittenMessageIsCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{})
		defer srv.close()
		one := srv.device("one")
		synctest.Wait()
		srv.store.block()
		for range 2 { // one is being written, one waits for it
			one.publish0("a")
			synctest.Wait()
		}
		srv.store.fail(true)
		synctest.Wait()
		srv.store.fail(false)
		time.Sleep(time.Second)
		srv.wantRetainedCount(1)
		one.retain("a", "")
		srv.wantRetainedCount(0)
	})
}

// While nothing can be written nothing is retained: it would be lost, or pile up.
func TestUnwritableRetainedMessageIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{})
		defer srv.close()
		one := srv.device("one")
		srv.store.fail(true)
		one.publish0("a") // finds out
		synctest.Wait()
		if r := one.retain("b", "x"); r != packet.ServerUnavailable && r != packet.ImplementationSpecificError {
			t.Errorf("%#x", r)
		}
		srv.store.fail(false)
		time.Sleep(time.Second)
		one.retainAll("c")
		srv.wantRetained("#", "a", "c")
		srv.wantRetainedCount(2)
	})
}

// stalled connects a device that reads no more than two packets ahead.
func (srv *testServer) stalled(id watchword.SubjectID) *testClient {
	srv.t.Helper()
	mine, theirs := net.Pipe()
	srv.broker.Handle(theirs)
	c := &testClient{t: srv.t, v: packet.V5, nc: mine, got: make(chan packet.Packet, 2)}
	go c.read()
	c.send(hello(packet.V5, string(id), srv.token(id, time.Hour)))
	want[*packet.Connack](c)
	return c
}

// A message that is removed before its delivery is not delivered, and a newer one is delivered once.
func TestChangeDuringRetainedDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const all, room = 100, 4
		srv := newTestServer(t, mqtt.Options{QueueMessages: room}, bus.Options{SubjectRetainedBytes: 1 << 30})
		defer srv.close()
		one := srv.device("one")
		topics := []string{"z"}
		for n := range all {
			topics = append(topics, fmt.Sprintf("t/%02d", n))
		}
		for _, topic := range topics {
			if r := one.retain(topic, strings.Repeat("x", 20<<10)); r.Failed() { // so much that each write carries one
				t.Fatalf("%#x", r)
			}
		}
		sub := srv.stalled("sub")
		sub.send(&packet.Subscribe{ID: sub.id(), Filters: []packet.Filter{{Topic: "#"}}})
		synctest.Wait()
		for _, topic := range topics[1:] {
			if err := srv.broker.DeleteRetained(t.Context(), watchword.DefaultTenant, topic, func(session.Retained) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
		one.retain("z", "newer") // which the subscriber gets, and not a second time as retained
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

// The delivery also detects that an owner was deleted.
func TestDeletedOwnerIsFoundOnDelivery(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.device("one").retainAll("a", "b")
		srv.mu.Lock()
		srv.subjects["one"].Incarnation++ // without a notification
		srv.mu.Unlock()
		srv.policy(`publish = ["#"]`, `subscribe = ["#"]`)
		srv.wantRetained("#")
		srv.wantRetainedCount(0)
	})
}
