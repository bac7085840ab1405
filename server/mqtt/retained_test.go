package mqtt_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// retain publishes a retained message with QoS 1.
func (c *testClient) retain(topic, payload string) packet.Reason {
	c.t.Helper()
	p := &packet.Publish{Topic: topic, QoS: 1, Retain: true, ID: c.id(), Payload: []byte(payload)}
	c.send(p)
	return want[*packet.Ack](c).Reason
}

// retainedFor subscribes and returns the messages that are sent at once, sorted.
func (c *testClient) retainedFor(n int, f packet.Filter) (out []string) {
	c.t.Helper()
	c.send(&packet.Subscribe{ID: c.id(), Filters: []packet.Filter{f}})
	want[*packet.Suback](c)
	for range n {
		p := c.receive()
		out = append(out, fmt.Sprintf("%s=%s %v", p.Topic, p.Payload, p.Retain))
	}
	slices.Sort(out)
	return out
}

func TestRetainedDeliveredToNewSubscriber(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		pub := srv.device("pub")
		for _, topic := range []string{"a", "a/b", "a/c", "a/b/c", "/", "a//"} {
			pub.retain(topic, topic)
		}
		pub.retain("a/c", "newer")
		pub.retain("a/b/c", "")
		pub.retain("never/there", "")
		for filter, want := range map[string][]string{
			"a": {"a"}, "a/+": {"a/b", "a/c"}, "a/#": {"a", "a/b", "a/c", "a//"}, "+": {"a"}, "#": {"a", "a/b", "a/c", "a//", "/"}, "+/y": {},
			"+/+": {"a/b", "a/c", "/"}, "/#": {"/"}, "a/+/+": {"a//"}, "a/b/c": {},
		} {
			sub := srv.device("sub")
			got := sub.retainedFor(len(want), packet.Filter{Topic: filter, QoS: 2})
			for i, topic := range want {
				payload := topic
				if topic == "a/c" {
					payload = "newer"
				}
				want[i] = topic + "=" + payload + " true"
			}
			if slices.Sort(want); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", filter, got, want)
			}
			sub.wantNothing()
		}
		// Retain handling, and retain as published.
		sub := srv.device("sub")
		sub.retainedFor(0, packet.Filter{Topic: "a", QoS: 1, RetainHandling: 2})
		sub.retainedFor(0, packet.Filter{Topic: "a", QoS: 1, RetainHandling: 1})
		sub.retainedFor(1, packet.Filter{Topic: "a", QoS: 1})
		sub.retainedFor(1, packet.Filter{Topic: "a/b", QoS: 1, RetainHandling: 1, RetainAsPublished: true})
		sub.retainedFor(0, packet.Filter{Topic: "$share/g/a", QoS: 1})
		pub.retain("a/b", "live")
		if p := sub.receive(); !p.Retain {
			t.Error("RETAIN was not kept as published")
		}
		sub.wantNothing()
		if s := srv.broker.Stats(); s.Retained != 5 {
			t.Errorf("%d retained", s.Retained)
		}
	})
}

func TestRetainedMessagesSurviveAndEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		pub := srv.device("pub")
		pub.retain("stays", "1")
		pub.retain("goes", "1")
		pub.retain("goes", "")
		p := &packet.Publish{Topic: "short", QoS: 1, ID: pub.id(), Retain: true, Payload: []byte("x")}
		p.Properties.SetNumber(packet.MessageExpiryInterval, 60)
		p.Properties.SetText(packet.ContentType, "text/plain")
		pub.send(p)
		want[*packet.Ack](pub)
		from := time.Now()
		srv.crash(mqtt.Options{})
		time.Sleep(20*time.Second - time.Since(from))
		sub := srv.device("sub")
		if got := sub.retainedFor(2, packet.Filter{Topic: "#", QoS: 1}); !slices.Equal(got, []string{"short=x true", "stays=1 true"}) {
			t.Errorf("%q", got)
		}
		sub.retainedFor(1, packet.Filter{Topic: "short", QoS: 1})
		if n, _ := sub.last.(*packet.Publish).Properties.Number(packet.MessageExpiryInterval); n != 40 {
			t.Errorf("%d seconds left", n)
		}
		time.Sleep(40 * time.Second)
		sub.retainedFor(0, packet.Filter{Topic: "short", QoS: 1})
		sub.wantNothing()
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := srv.broker.Stats(); s.Retained != 1 || len(srv.store.retained) != 1 {
			t.Errorf("%d retained, %d in the store", s.Retained, len(srv.store.retained))
		}
	})
}

func TestRetainedMessagesHaveABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{}, bus.Options{RetainedMessages: 2, RetainedBytes: 1000})
		defer srv.close()
		pub := srv.device("pub")
		pub.retain("a", "1")
		pub.retain("b", "1")
		if r := pub.retain("c", "1"); r != packet.QuotaExceeded {
			t.Errorf("%#x", r)
		}
		if r := pub.retain("a", string(make([]byte, 950))); r != packet.QuotaExceeded {
			t.Errorf("%#x", r)
		}
		pub.retain("b", "")
		if r := pub.retain("c", "1"); r.Failed() {
			t.Errorf("%#x", r)
		}
	})
}

// Many retained messages go out as fast as they are taken, and none after a newer one.
func TestManyRetainedMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{QueueMessages: 100})
		defer srv.close()
		pub := srv.device("pub")
		const many = 2000
		for n := range many {
			pub.retain(fmt.Sprintf("t/%04d", n), "old")
		}
		for _, edit := range []func(*packet.Connect){func(*packet.Connect) {}, persistentSession} {
			sub := srv.device("sub", edit)
			sub.send(&packet.Subscribe{ID: sub.id(), Filters: []packet.Filter{{Topic: "t/#", QoS: 1}}})
			last := map[string]string{}
			count := 0
			for {
				if _, ok := next(sub).(*packet.Suback); ok {
					break
				}
				sub.ahead = append(sub.ahead, sub.last)
			}
			for n := 0; n < many; n += 100 {
				pub.retain(fmt.Sprintf("t/%04d", n), "new")
			}
			for len(last) < many || count < many {
				p := sub.receive()
				if last[p.Topic] == "new" && string(p.Payload) == "old" {
					t.Fatalf("%s: an older message after a newer one", p.Topic)
				}
				last[p.Topic] = string(p.Payload)
				count++
			}
			for n := 0; n < many; n += 100 {
				topic := fmt.Sprintf("t/%04d", n)
				for last[topic] != "new" {
					p := sub.receive()
					last[p.Topic] = string(p.Payload)
				}
				pub.retain(topic, "old")
				if p := sub.receive(); p.Topic != topic {
					t.Fatalf("%s", p.Topic)
				}
			}
			sub.closeAbruptly()
			synctest.Wait()
		}
	})
}

func TestRefusedMessageIsNotRetained(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		pub := srv.device("d1")
		p := &packet.Publish{Topic: "devices/d1/events/x", QoS: 1, ID: 9, Retain: true, Payload: []byte(strings.Repeat("x", 33<<10))}
		pub.send(p)
		if r := want[*packet.Ack](pub).Reason; !r.Failed() {
			t.Errorf("%#x", r)
		}
		s := srv.device("s")
		s.subscribe(1, "devices/d1/events/x")
		s.wantNothing()
	})
}

// A message is retained though the connected receiver has no room: the publisher gets a success code.
func TestRetainedIsStoredThoughSubscriberIsFull(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newTestServer(t, mqtt.Options{QueueMessages: 3})
				defer srv.close()
				srv.leaveOffline(packet.V5, "sub", "a")
				pub := srv.connect(v, "pub", srv.token("pub", time.Hour))
				for range 3 {
					pub.publish(1, "a", "x")
				}
				if r := pub.retain("a", "kept"); r.Failed() {
					t.Errorf("%#x", r)
				}
				s := srv.device("s")
				s.subscribe(1, "a")
				s.wantMessage("a", "kept")
			})
		})
	}
}
