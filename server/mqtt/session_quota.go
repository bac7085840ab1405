package mqtt

import (
	"unsafe"

	"github.com/watchword-iot/watchword/internal/quota"
)

// Memory of subscriptions is charged to their subject: the subscriptions, their entries in lists
// and maps, and tree levels. A level that several subscriptions need is charged to one of them, and
// to another one when that is removed.
const (
	// subscriptionBytes is the memory of a subscription beside its filter and tree levels: with its
	// entry in the session's map, in the tree, and its pending retained delivery.
	subscriptionBytes = int64(unsafe.Sizeof(subscription{})) + 48 + 40
)

// newQueueQuota counts the bytes queued for connected clients of all tenants.
func newQueueQuota(o *Options) *quota.Ledger[quota.Key] {
	return quota.New[quota.Key](quota.Resource{
		Name: "messages that wait for connected clients", Unit: "bytes",
		Subject: quota.Bound{Max: o.SubjectQueueBytes, Name: "limits.subject_queue_bytes"},
		Total:   quota.Bound{Max: o.QueuedBytes, Name: "limits.queued_bytes"},
	})
}

// newConnectionQuota counts the memory of topic aliases and unreleased QoS 2 packet identifiers of
// all tenants.
func newConnectionQuota(o *Options) *quota.Ledger[quota.Key] {
	return quota.New[quota.Key](quota.Resource{
		Name: "topic aliases and packet identifiers", Unit: "bytes",
		Subject: quota.Bound{Max: o.SubjectConnectionBytes, Name: "limits.subject_connection_bytes"},
		Total:   quota.Bound{Max: o.ConnectionBytes, Name: "limits.connection_bytes"},
	})
}

// newOfflineQuota counts the bytes stored for persistent sessions of all tenants. The total is
// limited by [Options.OfflineBytes], which counts a message once however many sessions it is stored
// for.
func newOfflineQuota(o *Options) *quota.Ledger[quota.Key] {
	return quota.New[quota.Key](quota.Resource{
		Name: "messages that wait for sessions", Unit: "bytes",
		Subject: quota.Bound{Max: o.SubjectOfflineBytes, Name: "limits.subject_offline_bytes"},
	})
}

const (
	// queueItemBytes is the memory of a queued message beside [message.size].
	queueItemBytes = int64(unsafe.Sizeof(message{})+unsafe.Sizeof(queuedMessage{})) - 64
	// queueFreeBytes is what each client may have queued without a charge, and queueChargeStep the
	// unit of charges, so that a client that reads as fast as it is sent to needs no ledger access.
	queueFreeBytes  = 16 << 10
	queueChargeStep = 64 << 10
)

// chargeQueue charges one more message of that size in the queue of a connected client to its
// subject. Code: busy. mu is held.
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

// dischargeQueue releases what is charged for more than is queued. mu is held.
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

// roundUpToStep rounds up to a multiple of step; 0 for n below zero.
func roundUpToStep(n, step int64) int64 { return (max(0, n) + step - 1) / step * step }

// chargeOffline charges one more stored message to the session's subject; size is all that it
// counts. As for queues, [queueFreeBytes] are free, and the rest is charged in steps. Code: busy,
// only where bounded. mu is held.
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

// dischargeOffline undoes chargeOffline. mu is held.
func (st *sessionState) dischargeOffline(size int) {
	st.offlineBytes -= int64(size)
	if keep := roundUpToStep(st.offlineBytes-queueFreeBytes, queueChargeStep); keep < st.offlineCharged {
		st.broker.offlineQuota.Release(st.account(), st.offlineCharged-keep)
		st.offlineCharged = keep
	}
}

// queuedSize returns the memory of the queue. mu is held.
func (st *sessionState) queuedSize() int64 {
	return int64(st.queuedBytes) + int64(len(st.queue)-st.head)*queueItemBytes
}

func (st *sessionState) account() quota.Key { return quota.KeyOf(st.tenant.id, st.owner.subject) }

// bytes returns the memory of a subscription without tree levels. Its filter is rounded up, as the
// allocator does.
func (s *subscription) bytes() int64 { return subscriptionBytes + int64(len(s.clientFilter)+15)&^15 }

// joinBus makes a subscription stand, alone or as a member of its shared group, within the quota. Code: busy.
func (tn *tenant) joinBus(s *subscription, shared, bounded bool) (err error) {
	if !shared {
		return tn.bus.AddSubscription(&s.Subscription, s.session, s.clientFilter, s.bytes(), bounded)
	}
	s.memberOf, err = tn.bus.JoinGroup(s.clientFilter, &s.Subscription, s, s.session, s.bytes(), bounded)
	return err
}

// leaveBus undoes joinBus.
func (tn *tenant) leaveBus(s *subscription) {
	if s.memberOf == nil {
		tn.bus.Unsubscribe(&s.Subscription, s.bytes())
		return
	}
	tn.bus.LeaveGroup(s.memberOf, &s.Subscription, s.bytes())
}
