package bus_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/policy"
)

// recorder is a subscriber that notes what it is offered.
type recorder struct {
	mu    sync.Mutex
	heard []string
	subs  int // how many subscriptions it was offered messages for
}

func (r *recorder) Deliver(m bus.Message, subs []*bus.Subscription, _ *bus.Batch, res *bus.Result) {
	runtime.Gosched() // so that publishers overtake each other, if they can
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard = append(r.heard, string(m.(*bus.Document).Payload))
	r.subs += len(subs)
	res.Receivers++
}

func (r *recorder) Account() quota.Key { return quota.Key{Tenant: "t", Subject: "recorder"} }

func subscribe(t *testing.T, tenant *bus.Tenant, r *recorder, number int64, filter string) *bus.Subscription {
	t.Helper()
	s := &bus.Subscription{Filter: filter, Subscriber: r, Number: number}
	if err := tenant.Subscribe(context.Background(), s, anything{}, filter, 100); err != nil {
		t.Fatal(err)
	}
	return s
}

// With any number of publishers to a topic, of events and other messages, all subscribers and readers have the same order.
func TestAllSubscribersHaveTheSameOrder(t *testing.T) {
	b := bus.New(bus.Options{})
	tenant := b.Tenant("t")
	all := make([]*recorder, 4)
	for i := range all {
		all[i] = &recorder{}
		subscribe(t, tenant, all[i], int64(i), []string{"devices/lamp-7/events/lux", "devices/+/events/#"}[i%2])
	}
	reader, err := tenant.Read(context.Background(), anything{}, quota.Key{Tenant: "t", Subject: "reader"}, "devices/lamp-7/events/#", "")
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	const publishers, each = 4, 200
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for n := range each {
				e := &bus.Event{Device: "lamp-7", Stream: "lux", At: time.Unix(1_800_000_000, 0), Data: fmt.Appendf(nil, "%d.%d", p, n)}
				if err := tenant.PublishDocument(&bus.Document{Name: e.Topic(), Payload: e.Data}, e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	testwait.For(t, "the events", reader.Ready())
	events, gap := take(t, reader)
	var read []string
	for _, e := range events {
		read = append(read, string(e.Data))
	}
	if gap.Any() || len(read) != publishers*each {
		t.Fatalf("the reader has %d events, gap %+v", len(read), gap)
	}
	for i, r := range all {
		if !slices.Equal(r.heard, read) {
			t.Errorf("subscriber %d has %d messages in another order than the reader's %d events", i, len(r.heard), len(read))
		}
	}
	other := &recorder{}
	another := &recorder{}
	subscribe(t, tenant, other, 10, "alarm")
	subscribe(t, tenant, another, 11, "#")
	for p := range publishers {
		wg.Go(func() {
			for n := range each {
				if err := tenant.PublishDocument(&bus.Document{Name: "alarm", Payload: fmt.Appendf(nil, "%d.%d", p, n)}, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if len(other.heard) != publishers*each || !slices.Equal(other.heard, another.heard) {
		t.Errorf("two subscribers of a topic that is no event's have different orders")
	}
}

// A batch may be used for several topics, and for several buses, in turn: publications of a topic have one order, whatever
// their batches were used for before.
func TestOneBatchKeepsTheOrderOfSeveralTopics(t *testing.T) {
	tenant := bus.New(bus.Options{}).Tenant("t")
	var all [2]recorder
	for i := range all {
		subscribe(t, tenant, &all[i], int64(i+1), "a")
	}
	for name, before := range map[string]func(publisher int) (*bus.Tenant, string){
		"another topic": func(n int) (*bus.Tenant, string) { return tenant, fmt.Sprint("before/", n) },
		"another bus":   func(int) (*bus.Tenant, string) { return bus.New(bus.Options{}).Tenant("t"), "a" },
	} {
		const publishers, each = 4, 200
		var wg sync.WaitGroup
		for n := range publishers {
			wg.Go(func() {
				var batch bus.Batch
				other, topic := before(n)
				for i := range each {
					if err := other.Publish(bus.Publication{Message: &bus.Document{Name: topic}}, &batch, &bus.Result{}); err != nil {
						t.Error(err)
					}
					d := &bus.Document{Name: "a", Payload: fmt.Appendf(nil, "%d.%d", n, i)}
					if err := tenant.Publish(bus.Publication{Message: d}, &batch, &bus.Result{}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if n := len(all[0].heard); n != publishers*each || !slices.Equal(all[0].heard, all[1].heard) {
			t.Errorf("after %s: two subscribers have %d and %d messages, or different orders", name, n, len(all[1].heard))
		}
		all[0].heard, all[1].heard = nil, nil
	}
}

// One subscription is offered each message once, and counted as one offer.
func TestOneSubscriptionIsOfferedEachMessageOnce(t *testing.T) {
	tenant := bus.New(bus.Options{}).Tenant("t")
	var batch bus.Batch
	one := &recorder{}
	subscribe(t, tenant, one, 1, "a")
	for n := range 2 {
		if err := tenant.Publish(bus.Publication{Message: &bus.Document{Name: "a"}}, &batch, &bus.Result{}); err != nil {
			t.Fatal(err)
		}
		if len(one.heard) != n+1 || one.subs != n+1 || batch.Offers != n+1 {
			t.Errorf("publication %d: %d messages for %d subscriptions, %d offers", n+1, len(one.heard), one.subs, batch.Offers)
		}
	}
}

// A reader has every event once and in order while it reads, whatever else is published at the same time.
func TestAReaderHasEveryEventOnceWhileOthersPublish(t *testing.T) {
	b := bus.New(bus.Options{})
	tenant := b.Tenant("t")
	reader, err := tenant.Read(context.Background(), anything{}, quota.Key{}, "devices/lamp-0/events/#", "")
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	const publishers, each = 3, 300
	for p := range publishers { // lamp-0 has two of them, lamp-1 one
		go func() {
			for n := range each {
				e := &bus.Event{Device: watchword.SubjectID(fmt.Sprint("lamp-", p/2)), Stream: fmt.Sprint("s", p), At: time.Unix(1_800_000_000, 0), Data: fmt.Appendf(nil, "%d", n)}
				_ = tenant.PublishDocument(&bus.Document{Name: e.Topic(), Payload: e.Data}, e) // nothing is stored
			}
		}()
	}
	next := map[string]int{}
	last := ""
	for got := 0; got < 2*each; {
		testwait.For(t, "an event", reader.Ready())
		for more := true; more; {
			var events []*bus.Event
			var gap bus.Gap
			events, gap, more = reader.Next()
			if gap.Any() {
				t.Fatalf("gap %+v", gap)
			}
			for _, e := range events {
				if want := fmt.Sprint(next[e.Stream]); string(e.Data) != want || e.ID() <= last {
					t.Fatalf("%s has %s, want %s; id %s after %s", e.Stream, e.Data, want, e.ID(), last)
				}
				next[e.Stream]++
				last = e.ID()
				got++
			}
		}
	}
}

// A subscriber under several filters is offered a message once, for all of them.
func TestASubscriberUnderSeveralFiltersIsOfferedAMessageOnce(t *testing.T) {
	tenant := bus.New(bus.Options{}).Tenant("t")
	many, one, single := &recorder{}, &recorder{}, &recorder{}
	for _, f := range []string{"a/b", "a/+", "#", "+/b"} {
		subscribe(t, tenant, many, 1, f)
	}
	subscribe(t, tenant, one, 2, "a/#")
	subscribe(t, tenant, single, 0, "+/+")
	var r bus.Result
	var batch bus.Batch
	if err := tenant.Publish(bus.Publication{Message: &bus.Document{Name: "a/b", Payload: []byte("x")}}, &batch, &r); err != nil {
		t.Fatal(err)
	}
	if r.Receivers != 3 || len(many.heard) != 1 || many.subs != 4 || len(one.heard) != 1 || len(single.heard) != 1 || batch.Offers != 6 {
		t.Errorf("%d receivers, %d offers: %d messages for %d subscriptions, %d, %d", r.Receivers, batch.Offers, len(many.heard), many.subs, len(one.heard), len(single.heard))
	}
}

// nothing is an authority that may read nothing.
type nothing struct{}

func (nothing) AuthorityVersion() uint64 { return 1 }

func (nothing) Subscribe(string) policy.Decision { return policy.Decision{} }

// A subscription is decided on, and counted with the levels of the tree that it needs, whatever the transport is.
func TestSubscriptionIsAuthorizedAndCharged(t *testing.T) {
	b := bus.New(bus.Options{SubjectSubscriptionBytes: 10_000})
	tenant, k := b.Tenant("t"), quota.Key{Tenant: "t", Subject: "app"}
	if _, err := tenant.Read(context.Background(), nothing{}, k, "#", ""); watchword.CodeOf(err) != watchword.Denied {
		t.Errorf("who may not: %v", err)
	}
	var all []*bus.Reader
	for {
		r, err := tenant.Read(context.Background(), anything{}, k, fmt.Sprintf("devices/lamp-%d/events/a/b/c/d/e/#", len(all)), "")
		if err != nil {
			if watchword.CodeOf(err) != watchword.Busy || len(all) < 2 || len(all) > 10 {
				t.Errorf("after %d readers: %v", len(all), err)
			}
			break
		}
		all = append(all, r)
	}
	if n := b.SubscriptionBytes(); n < 8_000 || n > 10_000 {
		t.Errorf("%d bytes are counted", n)
	}
	for _, r := range all {
		r.Close()
		r.Close()
	}
	if n := b.SubscriptionBytes(); n != 0 {
		t.Errorf("%d bytes are counted of nothing", n)
	}
}

// fails is a subscriber whose store cannot write, or that has no room.
type fails struct {
	recorder
	err    error
	stored bool
}

func (f *fails) Deliver(_ bus.Message, _ []*bus.Subscription, _ *bus.Batch, r *bus.Result) {
	if f.stored {
		r.Stored = append(r.Stored, f)
		return
	}
	r.Err = f.err
}

func (f *fails) Commit() bus.Commit { return f }

func (f *fails) Done() <-chan struct{} { c := make(chan struct{}); close(c); return c }

func (f *fails) Err() error { return f.err }

// A publication is acknowledged when it is on disk for subscribers that need it, and not before.
func TestPublishDocumentWaitsForStorage(t *testing.T) {
	broken := watchword.Refuse(watchword.Unavailable, "the disk is full")
	for name, x := range map[string]struct {
		sub  *fails
		want error
	}{
		"written":                      {&fails{stored: true}, nil},
		"not written":                  {&fails{stored: true, err: broken}, broken},
		"cannot be stored":             {&fails{err: broken}, broken},
		"a subscriber without room":    {&fails{err: bus.FullError{Refusal: watchword.Refuse(watchword.Busy, "full")}}, nil},
		"nothing that is to be stored": {&fails{}, nil},
	} {
		tenant := bus.New(bus.Options{}).Tenant("t")
		s := &bus.Subscription{Filter: "a", Subscriber: x.sub}
		if err := tenant.Subscribe(context.Background(), s, anything{}, "a", 0); err != nil {
			t.Fatal(err)
		}
		if err := tenant.PublishDocument(&bus.Document{Name: "a"}, nil); err != x.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func retained(d *bus.Document) *bus.Retained {
	return bus.NewRetained([]byte(d.Name+"="+string(d.Payload)), 0, len(d.Name), 0)
}

// The retained message of a topic is the last one that its subscribers got, also with concurrent publishers.
func TestRetainedMessageIsTheLastDelivered(t *testing.T) {
	tenant := bus.New(bus.Options{}).Tenant("t")
	r := &recorder{}
	subscribe(t, tenant, r, 1, "#")
	for round := range 100 {
		var wg sync.WaitGroup
		for p := range 4 {
			wg.Go(func() {
				d := &bus.Document{Name: "a", Payload: fmt.Appendf(nil, "%d.%d", round, p)}
				if err := tenant.Publish(bus.Publication{Message: d, Retain: &bus.Retain{Message: retained(d)}}, &bus.Batch{}, &bus.Result{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if encoded, _, _ := tenant.Retained.StoredForm("a"); string(encoded) != "a="+r.heard[len(r.heard)-1] {
			t.Fatalf("retained is %s, received %s", encoded, r.heard[len(r.heard)-4:])
		}
	}
}

// A message that is refused, by the store of a subscriber or for want of room, is not retained; one that any subscriber has
// is.
func TestRefusedMessageIsNotRetained(t *testing.T) {
	broken := watchword.Refuse(watchword.Unavailable, "the disk is full")
	full := bus.FullError{Refusal: watchword.Refuse(watchword.Busy, "full")}
	for name, x := range map[string]struct {
		err, want error
		kept      string
	}{
		"a store that cannot write":   {broken, broken, "a=before"},
		"a subscriber without room":   {full, nil, "a=new"},
		"all subscribers have a room": {nil, nil, "a=new"},
	} {
		tenant := bus.New(bus.Options{}).Tenant("t")
		before := &bus.Document{Name: "a", Payload: []byte("before")}
		if err := tenant.Publish(bus.Publication{Message: before, Retain: &bus.Retain{Message: retained(before)}}, &bus.Batch{}, &bus.Result{}); err != nil {
			t.Fatal(err)
		}
		s := &bus.Subscription{Filter: "a", Subscriber: &fails{err: x.err}}
		if err := tenant.Subscribe(context.Background(), s, anything{}, "a", 0); err != nil {
			t.Fatal(err)
		}
		d := &bus.Document{Name: "a", Payload: []byte("new")}
		var r bus.Result
		if err := tenant.Publish(bus.Publication{Message: d, Retain: &bus.Retain{Message: retained(d)}}, &bus.Batch{}, &r); err != x.want || !r.Retained {
			t.Errorf("%s: %v, retained: %v", name, err, r.Retained)
		}
		if encoded, _, _ := tenant.Retained.StoredForm("a"); string(encoded) != x.kept {
			t.Errorf("%s: retained is %s, want %s", name, encoded, x.kept)
		}
	}
	tenant := bus.New(bus.Options{RetainedMessages: 1}).Tenant("t")
	r := &recorder{}
	subscribe(t, tenant, r, 1, "#")
	for i, topic := range []string{"a", "b"} {
		d := &bus.Document{Name: topic}
		var res bus.Result
		err := tenant.Publish(bus.Publication{Message: d, Retain: &bus.Retain{Message: retained(d)}}, &bus.Batch{}, &res)
		if refused := watchword.CodeOf(err) == watchword.Busy; refused != (i == 1) || res.Retained == refused || len(r.heard) != 1 {
			t.Errorf("%s: %v, retained: %v, %d received", topic, err, res.Retained, len(r.heard))
		}
	}
}
