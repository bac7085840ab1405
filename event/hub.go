// Package event is what devices report, on its way to whoever may hear it. In
// come events, out they go to the subscriptions that match, in order. It keeps
// the last ones of each device within bounds, for those who come back and for
// those who read slowly, and stores nothing. Who misses events is told how many
// of which device; a device that reports too much costs nobody another's events.
package event

import (
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/backlog"
	"github.com/watchword-iot/watchword/policy"
)

// Event is one report of one device.
type Event struct {
	Tenant      watchword.TenantID
	Device      watchword.SubjectID
	Stream      string // its segments joined by "/"
	ContentType string
	At          time.Time
	Data        []byte // at most 32 KiB; nobody changes it any more

	origin uint16 // the hub's
	number uint64 // in the hub's order
	topic  string // empty where nobody was there to hear it
}

// ID returns the event's name, which a hub gave it: evt_ and 26 characters that
// sort by time, and in order within one hub's millisecond.
func (e *Event) ID() string { return watchword.FormatID("evt_", e.At, e.origin, e.number) }

// Topic returns the topic that stands for the event.
func (e *Event) Topic() string {
	if e.topic != "" {
		return e.topic
	}
	return topicOf(e.Device, e.Stream)
}

func topicOf(device watchword.SubjectID, stream string) string {
	return "devices/" + string(device) + "/events/" + stream
}

// memory is about what the event takes: its data, the topic that its strings and the packet behind its data have in
// common, and what the hub notes of it.
func (e *Event) memory() int {
	const overhead = 448
	return overhead + cap(e.Data) + 4*(len(e.Stream)+len(e.Device)+len("devices//events/")) + len(e.ContentType)
}

// bounds are how many events, of how many bytes together, are kept of all devices and of each, and how much is
// remembered of those that are not kept any more.
var bounds = backlog.Bounds{
	Bytes: 16 << 20, Values: 4 << 10, SourceBytes: 2 << 20, SourceValues: 1 << 10, LostBytes: 4 << 20,
}

// The most devices that a [Gap] names, and the most events that [Subscription.Next] looks at and returns in one step.
const (
	gapDevices = 32
	nextLooks  = 256
	nextEvents = 64
	nextBytes  = 64 << 10
)

// source is whose share of the bounds an event takes.
type source struct {
	tenant watchword.TenantID
	device watchword.SubjectID
}

// Hub hands events on. Make one with [NewHub]. It is safe for concurrent use.
type Hub struct {
	origin uint16 // random, as number is at the start: another run gives other ids

	mu     sync.Mutex
	subs   map[*Subscription]struct{}
	kept   *backlog.Log[source, *Event]
	number uint64 // of the last event
}

// NewHub returns an empty hub.
func NewHub() *Hub {
	return &Hub{
		subs: map[*Subscription]struct{}{}, origin: uint16(rand.Uint32()), number: rand.Uint64() >> 1,
		kept: backlog.New[source, *Event](bounds),
	}
}

