package bus

import (
	"cmp"
	"hash/maphash"
	"runtime"
	"slices"
	"sync"

	"github.com/watchword-iot/watchword/internal/lockrank"
)

// Batch is the scratch memory of one publisher, for several publications in a row, and those whom it must flush after
// them. The zero value is ready to use. It is for one goroutine.
type Batch struct {
	Offers int // subscriptions that were offered something since the last Flush

	subs    []*Subscription // of the publication in hand
	touched []Flusher
}

// Flusher is a connection with messages that wait to be written.
type Flusher interface{ Flush() }

// Touch notes f, which [Batch.Flush] flushes.
func (b *Batch) Touch(f Flusher) { b.touched = append(b.touched, f) }

// Flush sees to it that all who were offered something get it. No lock is held.
func (b *Batch) Flush() {
	const few, alone = 2, 16
	if n := len(b.touched); n > 0 && n <= few {
		// Whoever is ready to publish to the same receivers does so first: on a busy
		// server one write then carries what many published, on an idle one nobody waits.
		runtime.Gosched()
	}
	for len(b.touched) > alone { // many receivers: distribute them over the processors
		some := append([]Flusher(nil), b.touched[len(b.touched)-min(len(b.touched)-alone, 64):]...)
		b.touched = b.touched[:len(b.touched)-len(some)]
		go func() {
			for _, f := range some {
				f.Flush()
			}
		}()
	}
	for i, f := range b.touched {
		f.Flush()
		b.touched[i] = nil
	}
	b.touched, b.Offers = b.touched[:0], 0
}

var batches = sync.Pool{New: func() any { return &Batch{} }}

// Publish offers m to every subscription whose filter matches its topic: once to each subscriber, and to one member of
// each shared group. Publications of one topic reach all subscribers in the same order: that in which Publish was
// entered for them. It returns when they have it in their queues; the caller owes [Batch.Flush], and
// [Stored.Commit] where r has something stored.
func (t *Tenant) Publish(m Message, b *Batch, r *Result) {
	topic := m.Topic()
	l := &t.bus.order[maphash.String(t.bus.seed, topic)%orderLocks]
	l.Lock()
	defer l.Unlock()
	t.deliver(m, t.collect(topic, b), b, r)
}

// PublishEvent is Publish for an event, of which m is the message. The event gets its number and enters the backlog
// before any subscriber has it.
func (t *Tenant) PublishEvent(e *Event, m Message, b *Batch, r *Result) {
	topic := m.Topic()
	l := &t.bus.order[maphash.String(t.bus.seed, topic)%orderLocks]
	l.Lock()
	defer l.Unlock()
	t.deliver(m, t.number(e, topic, b), b, r)
}

// PublishDocument publishes d, the event that it stands for with it, if e is not nil, and returns when it is on disk
// for those who are offline. That a subscriber has no room for it is no error. Code: unavailable.
func (t *Tenant) PublishDocument(d *Document, e *Event) error {
	b := batches.Get().(*Batch)
	defer batches.Put(b)
	var r Result
	if e != nil {
		t.PublishEvent(e, d, b, &r)
	} else {
		t.Publish(d, b, &r)
	}
	b.Flush()
	var at Commit
	if r.Stored != nil { // also where another subscriber failed: who has it keeps it
		at = r.Stored.Commit()
	}
	switch {
	case r.Err != nil && !IsFull(r.Err):
		return r.Err
	case at == nil:
		return nil
	}
	lockrank.Block()
	<-at.Done()
	return at.Err()
}

// collect puts the subscriptions of a topic into b, and returns how many filters they have.
func (t *Tenant) collect(topic string, b *Batch) (filters int) {
	t.tree.match(topic, func(l []*Subscription) {
		filters++
		b.subs = append(b.subs, l...)
	})
	return filters
}

// deliver hands m to the subscriptions that were collected.
func (t *Tenant) deliver(m Message, filters int, b *Batch, r *Result) {
	n := len(b.subs)
	for i := 0; i < n; { // those with one subscription come last, groups among them: their copy is their own
		if b.subs[i].Number != 0 {
			i++
			continue
		}
		n--
		b.subs[i], b.subs[n] = b.subs[n], b.subs[i]
	}
	if filters > 1 { // a subscriber may be under several: those are offered together
		slices.SortFunc(b.subs[:n], func(x, y *Subscription) int { return cmp.Compare(x.Number, y.Number) })
	}
	for i, j := 0, 0; i < n; i = j {
		s := b.subs[i]
		for j = i + 1; j < n && b.subs[j].Number == s.Number; {
			j++
		}
		s.Subscriber.Deliver(m, b.subs[i:j], b, r)
	}
	for i := n; i < len(b.subs); i++ {
		b.subs[i].Subscriber.Deliver(m, b.subs[i:i+1], b, r)
	}
	b.Offers += len(b.subs)
	clear(b.subs)
	b.subs = b.subs[:0]
}
