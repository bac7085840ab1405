package mqtt

import (
	"cmp"
	"slices"

	"github.com/watchword-iot/watchword/server/bus"
)

// Messages of a shared subscription without a connected member are stored, each for one offline
// member within its quota. They belong to the group: a connected member with room gets them, oldest
// first, a page at a time. A message stays with the offline member until the copy for the other
// member is committed.

// markGroupWaiting records that an offline session has a stored message of its group.
func (e *backlogEntry) markGroupWaiting(with *sessionState) {
	if e.group != nil {
		e.group.MarkStored(with.number)
	}
}

// hasCapacity reports whether the session is connected and has few queued messages, so that it may
// take stored messages of its groups. mu is held.
func (st *sessionState) hasCapacity() bool {
	c, o := st.conn, &st.broker.options
	if c == nil || c.out.closed || !c.out.connackSent || st.removed || len(st.queue)-st.head+len(st.inflight) > min(queueWindow, o.QueueMessages)/2 || st.queuedBytes > o.QueueBytes/2 {
		return false
	}
	per := st.persistent
	return per == nil || len(per.backlog.entries) == 0 && !per.backlog.halfFull(o)
}

// MoveStored moves a page of messages; see [bus.Member].
func (s *subscription) MoveStored(g *bus.Group, members []bus.Member) (taken, refused int) {
	page := takeOldest(g, members)
	if len(page) == 0 {
		return 0, 0
	}
	w := workBatches.Get().(*workBatch)
	defer workBatches.Put(w)
	defer w.Flush()
	s.session.fetchRedistributions(page)
	for _, rd := range page {
		if !rd.session.redistributeOne(w, rd, true) {
			refused++
		}
	}
	return len(page), refused
}

// takeOldest takes the oldest messages stored for offline members, all of them subscriptions of this package, for
// redistribution; see
// [sessionState.takeForRedistribution].
func takeOldest(g *bus.Group, members []bus.Member) (page []redistribution) {
	type waiting struct{ id, size int64 }
	var all []waiting
	for _, m := range members {
		st, n := m.(*subscription).session, 0
		st.mu.Lock()
		for _, e := range st.offlineBacklog() {
			if mayTake(g, st, &e) {
				all = append(all, waiting{e.stored.id, int64(e.size)})
				if n++; n == fetchMessages {
					break
				}
			}
		}
		st.mu.Unlock()
	}
	if len(all) == 0 {
		return nil
	}
	slices.SortFunc(all, func(a, b waiting) int { return cmp.Compare(a.id, b.id) })
	o := &members[0].(*subscription).session.broker.options
	limit, room := min(fetchMessages, max(o.QueueMessages/4, 1)), int64(min(fetchBytes, o.QueueBytes/4))
	n := 0
	for n < len(all) && n < limit && (n == 0 || room >= all[n].size) {
		room -= all[n].size
		n++
	}
	last := all[n-1].id
	for _, m := range members {
		st := m.(*subscription).session
		st.mu.Lock()
		if len(st.offlineBacklog()) > 0 {
			b := &st.persistent.backlog
			for _, e := range b.take(func(e *backlogEntry) bool { return e.stored != nil && e.stored.id <= last && mayTake(g, st, e) }) {
				page = append(page, redistribution{session: st, group: e.group, entry: e, counted: true})
				b.startRedistributing(e)
			}
		}
		st.mu.Unlock()
	}
	slices.SortFunc(page, func(a, b redistribution) int { return cmp.Compare(a.entry.stored.id, b.entry.stored.id) })
	return page
}

// offlineBacklog returns the backlog of an offline session; nil if it is connected. mu is held.
func (st *sessionState) offlineBacklog() []backlogEntry {
	if st.persistent == nil || st.conn != nil || st.removed {
		return nil
	}
	return st.persistent.backlog.entries
}

// mayTake reports whether an entry belongs to the group and may move to another member: not a QoS 2
// message in progress (MQTT 5.0 §4.8.2). The session's mu is held.
func mayTake(g *bus.Group, st *sessionState, e *backlogEntry) bool {
	return e.stored != nil && e.group != nil && e.group.Name() == g.Name() && !e.released && !st.persistent.backlog.isInflight(e)
}
