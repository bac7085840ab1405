package bus

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/backlog"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/policy"
)

// The most devices that a [Gap] names, and the most events that [Reader.Next] looks at and returns in one step.
const (
	gapDevices     = 32
	nextMaxScanned = 256
	nextMaxEvents  = 64
	nextMaxBytes   = 64 << 10
)

// Reader is a subscriber of events that reads at its own speed: a subscription, and a place in the backlog. It takes no
// memory for events of its own.
type Reader struct {
	tenant  *Tenant
	sub     Subscription
	account quota.Key
	ready   chan struct{}

	// Under events.mu.
	position     uint64 // the number of the last event that was looked at
	notifiedUpTo uint64 // the number up to which it was notified of possible further losses
	next         *Event // that came since, if it is one alone
	behind       bool   // there may be events, or lost ones, after position; ready was signalled
	gap          bool   // events were missed of which nothing is known
	closed       bool

	start    string   // see Start
	returned []*Event // what Next gave last
}

// Gap is how many events a reader missed since the hub had no room for them any more.
type Gap struct {
	Missed  int64                         // that matched and are known
	Devices map[watchword.SubjectID]int64 // of these, by device, at most 32
	Others  int64                         // of these, of further devices
	More    bool                          // there may have been more, of which nothing is known any more
}

// Any reports whether anything was missed.
func (g Gap) Any() bool { return g.Missed > 0 || g.More }

// Join adds what was missed after g.
func (g *Gap) Join(next Gap) {
	g.More = g.More || next.More
	g.Missed += next.Others // those of devices are added below
	g.Others += next.Others
	for device, n := range next.Devices {
		g.addSome(device, n)
	}
}

func (g *Gap) add(device watchword.SubjectID) { g.addSome(device, 1) }

func (g *Gap) addSome(device watchword.SubjectID, n int64) {
	g.Missed += n
	switch _, known := g.Devices[device]; {
	case known || len(g.Devices) < gapDevices:
		if g.Devices == nil {
			g.Devices = map[watchword.SubjectID]int64{}
		}
		g.Devices[device] += n
	default:
		g.Others += n
	}
}

// readerBytes is what a reader takes of memory beside the levels of the tree and its filter.
const readerBytes = 512

// Read begins to read the events with a topic that matches filter, if a allows it, on the account of the reader. since is
// the id of the last event that the reader has: later events in the backlog are read first. Empty: only events that are
// published after Read returns. ctx is as in [Tenant.Subscribe]. Codes: denied; busy.
func (t *Tenant) Read(ctx context.Context, a Authority, account quota.Key, filter, since string) (*Reader, error) {
	r := &Reader{tenant: t, account: account, ready: make(chan struct{}, 1)}
	r.sub = Subscription{Filter: filter, Subscriber: r}
	s := &t.bus.events
	s.mu.Lock() // no event is published between the place and the subscription
	defer s.mu.Unlock()
	if err := t.Subscribe(ctx, &r.sub, a, filter, r.bytes()); err != nil {
		return nil, err
	}
	s.readers[r] = struct{}{}
	r.position = s.number
	if r.start = since; since == "" {
		r.start = watchword.FormatID("evt_", time.Now(), s.origin, s.number)
		return r, nil
	}
	if origin, number, ok := parseID(since); ok && origin == s.origin && number <= s.number {
		r.position = number
	} else { // of another process, or unknown
		r.position, r.gap = 0, true
	}
	r.wake()
	return r, nil
}

// Start returns the ID after which the reader begins: a reader with it as since gets every event that this one does. It is
// since, or states the end of the backlog at the time of Read.
func (r *Reader) Start() string { return r.start }

func (r *Reader) bytes() int64 { return readerBytes + int64(len(r.sub.Filter)) }

// Account is that of the session which reads.
func (r *Reader) Account() quota.Key { return r.account }

// Deliver does nothing: a reader is notified of events by their number, and gets no other messages.
func (r *Reader) Deliver(Message, []*Subscription, *Batch, *Result) {}

// notify is called for each event that the filter matches, in order. events.mu is held, as for all functions below unless
// stated otherwise.
func (r *Reader) notify(e *Event) {
	if r.behind {
		r.next = nil // it looks by itself
		return
	}
	r.position, r.next = e.number-1, e // nothing before e matched since it had looked at everything
	r.wake()
}

// wake says that there is something.
func (r *Reader) wake() {
	r.behind = true
	select {
	case r.ready <- struct{}{}:
	default: // it was signalled already
	}
}

// Ready has a value when there may be something for Next.
func (r *Reader) Ready() <-chan struct{} { return r.ready }

// Next returns the next events, at most 64 KiB and 64 in number, and the losses among them: it examines at most 256 events
// and losses. It does not block. There is nothing while the authority of the reader does not allow its filter. If there is
// nothing, and more is false, Ready signals when there is. It is not safe for concurrent use, and events are valid until the
// next call.
func (r *Reader) Next() (events []*Event, gap Gap, more bool) {
	s := &r.tenant.bus.events
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(r.returned)
	r.returned = r.returned[:0]
	switch {
	case !r.behind:
		return nil, gap, false
	case !r.sub.mayRead(): // events of a time in which it may not be read are no gap
		r.caughtUp()
		return nil, gap, false
	case r.next != nil: // usually
		r.returned = append(r.returned, r.next)
		r.caughtUp()
		return r.returned, gap, false
	}
	forgotten := s.log.Forgotten()
	gap.More = r.gap || forgotten > max(r.position, r.notifiedUpTo)
	r.gap, r.notifiedUpTo = false, forgotten
	looks, bytes := 0, 0
	s.log.After(r.position, func(v backlog.Value[eventSource, *Event]) bool {
		if more = looks == nextMaxScanned || len(r.returned) == nextMaxEvents || bytes > nextMaxBytes; more {
			return false
		}
		looks++
		r.position = v.Number
		switch {
		case v.Source.tenant != r.tenant.id:
		case v.Buffered && policy.Match(r.sub.Filter, v.Value.Topic()):
			r.returned = append(r.returned, v.Value)
			bytes += len(v.Value.Data)
		case !v.Buffered && policy.Match(r.sub.Filter, topicOf(v.Source.device, v.Tag)):
			gap.add(v.Source.device)
		}
		return true
	})
	if !more {
		r.caughtUp()
	}
	return r.returned, gap, more
}

// caughtUp says that r has looked at everything.
func (r *Reader) caughtUp() { r.position, r.next, r.behind = r.tenant.bus.events.number, nil, false }

// Close ends the reading. It may be called again. No lock is held.
func (r *Reader) Close() {
	s := &r.tenant.bus.events
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.closed {
		return
	}
	r.closed = true
	delete(s.readers, r)
	r.tenant.Unsubscribe(&r.sub, r.bytes())
}