// Subscription is one reader: a place in the hub's events. It takes no memory for events of its own.
type Subscription struct {
	hub    *Hub
	tenant watchword.TenantID
	filter string
	ready  chan struct{}

	// Of the hub's, under its lock.
	place  uint64 // the number of the last event that was looked at
	told   uint64 // the number up to which it was told that there may have been more
	only   *Event // that came since, if it is one alone
	behind bool   // there may be events, or lost ones, after place; ready was told so
	gap    bool   // events were missed of which nothing is known

	given []*Event // what Next gave last
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

// Publish gives e its id and hands it to every subscription that matches. It never
// waits.
func (h *Hub) Publish(e *Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.number++
	e.origin, e.number = h.origin, h.number
	h.kept.Add(h.number, source{e.Tenant, e.Device}, e, e.Stream, e.memory())
	if len(h.subs) == 0 {
		return
	}
	for s := range h.subs {
		if s.behind {
			s.only = nil // it looks by itself
			continue
		}
		if s.tenant == e.Tenant {
			if e.topic == "" {
				e.topic = topicOf(e.Device, e.Stream)
			}
			if policy.Match(s.filter, e.topic) {
				s.only = e
				s.wake()
				continue
			}
		}
		s.place = h.number
	}
}

// Forget takes away what is kept of a device that is deleted: nobody gets it any more, nor is told that it was missed.
// Device ids are not used again, so what is under way of it is the caller's to stop before.
func (h *Hub) Forget(t watchword.TenantID, device watchword.SubjectID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kept.Forget(source{t, device})
	for s := range h.subs {
		if s.only != nil && s.only.Tenant == t && s.only.Device == device {
			s.only = nil // it looks by itself, and finds what came since
		}
	}
}

// wake says that there is something. It is called with the hub's lock held, as all below that does not say otherwise.
func (s *Subscription) wake() {
	s.behind = true
	select {
	case s.ready <- struct{}{}:
	default: // it was told already
	}
}

// Subscribe starts a subscription to events whose topic matches filter. since is the id of the event that the reader had
// last: what came after it and is kept comes first. Empty: only what comes now.
func (h *Hub) Subscribe(t watchword.TenantID, filter, since string) *Subscription {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &Subscription{hub: h, tenant: t, filter: filter, ready: make(chan struct{}, 1), place: h.number}
	h.subs[s] = struct{}{}
	if since == "" {
		return s
	}
	if origin, number, ok := parseID(since); ok && origin == h.origin && number <= h.number {
		s.place = number
	} else { // of another run, or nobody's
		s.place, s.gap = 0, true
	}
	s.wake()
	return s
}

// Ready has a value when there may be something for Next.
func (s *Subscription) Ready() <-chan struct{} { return s.ready }

// Next returns the next events, of 64 KiB and at most 64 in number, and what was missed among them: of the events and
// losses that there are it looks at 256. It never waits. If there is nothing, and more is false, Ready tells when there
// is. It is for one goroutine, and events are good until the next call.
func (s *Subscription) Next() (events []*Event, gap Gap, more bool) {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(s.given)
	s.given = s.given[:0]
	switch {
	case !s.behind:
		return nil, gap, false
	case s.only != nil: // as a rule
		s.given = append(s.given, s.only)
		s.caughtUp()
		return s.given, gap, false
	}
	forgotten := h.kept.Forgotten()
	gap.More = s.gap || forgotten > max(s.place, s.told)
	s.gap, s.told = false, forgotten
	looks, bytes := 0, 0
	h.kept.After(s.place, func(v backlog.Value[source, *Event]) bool {
		if more = looks == nextLooks || len(s.given) == nextEvents || bytes > nextBytes; more {
			return false
		}
		looks++
		s.place = v.Number
		switch {
		case v.Source.tenant != s.tenant:
		case v.Kept && policy.Match(s.filter, v.Value.Topic()):
			s.given = append(s.given, v.Value)
			bytes += len(v.Value.Data)
		case !v.Kept && policy.Match(s.filter, topicOf(v.Source.device, v.Tag)):
			gap.add(v.Source.device)
		}
		return true
	})
	if !more {
		s.caughtUp()
	}
	return s.given, gap, more
}

// caughtUp says that s has looked at everything.
func (s *Subscription) caughtUp() { s.place, s.only, s.behind = s.hub.number, nil, false }

// Close ends the subscription. It may be called again.
func (s *Subscription) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	delete(s.hub.subs, s)
}

// parseID takes an event's id apart, as [watchword.FormatID] put it together.
func parseID(id string) (origin uint16, number uint64, ok bool) {
	const digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	text, ok := strings.CutPrefix(id, "evt_")
	if !ok || len(text) != 26 {
		return 0, 0, false
	}
	var hi, lo uint64
	for i := range len(text) {
		d := strings.IndexByte(digits, text[i])
		if d < 0 {
			return 0, 0, false
		}
		hi, lo = hi<<5|lo>>59, lo<<5|uint64(d)
	}
	return uint16(hi), lo, true
}
