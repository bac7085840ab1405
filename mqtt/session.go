package mqtt

import (
	"slices"
	"sync/atomic"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/mqttstore"
)

// sessionState is the Session State of one client identifier (MQTT 5.0 §4.1). A connection
// refers to it as [conn.session]; with a session expiry it outlives the connection. Methods
// that say so are called with mu held.
type sessionState struct {
	broker *Broker
	tenant *tenant // nil before CONNECT
	number int64   // no other client has it, nor ever had
	id     string  // the client identifier
	owner  owner

	// receiving is held from the look whether a PUBLISH with QoS 2 was received before until it is noted as
	// received, and while an operator's end of the session is recorded: no other connection resumes the
	// session in between.
	receiving lockrank.Mutex[receivingLock]

	mu      lockrank.Mutex[sessionLock]
	conn    *conn // nil while it has none
	removed bool  // it is no more
	expired bool  // it lasted, and is over

	subs         map[string]*subscription // by their filter as the client wrote it
	will         *will                    // of its connection; one that waits for its time is in wills alone
	queue        []queuedMessage          // from head on; to be sent
	head         int
	queuedBytes  int   // of the queue
	queueCharged int64 // what its subject is charged for the queue; see chargeQueue
	offlineBytes int64 // bytes of all that waits on the shelf, with what is moving to others

	offlineCharged int64 // what its subject is charged for that; see chargeKept

	inflight       []inflightMessage  // in the order in which they were sent; a part of ground
	inflightBuffer []inflightMessage  // see takeOff
	lastSeq        int64              // the number of the last message with QoS 1 or 2
	received       map[uint16]*commit // publishes with QoS 2 that were not released; see [sessionState.addReceived]
	persistent     *persistent        // nil where it ends with its connection
	load           atomic.Int32       // see weigh
	inGroup        bool               // it is, or was, in a group
	groups         []*sharedGroup     // that it is in
	counted        bool               // under world.mu: against the bound of its subject

	receivedPeak    int // identifiers that were in received at once since it was made
	receivedCharged chargedBytes
}

// owner is whose client it is: a subject, in one of its lives.
type owner struct {
	subject     watchword.SubjectID
	incarnation int64
}

// offline reports whether the client has no connection; called with mu held.
func (st *sessionState) offline() bool { return st.conn == nil }

// countOffline counts a message in that waits on the shelf; [sessionState.uncountOffline] counts it out. Code:
// busy where its subject has no room for it, only where it is bounded. mu is held.
func (st *sessionState) countOffline(size int, bounded bool) error {
	if err := st.chargeOffline(size+entryOverhead, bounded); err != nil {
		return err
	}
	st.persistent.backlog.count(size)
	return nil
}

// uncountOffline is called once for each message that waited on the shelf and is done, or
// never will be: size is what it counted. mu is held.
func (st *sessionState) uncountOffline(k *storedMessage, seq int64, size int) {
	st.dischargeOffline(size + entryOverhead)
	if p := st.persistent; p != nil {
		p.backlog.uncount(seq, size)
		st.markChanged()
	}
	if k != nil {
		st.broker.journal.release(k)
	}
}

// markChanged sees to it that how far the client has come is written, and returns with what.
// mu is held.
func (st *sessionState) markChanged() *commit {
	if st.persistent == nil {
		return nil
	}
	return st.broker.journal.add(change{client: st})
}

// requeueOffline takes what the client's connection held back to the shelf, in order, when it
// ends. What does not wait there is lost, as it may be: QoS 0, and what the server
// says to one connection. mu is held.
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

// restoreInflight puts what its receiver has already, and is to be told PUBREL, among the
// flights of a new connection. mu is held.
func (st *sessionState) restoreInflight() {
	for _, e := range st.persistent.backlog.take(func(e *backlogEntry) bool { return e.released }) {
		st.appendInflight(inflightMessage{seq: e.seq, qos: 2, released: true, size: e.size, counted: true})
	}
}

// progress is how far the client has come, for the commit c. mu is held.
func (st *sessionState) progress(c *commit) mqttstore.Progress {
	per := st.persistent
	p := mqttstore.Progress{Next: st.lastSeq, Sent: per.backlog.lastSent, Dropped: per.losses.dropped, Narrowed: per.losses.narrowed}
	first := st.lastSeq + 1 // the lowest that is not done
	for _, f := range st.inflight {
		if f.counted {
			p.Inflight = append(p.Inflight, mqttstore.Inflight{Seq: f.seq, Released: f.released})
			first = min(first, f.seq)
		}
	}
	open := func(seq int64, released bool) {
		if first = min(first, seq); seq <= per.backlog.lastSent { // what was not sent yet is open by itself
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
	p.Lost = per.losses.notDoneBefore(first)
	for id, at := range st.received {
		if at != nil && at.written() {
			st.received[id] = nil // nobody needs it any more
		}
		if at == nil || at == c || at.written() {
			p.Received = append(p.Received, id)
		}
	}
	return p
}

// reset takes everything away that the client has. mu is held.
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

// endPersistent ends the state of a client that was to last. mu is held.
func (st *sessionState) endPersistent() {
	st.reset()
	st.persistent.stopTimers()
	st.persistent = nil
	st.broker.persistentCount.Add(-1)
	st.expired = true
}
