package mqtt

import (
	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/mqttstore"
)

var (
	errSessionQueueFull = bus.FullError{Refusal: watchword.Refuse(watchword.Busy, "the subscriber's queue is full (limits.queue_messages, limits.queue_bytes)")}
	errOfflineFull      = bus.FullError{Refusal: watchword.Refuse(watchword.Busy, "the limit of messages for offline sessions is reached (limits.offline_bytes)")}
)

// Limits of the messages of a persistent session that are in memory; others are in the store only.
const (
	queueWindow      = 256
	queueWindowBytes = 256 << 10
)

// deliver queues m once for the subscriptions subs of this session. wake is the connection that the
// caller must flush, or nil. A connected client that does not read is disconnected; an offline
// session whose store quota is full loses the newest messages.
func (st *sessionState) deliver(m *message, o *bus.Result, g *bus.Group, subs ...*bus.Subscription) (wake *conn) {
	st.mu.Lock()
	c := st.conn
	wake, slow := st.deliverLocked(m, o, g, subs)
	st.mu.Unlock()
	if slow != nil {
		st.broker.stats.slowClosed.Add(1)
		c.close(slow)
	}
	return wake
}

// chooseSubscription returns the subscription with the highest QoS among subs (MQTT 5.0 §3.3.4),
// and the subscription identifiers of all. mu is held.
func (st *sessionState) chooseSubscription(m *message, subs []*bus.Subscription) (by *subscription, retain bool, identifiers []uint32) {
	retain = m.retained
	for _, x := range subs {
		s := x.Subscriber.(*subscription)
		if s.liveTopics != nil {
			if _, newer := s.liveTopics[m.topic]; newer && m.retained {
				continue
			}
			if !m.retained && isStateTopic(m.topic) {
				s.liveTopics[m.topic] = struct{}{}
			}
		}
		if s.removed || s.noLocal && m.sender == st {
			continue
		}
		retain = retain || m.retain && s.retainAsPublished
		if s.identifier > 0 {
			identifiers = append(identifiers, s.identifier)
		}
		if by == nil || s.qos > by.qos {
			by = s
		}
	}
	return by, retain, identifiers
}

func (st *sessionState) deliverLocked(m *message, o *bus.Result, g *bus.Group, subs []*bus.Subscription) (wake *conn, slow error) {
	c := st.conn
	if st.removed || c != nil && c.out.closed || m.unicast != nil && m.unicast.receiver != c {
		return nil, nil
	}
	by, retain, identifiers := st.chooseSubscription(m, subs)
	if by == nil {
		return nil, nil
	}
	it := queuedMessage{message: m, subscription: by, qos: min(m.qos, by.qos)}
	if retain {
		it.flags = 1
	}
	if identifiers != nil || g != nil {
		it.extra = &queuedExtra{identifiers: identifiers, group: g}
	}
	if st.persistent != nil && it.qos > 0 && m.unicast == nil {
		return st.storeMessage(&it, o), nil
	}
	if c == nil {
		return nil, nil // QoS 0 is not stored
	}
	full := errSlowConsumer
	if len(st.queue)-st.head < st.broker.options.QueueMessages && st.queuedBytes+it.size() <= st.broker.options.QueueBytes {
		full = st.chargeQueue(it.size())
	}
	switch {
	case full == nil:
	case o.Redelivered:
		return nil, nil
	default:
		return nil, full
	}
	o.Receivers++
	return st.enqueue(it), nil
}

// storeMessage stores a message, and queues it too if it may be sent soon.
func (st *sessionState) storeMessage(it *queuedMessage, o *bus.Result) (wake *conn) {
	per, j := st.persistent, st.broker.committer
	if st.offline() && per.offline.suspended {
		return nil
	}
	size := it.size()
	err := j.unavailable()
	if err == nil {
		switch {
		case !per.backlog.hasRoom(size, &st.broker.options):
			err = errSessionQueueFull
		case j.storedBytes.Load() > st.broker.options.OfflineBytes:
			err = errOfflineFull
		default:
			if refused := st.countOffline(size, true); refused != nil {
				err = bus.FullError{Refusal: refused}
			}
		}
		if err != nil && (it.extra == nil || it.extra.group == nil) { // otherwise another member may have room
			st.countDropped()
		}
	}
	if err != nil {
		o.Err = err
		return nil
	}
	o.Receivers++
	k := storedIn(o)
	if k == nil {
		k = j.newStored(it.message)
		o.Stored = append(o.Stored, k)
	}
	st.lastSeq++
	k.refs.Add(1)
	if it.extra == nil {
		it.extra = &queuedExtra{}
	}
	it.extra.seq, it.extra.stored, it.extra.countedBytes = st.lastSeq, k, uint32(size)
	k.receivers = mqttstore.AppendReceiver(k.receivers, mqttstore.Receiver{
		Session: st.number, Seq: it.extra.seq, QoS: it.qos, Retain: it.flags&1 != 0, Group: it.group(), Identifiers: it.extra.identifiers,
	})
	if st.offline() || len(per.backlog.entries) > 0 || len(st.queue)-st.head >= queueWindow || st.queuedBytes > queueWindowBytes {
		e := backlogEntryOf(it)
		per.backlog.push(e)
		if st.offline() {
			e.markGroupWaiting(st)
		}
		return nil
	}
	if it.qos == 2 {
		j.wakeWhenWritten(k, st)
	}
	return st.enqueue(*it)
}

// countDropped counts a dropped message, which is reported to the client. mu is held.
func (st *sessionState) countDropped() {
	if st.persistent == nil {
		return
	}
	st.persistent.losses.dropped++
	st.broker.stats.dropped.Add(1)
	st.markChanged()
}

// countDroppedLocking is countDropped for callers that do not hold mu.
func (st *sessionState) countDroppedLocking() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.countDropped()
}

// needsFlush requires mu to be held.
func (c *conn) needsFlush() bool {
	if c.out.writing || c.out.flushScheduled {
		return false
	}
	c.out.flushScheduled = true
	return true
}

// wakeWriter makes the connection write what it may now.
func (st *sessionState) wakeWriter() {
	st.mu.Lock()
	c := st.conn
	st.mu.Unlock()
	if c != nil {
		c.flush(false)
	}
}
