package bus_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/policy"
)

func ev(device watchword.SubjectID) *bus.Event {
	return &bus.Event{Tenant: "t", Device: device, Stream: "lux", At: time.Unix(1_800_000_000, 0), Data: []byte("1")}
}

// events publishes events and reads them.
type events struct {
	t   testing.TB
	bus *bus.Bus
	b   bus.Batch
}

func newEvents(t testing.TB) *events { return &events{t: t, bus: bus.New(bus.Options{})} }

func (h *events) publish(e *bus.Event) {
	var r bus.Result
	if err := h.bus.Tenant(e.Tenant).Publish(bus.Publication{Message: &bus.Document{Name: e.Topic()}, Event: e}, &h.b, &r); err != nil {
		h.t.Error(err)
	}
}

func (h *events) read(t watchword.TenantID, filter, since string) *bus.Reader {
	h.t.Helper()
	r, err := h.bus.Tenant(t).Read(context.Background(), anything{}, quota.Key{Tenant: t, Subject: "reader"}, filter, since)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// anything is an authority that may read everything.
type anything struct{}

func (anything) AuthorityVersion() uint64 { return 1 }

func (anything) Subscribe(string) policy.Decision { return policy.Decision{Allowed: true} }

// take reads all that there is.
func take(t *testing.T, s *bus.Reader) (events []*bus.Event, gap bus.Gap) {
	t.Helper()
	gap.Devices = map[watchword.SubjectID]int64{}
	for more := true; more; {
		var es []*bus.Event
		var g bus.Gap
		es, g, more = s.Next()
		events = append(events, es...)
		gap.Missed, gap.Others, gap.More = gap.Missed+g.Missed, gap.Others+g.Others, gap.More || g.More
		for d, n := range g.Devices {
			gap.Devices[d] += n
		}
	}
	if es, g, _ := s.Next(); len(es) > 0 || g.Any() {
		t.Error("there is more without a sign of it")
	}
	if !slices.IsSortedFunc(events, func(a, b *bus.Event) int { return strings.Compare(a.ID(), b.ID()) }) {
		t.Error("the events are not in order")
	}
	return events, gap
}

func TestSlowReaderLosesEventsOfBusiestDevice(t *testing.T) {
	h := newEvents(t)
	before := ev("before")
	h.publish(before)
	slow := h.read("t", "devices/+/events/#", "")
	defer slow.Close()
	narrow := h.read("t", "devices/lamp-7/events/#", "")
	defer narrow.Close()
	quick := h.read("t", "devices/+/events/#", "")
	defer quick.Close()
	foreign := h.read("other", "#", "")
	defer foreign.Close()
	const loud, quiet = 10_000, 100
	for n := range loud {
		said := []*bus.Event{ev("loud")}
		if n%100 == 0 {
			said = append(said, ev(watchword.SubjectID(fmt.Sprintf("lamp-%d", n/100%10))))
		}
		for _, e := range said {
			h.publish(e)
			testwait.For(t, "the event", quick.Ready())
			if es, gap, _ := quick.Next(); len(es) != 1 || es[0] != e || gap.Any() {
				t.Fatalf("the quick one got %v, gap %v", es, gap)
			}
		}
	}
	testwait.For(t, "the events", slow.Ready())
	events, gap := take(t, slow)
	of := map[watchword.SubjectID]int{}
	for _, e := range events {
		of[e.Device]++
	}
	kept := of["loud"]
	delete(of, "loud")
	if kept < 1000 || kept > 1024 || int64(kept)+gap.Missed != loud || gap.Devices["loud"] != gap.Missed || gap.More || len(gap.Devices) != 1 {
		t.Errorf("of the loud one %d came and %d of %v were missed", kept, gap.Missed, gap.Devices)
	}
	for d, n := range of {
		if n != quiet/10 {
			t.Errorf("of %s came %d, want %d", d, n, quiet/10)
		}
	}
	if len(of) != 10 {
		t.Errorf("of %d others came something", len(of))
	}
	if events, gap := take(t, narrow); len(events) != quiet/10 || gap.Any() {
		t.Errorf("the reader of one device got %d, gap %v", len(events), gap)
	}
	slow.Close() // again is no harm
	select {
	case <-foreign.Ready():
		t.Error("another tenant received it")
	default:
	}
}

func TestReconnectingReaderGetsMissedEventsOrGap(t *testing.T) {
	h := newEvents(t)
	var ids []string
	for n := range 5000 {
		e := ev(watchword.SubjectID(fmt.Sprintf("lamp-%d", n%2)))
		h.publish(e)
		ids = append(ids, e.ID())
	}
	if !slices.IsSorted(ids) || len(slices.Compact(slices.Clone(ids))) != len(ids) {
		t.Error("the ids of one millisecond are not in order, or not different")
	}
	s := h.read("t", "devices/lamp-1/events/#", ids[4990])
	defer s.Close()
	testwait.For(t, "the events", s.Ready())
	if events, gap := take(t, s); gap.Any() || len(events) != 5 || events[0].ID() != ids[4991] {
		t.Errorf("gap %v, missed %d", gap, len(events))
	}
	for _, tc := range []struct {
		filter, since string
		events        int
		missed        int64
		more          bool
	}{
		{"devices/+/events/#", ids[1], 2048, 4998 - 2048, false},
		{"devices/lamp-1/events/#", ids[1], 1024, 2499 - 1024, false},
		{"devices/lamp-1/events/dark", ids[1], 0, 0, false},
		{"devices/+/events/#", ids[4999], 0, 0, false},
		{"devices/+/events/#", "evt_", 2048, 2952, true},
		{"devices/+/events/#", "evt_" + strings.Repeat("0", 26), 2048, 2952, true}, // of another run
		{"devices/+/events/#", strings.ToLower(ids[4999]), 2048, 2952, true},
		{"devices/+/events/#", "", 0, 0, false},
	} {
		s := h.read("t", tc.filter, tc.since)
		defer s.Close()
		events, gap := take(t, s)
		if len(events) != tc.events || gap.Missed != tc.missed || gap.More != tc.more {
			t.Errorf("%s since %s: %d events, gap %+v", tc.filter, tc.since, len(events), gap)
		}
	}
}

func TestForgottenGapIsReported(t *testing.T) {
	h := newEvents(t)
	first := ev("lamp-1")
	h.publish(first)
	s := h.read("t", "devices/+/events/#", "")
	defer s.Close()
	const flood = 60_000 // more than is remembered of what was lost
	for range flood {
		h.publish(ev("loud"))
	}
	for range 2 {
		events, gap := take(t, s)
		if len(events) != 1024 || !gap.More || gap.Missed < 20_000 || gap.Missed >= flood-1024 {
			t.Errorf("%d events, gap %+v", len(events), gap)
		}
		s = h.read("t", "devices/+/events/#", first.ID())
		defer s.Close()
	}
}

func TestAGapNamesSomeDevicesAndCountsTheOthers(t *testing.T) {
	h := newEvents(t)
	s := h.read("t", "devices/+/events/#", "")
	defer s.Close()
	const devices, each = 50, 120
	for range each {
		for d := range devices {
			h.publish(ev(watchword.SubjectID(fmt.Sprintf("lamp-%02d", d))))
		}
	}
	_, gap, _ := s.Next()
	sum := gap.Others
	for _, n := range gap.Devices {
		sum += n
	}
	if len(gap.Devices) != 32 || gap.Others == 0 || sum != gap.Missed {
		t.Errorf("%d devices, %d of others, %d in all, %d missed", len(gap.Devices), gap.Others, sum, gap.Missed)
	}
}

// What the bounds count is what the heap has, within a quarter.
func TestEventMemoryIsChargedExactly(t *testing.T) {
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for _, tc := range []struct {
		name          string
		devices, size int
		stream        string
		most          int64
	}{
		{"small events", 100, 2, "lux", 16 << 20},
		{"large events", 100, 32 << 10, "lux", 16 << 20},
		{"long names", 10, 2, strings.Repeat("abcdefghijklmno/", 1000) + "x", 16 << 20},
		{"one device", 1, 1000, "lux", 4 << 20},
		{"one event each", 16 << 10, 100, "lux", 16 << 20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := heap()
			h := newEvents(t)
			for n := range 20_000 {
				device := watchword.SubjectID(fmt.Sprintf("lamp-%d", n%tc.devices))
				topic := "devices/" + string(device) + "/events/" + strings.Clone(tc.stream)
				h.publish(&bus.Event{
					Tenant: "t", Device: watchword.SubjectID(topic[8 : 8+len(device)]), Stream: topic[len(topic)-len(tc.stream):],
					At: time.Unix(1_800_000_000, 0), Data: make([]byte, tc.size),
				})
			}
			real := heap() - before
			const lost = 4 << 20 // beside the events themselves
			if real > (tc.most+lost)*5/4 {
				t.Errorf("%d bytes of memory, the bound is %d", real, tc.most+lost)
			}
			t.Logf("%d kB", real>>10)
			runtime.KeepAlive(h)
		})
	}
}

