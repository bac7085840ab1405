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
	groupBytes = int64(unsafe.Sizeof(sharedGroup{})) + 40 + 64
)

// newQueueQuota counts what is queued for connected clients of all worlds, in bytes.
func newQueueQuota(o *Options) *quota.Ledger[quota.Key] {
	return quota.New[quota.Key](quota.Resource{
		Name: "messages that wait for connected clients", Unit: "bytes",
		Subject: quota.Bound{Max: o.SubjectQueueBytes, Name: "limits.subject_queue_bytes"},
		Total:   quota.Bound{Max: o.QueuedBytes, Name: "limits.queued_bytes"},
	})
}

// newConnectionQuota counts what connections and sessions of all worlds remember between packets:
// topic aliases each way, and packet identifiers of QoS 2 that were not released.
func newConnectionQuota(o *Options) *quota.Ledger[quota.Key] {
	return quota.New[quota.Key](quota.Resource{
		Name: "topic aliases and packet identifiers", Unit: "bytes",
		Subject: quota.Bound{Max: o.SubjectConnectionBytes, Name: "limits.subject_connection_bytes"},
		Total:   quota.Bound{Max: o.ConnectionBytes, Name: "limits.connection_bytes"},
	})
}

// newOfflineQuota counts what waits for the lasting sessions of all worlds, in bytes. All
// together are bounded by [Options.OfflineBytes], where what several wait for counts once.
func newOfflineQuota(o *Options) *quota.Ledger[quota.Key] {
	return quota.New[quota.Key](quota.Resource{
		Name: "messages that wait for sessions", Unit: "bytes",
		Subject: quota.Bound{Max: o.SubjectOfflineBytes, Name: "limits.subject_offline_bytes"},
	})
}

const (
	// queueItemBytes is what a queued message takes beside what [message.size] counts.
	queueItemBytes = int64(unsafe.Sizeof(message{})+unsafe.Sizeof(queuedMessage{})) - 64
	// queueFreeBytes is how much each client may have queued before it is counted, and queueStep
	// how much is counted at a time: who is read as fast as it is sent to asks nobody.
	queueFreeBytes  = 16 << 10
	queueChargeStep = 64 << 10
)

// chargeQueue counts one more message of that size in the queue of a connected client
// against its subject. Code: busy. mu is held.
func (st *sessionState) chargeQueue(size int) error {
	need := st.queuedSize() + int64(size) + queueItemBytes - queueFreeBytes - st.queueCharged
	if need <= 0 {
		return nil
	}
	need = roundUpToStep(need, queueChargeStep)
	if err := st.broker.queueQuota.Reserve(st.account(), need); err != nil {
		return err
	}
	st.queueCharged += need
	return nil
}

// dischargeQueue gives back what is charged for more than there is. mu is held.
func (st *sessionState) dischargeQueue() {
	if st.queueCharged == 0 {
		return
	}
	keep := roundUpToStep(st.queuedSize()-queueFreeBytes, queueChargeStep)
	if keep < st.queueCharged {
		st.broker.queueQuota.Release(st.account(), st.queueCharged-keep)
		st.queueCharged = keep
	}
}

// roundUpToStep rounds up to what is counted; nothing where n is below zero.
func roundUpToStep(n, step int64) int64 { return (max(0, n) + step - 1) / step * step }

// chargeOffline counts one more message in among those that wait for a lasting session, against
// its subject: size is all that it counts. It is as with what is queued: free up to
// [queueFreeBytes], and then in steps. Code: busy, only where it is bounded. mu is held.
func (st *sessionState) chargeOffline(size int, bounded bool) error {
	if need := roundUpToStep(st.offlineBytes+int64(size)-queueFreeBytes-st.offlineCharged, queueChargeStep); need > 0 {
		if !bounded {
			st.broker.offlineQuota.Add(st.account(), need)
		} else if err := st.broker.offlineQuota.Reserve(st.account(), need); err != nil {
			return err
		}
		st.offlineCharged += need
	}
	st.offlineBytes += int64(size)
	return nil
}

// dischargeOffline undoes chargeKept. mu is held.
func (st *sessionState) dischargeOffline(size int) {
	st.offlineBytes -= int64(size)
	if keep := roundUpToStep(st.offlineBytes-queueFreeBytes, queueChargeStep); keep < st.offlineCharged {
		st.broker.offlineQuota.Release(st.account(), st.offlineCharged-keep)
		st.offlineCharged = keep
	}
}

// queuedSize is what is queued. mu is held.
func (st *sessionState) queuedSize() int64 {
	return int64(st.queuedBytes) + int64(len(st.queue)-st.head)*queueItemBytes
}

func (st *sessionState) account() quota.Key { return accountOf(st.tenant.id, st.owner.subject) }

// bytes is what a subscription takes without the tree. Its name is rounded up, as memory is.
func (s *subscription) bytes() int64 { return subscriptionBytes + int64(len(s.clientFilter)+15)&^15 }

// chargeSubscription lets a subscription stand in the tree or in its group, if its subject has room
// for it. Code: busy.
func (tn *tenant) chargeSubscription(s *subscription, shared, bounded bool) error {
	if !shared {
		return tn.bus.Place(&s.Subscription, s.bytes(), bounded)
	}
	subscribed := tn.bus.Subscribed()
	if !bounded {
		subscribed.Add(s.Account(), s.bytes())
	} else if err := subscribed.Reserve(s.Account(), s.bytes()); err != nil {
		return err
	}
	err := tn.joinGroup(s, bounded)
	if err != nil {
		subscribed.Release(s.Account(), s.bytes())
	}
	return err
}

// dischargeSubscription undoes charge.
func (tn *tenant) dischargeSubscription(s *subscription) {
	if s.memberOf == nil {
		tn.bus.Unsubscribe(&s.Subscription, s.bytes())
		return
	}
	tn.leaveGroup(s)
	tn.bus.Subscribed().Release(s.Account(), s.bytes())
}
