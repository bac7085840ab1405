package mqtt_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/twin"
)

// fakeTwins keeps states in memory. Where a test says so, a page that was read
// waits before it is given.
type fakeTwins struct {
	twin.Store
	mu     sync.Mutex
	states map[watchword.SubjectID][]byte
	by     map[watchword.SubjectID]watchword.SubjectID // who reported them; nobody, if absent
	hold   chan struct{}
}

func (f *fakeTwins) Twin(_ context.Context, _ watchword.TenantID, d watchword.SubjectID) (twin.Twin, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return twin.Twin{Device: d, State: f.states[d], StateBy: f.by[d], StateByIncarnation: 1}, nil
}

func (f *fakeTwins) ReportState(_ context.Context, _ watchword.TenantID, b watchword.Basis, d watchword.SubjectID, state []byte, _ time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.by == nil {
		f.by = map[watchword.SubjectID]watchword.SubjectID{}
	}
	f.states[d], f.by[d] = state, b.Subject
	return nil
}

func (f *fakeTwins) States(_ context.Context, _ watchword.TenantID, after watchword.SubjectID, limit int) (out []twin.Twin, _ error) {
	f.mu.Lock()
	for _, d := range slices.Sorted(maps.Keys(f.states)) {
		if d > after && len(out) < limit {
			out = append(out, twin.Twin{Device: d, State: f.states[d], StateBy: f.by[d], StateByIncarnation: 1})
		}
	}
	hold := f.hold
	f.mu.Unlock()
	if hold != nil {
		<-hold
	}
	return out, nil
}

// openSafe seals nothing.
type openSafe struct{}

func (openSafe) Seal(_ string, b []byte) ([]byte, error) { return b, nil }
func (openSafe) Open(_ string, b []byte) ([]byte, error) { return b, nil }

// statesOf reports the states of so many devices, without anybody listening.
func (h *house) statesOf(n int) {
	for i := range n {
		_ = h.twins.ReportState(h.t.Context(), "", watchword.Basis{}, watchword.SubjectID(fmt.Sprintf("lamp-%03d", i)), []byte(`{"on":false}`), time.Now())
	}
}

func TestKeptStatesOfAllDevices(t *testing.T) {
	for _, filter := range []string{"devices/+/state", "devices/#", "#", "+/+/+"} {
		inBubble(t, func(t *testing.T, h *house) {
			const devices = 200 // more than one page
			h.statesOf(devices)
			app := h.device("app")
			app.subscribe(1, filter)
			for i := range devices {
				if m := app.message(); m.Topic != fmt.Sprintf("devices/lamp-%03d/state", i) || !m.Retain {
					t.Fatalf("%d: %s, retain %v", i, m.Topic, m.Retain)
				}
			}
			app.silent()
		})
	}
	inBubble(t, func(t *testing.T, h *house) {
		h.statesOf(3)
		app := h.device("app")
		app.subscribe(1, "devices/+/events/#", "other/#", "devices/lamp-002/#")
		if m := app.message(); m.Topic != "devices/lamp-002/state" {
			t.Errorf("got %s", m.Topic)
		}
		app.silent()
		for handling, again := range map[byte]int{0: 3, 1: 0, 2: 0} { // the second subscription to one filter
			app.subscribe(1, "devices/+/state")
			for range 3 {
				app.message()
			}
			app.send(&packet.Subscribe{ID: 77, Filters: []packet.Filter{{Topic: "devices/+/state", QoS: 1, RetainHandling: handling}}})
			want[*packet.Suback](app)
			for range again {
				app.message()
			}
			app.silent()
			app.send(&packet.Unsubscribe{ID: 78, Filters: []string{"devices/+/state"}})
			want[*packet.Unsuback](app)
		}
	})
}

// What was kept is never said after what came since.
func TestAKeptStateIsNotSaidAfterANewerOne(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.statesOf(2)
		h.twins.hold = make(chan struct{})
		lamp, app := h.device("lamp-001"), h.device("app")
		app.subscribe(1, "devices/+/state")
		synctest.Wait() // the page is read
		lamp.publish(1, "devices/lamp-001/state", `{"on":true}`)
		app.hears("devices/lamp-001/state", `{"on":true}`)
		close(h.twins.hold)
		app.hears("devices/lamp-000/state", `{"on":false}`)
		app.silent()
	})
}

// A client that takes little is given no more than it takes, and leaves nothing
// running behind.
func TestKeptStatesWaitForTheirReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const devices = 1000
		h := newHouse(t, mqtt.Options{QueueMessages: 100})
		h.statesOf(devices)
		app := h.device("app", func(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 10) })
		app.subscribe(1, "devices/+/state")
		var open []uint16
		for range 10 {
			open = append(open, want[*packet.Publish](app).ID)
		}
		app.silent()
		for _, id := range open {
			app.send(&packet.Ack{Kind: packet.PUBACK, ID: id})
		}
		for range devices / 2 {
			app.message()
		}
		app.vanish() // in the middle
		again := h.device("app", func(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 10) })
		again.subscribe(1, "devices/+/state")
		again.send(&packet.Disconnect{})
		h.close() // fails where a goroutine stays
	})
}

// A state is given as a retained message is: while whoever reported it may publish it.
func TestAStateIsGivenWhileItsReporterMayPublishIt(t *testing.T) {
	for name, c := range map[string]struct {
		reporter watchword.SubjectID
		take     func(h *house, id watchword.SubjectID)
		back     func(h *house, id watchword.SubjectID)
	}{
		"the device, suspended": {"lamp", func(h *house, id watchword.SubjectID) { h.state(id, watchword.Suspended) }, func(h *house, id watchword.SubjectID) { h.state(id, watchword.Active) }},
		"another, suspended":    {"boss", func(h *house, id watchword.SubjectID) { h.state(id, watchword.Suspended) }, func(h *house, id watchword.SubjectID) { h.state(id, watchword.Active) }},
		"another, denied": {"boss", func(h *house, _ watchword.SubjectID) {
			h.policy(`subscribe = ["#"]`, `publish = ["mark"]`)
		}, func(h *house, _ watchword.SubjectID) { h.policy(`subscribe = ["#"]`, `publish = ["#"]`) }},
		"another, of a later incarnation": {"boss", func(h *house, id watchword.SubjectID) {
			h.mu.Lock()
			h.roll[id].Incarnation++
			h.mu.Unlock()
			h.guard.SubjectChanged(context.Background(), watchword.DefaultTenant, id)
		}, nil},
	} {
		for _, filter := range []string{"devices/lamp/state", "devices/+/state"} {
			t.Run(name+", "+filter, func(t *testing.T) {
				inBubble(t, func(t *testing.T, h *house) {
					h.policy(`subscribe = ["#"]`, `publish = ["#"]`)
					h.device(c.reporter).publish(1, "devices/lamp/state", `{"on":true}`)
					given := func(want bool) {
						t.Helper()
						ear := h.device("ear")
						ear.subscribe(1, filter, "mark")
						if want {
							ear.hears("devices/lamp/state", `{"on":true}`)
						}
						synctest.Wait()
						h.device("marker").publish(1, "mark", "behind it")
						ear.hears("mark", "behind it")
						ear.vanish()
						synctest.Wait()
					}
					given(true)
					c.take(h, c.reporter)
					given(false)
					if c.back != nil {
						c.back(h, c.reporter)
						given(true)
					}
				})
			})
		}
	}
}
