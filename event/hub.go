// Package event is what devices report, on its way to whoever may hear it. In
// come events, out they go to the subscriptions that match, in order. It keeps
// the last ones for those who come back, stores nothing, and cuts off whoever
// reads too slowly: a slow reader loses its stream, not other people's events.
package event

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/policy"
)

// Event is one report of one device.
type Event struct {
	Tenant      watchword.TenantID
	Device      watchword.SubjectID
	Stream      string // its segments joined by "/"
	ContentType string
	At          time.Time
	Data        []byte // at most 32 KiB

	origin uint16 // the hub's
	number uint64 // in the hub's order
}

// ID returns the event's name, which a hub gave it: evt_ and 26 characters that
// sort by time, and in order within one hub's millisecond.
func (e *Event) ID() string { return watchword.FormatID("evt_", e.At, e.origin, e.number) }

// Topic returns the topic that stands for the event.
func (e *Event) Topic() string { return "devices/" + string(e.Device) + "/events/" + e.Stream }

// The bounds of a hub: how many events, of how many bytes together, are kept for those who come back, and how many
// may wait for one subscription.
const (
	keepEvents = 4096
	keepBytes  = 16 << 20
	waitEvents = 256
)

// Hub hands events on. Make one with [NewHub]. It is safe for concurrent use.
type Hub struct {
	origin uint16 // random, as number is at the start: another run gives other ids

	mu     sync.Mutex
	subs   map[*Subscription]struct{}
	kept   []kept // a ring, oldest at first
	first  int
	bytes  int
	number uint64 // of the last event
}

// kept is an event with what it counts against the bounds.
type kept struct {
	event *Event
	bytes int
}

// NewHub returns an empty hub.
func NewHub() *Hub {
	return &Hub{subs: map[*Subscription]struct{}{}, origin: uint16(rand.Uint32()), number: rand.Uint64() >> 1}
}

// Subscription is one reader. Events is closed when the reader was too slow, and
// after Close.
type Subscription struct {
	Events <-chan *Event

	hub    *Hub
	events chan *Event
	tenant watchword.TenantID
	filter string
	closed bool
}

// Publish gives e its id and hands it to every subscription that matches. It never
// waits.
func (h *Hub) Publish(e *Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.number++
	e.origin, e.number = h.origin, h.number
	h.keep(e)
	if len(h.subs) == 0 {
		return
	}
	topic := e.Topic()
	for s := range h.subs {
		if s.tenant != e.Tenant || !policy.Match(s.filter, topic) {
			continue
		}
		select {
		case s.events <- e:
		default:
			h.drop(s)
		}
	}
}

func (h *Hub) keep(e *Event) {
	h.kept = append(h.kept, kept{e, len(e.Data)})
	h.bytes += len(e.Data)
	for len(h.kept)-h.first > keepEvents || h.bytes > keepBytes {
		h.bytes -= h.kept[h.first].bytes
		h.kept[h.first].event = nil
		h.first++
	}
	if h.first > keepEvents {
		h.kept, h.first = slices.Clone(h.kept[h.first:]), 0
	}
}

// Subscribe starts a subscription to events whose topic matches filter. missed is what was
// kept after the event with id since; gap says that since is no longer known, and there may
// have been more.
func (h *Hub) Subscribe(t watchword.TenantID, filter, since string) (s *Subscription, missed []*Event, gap bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s = &Subscription{hub: h, events: make(chan *Event, waitEvents), tenant: t, filter: filter}
	s.Events = s.events
	h.subs[s] = struct{}{}
	if since == "" {
		return s, nil, false
	}
	all := h.kept[h.first:]
	at := slices.IndexFunc(all, func(k kept) bool { return k.event.ID() == since })
	gap = at < 0
	for _, k := range all[at+1:] {
		e := k.event
		if e.Tenant == t && policy.Match(filter, e.Topic()) {
			missed = append(missed, e)
		}
	}
	return s, missed, gap
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.hub.drop(s)
}

// drop is called with mu held.
func (h *Hub) drop(s *Subscription) {
	if !s.closed {
		s.closed = true
		delete(h.subs, s)
		close(s.events)
	}
}
