package bus_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/policy"
)

// changing is an authority that changes without a notification.
type changing struct {
	version atomic.Uint64
	denied  atomic.Bool
	asked   atomic.Int64
}

func (c *changing) AuthorityVersion() uint64 { return c.version.Load() }

func (c *changing) Subscribe(string) policy.Decision {
	c.asked.Add(1)
	return policy.Decision{Allowed: !c.denied.Load()}
}

func (c *changing) set(denied bool) {
	c.denied.Store(denied)
	c.version.Add(1)
}

// groupMember is a member of a shared group that takes what it is offered.
type groupMember struct {
	recorder
	load    atomic.Int32
	full    bool
	dropped int
}

func (m *groupMember) Load() int32             { return m.load.Load() }
func (m *groupMember) Stores(bus.Message) bool { return true }
func (m *groupMember) CountDropped()           { m.dropped++ }
func (m *groupMember) HasCapacity() bool       { return false }

func (m *groupMember) Offer(x bus.Message, _ *bus.Group, b *bus.Batch, r *bus.Result) {
	if m.full {
		r.Err = bus.FullError{Refusal: fmt.Errorf("full")}
		return
	}
	m.Deliver(x, nil, b, r)
}

func (m *groupMember) MoveStored(*bus.Group, []bus.Member) (taken, refused int) { return 0, 0 }

// Whatever kind a subscriber is, nothing is delivered to it that its authority does not allow at that moment, also where the
// transport does nothing when authority changes; and its authority is asked once for each change.
func TestNothingIsDeliveredWithoutAuthority(t *testing.T) {
	const topic = "devices/lamp-7/events/lux"
	document := func() (*bus.Document, *bus.Event) {
		e := &bus.Event{Device: "lamp-7", Stream: "lux", At: time.Unix(1_800_000_000, 0), Data: []byte("1")}
		return &bus.Document{Name: topic, Payload: e.Data}, e
	}
	publish := func(t *testing.T, tenant *bus.Tenant) {
		t.Helper()
		d, e := document()
		if err := tenant.PublishDocument(d, e); err != nil {
			t.Fatal(err)
		}
	}
	// Each kind subscribes under an authority. deliver has one more message delivered, and returns how many the subscriber
	// got of it.
	kinds := map[string]func(t *testing.T, tenant *bus.Tenant, a bus.Authority) (deliver func() int){
		"a subscriber": func(t *testing.T, tenant *bus.Tenant, a bus.Authority) func() int {
			r := &recorder{}
			if err := tenant.Subscribe(t.Context(), &bus.Subscription{Filter: topic, Subscriber: r}, a, topic, 0); err != nil {
				t.Fatal(err)
			}
			return func() int {
				before := len(r.heard)
				publish(t, tenant)
				return len(r.heard) - before
			}
		},
		"one of two subscriptions of a subscriber": func(t *testing.T, tenant *bus.Tenant, a bus.Authority) func() int {
			r := &recorder{}
			subscribe(t, tenant, r, 7, "devices/#")
			if err := tenant.AddSubscription(&bus.Subscription{Filter: topic, Subscriber: r, Number: 7}, a, topic, 0, false); err != nil {
				t.Fatal(err)
			}
			return func() int {
				before := r.subs
				publish(t, tenant)
				return r.subs - before - 1 // the other subscription is allowed
			}
		},
		"a member of a shared group": func(t *testing.T, tenant *bus.Tenant, a bus.Authority) func() int {
			m := &groupMember{}
			if _, err := tenant.JoinGroup("$share/g/"+topic, &bus.Subscription{Filter: topic, Subscriber: m, Number: 1}, m, a, 0, true); err != nil {
				t.Fatal(err)
			}
			return func() int {
				before := len(m.heard)
				publish(t, tenant)
				return len(m.heard) - before
			}
		},
		"a reader of events": func(t *testing.T, tenant *bus.Tenant, a bus.Authority) func() int {
			r, err := tenant.Read(t.Context(), a, quota.Key{Tenant: "t", Subject: "reader"}, topic, "")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(r.Close)
			return func() int {
				publish(t, tenant)
				events, _, _ := r.Next()
				return len(events)
			}
		},
		"a reader that is behind": func(t *testing.T, tenant *bus.Tenant, a bus.Authority) func() int {
			r, err := tenant.Read(t.Context(), a, quota.Key{Tenant: "t", Subject: "reader"}, topic, "evt_of_nobody")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(r.Close)
			return func() int {
				publish(t, tenant)
				publish(t, tenant)
				events, _, _ := r.Next()
				return len(events) / 2
			}
		},
		"a new subscriber of a retained message": func(t *testing.T, tenant *bus.Tenant, a bus.Authority) func() int {
			s := &bus.Subscription{Filter: "a", Subscriber: &recorder{}}
			if err := tenant.Subscribe(t.Context(), s, a, "a", 0); err != nil {
				t.Fatal(err)
			}
			x := bus.NewRetained([]byte("a"), 0, 1, 0)
			tenant.Retained.Load(x, bus.Owner{})
			return func() int {
				n := 0
				if err := tenant.Retained.DeliverIfAllowed(t.Context(), x, s, tenant.Retained.LastNumber(), func(context.Context, bus.Owner) (bus.PublishAuthority, error) {
					return mayPublish{}, nil
				}, func() { n++ }); err != nil {
					t.Fatal(err)
				}
				return n
			}
		},
	}
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			a := &changing{}
			a.set(false)
			deliver := kind(t, bus.New(bus.Options{}).Tenant("t"), a)
			for round := range 3 {
				for _, denied := range []bool{false, true} {
					a.set(denied)
					a.asked.Store(0)
					for range 3 {
						want := 1
						if denied {
							want = 0
						}
						if n := deliver(); n != want {
							t.Fatalf("round %d, denied %v: %d messages, want %d", round, denied, n, want)
						}
					}
					if n := a.asked.Load(); n != 1 {
						t.Errorf("the authority is asked %d times for one change", n)
					}
				}
			}
		})
	}
}

