package mqtt

import (
	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/shelf"
)

var (
	errFull     = bus.FullError{Refusal: watchword.Refuse(watchword.Busy, "whoever this is for has no room for more messages (limits.queue_messages, limits.queue_bytes)")}
	errFullKept = bus.FullError{Refusal: watchword.Refuse(watchword.Busy, "there is no room for more messages that wait for sessions (limits.kept_bytes)")}
)

// The bounds of what a lasting client has in its queue: the rest waits on the shelf.
const (
	queueAhead  = 256
	queueWeight = 256 << 10
)

// Deliver queues a publication for the session; subs are its own. See [bus.Subscriber].
func (s *subscription) Deliver(x bus.Message, subs []*bus.Subscription, b *bus.Batch, r *bus.Result) {
	if c := s.session.offer(messageOf(x), r, nil, subs...); c != nil {
		b.Touch(c)
	}
}

// Account is that of the session's subject.
func (s *subscription) Account() quota.Key { return s.session.account() }

// offer queues m once, for those of the client's subscriptions that it matches. wake, if
// not nil, is whom the caller must flush. Who has a connection and does not read what it
// is sent loses it; the newest messages find no room where a client is away too long.
func (st *sessionState) offer(m *message, o *bus.Result, g *group, subs ...*bus.Subscription) (wake *conn) {
	st.mu.Lock()
	c := st.conn
	wake, slow := st.push(m, o, g, subs)
	st.mu.Unlock()
	if slow != nil {
		st.broker.stats.slow.Add(1)
		c.end(slow)
	}
	return wake
}

// choose finds the subscription with the highest QoS among those that m is for (MQTT
// 5.0 §3.3.4), and what goes along for all of them. mu is held.
func (st *sessionState) choose(m *message, subs []*bus.Subscription) (by *subscription, retain bool, identifiers []uint32) {
	retain = m.kept
	for _, x := range subs {
		s := x.Subscriber.(*subscription)
		if s.since != nil {
			if _, newer := s.since[m.topic]; newer && m.kept {
				continue
			}
			if !m.kept && isState(m.topic) {
				s.since[m.topic] = struct{}{}
			}
		}
		if s.dead || s.noLocal && m.from == st {
			continue
		}
		retain = retain || m.retain && s.asPublished
		if s.identifier > 0 {
			identifiers = append(identifiers, s.identifier)
		}
		if by == nil || s.qos > by.qos {
			by = s
		}
	}
	return by, retain, identifiers
}

func (st *sessionState) push(m *message, o *bus.Result, g *group, subs []*bus.Subscription) (wake *conn, slow error) {
	c := st.conn
	if st.over || c != nil && c.out.closed || m.private != nil && m.private.only != c {
		return nil, nil
	}
	by, retain, identifiers := st.choose(m, subs)
	if by == nil {
		return nil, nil
	}
	it := item{m: m, sub: by, qos: min(m.qos, by.qos)}
	if retain {
		it.flag = 1
	}
	if identifiers != nil || g != nil {
		it.x = &extra{identifiers: identifiers, shared: g}
	}
	if st.lasting != nil && it.qos > 0 && m.private == nil {
		return st.keep(&it, o), nil
	}
	if c == nil {
		return nil, nil // with QoS 0 nobody waits
	}
	full := errSlow
	if len(st.queue)-st.head < st.broker.options.QueueMessages && st.bytes+it.size() <= st.broker.options.QueueBytes {
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

func (st *sessionState) enqueue(it item) (wake *conn) {
	st.lineUp(it)
	st.weigh()
	if c := st.conn; c.out.ready && c.mustWake() {
		return c
	}
	return nil
}

// lineUp puts an item at the end of the queue. mu is held.
func (st *sessionState) lineUp(it item) {
	if n := len(st.queue); n == cap(st.queue) && 2*st.head >= n { // what was sent makes room before the queue grows
		k := copy(st.queue, st.queue[st.head:])
		clear(st.queue[k:])
		st.queue, st.head = st.queue[:k], 0
	}
	st.queue = append(st.queue, it)
	st.bytes += it.size()
}

// keep lets a message wait on the shelf, and in the queue too where it may go out soon.
func (st *sessionState) keep(it *item, o *bus.Result) (wake *conn) {
	l, j := st.lasting, st.broker.journal
	if st.away() && l.paused {
		return nil
	}
	size := it.size()
	err := j.refusal()
	if err == nil {
		switch {
		case !st.room(size):
			err = errFull
		case j.bytes.Load() > st.broker.options.KeptBytes:
			err = errFullKept
		default:
			if refused := st.waits(size, true); refused != nil {
				err = bus.FullError{Refusal: refused}
			}
		}
		if err != nil && (it.x == nil || it.x.shared == nil) { // else another member may have room
			st.dropOne()
		}
	}
	if err != nil {
		o.Err = err
		return nil
	}
	o.Receivers++
	k, _ := o.Stored.(*kept)
	if k == nil {
		k = j.keep(it.m)
		o.Stored = k
	}
	st.seq++
	k.refs.Add(1)
	if it.x == nil {
		it.x = &extra{}
	}
	it.x.seq, it.x.k, it.x.counted = st.seq, k, uint32(size)
	k.receivers = shelf.AppendReceiver(k.receivers, shelf.Receiver{
		Session: st.number, Seq: it.x.seq, QoS: it.qos, Retain: it.flag&1 != 0, Group: it.group(), Identifiers: it.x.identifiers,
	})
	if st.away() || len(l.backlog) > 0 || len(st.queue)-st.head >= queueAhead || st.bytes > queueWeight {
		e := entryOf(it)
		l.backlog = append(l.backlog, e)
		if st.away() {
			e.waitsForGroup(st)
		}
		return nil
	}
	if it.qos == 2 {
		j.whenWritten(k, st)
	}
	return st.enqueue(*it)
}

// dropOne counts a message that found no room: the client hears of it. mu is held.
func (st *sessionState) dropOne() {
	if st.lasting == nil {
		return
	}
	st.lasting.dropped++
	st.broker.stats.dropped.Add(1)
	st.touch()
}

// noRoom is dropOne for who does not hold mu.
func (st *sessionState) noRoom() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.dropOne()
}

// mustWake is called with mu held.
func (c *conn) mustWake() bool {
	if c.out.writing || c.out.woken {
		return false
	}
	c.out.woken = true
	return true
}

// wakeUp has the client's connection write what it may now.
func (st *sessionState) wakeUp() {
	st.mu.Lock()
	c := st.conn
	st.mu.Unlock()
	if c != nil {
		c.flush(false)
	}
}
