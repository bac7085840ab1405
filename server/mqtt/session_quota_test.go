package mqtt

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/policy"
)

// subscriptionFixture is a tenant without connections.
type subscriptionFixture struct {
	tenant  *tenant
	clients map[string]*sessionState
}

var unlimited = bus.Options{SubjectSubscriptionBytes: 1 << 40, SubscriptionBytes: 1 << 40}

func newSubscribers(o bus.Options) *subscriptionFixture {
	s := &subscriptionFixture{clients: map[string]*sessionState{}}
	s.tenant = &tenant{id: watchword.DefaultTenant, bus: bus.New(o).Tenant(watchword.DefaultTenant), clients: map[string]*sessionState{}}
	return s
}

// client returns that of an id; the subject's name is before the slash.
func (s *subscriptionFixture) client(id string) *sessionState {
	st := s.clients[id]
	if st == nil {
		subject, _, _ := strings.Cut(id, "/")
		st = &sessionState{broker: &Broker{}, tenant: s.tenant, id: id, owner: owner{watchword.SubjectID(subject), 1}}
		s.clients[id] = st
	}
	return st
}

func (s *subscriptionFixture) subscribe(id, name string) error {
	name = strings.Clone(name) // as from a packet
	_, filter, shared, err := policy.Share(name)
	if err != nil {
		return err
	}
	st := s.client(id)
	return st.addSubscription(newSubscription(st, name, filter), shared, true)
}

func (s *subscriptionFixture) unsubscribe(id, name string) {
	st := s.client(id)
	st.removeSubscription(st.subs[name])
}

// The charge for subscriptions is their memory, within a quarter, with the levels of the tree and the groups, whatever
// their filters are and whichever subscribers share them.
func TestSubscriptionsAreCountedAsTheyAre(t *testing.T) {
	deep := strings.Repeat("/d", 62)
	own := func(i int) string { return fmt.Sprint("lamp-", i/256) }
	for name, shape := range map[string]struct {
		n      int
		filter func(i int) string
		client func(i int) string
	}{
		"three for each device": {9_000, func(i int) string {
			return fmt.Sprintf("devices/lamp-%d/%s", i/3, []string{"commands", "config", "events/#"}[i%3])
		}, func(i int) string { return fmt.Sprint("lamp-", i/3) }},
		"shallow":                       {5_000, func(i int) string { return fmt.Sprint("t", i) }, own},
		"deep, names of their own":      {500, func(i int) string { return fmt.Sprint(i, strings.Repeat(fmt.Sprint("/", i), 62)) }, own},
		"deep, alone":                   {500, func(i int) string { return fmt.Sprint(i, deep) }, own},
		"deep, branching late":          {5_000, func(i int) string { return fmt.Sprint("d", deep, i) }, own},
		"deep wildcards":                {2_000, func(i int) string { return fmt.Sprint(i, strings.Repeat("/+", 61), "/#") }, own},
		"long names":                    {2_000, func(i int) string { return fmt.Sprint(strings.Repeat("n", 1000), i) }, own},
		"one filter of many":            {2_000, func(int) string { return "firmware/new" }, func(i int) string { return fmt.Sprint("lamp-", i) }},
		"groups of one":                 {2_000, func(i int) string { return fmt.Sprintf("$share/g%d/a/b", i) }, own},
		"groups of one with long names": {2_000, func(i int) string { return fmt.Sprintf("$share/%s%d/a%d", strings.Repeat("g", 890), i, i) }, own},
		"groups of eight":               {5_000, func(i int) string { return fmt.Sprintf("$share/g/a%d", i/8) }, func(i int) string { return fmt.Sprint("lamp-", i%8) }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSubscribers(unlimited)
			for i := range shape.n { // the subscribers exist already
				if st := s.client(shape.client(i)); st.subs == nil { // with the first of its map, which is the session's
					st.subs = map[string]*subscription{"": nil}
					delete(st.subs, "")
				}
			}
			before := liveHeap()
			for i := range shape.n {
				if err := s.subscribe(shape.client(i), shape.filter(i)); err != nil {
					t.Fatal(err)
				}
			}
			used, counted := liveHeap()-before, s.tenant.bus.Subscribed().Total()
			if r := float64(used) / float64(counted); r < 0.8 || r > 1.25 {
				t.Errorf("%d bytes each, %d counted: %.2f times", used/int64(shape.n), counted/int64(shape.n), r)
			} else {
				t.Logf("%d bytes each, %d counted", used/int64(shape.n), counted/int64(shape.n))
			}
			for i := range shape.n {
				s.unsubscribe(shape.client(i), shape.filter(i))
			}
			if n := s.tenant.bus.Subscribed().Total(); n != 0 {
				t.Errorf("%d bytes are counted of nothing", n)
			}
			if left := liveHeap() - before; left > used/10+(512<<10) { // the clients' maps stay
				t.Errorf("%d bytes of %d are left when all are gone", left, used)
			}
			runtime.KeepAlive(s)
		})
	}
}

// needs is what the levels of a filter take where nothing else is.
func needs(filter string) int64 {
	s := newSubscription(newSubscribers(unlimited).client("lamp-1"), filter, filter)
	_ = s.session.tenant.bus.AddSubscription(&s.Subscription, s.session, filter, 0, false) // never refused: it is not bounded
	return s.Levels()
}

