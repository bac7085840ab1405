package mqtt

import (
	"unsafe"

	"github.com/watchword-iot/watchword/internal/quota"
)

// What subscriptions take of memory is counted against their subject: themselves, with their
// place in lists and maps, and the levels of the tree. A level that several need is charged
// to one of them, and passes to another when that one goes.
const (
	// subscriptionBytes is what one takes beside its name and the tree: with its entry in
	// the client's map, its place in a list of the tree, and what is to be given to it.
	subscriptionBytes = int64(unsafe.Sizeof(subscription{})) + 48 + 40
	// groupBytes is what a group takes beside its members.
	groupBytes = int64(unsafe.Sizeof(group{})) + 40 + 64
)

// newQueueQuota counts what is queued for connected clients of all worlds, in bytes.
func newQueueQuota(o *Options) *quota.Ledger[quota.Key] {
	return quota.New[quota.Key](quota.Resource{
		Name: "messages that wait for connected clients", Unit: "bytes",
		Subject: quota.Bound{Max: o.SubjectQueueBytes, Name: "limits.subject_queue_bytes"},
		Total:   quota.Bound{Max: o.QueuedBytes, Name: "limits.queued_bytes"},
	})
}

// newMemoryQuota counts what connections and sessions of all worlds remember between packets:
// topic aliases each way, and packet identifiers of QoS 2 that were not released.
func newMemoryQuota(o *Options) *quota.Ledger[quota.Key] {
	return quota.New[quota.Key](quota.Resource{
		Name: "topic aliases and packet identifiers", Unit: "bytes",
		Subject: quota.Bound{Max: o.SubjectConnectionBytes, Name: "limits.subject_connection_bytes"},
		Total:   quota.Bound{Max: o.ConnectionBytes, Name: "limits.connection_bytes"},
	})
}

// newKeptQuota counts what waits for the lasting sessions of all worlds, in bytes. All
// together are bounded by [Options.KeptBytes], where what several wait for counts once.
func newKeptQuota(o *Options) *quota.Ledger[quota.Key] {
	return quota.New[quota.Key](quota.Resource{
		Name: "messages that wait for sessions", Unit: "bytes",
		Subject: quota.Bound{Max: o.SubjectKeptBytes, Name: "limits.subject_kept_bytes"},
	})
}

const (
	// queuedBytes is what a queued message takes beside what [message.size] counts.
	queuedBytes = int64(unsafe.Sizeof(message{})+unsafe.Sizeof(item{})) - 64
	// queueFree is how much each client may have queued before it is counted, and queueStep
	// how much is counted at a time: who is read as fast as it is sent to asks nobody.
	queueFree = 16 << 10
	queueStep = 64 << 10
)

// chargeQueue counts one more message of that size in the queue of a connected client
// against its subject. Code: busy. mu is held.
func (st *sessionState) chargeQueue(size int) error {
	need := st.inQueue() + int64(size) + queuedBytes - queueFree - st.charged
	if need <= 0 {
		return nil
	}
	need = inSteps(need, queueStep)
	if err := st.broker.queued.Take(st.account(), need); err != nil {
		return err
	}
	st.charged += need
	return nil
}

// dischargeQueue gives back what is charged for more than there is. mu is held.
func (st *sessionState) dischargeQueue() {
	if st.charged == 0 {
		return
	}
	keep := inSteps(st.inQueue()-queueFree, queueStep)
	if keep < st.charged {
		st.broker.queued.Give(st.account(), st.charged-keep)
		st.charged = keep
	}
}

// inSteps rounds up to what is counted; nothing where n is below zero.
func inSteps(n, step int64) int64 { return (max(0, n) + step - 1) / step * step }

// chargeKept counts one more message in among those that wait for a lasting session, against
// its subject: size is all that it counts. It is as with what is queued: free up to
// [queueFree], and then in steps. Code: busy, only where it is bounded. mu is held.
func (st *sessionState) chargeKept(size int, bounded bool) error {
	if need := inSteps(st.kept+int64(size)-queueFree-st.keptCharged, queueStep); need > 0 {
		if !bounded {
			st.broker.kept.Add(st.account(), need)
		} else if err := st.broker.kept.Take(st.account(), need); err != nil {
			return err
		}
		st.keptCharged += need
	}
	st.kept += int64(size)
	return nil
}

// dischargeKept undoes chargeKept. mu is held.
func (st *sessionState) dischargeKept(size int) {
	st.kept -= int64(size)
	if keep := inSteps(st.kept-queueFree, queueStep); keep < st.keptCharged {
		st.broker.kept.Give(st.account(), st.keptCharged-keep)
		st.keptCharged = keep
	}
}

// inQueue is what is queued. mu is held.
func (st *sessionState) inQueue() int64 {
	return int64(st.bytes) + int64(len(st.queue)-st.head)*queuedBytes
}

func (st *sessionState) account() quota.Key { return accountOf(st.world.tenant, st.owner.subject) }

// bytes is what a subscription takes without the tree. Its name is rounded up, as memory is.
func (s *subscription) bytes() int64 { return subscriptionBytes + int64(len(s.name)+15)&^15 }

// charge lets a subscription stand in the tree or in its group, if its subject has room
// for it. Code: busy.
func (w *world) charge(s *subscription, shared, bounded bool) error {
	if !shared {
		return w.bus.Place(&s.Subscription, s.bytes(), bounded)
	}
	subscribed := w.bus.Subscribed()
	if !bounded {
		subscribed.Add(s.Account(), s.bytes())
	} else if err := subscribed.Take(s.Account(), s.bytes()); err != nil {
		return err
	}
	err := w.join(s, bounded)
	if err != nil {
		subscribed.Give(s.Account(), s.bytes())
	}
	return err
}

// discharge undoes charge.
func (w *world) discharge(s *subscription) {
	if s.memberOf == nil {
		w.bus.Unsubscribe(&s.Subscription, s.bytes())
		return
	}
	w.part(s)
	w.bus.Subscribed().Give(s.Account(), s.bytes())
}
