// Package event is what devices report, on its way to whoever may hear it. In
// come events, out they go to the subscriptions that match, in order. It keeps
// the last ones for those who come back, stores nothing, and cuts off whoever
// reads too slowly: a slow reader loses its stream, not other people's events.
package event

import (
	"slices"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/policy"
)

// Event is one report of one device.
type Event struct {
	Tenant      watchword.TenantID
	ID          string
	Device      watchword.SubjectID
	Stream      string // its segments joined by "/"
	ContentType string
	At          time.Time
	Data        []byte // at most 32 KiB
}

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
	mu    sync.Mutex
	subs  map[*Subscription]struct{}
	kept  []*Event // a ring, oldest at first
	first int
	bytes int
}

// NewHub returns an empty hub.
func NewHub() *Hub { return &Hub{subs: map[*Subscription]struct{}{}} }

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

// Publish hands e to every subscription that matches. It never waits.
func (h *Hub) Publish(e *Event) {
	topic := e.Topic()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keep(e)
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
	h.kept = append(h.kept, e)
	h.bytes += len(e.Data)
	for len(h.kept)-h.first > keepEvents || h.bytes > keepBytes {
		h.bytes -= len(h.kept[h.first].Data)
		h.kept[h.first] = nil
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
	kept := h.kept[h.first:]
	at := slices.IndexFunc(kept, func(e *Event) bool { return e.ID == since })
	gap = at < 0
	for _, e := range kept[at+1:] {
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