func TestDeletedDeviceLeavesNothing(t *testing.T) {
	h := newEvents(t)
	first := ev("other")
	h.publish(first)
	waits := h.read("t", "devices/+/events/#", "") // what waits for it is one event alone
	defer waits.Close()
	h.publish(ev("gone"))
	behind := h.read("t", "devices/+/events/#", first.ID())
	defer behind.Close()
	for range 3000 { // some of them are lost
		h.publish(ev("gone"))
	}
	foreign := ev("gone")
	foreign.Tenant = "other tenant"
	h.publish(foreign)
	one := h.read("t", "devices/gone/events/#", "")
	defer one.Close()
	h.publish(ev("gone"))
	forget(t, h.bus, "gone")
	forget(t, h.bus, "nobody")
	for name, s := range map[string]*bus.Reader{
		"who read nothing": waits, "who came back before": behind, "who has one alone to read": one,
		"who comes back": h.read("t", "devices/+/events/#", first.ID()),
	} {
		if events, gap := take(t, s); len(events) > 0 || gap.Missed > 0 || gap.More {
			t.Errorf("%s gets %d events, gap %+v", name, len(events), gap)
		}
		s.Close()
	}
	marker := ev("other")
	h.publish(marker)
	s := h.read("t", "devices/+/events/#", first.ID())
	defer s.Close()
	if events, gap := take(t, s); len(events) != 1 || events[0] != marker || gap.Any() {
		t.Errorf("of the other come %d events, gap %+v", len(events), gap)
	}
	of := h.read("other tenant", "devices/+/events/#", first.ID())
	defer of.Close()
	if events, _ := take(t, of); len(events) != 1 {
		t.Errorf("of another tenant's device with that id come %d", len(events))
	}
}

func forget(t *testing.T, b *bus.Bus, id string) {
	t.Helper()
	if err := b.HandleChange(t.Context(), watchword.Change{Tenant: "t", Kind: watchword.SubjectDeleted, ID: id, Version: 1}); err != nil {
		t.Fatal(err)
	}
}
