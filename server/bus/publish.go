package bus

import (
	"cmp"
	"errors"
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

	subs    []*Subscription // of the current publication
	toFlush []Flusher

	// The lock of the last topic since Flush: a publisher that repeats a topic does not hash it again.
	bus   *Bus
	topic string
	order *topicOrder
}

// orderLock returns the lock of a topic.
func (b *Batch) orderLock(of *Bus, topic string) *topicOrder {
	if b.bus != of || b.topic != topic {
		b.bus, b.topic, b.order = of, topic, &of.order[maphash.String(of.seed, topic)%orderLocks]
	}
	return b.order
}

// Flusher is a connection with messages that wait to be written.
type Flusher interface{ Flush() }

// MarkForFlush notes f, which [Batch.Flush] flushes.
func (b *Batch) MarkForFlush(f Flusher) { b.toFlush = append(b.toFlush, f) }

// Flush makes all subscribers that were offered messages write them. No lock is held.
func (b *Batch) Flush() {
	const few, alone = 2, 16
	if n := len(b.toFlush); n > 0 && n <= few {
		// Other publishers to the same receivers run first: on a busy server one write then carries many messages, on an
		// idle one nothing waits.
		runtime.Gosched()
	}
	for len(b.toFlush) > alone { // many receivers: distribute them over the processors
		some := append([]Flusher(nil), b.toFlush[len(b.toFlush)-min(len(b.toFlush)-alone, 64):]...)
		b.toFlush = b.toFlush[:len(b.toFlush)-len(some)]
		go func() {
			for _, f := range some {
				f.Flush()
			}
		}()
	}
	for i, f := range b.toFlush {
		f.Flush()
		b.toFlush[i] = nil
	}
	b.toFlush, b.Offers = b.toFlush[:0], 0
	b.bus, b.topic, b.order = nil, "", nil // so that a pool of batches keeps neither in memory
}

var batches = sync.Pool{New: func() any { return &Batch{} }}

// Publication is a message on its way to all subscriptions of its topic.
type Publication struct {
	Message Message
	Event   *Event  // that the message carries, nil for none
	Retain  *Retain // nil: it is not retained
}

// Retain says what is to be retained for the topic of a publication.
type Retain struct {
	Message *Retained // nil removes what there is
	Owner   Owner
}

// Publish offers p to every subscription with a filter that matches its topic: once to each subscriber, and to one member
// of each shared group. A message is retained, and an event gets its number and enters the backlog, before any subscriber
// has it. Publications of one topic reach all subscribers, and the retained message, in one order. It returns when they are
// in the queues of their subscribers. The caller must call [Batch.Flush]; also after an error it must call [Stored.Commit]
// for each of r.Stored, and write the retained message if r says so.
//
// An error means that p must not be acknowledged as delivered, or was refused; it is not retained then. It is a [FullError]
// if no receiver had room for p. Codes: busy; subject_revoked; unavailable.
func (t *Tenant) Publish(p Publication, b *Batch, r *Result) error {
	topic := p.Message.Topic()
	l := b.orderLock(t.bus, topic)
	l.Lock()
	defer l.Unlock()
	var undo func()
	if p.Retain != nil {
		var err error
		if undo, err = t.Retained.set(topic, p.Retain.Message, p.Retain.Owner); err != nil {
			return err
		}
		r.Retained = true
	}
	filters := 0
	if p.Event != nil {
		filters = t.appendEvent(p.Event, topic, b)
	} else {
		filters = t.collectSubscriptions(topic, b)
	}
	t.deliver(p.Message, filters, b, r)
	switch {
	case r.Err == nil, IsFull(r.Err) && (r.Receivers > 0 || r.Retained): // a receiver has it already
		return nil
	case undo != nil:
		undo() // a refused message is not retained either
	}
	return r.Err
}

// PublishDocument publishes d, with its event if e is not nil, and returns when it is on disk for offline subscribers, in
// every store that has a copy. It is no error if a subscriber has no room for it. An error names each store that failed; the
// others have the copy. Code: unavailable.
func (t *Tenant) PublishDocument(d *Document, e *Event) error {
	b := batches.Get().(*Batch)
	defer batches.Put(b)
	var r Result
	err := t.Publish(Publication{Message: d, Event: e}, b, &r)
	b.Flush()
	if IsFull(err) {
		err = nil
	}
	// Also if another subscriber failed: a subscriber that has the document keeps it.
	if failed := waitStored(r.Stored); err == nil {
		err = failed
	}
	return err
}

// waitStored has all copies written at the same time, and waits for each. No lock is held.
func waitStored(copies []Stored) error {
	if len(copies) == 0 {
		return nil
	}
	lockrank.Block()
	if len(copies) == 1 { // usually
		at := copies[0].Commit()
		<-at.Done()
		return at.Err()
	}
	commits := make([]Commit, len(copies))
	for i, c := range copies {
		commits[i] = c.Commit()
	}
	var errs []error
	for _, at := range commits {
		<-at.Done()
		errs = append(errs, at.Err())
	}
	return errors.Join(errs...)
}

// collectSubscriptions puts the subscriptions of a topic into b, and returns how many filters they have.
func (t *Tenant) collectSubscriptions(topic string, b *Batch) (filters int) {
	t.tree.match(topic, func(l []*Subscription) {
		filters++
		b.subs = append(b.subs, l...)
	})
	return filters
}

// allowed returns those of subs that the authority of their subscriber allows now, in order. It moves them to the front.
func allowed(subs []*Subscription) []*Subscription {
	n := 0
	for _, s := range subs {
		if s.mayRead() {
			subs[n] = s
			n++
		}
	}
	return subs[:n]
}

// deliver hands m to the subscriptions that were collected.
func (t *Tenant) deliver(m Message, filters int, b *Batch, r *Result) {
	n := len(b.subs)
	if n == 1 { // usually: nothing is to be arranged
		if s := b.subs[0]; s.mayRead() {
			s.Subscriber.Deliver(m, b.subs, b, r)
		}
		b.Offers++
		b.subs[0] = nil
		b.subs = b.subs[:0]
		return
	}
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
		if may := allowed(b.subs[i:j]); len(may) > 0 {
			s.Subscriber.Deliver(m, may, b, r)
		}
	}
	for i := n; i < len(b.subs); i++ {
		if may := allowed(b.subs[i : i+1]); len(may) > 0 {
			may[0].Subscriber.Deliver(m, may, b, r)
		}
	}
	b.Offers += len(b.subs)
	clear(b.subs)
	b.subs = b.subs[:0]
}
