package mqtt_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// referencePeer is one side of a session that keeps its state as MQTT 5.0 §4.3 requires, over connections and crashes of
// the server: a client that sends and receives.
type referencePeer struct {
	h    *testServer
	id   watchword.SubjectID
	r    *rand.Rand
	c    *testClient // nil while away
	v    packet.Version
	next uint16

	sent     []inflightPublish   // not done, in order
	acked    []string            // what the server took responsibility for
	held     map[uint16]struct{} // QoS 2, received and not released
	heard    []string
	later    []packet.Packet // answers that it takes its time with
	sentence string          // what is wrong
}

type inflightPublish struct {
	p        *packet.Publish
	released bool
}

func (e *referencePeer) connect() {
	e.c = e.h.connect(e.v, string(e.id), e.h.token(e.id, 24*time.Hour), persistentSession)
	e.later = nil
	if !e.c.ack.SessionPresent {
		e.held = map[uint16]struct{}{}
		if len(e.heard)+len(e.acked) > 0 {
			e.sentence = "its session is gone"
		}
	}
	for _, s := range e.sent { // MQTT 5.0 §4.4
		if s.released {
			e.c.send(&packet.Ack{Kind: packet.PUBREL, ID: s.p.ID})
			continue
		}
		s.p.Dup = true
		e.c.send(s.p)
	}
}

func (e *referencePeer) vanish() {
	if e.c != nil {
		e.c.closeAbruptly()
		e.c = nil
	}
}

func (e *referencePeer) publish(qos byte, topic, payload string) {
	if len(e.sent) > 100 {
		return
	}
	for busy := true; busy; {
		if e.next++; e.next == 0 || e.next > 200 { // identifiers come round soon
			e.next = 1
		}
		busy = slices.ContainsFunc(e.sent, func(s inflightPublish) bool { return s.p.ID == e.next })
	}
	p := &packet.Publish{Topic: topic, QoS: qos, ID: e.next, Payload: []byte(payload)}
	e.sent = append(e.sent, inflightPublish{p: p})
	if e.c != nil {
		e.c.send(p)
	}
}

// work takes what has come.
func (e *referencePeer) work() {
	for e.c != nil {
		select {
		case p, ok := <-e.c.got:
			if !ok {
				e.c = nil
				return
			}
			e.take(p)
			continue
		default:
		}
		return
	}
}

func (e *referencePeer) take(p packet.Packet) {
	switch p := p.(type) {
	case *packet.Publish:
		e.hear(p)
	case *packet.Ack:
		i := slices.IndexFunc(e.sent, func(s inflightPublish) bool { return s.p.ID == p.ID })
		switch p.Kind {
		case packet.PUBACK, packet.PUBREC:
			if i < 0 || e.sent[i].released {
				return
			}
			if p.Reason.Failed() {
				e.sent = slices.Delete(e.sent, i, i+1)
				return
			}
			e.acked = append(e.acked, string(e.sent[i].p.Payload))
			if p.Kind == packet.PUBACK {
				e.sent = slices.Delete(e.sent, i, i+1)
				return
			}
			e.sent[i].released = true
			e.answer(&packet.Ack{Kind: packet.PUBREL, ID: p.ID})
		case packet.PUBCOMP:
			if i >= 0 {
				e.sent = slices.Delete(e.sent, i, i+1)
			}
		case packet.PUBREL:
			delete(e.held, p.ID)
			e.answer(&packet.Ack{Kind: packet.PUBCOMP, ID: p.ID})
		}
	}
}

func (e *referencePeer) hear(p *packet.Publish) {
	switch p.QoS {
	case 1:
		e.answer(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
		if p.Dup && slices.Contains(e.heard, string(p.Payload)) {
			return // QoS 1 may come again
		}
	case 2:
		e.answer(&packet.Ack{Kind: packet.PUBREC, ID: p.ID})
		if _, again := e.held[p.ID]; again {
			return
		}
		e.held[p.ID] = struct{}{}
	}
	e.heard = append(e.heard, string(p.Payload))
}

// answer takes its time now and then, and keeps the order.
func (e *referencePeer) answer(p packet.Packet) {
	e.later = append(e.later, p)
	if e.r.IntN(4) > 0 {
		e.answerAll()
	}
}

func (e *referencePeer) answerAll() {
	if e.c != nil {
		e.c.send(e.later...)
	}
	e.later = nil
}

// Whatever happens to connections and server: acknowledged messages are received, in order, and with QoS 2 once.
func TestNothingAcknowledgedIsLost(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { crashes(t, rand.New(rand.NewPCG(seed, 7))) })
		})
	}
}

