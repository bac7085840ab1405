package mqtt

import (
	"log/slog"
	"slices"
	"time"

	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/policy"
)

// A subscription of a shared group is a [bus.Member]. The group chooses the receiver of each message, and says when stored
// messages move; this file has what a session does for it.

// Load returns the load of the session.
func (s *subscription) Load() int32 { return s.session.load.Load() }

// Stores reports whether the session would store m while it is offline: it is persistent, and the QoS is above 0.
func (s *subscription) Stores(x bus.Message) bool {
	st := s.session
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.persistent != nil && min(s.qos, messageOf(x).qos) > 0
}

// Offer queues or stores a message of the group for the session.
func (s *subscription) Offer(x bus.Message, g *bus.Group, b *bus.Batch, r *bus.Result) {
	if c := s.session.deliver(messageOf(x), r, g, &s.Subscription); c != nil {
		b.MarkForFlush(c)
	}
}

// CountDropped counts a dropped message, which the client is told of.
func (s *subscription) CountDropped() { s.session.countDroppedLocking() }

// HasCapacity reports whether the session may take stored messages of the group.
func (s *subscription) HasCapacity() bool {
	s.session.mu.Lock()
	defer s.session.mu.Unlock()
	return !s.removed && s.session.hasCapacity()
}

// updateLoad updates the session's load for its groups. mu is held.
func (st *sessionState) updateLoad() {
	if !st.inGroup {
		return
	}
	if st.conn == nil {
		st.load.Store(bus.OfflineLoad)
		return
	}
	st.load.Store(int32(len(st.queue) - st.head + len(st.inflight)))
	if st.hasCapacity() {
		for _, g := range st.groups {
			g.Pull()
		}
	}
}

// redistribution is a message of a shared subscription that moves from one member to another.
type redistribution struct {
	session     *sessionState // member that has it until another one does
	group       *bus.Group
	message     *message // nil: to be read from the store
	entry       backlogEntry
	counted     bool // it is stored
	writeFailed bool // its write failed, and its publisher got the error
}

// takeForRedistribution removes what the client has for its groups and has not acknowledged: of one subscription, or with
// nil of all, then without the messages that are stored for the client's return. QoS 2 in flight stays with its member
// (MQTT 5.0 §4.8.2). Stored messages are moving from here on: they are the client's until another member has them. mu is
// held.
func (st *sessionState) takeForRedistribution(of *subscription) (out []redistribution) {
	mine := func(g *bus.Group) bool { return g != nil && (of == nil || g.Name() == of.clientFilter) }
	take := func(g *bus.Group, m *message, e backlogEntry, counts bool) {
		out = append(out, redistribution{session: st, group: g, message: m, entry: e, counted: counts})
		if counts {
			st.persistent.backlog.startRedistributing(e)
		}
	}
	stays := st.queue[:0]
	for i := range st.queue[st.head:] {
		it := st.queue[st.head+i]
		if it.extra == nil || !mine(it.extra.group) || it.qos == 2 && st.wasSent(&it) {
			stays = append(stays, it)
			continue
		}
		st.queuedBytes -= it.size()
		if it.extra.stored != nil {
			take(it.extra.group, it.message, backlogEntryOf(&it), true)
		} else {
			take(it.extra.group, it.message, backlogEntry{}, false)
		}
	}
	clear(st.queue[len(stays):])
	st.queue, st.head = stays, 0
	st.dischargeQueue()
	st.inflight = slices.DeleteFunc(st.inflight, func(f inflightMessage) bool {
		if f.message == nil || f.qos != 1 || !mine(f.group) {
			return false
		}
		take(f.group, f.message, f.backlogEntry(), f.counted)
		return true
	})
	if per := st.persistent; per != nil && of != nil {
		for _, e := range per.backlog.take(func(e *backlogEntry) bool { return mine(e.group) && !e.released && !per.backlog.isInflight(e) }) {
			take(e.group, nil, e, true)
		}
	}
	return out
}