// mayPublish may publish everything.
type mayPublish struct{}

func (mayPublish) MayPublish(string) bool { return true }

// The member of a group that has a message is the one with the lowest load that may read it; an offline one only where no
// connected member has room.
func TestAGroupChoosesTheMember(t *testing.T) {
	tenant := bus.New(bus.Options{}).Tenant("t")
	members, authorities := make([]*groupMember, 3), make([]*changing, 3)
	subs := make([]*bus.Subscription, 3)
	var g *bus.Group
	for i := range members {
		members[i], authorities[i] = &groupMember{}, &changing{}
		authorities[i].set(false)
		subs[i] = &bus.Subscription{Filter: "a", Subscriber: members[i], Number: int64(i + 1)}
		var err error
		if g, err = tenant.JoinGroup("$share/g/a", subs[i], members[i], authorities[i], 10, true); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   string
		loads  [3]int32
		denied [3]bool
		full   [3]bool
		except int64
		online bool
		want   int // index of the member, -1 for none
		drops  int // index of the member that counts a loss, -1 for none
	}{
		{name: "the lowest load", loads: [3]int32{2, 1, 3}, want: 1, drops: -1},
		{name: "not who may not read", loads: [3]int32{2, 1, 3}, denied: [3]bool{false, true, false}, want: 0, drops: -1},
		{name: "no member may read", denied: [3]bool{true, true, true}, want: -1, drops: -1},
		{name: "not who has it", loads: [3]int32{2, 1, 3}, except: 2, want: 0, drops: -1},
		{name: "a connected one before an offline one", loads: [3]int32{bus.OfflineLoad, 900, bus.OfflineLoad}, want: 1, drops: -1},
		{name: "an offline one where no other has room", loads: [3]int32{bus.OfflineLoad, 900, 901}, full: [3]bool{false, true, true}, want: 0, drops: -1},
		{name: "connected ones alone", loads: [3]int32{bus.OfflineLoad, bus.OfflineLoad, bus.OfflineLoad}, online: true, want: -1, drops: -1},
		{name: "no member has room", loads: [3]int32{2, 1, 3}, full: [3]bool{true, true, true}, want: -1, drops: 1},
		{name: "no connected one has room", loads: [3]int32{2, 1, 3}, full: [3]bool{true, true, true}, online: true, want: -1, drops: -1},
	} {
		for i, m := range members {
			m.load.Store(c.loads[i])
			m.full, m.heard, m.dropped = c.full[i], nil, 0
			authorities[i].set(c.denied[i])
		}
		var b bus.Batch
		var r bus.Result
		g.Offer(&bus.Document{Name: "a"}, c.except, c.online, &b, &r)
		for i, m := range members {
			want, drops := 0, 0
			if i == c.want {
				want = 1
			}
			if i == c.drops {
				drops = 1
			}
			if len(m.heard) != want || m.dropped != drops {
				t.Errorf("%s: member %d has %d messages, want %d, and lost %d, want %d", c.name, i, len(m.heard), want, m.dropped, drops)
			}
		}
		if got := r.Receivers == 1; got != (c.want >= 0) || bus.IsFull(r.Err) != (c.full == [3]bool{true, true, true}) {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
	for _, m := range members {
		m.full = false
	}
	for _, s := range subs {
		if n := tenant.Subscribed().Total(); n == 0 {
			t.Error("a group with members is charged to no account")
		}
		tenant.LeaveGroup(g, s, 10)
		tenant.LeaveGroup(g, s, 10) // a second time changes nothing
		var b bus.Batch
		if err := tenant.Publish(bus.Publication{Message: &bus.Document{Name: "a"}}, &b, &bus.Result{}); err != nil {
			t.Error(err)
		}
	}
	if n := tenant.Subscribed().Total(); n != 0 {
		t.Errorf("%d bytes are charged for a group that is gone", n)
	}
	if other := tenant.Group("$share/g/a"); other == g || other.Name() != "$share/g/a" || other.Filter() != "a" {
		t.Errorf("the group that is gone is found: %+v", other)
	}
	if g := tenant.Group("a"); g != nil {
		t.Errorf("a filter that is not shared has the group %+v", g)
	}
}