func crashes(t *testing.T, r *rand.Rand) {
	srv := newTestServer(t, mqtt.Options{QueueMessages: 5000, QueueBytes: 4 << 20})
	defer func() { srv.store.unblock(); srv.close() }()
	version := packet.V311 + packet.Version(r.IntN(2))
	pubs := []*referencePeer{{h: srv, id: "p0", r: r, v: version}, {h: srv, id: "p1", r: r, v: packet.V5}}
	subs := []*referencePeer{{h: srv, id: "s0", r: r, v: packet.V5}, {h: srv, id: "s1", r: r, v: version}}
	filters := map[watchword.SubjectID]string{"s0": "a/#", "s1": "a/+", "g0": "$share/g/a/#", "g1": "$share/g/a/#", "g2": "$share/g/a/#"}
	group := []*referencePeer{{h: srv, id: "g0", r: r, v: packet.V5}, {h: srv, id: "g1", r: r, v: version}, {h: srv, id: "g2", r: r, v: packet.V5}}
	all := slices.Concat(pubs, subs, group)
	for _, e := range all {
		e.connect()
	}
	for _, s := range slices.Concat(subs, group) {
		s.c.subscribe(2, filters[s.id])
	}
	if r.IntN(2) == 0 { // no member of the group is connected for a while
		for _, s := range group {
			s.vanish()
		}
	}
	serial := 0
	shut := false
	for range 300 {
		e := all[r.IntN(len(all))]
		switch n := r.IntN(100); {
		case n < 60:
			p := pubs[r.IntN(len(pubs))]
			for range 1 + r.IntN(8) {
				qos := 1 + r.IntN(2)
				serial++
				p.publish(byte(qos), fmt.Sprintf("a/%s-%d", p.id, qos), fmt.Sprintf("%s-%d %06d", p.id, qos, serial))
			}
		case n < 70:
			e.vanish()
		case n < 82:
			if e.c == nil && !shut {
				e.connect()
			}
		case n < 88:
			srv.store.block()
			shut = true
		case n < 94:
			srv.store.unblock()
			shut = false
		case n < 96:
			srv.crash(mqtt.Options{QueueMessages: 5000, QueueBytes: 4 << 20})
			shut = false
		default:
			e.answerAll()
		}
		if r.IntN(3) == 0 {
			synctest.Wait()
		}
		for _, e := range all {
			e.work()
		}
	}
	srv.store.unblock()
	for quiet := 0; quiet < 4; { // until no more arrive
		quiet++
		for _, e := range all {
			if e.c == nil {
				e.connect()
				quiet = 0
			}
			n := len(e.heard) + len(e.acked) + len(e.sent)
			e.answerAll()
			synctest.Wait()
			e.work()
			if len(e.later) > 0 || n != len(e.heard)+len(e.acked)+len(e.sent) {
				quiet = 0
			}
		}
	}
	for _, p := range pubs {
		if len(p.sent) > 0 {
			t.Errorf("%s: %d publishes are not done", p.id, len(p.sent))
		}
	}
	for _, e := range all {
		if e.sentence != "" {
			t.Errorf("%s: %s", e.id, e.sentence)
		}
	}
	for _, s := range subs {
		judgeHeard(t, s, pubs)
	}
	judgeGroup(t, group, pubs)
	if n := srv.store.waiting(); n > 0 {
		synctest.Wait()
		t.Errorf("%d messages are left in the store", srv.store.waiting())
	}
}

// judgeGroup checks that a member received each acknowledged message, whichever members were connected.
func judgeGroup(t *testing.T, group, pubs []*referencePeer) {
	t.Helper()
	received := map[string]bool{}
	for _, s := range group {
		for _, m := range s.heard {
			received[m] = true
		}
	}
	for _, p := range pubs {
		for _, m := range p.acked {
			if !received[m] {
				t.Errorf("the group never received %q, which was acknowledged", m)
			}
		}
	}
}

func judgeHeard(t *testing.T, s *referencePeer, pubs []*referencePeer) {
	t.Helper()
	for _, p := range pubs {
		for _, qos := range []string{"1", "2"} {
			var got []string
			seen := map[string]int{}
			prefix := string(p.id) + "-" + qos
			for _, m := range s.heard {
				if m[:len(prefix)] != prefix {
					continue
				}
				if seen[m]++; seen[m] > 1 {
					if qos == "2" {
						t.Errorf("%s received %q twice", s.id, m)
					}
					continue
				}
				got = append(got, m)
			}
			if !slices.IsSorted(got) {
				t.Errorf("%s received %s out of order", s.id, prefix)
			}
			for _, m := range p.acked {
				if m[:len(prefix)] == prefix && seen[m] == 0 {
					t.Errorf("%s never received %q, which was acknowledged", s.id, m)
				}
			}
		}
	}
}
