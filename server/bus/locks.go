package bus

import "github.com/watchword-iot/watchword/internal/lockrank"

// The locks of this package, in the order in which a goroutine may take them; see [lockrank]. Those of the subscribers
// come between the second and the third: [Subscriber.Deliver] is called with orderLock held, and [Tenant.Subscribe] with
// the lock of the subscriber. None is held while something is written to a connection or a store.
type (
	orderLock    struct{} // Bus.order: the publications of a topic, one after the other
	retainedLock struct{} // RetainedStore.mu: held for reading while a retained message is queued
	groupsLock   struct{} // groups.mu: the shared subscriptions and their members
	eventsLock   struct{} // events.mu: the backlog and the places of its readers
	treeLock     struct{} // topicTree.mu: changes of the subscription tree
	tenantLock   struct{} // Bus.mu: the tenants
)

// LockInfo is [lockrank.Kind]'s, as for all others here.
func (orderLock) LockInfo() lockrank.Info { return lockrank.Info{Name: "bus Bus.order", Rank: 145} }

// LockInfo is [lockrank.Kind]'s.
func (retainedLock) LockInfo() lockrank.Info {
	return lockrank.Info{Name: "bus RetainedStore.mu", Rank: 150}
}

// LockInfo is [lockrank.Kind]'s.
func (groupsLock) LockInfo() lockrank.Info { return lockrank.Info{Name: "bus groups.mu", Rank: 170} }

// LockInfo is [lockrank.Kind]'s.
func (eventsLock) LockInfo() lockrank.Info { return lockrank.Info{Name: "bus events.mu", Rank: 175} }

// LockInfo is [lockrank.Kind]'s.
func (treeLock) LockInfo() lockrank.Info { return lockrank.Info{Name: "bus tree.mu", Rank: 180} }

// LockInfo is [lockrank.Kind]'s.
func (tenantLock) LockInfo() lockrank.Info { return lockrank.Info{Name: "bus Bus.mu", Rank: 240} }
