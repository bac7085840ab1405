package bus

import (
	"context"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/backlog"
	"github.com/watchword-iot/watchword/internal/lockrank"
)

// Event is one report of one device.
type Event struct {
	Tenant      watchword.TenantID
	Device      watchword.SubjectID
	Stream      string // its segments joined by "/"
	ContentType string
	At          time.Time
	Data        []byte // at most 32 KiB; must not be modified

	origin uint16 // of the bus that published it
	number uint64 // in the order of all events of that bus
	topic  string // empty before it is published
}

// ID returns the event's id, which it has once it is published: evt_ and 26 characters that sort by time, and in the
// order of publication within one bus and millisecond.
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
// common, and what the backlog notes of it.
func (e *Event) memory() int {
	const overhead = 448
	return overhead + cap(e.Data) + 4*(len(e.Stream)+len(e.Device)+len("devices//events/")) + len(e.ContentType)
}

// eventBounds are how many events, of how many bytes together, the backlog has of all devices and of each, and how much
// it remembers of those that it lost.
var eventBounds = backlog.Bounds{
	Bytes: 16 << 20, Values: 4 << 10, SourceBytes: 2 << 20, SourceValues: 1 << 10, LostBytes: 4 << 20,
}

// eventSource is whose share of the bounds an event takes.
type eventSource struct {
	tenant watchword.TenantID
	device watchword.SubjectID
}

// events numbers the events of all tenants and has the last ones.
type events struct {
	origin uint16 // random, as number is at the start: another process gives other ids

	mu      lockrank.Mutex[eventsLock]
	log     *backlog.Log[eventSource, *Event]
	number  uint64 // of the last event
	readers map[*Reader]struct{}
}

func (s *events) init() {
	s.origin, s.number = uint16(rand.Uint32()), rand.Uint64()>>1
	s.log, s.readers = backlog.New[eventSource, *Event](eventBounds), map[*Reader]struct{}{}
}

// appendEvent gives e its number, adds it to the backlog, and notifies the readers among the subscribers of its topic; b
// then has the other subscriptions. All of it is one step, so that readers are notified in the order of the numbers. The
// lock of the topic is held.
func (t *Tenant) appendEvent(e *Event, topic string, b *Batch) (filters int) {
	s := &t.bus.events
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	e.Tenant, e.origin, e.number, e.topic = t.id, s.origin, s.number, topic
	s.log.Add(s.number, eventSource{e.Tenant, e.Device}, e, e.Stream, e.memory())
	filters = t.collectSubscriptions(topic, b)
	if len(s.readers) == 0 {
		return filters
	}
	others := b.subs[:0]
	for _, sub := range b.subs {
		if r, reads := sub.Subscriber.(*Reader); reads {
			r.notify(e)
		} else {
			others = append(others, sub)
		}
	}
	clear(b.subs[len(others):])
	b.subs = others
	return filters
}

// HandleChange takes away what the backlog has of a device that was deleted. It is registered behind the guard of the sessions,
// which stops the device's publications.
func (b *Bus) HandleChange(_ context.Context, c watchword.Change) error {
	if c.Kind == watchword.SubjectDeleted {
		b.forgetEvents(c.Tenant, watchword.SubjectID(c.ID))
	}
	return nil
}

// forgetEvents removes the events of a deleted device from the backlog: no reader gets them, or a notice of their loss.
// Device ids are not used again.
func (b *Bus) forgetEvents(t watchword.TenantID, device watchword.SubjectID) {
	s := &b.events
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log.Forget(eventSource{t, device})
	for r := range s.readers {
		if r.next != nil && r.next.Tenant == t && r.next.Device == device {
			r.next = nil // it looks by itself, and finds what came since
		}
	}
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
