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

// waitsForGroup notes that an entry of a client that is away waits for its group.
func (e *entry) waitsForGroup(with *sessionState) {
	if e.shared != nil {
		e.shared.holder.Store(with)
		e.shared.waits.Store(true)
	}
}

// takesMore reports whether the client is there and has little to do: what waits for its
// groups may be its. mu is held.
func (st *sessionState) takesMore() bool {
	c, o := st.conn, &st.broker.options
	if c == nil || c.out.closed || !c.out.ready || st.over || len(st.queue)-st.head+len(st.flights) > min(queueAhead, o.QueueMessages)/2 || st.bytes > o.QueueBytes/2 {
		return false
	}
	l := st.lasting
	return l == nil || len(l.backlog) == 0 && l.waiting <= o.QueueMessages/2 && l.weight <= o.QueueBytes/2
}

// pull begins to move what waits for the group to members that are there. Anybody may
// call it.
func (g *group) pull() {
	if g.waits.Load() && g.pulling.CompareAndSwap(false, true) {
		go g.pullAll()
	}
}

func (g *group) pullAll() {
	for {
		moved, err := g.pullPage()
		if moved {
			continue
		}
		g.pulling.Store(false)
		if err != nil { // it cannot be read, or kept with another member, at this moment
			time.AfterFunc(fetchRetry, g.pull)
			return
		}
		// Who came to have room meanwhile found somebody at it.
		if !g.waits.Load() || g.taker() == nil || !g.pulling.CompareAndSwap(false, true) {
			return
		}
	}
}

// taker returns a member that takes more, nil for none.
func (g *group) taker() *sessionState {
	list := g.members.Load()
	if list == nil {
		return nil
	}
	for _, s := range *list {
		s.session.mu.Lock()
		takes := !s.dead && s.session.takesMore()
		s.session.mu.Unlock()
		if takes {
			return s.session
		}
	}
	return nil
}

// errNotTaken is where members that are there did not take what they have room for.
var errNotTaken = errors.New("not taken")

// pullPage moves one page, and reports whether there was one. An error says that not all
// of it found a member.
func (g *group) pullPage() (moved bool, err error) {
	to := g.taker()
	if to == nil {
		return false, nil
	}
	g.waits.Store(false) // before the look: what comes after it is seen by the next one
	page := g.oldest()
	if len(page) == 0 {
		return false, nil
	}
	g.waits.Store(true) // there may be more
	w := batchesOfWork.Get().(*batch)
	defer batchesOfWork.Put(w)
	defer w.Flush()
	to.fetchOrphans(page)
	for _, o := range page {
		if !o.session.handOne(w, o, true) {
			err = errNotTaken
		}
	}
	return err == nil, err
}

// oldest takes the oldest messages that wait with members that are away: they are moving
// from here on, see [sessionState.orphans].
func (g *group) oldest() (page []orphan) {
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
		for _, e := range s.session.awayBacklog() {
			if g.mayTake(s.session, &e) {
				all = append(all, waiting{e.k.id, int64(e.size)})
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
	most, room := min(fetchMessages, max(o.QueueMessages/4, 1)), int64(min(fetchBytes, o.QueueBytes/4))
	n := 0
	for n < len(all) && n < most && (n == 0 || room >= all[n].size) {
		room -= all[n].size
		n++
	}
	last := all[n-1].id
	for _, s := range members {
		st := s.session
		st.mu.Lock()
		if len(st.awayBacklog()) > 0 {
			l := st.lasting
			l.backlog = slices.DeleteFunc(l.backlog, func(e entry) bool {
				if e.k == nil || e.k.id > last || !g.mayTake(st, &e) {
					return false
				}
				page = append(page, orphan{session: st, g: e.shared, e: e, counts: true})
				l.moving = append(l.moving, e)
				return true
			})
		}
		st.mu.Unlock()
	}
	slices.SortFunc(page, func(a, b orphan) int { return cmp.Compare(a.e.k.id, b.e.k.id) })
	return page
}

// awayBacklog is what waits with a client that is away; nil for one that is not. mu is held.
func (st *sessionState) awayBacklog() []entry {
	if st.lasting == nil || st.conn != nil || st.over {
		return nil
	}
	return st.lasting.backlog
}

// mayTake reports whether an entry of a client is the group's, and may be another's: not
// with QoS 2 that is under way (MQTT 5.0 §4.8.2). The client's mu is held.
func (g *group) mayTake(st *sessionState, e *entry) bool {
	return e.k != nil && e.shared != nil && e.shared.name == g.name && !e.released && !(e.qos == 2 && e.seq <= st.lasting.sent)
}