// Whatever the order of subscribing and unsubscribing, each part is charged once to an account that needs it: the sum is
// that of the parts, and no account is charged more than it would be alone.
func TestEachLevelIsChargedOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 1))
	s := newSubscribers(unlimited)
	words := []string{"a", "b", "c", "+"}
	type sub struct{ id, name string }
	have := map[sub]bool{}
	alone := func(x sub) int64 {
		one := newSubscribers(unlimited)
		if err := one.subscribe(x.id, x.name); err != nil {
			t.Fatal(err)
		}
		return one.tenant.bus.Subscribed().Total()
	}
	for step := range 20_000 {
		var ls []string
		for range 1 + r.IntN(5) {
			ls = append(ls, words[r.IntN(len(words))])
		}
		if r.IntN(4) == 0 {
			ls = append(ls, "#")
		}
		x := sub{fmt.Sprint("lamp-", r.IntN(4)), strings.Join(ls, "/")}
		if r.IntN(3) == 0 {
			x.name = "$share/g/" + x.name
		}
		if have[x] {
			s.unsubscribe(x.id, x.name)
			delete(have, x)
		} else if len(have) < 60 {
			if err := s.subscribe(x.id, x.name); err != nil {
				t.Fatal(err)
			}
			have[x] = true
		}
		if step%200 != 0 {
			continue
		}
		again := newSubscribers(unlimited) // the same, in another order
		limit := map[string]int64{}
		for _, x := range slices.Collect(maps.Keys(have)) {
			if err := again.subscribe(x.id, x.name); err != nil {
				t.Fatal(err)
			}
			limit[x.id] += alone(x)
		}
		if a, b := s.tenant.bus.Subscribed().Total(), again.tenant.bus.Subscribed().Total(); a != b {
			t.Fatalf("step %d: %d are charged, and %d where the same are new", step, a, b)
		}
		groups := map[*bus.Group]bool{}
		for _, st := range s.clients {
			for _, g := range st.groups {
				groups[g] = true
			}
		}
		for _, st := range s.clients { // what each is charged for is its own, or a level that it needs
			var sum int64
			for _, x := range st.subs {
				if sum += x.bytes() + x.Levels(); x.Levels() < 0 || x.Levels() > needs(x.Filter) {
					t.Fatalf("step %d: %s is charged %d for levels", step, x.clientFilter, x.Levels())
				}
			}
			for g := range groups {
				if g.Account() != st.account() {
					continue
				}
				if st.subs[g.Name()] == nil {
					t.Fatalf("step %d: %s is charged for the group %s, and is no member", step, st.id, g.Name())
				}
				if sum += bus.GroupBytes + g.Levels(); g.Levels() < 0 || g.Levels() > needs(g.Filter()) {
					t.Fatalf("step %d: the group %s is charged %d for levels", step, g.Name(), g.Levels())
				}
			}
			if n := s.tenant.bus.Subscribed().Used(st.account()); n != sum {
				t.Fatalf("step %d: %s is charged %d for what is worth %d", step, st.id, n, sum)
			}
		}
		for id, m := range limit {
			if n := s.tenant.bus.Subscribed().Used(s.client(id).account()); n > m || n == 0 {
				t.Fatalf("step %d: %s is charged %d of at most %d", step, id, n, m)
			}
		}
	}
	for x := range have {
		s.unsubscribe(x.id, x.name)
	}
	if n := s.tenant.bus.Subscribed().Total(); n != 0 {
		t.Errorf("%d bytes are charged for nothing", n)
	}
}

// A subscription that is refused leaves nothing behind, and names the bound.
func TestRefusedSubscriptionHasNoEffect(t *testing.T) {
	s := newSubscribers(bus.Options{SubjectSubscriptionBytes: 40_000, SubscriptionBytes: 60_000})
	fill := func(id, name string, from int) (n int) {
		for ; ; n++ {
			if err := s.subscribe(id, fmt.Sprintf(name, from+n)); err != nil {
				if watchword.CodeOf(err) != watchword.Busy || !strings.Contains(err.Error(), "limits.") {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	for _, name := range []string{"%d/a/b/c/d", "$share/g%d/a/b/c/d"} {
		n := fill("lamp-1", name, 1000)
		if used := s.tenant.bus.Subscribed().Used(quota.Key{Tenant: watchword.DefaultTenant, Subject: "lamp-1"}); n < 20 || used > 40_000 || used < 37_000 {
			t.Errorf("%d subscriptions take %d", n, used)
		}
		if m := fill("lamp-1/2", name, 2000); m > 0 {
			t.Errorf("another connection of the subject has room for %d", m)
		}
		// Levels that all groups need are charged to the first.
		if m := fill("lamp-2", name, 3000); m < n/3 || m > n/2+4 {
			t.Errorf("another subject has room for %d, the first for %d: %d", m, n, s.tenant.bus.Subscribed().Total())
		}
		for _, st := range s.clients {
			st.removeAllSubscriptions()
		}
		var hit int
		var batch bus.Batch
		_ = s.tenant.bus.Publish(bus.Publication{Message: &bus.Document{Name: "1000/a/b/c/d"}}, &batch, &bus.Result{}) // there is no subscriber
		hit = batch.Offers
		if n := s.tenant.bus.Subscribed().Total(); n != 0 || hit != 0 {
			t.Errorf("%d bytes and %d subscriptions are left of nothing", n, hit)
		}
	}
}
