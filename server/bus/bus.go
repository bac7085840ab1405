package bus

import (
	"cmp"
	"hash/maphash"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/internal/quota"
)

// Options are the limits of a [Bus]. [New] replaces a zero by the default that each field states.
type Options struct {
	SubscriptionBytes        int64 // memory of all subscriptions; 256 MiB
	SubjectSubscriptionBytes int64 // memory of one subject's subscriptions; 2 MiB

	RetainedMessages        int // of all subjects; 1,000,000
	RetainedBytes           int // of memory, of all subjects; 256 MiB
	SubjectRetainedMessages int // of one subject; 5,000
	SubjectRetainedBytes    int // of memory, of one subject; 1 MiB
}

// Bus is the fan-out of one process. Make one with [New]. It is safe for concurrent use.
//
// [Subscriber.Deliver] is called with the lock of the topic held: it must not publish.
type Bus struct {
	subscribed *quota.Ledger[quota.Key] // bytes of memory that subscriptions take
	retained   *retainedQuota
	events     events
	seed       maphash.Seed
	order      [orderLocks]topicOrder

	mu      lockrank.Mutex[tenantLock]
	tenants map[watchword.TenantID]*Tenant
}

// topicOrder is held while a publication of one of its topics is delivered to the subscribers. It has a cache line of its
// own.
type topicOrder struct {
	lockrank.Mutex[orderLock]
	_ [56]byte
}

// orderLocks is how many there are: topics that share one wait for each other.
const orderLocks = 256

// Tenant is what the clients of one tenant share: publications of other tenants do not reach it.
type Tenant struct {
	Retained RetainedStore

	id   watchword.TenantID
	bus  *Bus
	tree tree[*Subscription]

	groups groups
}

// New returns a bus without subscriptions.
func New(o Options) *Bus {
	b := &Bus{seed: maphash.MakeSeed(), tenants: map[watchword.TenantID]*Tenant{}}
	b.subscribed = quota.New[quota.Key](quota.Resource{
		Name: "subscriptions", Unit: "bytes",
		Subject: quota.Bound{Max: cmp.Or(o.SubjectSubscriptionBytes, 2<<20), Name: "limits.subject_subscription_bytes"},
		Total:   quota.Bound{Max: cmp.Or(o.SubscriptionBytes, 256<<20), Name: "limits.subscription_bytes"},
	})
	b.retained = newRetainedQuota(o)
	b.events.init()
	return b
}

// Tenant returns the part of the bus that belongs to a tenant, which must exist: it stays in memory.
func (b *Bus) Tenant(id watchword.TenantID) *Tenant {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.tenants[id]
	if t == nil {
		t = &Tenant{id: id, bus: b, Retained: RetainedStore{tenant: id, quota: b.retained}}
		b.tenants[id] = t
	}
	return t
}

// SubscriptionBytes is the memory that all subscriptions take.
func (b *Bus) SubscriptionBytes() int64 { return b.subscribed.Total() }

// Subscribed is the ledger of the memory that subscriptions take, in bytes, by subject.
func (t *Tenant) Subscribed() *quota.Ledger[quota.Key] { return t.bus.subscribed }
