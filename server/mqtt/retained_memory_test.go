package mqtt

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// liveHeap is how many bytes live.
func liveHeap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// allActiveDirectory is a directory in which every device is active. What policy gives is the directory's, as
// in a server, which remembers it.
type allActiveDirectory struct{ today *policy.Grant }

func (allActiveDirectory) Refresh(context.Context, watchword.TenantID, watchword.SubjectID, string, watchword.KeyID) error {
	return nil
}

func (allActiveDirectory) Policies(context.Context, watchword.TenantID) (*policy.Set, error) {
	return policy.NewSet(), nil
}

func (allActiveDirectory) TokenSubject(context.Context, watchword.TenantID, string) (watchword.SubjectID, error) {
	return "", watchword.Refuse(watchword.NotFound, "nobody")
}

func (e allActiveDirectory) Principal(_ context.Context, t watchword.TenantID, id watchword.SubjectID) (*session.Principal, error) {
	return &session.Principal{Subject: &watchword.Subject{Tenant: t, ID: id, Kind: watchword.Device, State: watchword.Active, Incarnation: 1}, Grant: e.today}, nil
}

// What is counted of retained messages is what they take of memory, within a quarter,
// whatever their topics, payloads and owners are.
func TestRetainedMessagesAreCountedAsTheyAre(t *testing.T) {
	deep := strings.Repeat("/d", 62)
	props := &packet.Properties{}
	props.SetText(packet.ContentType, "application/json")
	props.User = []packet.UserProp{{Name: "unit", Value: "celsius"}, {Name: "site", Value: strings.Repeat("s", 100)}}
	for name, shape := range map[string]struct {
		n       int
		topic   func(i int) string
		payload int
		props   *packet.Properties
		owner   func(i int) owner
	}{
		"shallow":                  {2_000, func(i int) string { return fmt.Sprint("t", i) }, 4, nil, nil},
		"under many parents":       {2_000, func(i int) string { return fmt.Sprintf("site/%d/%d/temperature", i/100, i) }, 20, nil, nil},
		"under one parent":         {2_000, func(i int) string { return fmt.Sprint("a/b/c/", i) }, 20, nil, nil},
		"deep, alone":              {2_000, func(i int) string { return fmt.Sprint(i, deep) }, 4, nil, nil},
		"deep, names of their own": {1_000, func(i int) string { return strings.Repeat(fmt.Sprint("/", i), 62) }, 4, nil, nil},
		"deep, branching late":     {2_000, func(i int) string { return fmt.Sprint("d", deep, i) }, 4, nil, nil},
		"long names":               {1_000, func(i int) string { return fmt.Sprint(strings.Repeat("n", 1000), i) }, 1, nil, nil},
		"payloads of 2 KiB":        {1_000, func(i int) string { return fmt.Sprint("p/", i) }, 2048, nil, nil},
		"payloads of 60 KiB":       {50, func(i int) string { return fmt.Sprint("p/", i) }, 60 << 10, nil, nil},
		"properties":               {2_000, func(i int) string { return fmt.Sprint("p/", i) }, 10, props, nil},
		"an owner for each": {2_000, func(i int) string { return fmt.Sprintf("devices/device-%d/events/x", i) }, 10, nil, func(i int) owner {
			return owner{watchword.SubjectID(fmt.Sprint("device-", i)), 1}
		}},
		"of one owner": {2_000, func(i int) string { return fmt.Sprintf("x/%d", i) }, 10, nil, func(int) owner { return owner{"one", 1} }},
	} {
		for _, order := range []string{"in order", "at random", "and most are gone"} {
			t.Run(name+", "+order, func(t *testing.T) {
				b := &Broker{deps: Dependencies{Guard: session.NewGuard(allActiveDirectory{policy.NewSet().GrantFor(policy.Subject{})}, session.GuardOptions{})}}
				numbers := rand.New(rand.NewPCG(1, 1)).Perm(shape.n)
				carrier := bus.New(bus.Options{RetainedBytes: 1 << 30, SubjectRetainedMessages: 1 << 20, SubjectRetainedBytes: 1 << 30})
				tn := &tenant{id: watchword.DefaultTenant, bus: carrier.Tenant(watchword.DefaultTenant)}
				var batch bus.Batch
				before := liveHeap()
				set := func(i, payload int) {
					var who owner
					if shape.owner != nil {
						who = shape.owner(i)
					}
					m := &message{topic: shape.topic(i), payload: make([]byte, payload), props: shape.props}
					st := &sessionState{tenant: tn, owner: who}
					if err := tn.bus.Publish(bus.Publication{Message: m, Retain: st.retainFor(m)}, &batch, &bus.Result{}); err != nil {
						t.Fatal(err)
					}
				}
				for i := range shape.n {
					if order == "in order" {
						set(i, shape.payload)
					} else {
						set(numbers[i], shape.payload)
					}
				}
				for _, o := range tn.bus.Retained.UncheckedOwners() { // as after they were delivered
					if err := tn.bus.Retained.CheckOwner(t.Context(), o, b.ownerAuthority(tn.id)); err != nil {
						t.Fatal(err)
					}
				}
				if order == "and most are gone" {
					for i := range shape.n * 9 / 10 {
						set(numbers[i], 0)
					}
				}
				messages, counted := carrier.Retained()
				used := liveHeap() - before
				if r := float64(used) / float64(counted); r < 0.8 || r > 1.25 {
					t.Errorf("%d messages take %d bytes, and %d are counted: %.2f times", messages, used, counted, r)
				} else {
					t.Logf("%d bytes each, %d counted", used/messages, counted/messages)
				}
				for _, i := range numbers {
					set(i, 0)
				}
				if c, n := carrier.Retained(); n != 0 || c != 0 {
					t.Errorf("%d bytes of %d are counted of nothing", n, c)
				}
				if left := liveHeap() - before; left > used/10+64<<10 {
					t.Errorf("%d bytes of %d are left when all are gone", left, used)
				}
				runtime.KeepAlive(tn)
			})
		}
	}
}
