package mqtt

import (
	"cmp"
	"errors"
	"slices"
	"time"
)

// Messages of a shared subscription without a connected member are stored, each for one offline
// member within its quota. They belong to the group: a connected member with room gets them, oldest
// first, a page at a time. A message stays with the offline member until the copy for the other
// member is committed.

// markGroupWaiting records that an offline session has a stored message of its group.
func (e *backlogEntry) markGroupWaiting(with *sessionState) {
	if e.group != nil {
		e.group.offlineHolder.Store(with)
		e.group.hasOfflineMessages.Store(true)
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

// pull starts moving stored messages of the group to connected members. It is safe for concurrent
// use.
func (g *sharedGroup) pull() {
	if g.hasOfflineMessages.Load() && g.pulling.CompareAndSwap(false, true) {
		go g.pullAll()
	}
}

func (g *sharedGroup) pullAll() {
	for {
		moved, err := g.pullPage()
		if moved {
			continue
		}
		g.pulling.Store(false)
		if err != nil { // the message cannot be read or stored for another member now
			time.AfterFunc(fetchRetryDelay, g.pull)
			return
		}
		// A member that got room meanwhile did not start pulling, since a pull was running.
		if !g.hasOfflineMessages.Load() || g.memberWithCapacity() == nil || !g.pulling.CompareAndSwap(false, true) {
			return
		}
	}
}

// memberWithCapacity returns a member with capacity, nil for none.
func (g *sharedGroup) memberWithCapacity() *sessionState {
	list := g.members.Load()
	if list == nil {
		return nil
	}
	for _, s := range *list {
		s.session.mu.Lock()
		takes := !s.removed && s.session.hasCapacity()
		s.session.mu.Unlock()
		if takes {
			return s.session
		}
	}
	return nil
}

// errNoMember says that connected members did not accept a message.
var errNoMember = errors.New("not taken")

// pullPage moves one page, and reports whether there was one. An error means that some messages
// found no member.
func (g *sharedGroup) pullPage() (moved bool, err error) {
	to := g.memberWithCapacity()
	if to == nil {
		return false, nil
	}
	g.hasOfflineMessages.Store(false) // before the search: later messages are found by the next one
	page := g.takeOldest()
	if len(page) == 0 {
		return false, nil
	}
	g.hasOfflineMessages.Store(true) // there may be more
	w := workBatches.Get().(*workBatch)
	defer workBatches.Put(w)
	defer w.Flush()
	to.fetchRedistributions(page)
	for _, rd := range page {
		if !rd.session.redistributeOne(w, rd, true) {
			err = errNoMember
		}
	}
	return err == nil, err
}

// takeOldest takes the oldest messages stored for offline members for redistribution, see
// [sessionState.takeForRedistribution].
func (g *sharedGroup) takeOldest() (page []redistribution) {
	list := g.members.Load()
	if list == nil {
		return nil
	}
	type waiting struct{ id, size int64 }
	var all []waiting
	members := slices.Clone(*list)
	for _, s := range members {
		n := 0
		s.session.mu.Lock()
		for _, e := range s.session.offlineBacklog() {
			if g.mayTake(s.session, &e) {
				all = append(all, waiting{e.stored.id, int64(e.size)})
				if n++; n == fetchMessages {
					break
				}
			}
		}
		s.session.mu.Unlock()
	}
	if len(all) == 0 {
		return nil
	}
	slices.SortFunc(all, func(a, b waiting) int { return cmp.Compare(a.id, b.id) })
	o := &members[0].session.broker.options
	limit, room := min(fetchMessages, max(o.QueueMessages/4, 1)), int64(min(fetchBytes, o.QueueBytes/4))
	n := 0
	for n < len(all) && n < limit && (n == 0 || room >= all[n].size) {
		room -= all[n].size
		n++
	}
	last := all[n-1].id
	for _, s := range members {
		st := s.session
		st.mu.Lock()
		if len(st.offlineBacklog()) > 0 {
			b := &st.persistent.backlog
			for _, e := range b.take(func(e *backlogEntry) bool { return e.stored != nil && e.stored.id <= last && g.mayTake(st, e) }) {
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
func (g *sharedGroup) mayTake(st *sessionState, e *backlogEntry) bool {
	return e.stored != nil && e.group != nil && e.group.name == g.name && !e.released && !st.persistent.backlog.isInflight(e)
}