// takeAllForRedistribution also takes stored messages, since the session has ended. mu is held.
func (st *sessionState) takeAllForRedistribution() (out []redistribution) {
	for _, s := range st.subs {
		if s.memberOf != nil {
			out = append(out, st.takeForRedistribution(s)...)
		}
	}
	return out
}

// redistribute delivers messages to other members of their groups. Those without a taker go back to
// the session if its client may reconnect.
func (st *sessionState) redistribute(all []redistribution, online bool) {
	if len(all) == 0 {
		return
	}
	w := workBatches.Get().(*workBatch)
	defer workBatches.Put(w)
	defer w.Flush()
	for page := range slices.Chunk(all, fetchMessages) {
		st.fetchRedistributions(page)
		for _, rd := range page {
			rd.session.redistributeOne(w, rd, online)
		}
	}
}

func (st *sessionState) fetchRedistributions(page []redistribution) {
	var es []backlogEntry
	for _, rd := range page {
		if rd.message == nil {
			es = append(es, rd.entry)
		}
	}
	if len(es) == 0 {
		return
	}
	bodies, err := st.loadMessages(es)
	if err != nil {
		st.broker.options.Log.Error("shared messages that wait cannot be read", slog.String("client", st.id), slog.Any("err", err))
		return
	}
	for i := range page {
		if rd := &page[i]; rd.message == nil {
			rd.message = bodies[rd.entry.stored.id]
			rd.writeFailed = rd.message == nil
		}
	}
}

// redistributeOne reports whether another member has the message, or will have it when it is
// committed.
func (st *sessionState) redistributeOne(w *workBatch, rd redistribution, online bool) bool {
	res := bus.Result{Redelivered: true}
	if rd.message == nil || !policy.Match(rd.group.Filter(), rd.message.topic) {
		switch {
		case rd.writeFailed:
			st.redistributed(rd.entry)
		case rd.counted:
			st.undoRedistribution(&rd)
		}
		return rd.writeFailed
	}
	if g := st.tenant.bus.Group(rd.group.Name()); g != nil {
		g.Offer(rd.message, st.number, online, &w.Batch, &res)
	}
	at := st.broker.commitOutcome(&res, nil, nil)
	switch {
	case !rd.counted:
	case res.Receivers == 0:
		st.undoRedistribution(&rd)
	case at == nil:
		st.redistributed(rd.entry)
	default: // it moves when the new copy is committed, not before
		go func() {
			if <-at.ended; at.written() {
				st.redistributed(rd.entry)
			} else {
				st.undoRedistribution(&rd)
				time.AfterFunc(fetchRetryDelay, rd.group.Pull)
			}
		}()
	}
	return res.Receivers > 0
}

// endRedistribution is called once for each message taken. mu is held.
func (st *sessionState) endRedistribution(e backlogEntry) {
	if per := st.persistent; per != nil {
		per.backlog.stopRedistributing(e.seq)
	}
}

// redistributed completes a message that another member has.
func (st *sessionState) redistributed(e backlogEntry) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.endRedistribution(e)
	st.uncountOffline(e.stored, e.seq, int(e.size))
}

// undoRedistribution puts an entry back in its place, unless the session has ended, or the entry
// was not sent and the session has left the group, so that no member may receive it.
func (st *sessionState) undoRedistribution(rd *redistribution) {
	st.mu.Lock()
	defer st.mu.Unlock()
	e, per := rd.entry, st.persistent
	st.endRedistribution(e)
	if per == nil || e.seq <= per.backlog.minSeq || st.subs[rd.group.Name()] == nil && e.seq > per.backlog.lastSent {
		st.uncountOffline(e.stored, e.seq, int(e.size))
		return
	}
	per.backlog.insert(e)
	e.markGroupWaiting(st)
	if c := st.conn; c != nil {
		c.refill()
	}
}
