package mqtt_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
	"github.com/watchword-iot/watchword/server/twin"
)

// fakeTwins keeps states in memory. Where a test says so, a page that was read
// waits before it is given.
type fakeTwins struct {
	twin.Store
	mu     sync.Mutex
	states map[watchword.SubjectID][]byte
	by     map[watchword.SubjectID]watchword.SubjectID // their reporters; absent: none
	hold   chan struct{}

	stored func() // called when a state is stored, before its report is answered; nil: no call
}

func (f *fakeTwins) Twin(_ context.Context, _ watchword.TenantID, d watchword.SubjectID) (twin.Twin, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return twin.Twin{Device: d, State: f.states[d], ReportedBy: f.by[d], ReportedByIncarnation: 1}, nil
}

func (f *fakeTwins) ReportState(_ context.Context, _ watchword.TenantID, b watchword.AuthorityVersions, d watchword.SubjectID, state []byte, _ time.Time) error {
	f.mu.Lock()
	if f.by == nil {
		f.by = map[watchword.SubjectID]watchword.SubjectID{}
	}
	f.states[d], f.by[d] = state, b.Subject
	stored := f.stored
	f.mu.Unlock()
	if stored != nil {
		stored()
	}
	return nil
}

func (f *fakeTwins) ReportedStates(_ context.Context, _ watchword.TenantID, after watchword.SubjectID, limit int) (out []twin.Twin, _ error) {
	f.mu.Lock()
	for _, d := range slices.Sorted(maps.Keys(f.states)) {
		if d > after && len(out) < limit {
			out = append(out, twin.Twin{Device: d, State: f.states[d], ReportedBy: f.by[d], ReportedByIncarnation: 1})
		}
	}
	offlineSession := f.hold
	f.mu.Unlock()
	if offlineSession != nil {
		<-offlineSession
	}
	return out, nil
}

// noSealing seals nothing.
type noSealing struct{}

func (noSealing) Seal(_ string, b []byte) ([]byte, error) { return b, nil }
func (noSealing) Open(_ string, b []byte) ([]byte, error) { return b, nil }

// statesOf reports the states of so many devices, without subscribers.
func (srv *testServer) statesOf(n int) {
	for i := range n {
		_ = srv.twins.ReportState(srv.t.Context(), "", watchword.AuthorityVersions{}, watchword.SubjectID(fmt.Sprintf("lamp-%03d", i)), []byte(`{"on":false}`), time.Now())
	}
}

func TestRetainedStatesOfAllDevices(t *testing.T) {
	for _, filter := range []string{"devices/+/state", "devices/#", "#", "+/+/+"} {
		inBubble(t, func(t *testing.T, srv *testServer) {
			const devices = 200 // more than one page
			srv.statesOf(devices)
			app := srv.device("app")
			app.subscribe(1, filter)
			for i := range devices {
				if m := app.receiveAndAck(); m.Topic != fmt.Sprintf("devices/lamp-%03d/state", i) || !m.Retain {
					t.Fatalf("%d: %s, retain %v", i, m.Topic, m.Retain)
				}
			}
			app.wantNothing()
		})
	}
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.statesOf(3)
		app := srv.device("app")
		app.subscribe(1, "devices/+/events/#", "other/#", "devices/lamp-002/#")
		if m := app.receiveAndAck(); m.Topic != "devices/lamp-002/state" {
			t.Errorf("got %s", m.Topic)
		}
		app.wantNothing()
		for handling, again := range map[byte]int{0: 3, 1: 0, 2: 0} { // the second subscription to one filter
			app.subscribe(1, "devices/+/state")
			for range 3 {
				app.receiveAndAck()
			}
			app.send(&packet.Subscribe{ID: 77, Filters: []packet.Filter{{Topic: "devices/+/state", QoS: 1, RetainHandling: handling}}})
			want[*packet.Suback](app)
			for range again {
				app.receiveAndAck()
			}
			app.wantNothing()
			app.send(&packet.Unsubscribe{ID: 78, Filters: []string{"devices/+/state"}})
			want[*packet.Unsuback](app)
		}
	})
}

// What was kept is never said after what came since.
func TestRetainedStateIsNotDeliveredAfterNewerOne(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		srv.statesOf(2)
		srv.twins.hold = make(chan struct{})
		lamp, app := srv.device("lamp-001"), srv.device("app")
		app.subscribe(1, "devices/+/state")
		synctest.Wait() // the page is read
		lamp.publish(1, "devices/lamp-001/state", `{"on":true}`)
		app.wantMessage("devices/lamp-001/state", `{"on":true}`)
		close(srv.twins.hold)
		app.wantMessage("devices/lamp-000/state", `{"on":false}`)
		app.wantNothing()
	})
}

