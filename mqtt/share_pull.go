package mqtt

import (
	"cmp"
	"errors"
	"slices"
	"time"
)

// What waits for a group lies with members that are away, each message with one of them,
// within the bounds of its session. It is the group's: whoever is there and has room gets
// it, oldest first, a page at a time. Until another member has a message on the disk, it
// stays with the one that it lay with.

// markGroupWaiting notes that an entry of a client that is away waits for its group.
func (e *backlogEntry) markGroupWaiting(with *sessionState) {
	if e.group != nil {
		e.group.offlineHolder.Store(with)
		e.group.hasOfflineMessages.Store(true)
	}
}

// hasCapacity reports whether the client is there and has little to do: what waits for its
// groups may be its. mu is held.
func (st *sessionState) hasCapacity() bool {
	c, o := st.conn, &st.broker.options
	if c == nil || c.out.closed || !c.out.connackSent || st.removed || len(st.queue)-st.head+len(st.inflight) > min(queueWindow, o.QueueMessages)/2 || st.queuedBytes > o.QueueBytes/2 {
		return false
	}
	per := st.persistent
	return per == nil || len(per.backlog.entries) == 0 && !per.backlog.halfFull(o)
}

// pull begins to move what waits for the group to members that are there. Anybody may
// call it.
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
		if err != nil { // it cannot be read, or kept with another member, at this moment
			time.AfterFunc(fetchRetryDelay, g.pull)
			return
		}
		// Who came to have room meanwhile found somebody at it.
		if !g.hasOfflineMessages.Load() || g.memberWithCapacity() == nil || !g.pulling.CompareAndSwap(false, true) {
			return
		}
	}
}

// memberWithCapacity returns a member that takes more, nil for none.
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

// errNoMember is where members that are there did not take what they have room for.
var errNoMember = errors.New("not taken")

// pullPage moves one page, and reports whether there was one. An error says that not all
// of it found a member.
func (g *sharedGroup) pullPage() (moved bool, err error) {
	to := g.memberWithCapacity()
	if to == nil {
		return false, nil
	}
	g.hasOfflineMessages.Store(false) // before the look: what comes after it is seen by the next one
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

// takeOldest takes the oldest messages that wait with members that are away: they are moving
// from here on, see [sessionState.takeForRedistribution].
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

// offlineBacklog is what waits with a client that is away; nil for one that is not. mu is held.
func (st *sessionState) offlineBacklog() []backlogEntry {
	if st.persistent == nil || st.conn != nil || st.removed {
		return nil
	}
	return st.persistent.backlog.entries
}

// mayTake reports whether an entry of a client is the group's, and may be another's: not
// with QoS 2 that is under way (MQTT 5.0 §4.8.2). The client's mu is held.
func (g *sharedGroup) mayTake(st *sessionState, e *backlogEntry) bool {
	return e.stored != nil && e.group != nil && e.group.name == g.name && !e.released && !st.persistent.backlog.isUnderWay(e)
}
