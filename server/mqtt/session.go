package mqtt

import (
	"slices"
	"sync/atomic"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/mqttstore"
	"github.com/watchword-iot/watchword/server/session"
)

// sessionState is the Session State of one client identifier (MQTT 5.0 §4.1). A connection
// refers to it as [conn.session]; with a session expiry it outlives the connection. Methods
// that say so are called with mu held.
type sessionState struct {
	broker *Broker
	tenant *tenant // nil before CONNECT
	number int64   // never reused
	id     string  // client identifier
	owner  owner

	// receiving is held from the look whether a PUBLISH with QoS 2 was received before until it is noted as
	// received, and while an operator's end of the session is recorded: no other connection resumes the
	// session in between.
	receiving lockrank.Mutex[receivingLock]

	reads atomic.Pointer[session.Session] // whose authority decides what the subscriptions read; see readAuthority

	mu      lockrank.Mutex[sessionLock]
	conn    *conn // nil while offline
	removed bool  // removed from the tenant
	expired bool  // its persistent state has ended

	subs         map[string]*subscription // by the filter as sent by the client
	will         *will                    // will of its connection; delayed wills are in willStore only
	queue        []queuedMessage          // to be sent, from head on
	head         int
	queuedBytes  int   // bytes of the queue
	queueCharged int64 // bytes of the queue charged to its subject; see chargeQueue
	offlineBytes int64 // bytes of its stored messages, including those being redistributed

	offlineCharged int64 // bytes of stored messages charged to its subject; see chargeOffline

	inflight       []inflightMessage  // in order of sending; part of inflightBuffer
	inflightBuffer []inflightMessage  // see appendInflight
	lastSeq        int64              // sequence number of the last QoS 1 or 2 message
	received       map[uint16]*commit // received QoS 2 publishes without PUBREL; see [sessionState.addReceived]
	persistent     *persistent        // nil if the session ends with its connection
	load           atomic.Int32       // see updateLoad
	inGroup        bool               // it is or was a member of a shared subscription
	groups         []*bus.Group       // shared subscriptions that it is a member of
	counted        bool               // counted against its subject's limit; protected by tenant.mu

	receivedPeak    int // largest size of received since the map was made
	receivedCharged chargedBytes
}

// owner is a subject in one incarnation.
type owner struct {
	subject     watchword.SubjectID
	incarnation int64
}

// offline reports whether the session has no connection; mu is held.
func (st *sessionState) offline() bool { return st.conn == nil }

// countOffline counts a stored message; [sessionState.uncountOffline] uncounts it. Code: busy where
// the subject's quota is used up, only where bounded. mu is held.
func (st *sessionState) countOffline(size int, bounded bool) error {
	if err := st.chargeOffline(size+entryOverhead, bounded); err != nil {
		return err
	}
	st.persistent.backlog.count(size)
	return nil
}

// uncountOffline is called once for each stored message that is completed or dropped, with its
// counted size. mu is held.
func (st *sessionState) uncountOffline(k *storedMessage, seq int64, size int) {
	st.dischargeOffline(size + entryOverhead)
	if p := st.persistent; p != nil {
		p.backlog.uncount(seq, size)
		st.markChanged()
	}
	if k != nil {
		st.broker.committer.release(k)
	}
}

// markChanged adds the session's progress to the open commit and returns the commit. mu is held.
func (st *sessionState) markChanged() *commit {
	if st.persistent == nil {
		return nil
	}
	return st.broker.committer.add(change{client: st})
}

// requeueOffline moves unsent stored messages from the queue back to the backlog when the
// connection ends. Others are dropped: QoS 0, and messages for one connection. mu is held.
func (st *sessionState) requeueOffline() {
	p := st.persistent
	var first []backlogEntry
	for _, f := range st.inflight {
		if f.counted {
			first = append(first, f.backlogEntry())
		}
	}
	for i := st.head; i < len(st.queue); i++ {
		if it := &st.queue[i]; it.extra != nil && it.extra.stored != nil {
			first = append(first, backlogEntryOf(it))
		}
	}
	p.backlog.prepend(first)
	st.queue, st.head, st.queuedBytes, st.inflight, st.inflightBuffer = nil, 0, 0, nil, nil
	st.dischargeQueue()
	for i := range p.backlog.entries {
		p.backlog.entries[i].markGroupWaiting(st)
	}
}

// restoreInflight adds messages whose PUBREL is due to the inflight list of a new connection. mu is
// held.
func (st *sessionState) restoreInflight() {
	for _, e := range st.persistent.backlog.take(func(e *backlogEntry) bool { return e.released }) {
		st.appendInflight(inflightMessage{seq: e.seq, qos: 2, released: true, size: e.size, counted: true})
	}
}

// progress returns the delivery state for the commit c. mu is held.
func (st *sessionState) progress(c *commit) mqttstore.Progress {
	per := st.persistent
	p := mqttstore.Progress{Next: st.lastSeq, Sent: per.backlog.lastSent, Dropped: per.losses.dropped, Narrowed: per.losses.narrowed}
	first := st.lastSeq + 1 // lowest incomplete sequence number
	for _, f := range st.inflight {
		if f.counted {
			p.Inflight = append(p.Inflight, mqttstore.Inflight{Seq: f.seq, Released: f.released})
			first = min(first, f.seq)
		}
	}
	open := func(seq int64, released bool) {
		if first = min(first, seq); seq <= per.backlog.lastSent { // unsent ones need no record
			p.Inflight = append(p.Inflight, mqttstore.Inflight{Seq: seq, Released: released})
		}
	}
	per.backlog.each(func(e *backlogEntry) { open(e.seq, e.released) })
	for i := st.head; i < len(st.queue); i++ {
		if it := &st.queue[i]; it.extra != nil && it.extra.stored != nil {
			open(it.extra.seq, false)
		}
	}
	per.backlog.skipped.after(per.backlog.lastSent)
	p.Skipped = slices.Clone(per.backlog.skipped)
	p.Lost = per.losses.pruneReported(first)
	for id, at := range st.received {
		if at != nil && at.written() {
			st.received[id] = nil // no longer needed
		}
		if at == nil || at == c || at.written() {
			p.Received = append(p.Received, id)
		}
	}
	return p
}

// reset removes all state of the session. mu is held.
func (st *sessionState) reset() {
	st.removeAllSubscriptions()
	st.dropQueued(func(*queuedMessage) bool { return true })
	per := st.persistent
	for _, f := range st.inflight {
		if f.counted {
			st.uncountOffline(f.stored, f.seq, int(f.size))
		}
	}
	st.inflight, st.inflightBuffer = nil, nil
	st.removeAllReceived()
	if per == nil {
		return
	}
	for _, e := range per.backlog.entries {
		st.uncountOffline(e.stored, e.seq, int(e.size))
	}
	per.backlog.discard(st.lastSeq)
	per.losses.lost = nil
	st.markChanged()
}

// dropPersistentState ends the persistent state. mu is held.
func (st *sessionState) dropPersistentState() {
	st.reset()
	st.persistent.stopTimers()
	st.persistent = nil
	st.broker.persistentCount.Add(-1)
	st.expired = true
}
