package mqtt

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/shelf"
)

// retained is the retained messages of one world: a trie of topic levels. Who gives
// one out holds mu for reading until it is queued, and who sets one holds it for
// writing before it is routed: so nobody hears an older message after a newer one.
type retained struct {
	mu    sync.RWMutex
	root  shelfLevel
	count int
	bytes int
}

type shelfLevel struct {
	here  *message
	names map[string]*shelfLevel
}

// retainKey is one topic whose retained message is to be written.
type retainKey struct {
	world *world
	topic string
}

// errRetained is what becomes of a retained message that there is no room for.
var errRetained = &packet.Error{Reason: packet.QuotaExceeded, Type: packet.PUBLISH, What: "the server keeps no more retained messages"}

// set puts m in the place of the retained message of its topic; an empty payload
// removes it (MQTT 5.0 §3.3.1.3). undo puts what was there before in its place again,
// unless another came meanwhile.
func (r *retained) set(m *message, o *Options) (undo func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.find(m.topic)
	var now *message
	if len(m.payload) > 0 {
		if old == nil && r.count >= o.RetainedMessages || r.bytes+m.size()-sizeOf(old) > o.RetainedBytes {
			return nil, errRetained
		}
		now = &message{topic: m.topic, payload: m.payload, qos: m.qos, retain: true, kept: true, props: m.props, ends: m.ends}
	}
	r.replace(m.topic, now)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if old != nil && old.undone {
			old = nil
		}
		if r.find(m.topic) == now {
			r.replace(m.topic, old)
		}
		if now != nil {
			now.undone = true
		}
	}, nil
}

// replace puts m in the place of what is retained for a topic; nil for nothing. mu is held.
func (r *retained) replace(topic string, m *message) {
	if m == nil {
		r.remove(topic)
		return
	}
	r.put(topic, m)
}

// put is called with mu held.
func (r *retained) put(topic string, m *message) {
	n := &r.root
	old := r.find(topic)
	for level := range strings.SplitSeq(topic, "/") {
		if n.names == nil {
			n.names = map[string]*shelfLevel{}
		}
		next := n.names[level]
		if next == nil {
			next = &shelfLevel{}
			n.names[strings.Clone(level)] = next
		}
		n = next
	}
	if old == nil {
		r.count++
	}
	r.bytes += m.size() - sizeOf(old)
	n.here = m
}

func sizeOf(m *message) int {
	if m == nil {
		return 0
	}
	return m.size()
}

// find returns what is retained for a topic, nil for nothing. mu is held.
func (r *retained) find(topic string) *message {
	n := &r.root
	for level := range strings.SplitSeq(topic, "/") {
		if n = n.names[level]; n == nil {
			return nil
		}
	}
	return n.here
}

// remove forgets a topic, and the levels that are empty then. mu is held.
func (r *retained) remove(topic string) {
	if old := r.find(topic); old != nil {
		r.count--
		r.bytes -= old.size()
		r.root.remove(topic, true)
	}
}

func (n *shelfLevel) remove(topic string, more bool) {
	if !more {
		n.here = nil
		return
	}
	level, rest, more := strings.Cut(topic, "/")
	next := n.names[level]
	next.remove(rest, more)
	if next.here == nil && next.names == nil {
		if delete(n.names, level); len(n.names) == 0 {
			n.names = nil
		}
	}
}

// match returns what is retained for the topics of a filter.
func (r *retained) match(filter string, now time.Time) (out []*message) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	r.root.match(filter, true, true, func(m *message) {
		if !m.expired(now) {
			out = append(out, m)
		}
	})
	return out
}

func (n *shelfLevel) match(filter string, more, first bool, f func(*message)) {
	if !more {
		if n.here != nil {
			f(n.here)
		}
		return
	}
	name, rest, more := strings.Cut(filter, "/")
	switch name {
	case "#":
		n.all(first, f)
	case "+":
		for level, next := range n.names {
			if first && strings.HasPrefix(level, "$") { // MQTT 5.0 §4.7.2
				continue
			}
			next.match(rest, more, false, f)
		}
	default:
		if next := n.names[name]; next != nil {
			next.match(rest, more, false, f)
		}
	}
}

// all calls f with everything at n and below.
func (n *shelfLevel) all(first bool, f func(*message)) {
	if n.here != nil {
		f(n.here)
	}
	for level, next := range n.names {
		if first && strings.HasPrefix(level, "$") {
			continue
		}
		next.all(false, f)
	}
}

// expire forgets what nobody is to get any more, and returns its topics. Publishers wait
// for what is removed alone.
func (r *retained) expire(now time.Time) (topics []string) {
	var over []*message
	r.mu.RLock()
	r.root.all(false, func(m *message) {
		if m.expired(now) {
			over = append(over, m)
		}
	})
	r.mu.RUnlock()
	for _, m := range over {
		r.mu.Lock()
		if r.find(m.topic) == m {
			r.remove(m.topic)
			topics = append(topics, m.topic)
		}
		r.mu.Unlock()
	}
	return topics
}

// row is what is to be written of a topic now.
func (r *retained) row(k retainKey) shelf.Retained {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := shelf.Retained{Tenant: k.world.tenant, Topic: k.topic}
	if m := r.find(k.topic); m != nil {
		out.Packet, out.Expires = m.stored(), m.expires()
	}
	return out
}

// sweepEvery is how often retained messages whose life has ended are looked for.
const sweepEvery = time.Minute

// sweep forgets them.
func (b *Broker) sweep() {
	for b.sleep(sweepEvery) {
		b.mu.Lock()
		worlds := slices.Collect(maps.Values(b.worlds))
		b.mu.Unlock()
		for _, w := range worlds {
			for _, topic := range w.retained.expire(b.o.Now()) {
				b.journal.add(adding{retained: &retainKey{w, topic}})
			}
		}
	}
}