// A client that takes little is given no more than it takes, and leaves nothing
// running behind.
func TestRetainedStatesWaitForReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const devices = 1000
		srv := newTestServer(t, mqtt.Options{QueueMessages: 100})
		srv.statesOf(devices)
		app := srv.device("app", func(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 10) })
		app.subscribe(1, "devices/+/state")
		var open []uint16
		for range 10 {
			open = append(open, want[*packet.Publish](app).ID)
		}
		app.wantNothing()
		for _, id := range open {
			app.send(&packet.Ack{Kind: packet.PUBACK, ID: id})
		}
		for range devices / 2 {
			app.receiveAndAck()
		}
		app.closeAbruptly() // in the middle
		again := srv.device("app", func(p *packet.Connect) { p.Properties.SetNumber(packet.ReceiveMaximum, 10) })
		again.subscribe(1, "devices/+/state")
		again.send(&packet.Disconnect{})
		srv.close() // fails where a goroutine stays
	})
}

// A state is delivered as a retained message is: while its reporter may publish it.
func TestStateIsDeliveredWhileReporterMayPublish(t *testing.T) {
	for name, c := range map[string]struct {
		reporter watchword.SubjectID
		take     func(srv *testServer, id watchword.SubjectID)
		back     func(srv *testServer, id watchword.SubjectID)
	}{
		"the device, suspended": {"lamp", func(srv *testServer, id watchword.SubjectID) { srv.state(id, watchword.Suspended) }, func(srv *testServer, id watchword.SubjectID) { srv.state(id, watchword.Active) }},
		"another, suspended":    {"boss", func(srv *testServer, id watchword.SubjectID) { srv.state(id, watchword.Suspended) }, func(srv *testServer, id watchword.SubjectID) { srv.state(id, watchword.Active) }},
		"another, denied": {"boss", func(srv *testServer, _ watchword.SubjectID) {
			srv.policy(`subscribe = ["#"]`, `publish = ["mark"]`)
		}, func(srv *testServer, _ watchword.SubjectID) { srv.policy(`subscribe = ["#"]`, `publish = ["#"]`) }},
		"another, of a later incarnation": {"boss", func(srv *testServer, id watchword.SubjectID) {
			srv.mu.Lock()
			srv.subjects[id].Incarnation++
			srv.mu.Unlock()
			srv.changed(watchword.SubjectChanged, string(id))
		}, nil},
	} {
		for _, filter := range []string{"devices/lamp/state", "devices/+/state"} {
			t.Run(name+", "+filter, func(t *testing.T) {
				inBubble(t, func(t *testing.T, srv *testServer) {
					srv.policy(`subscribe = ["#"]`, `publish = ["#"]`)
					srv.device(c.reporter).publish(1, "devices/lamp/state", `{"on":true}`)
					given := func(want bool) {
						t.Helper()
						subscriber := srv.device("ear")
						subscriber.subscribe(1, filter, "mark")
						if want {
							subscriber.wantMessage("devices/lamp/state", `{"on":true}`)
						}
						synctest.Wait()
						srv.device("marker").publish(1, "mark", "behind it")
						subscriber.wantMessage("mark", "behind it")
						subscriber.closeAbruptly()
						synctest.Wait()
					}
					given(true)
					c.take(srv, c.reporter)
					given(false)
					if c.back != nil {
						c.back(srv, c.reporter)
						given(true)
					}
				})
			})
		}
	}
}

// Of two clients that report a state of one device at once, the last state that subscribers have is the one stored, also
// where the first report is slow between its store and its publication.
func TestTheLastStatePublishedIsTheOneStored(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		reader, one, two := srv.device("reader"), srv.device("lamp-1"), srv.device("gateway")
		reader.subscribe(1, "devices/lamp-1/state")
		slow := make(chan struct{})
		var reports atomic.Int32
		srv.twins.stored = func() {
			if reports.Add(1) == 1 {
				<-slow
			}
		}
		report := func(c *testClient, state string) {
			c.send(&packet.Publish{Topic: "devices/lamp-1/state", QoS: 1, ID: c.id(), Payload: []byte(state)})
			synctest.Wait()
		}
		report(one, `{"n":1}`) // stored, and not published yet
		report(two, `{"n":2}`)
		close(slow)
		want[*packet.Ack](one)
		want[*packet.Ack](two)
		reader.wantMessage("devices/lamp-1/state", `{"n":1}`)
		reader.wantMessage("devices/lamp-1/state", `{"n":2}`)
		reader.wantNothing()
		if tw, _ := srv.twins.Twin(t.Context(), "", "lamp-1"); string(tw.State) != `{"n":2}` {
			t.Errorf("%s is stored", tw.State)
		}
	})
}
