package mqtt

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
)

// group is a shared subscription: of its members one gets each message (MQTT 5.0
// §4.8.2).
type group struct {
	sub     *subscription // that stands for it in the tree
	members atomic.Pointer[[]*subscription]
	next    atomic.Uint32
}

// groups is the shared subscriptions of a world.
type groups struct {
	mu  sync.Mutex        // of who changes them; the tree's is locked under it
	all map[string]*group // by the filter as clients write it
}

func (w *world) join(s *subscription) {
	w.groups.mu.Lock()
	defer w.groups.mu.Unlock()
	g := w.groups.all[s.name]
	if g == nil {
		g = &group{}
		g.sub = &subscription{name: s.name, filter: s.filter, group: g}
		if w.groups.all == nil {
			w.groups.all = map[string]*group{}
		}
		w.groups.all[s.name] = g
		w.tree.add(s.filter, g.sub)
	}
	s.memberOf = g
	list := []*subscription{s}
	if old := g.members.Load(); old != nil {
		list = append(slices.Clip(*old), s)
	}
	g.members.Store(&list)
}

func (w *world) part(s *subscription) {
	w.groups.mu.Lock()
	defer w.groups.mu.Unlock()
	g := s.memberOf
	old := g.members.Load()
	if old == nil {
		return
	}
	list := slices.DeleteFunc(slices.Clone(*old), func(m *subscription) bool { return m == s })
	if len(list) > 0 {
		g.members.Store(&list)
		return
	}
	g.members.Store(nil)
	delete(w.groups.all, s.name)
	w.tree.remove(s.filter, g.sub)
}

// deliver gives m to one member: of those with a connection the one that has the least
// to do, in turn where several have; where nobody has one, to one for whom it can wait,
// unless only who is there will do. not, if not nil, is whom it is not for.
func (g *group) deliver(m *message, o *outcome, not *client, there bool) (wake *conn) {
	list := g.members.Load()
	if list == nil {
		return nil
	}
	ms := *list
	from := int(g.next.Add(1))
	for range 3 { // the one that was chosen may just have gone
		var best *subscription
		var least int32
		for i := range ms {
			s := ms[(from+i)%len(ms)]
			n := s.client.load.Load()
			if s.client == not || n == loadAway && (there || min(s.qos, m.qos) == 0) {
				continue
			}
			if best == nil || n < least {
				best, least = s, n
			}
		}
		if best == nil {
			return nil
		}
		before := o.heard
		if wake = best.client.offer(m, o, g, best); o.heard > before || o.err != nil {
			return wake
		}
		from++
	}
	return nil
}

// loadAway is the load of a client without a connection: more than of any that has one.
const loadAway = 1 << 30

// weigh says how much the client has to do. mu is held.
func (cl *client) weigh() {
	if cl.conn == nil {
		cl.load.Store(loadAway)
		return
	}
	cl.load.Store(int32(len(cl.queue) - cl.head + len(cl.flights)))
}

// orphan is a message of a shared subscription whose member may not come to have it.
type orphan struct {
	g      *group
	m      *message // nil where it is to be fetched from the shelf
	e      entry
	counts bool // it waits there
}

// orphans takes away what the client has for its groups and has not acknowledged: of
// one subscription, or of all with nil, and then without what waits on the shelf for
// the client's return. QoS 2 that is under way is nobody else's (MQTT 5.0 §4.8.2). mu
// is held.
func (cl *client) orphans(of *subscription) (out []orphan) {
	mine := func(g *group) bool { return g != nil && (of == nil || g == of.memberOf) }
	stays := cl.queue[:0]
	for i := range cl.queue[cl.head:] {
		it := cl.queue[cl.head+i]
		if it.x == nil || !mine(it.x.shared) {
			stays = append(stays, it)
			continue
		}
		cl.bytes -= it.m.size()
		o := orphan{g: it.x.shared, m: it.m, counts: it.x.k != nil}
		if o.counts {
			o.e = entryOf(&it)
		}
		out = append(out, o)
	}
	clear(cl.queue[len(stays):])
	cl.queue, cl.head = stays, 0
	cl.flights = slices.DeleteFunc(cl.flights, func(f flight) bool {
		if f.m == nil || f.qos != 1 || !mine(f.shared) {
			return false
		}
		out = append(out, orphan{g: f.shared, m: f.m, counts: f.counts, e: f.entry()})
		return true
	})
	if l := cl.lasting; l != nil && of != nil {
		l.backlog = slices.DeleteFunc(l.backlog, func(e entry) bool {
			if !e.shared || e.released || e.qos == 2 && e.seq <= l.sent {
				return false
			}
			out = append(out, orphan{g: of.memberOf, e: e, counts: true})
			return true
		})
	}
	return out
}

// hand gives orphans to other members of their groups, and takes back those that
// nobody takes while the client may come for them.
func (cl *client) hand(all []orphan, there bool) {
	if len(all) == 0 {
		return
	}
	w := batchesOfWork.Get().(*batch)
	defer batchesOfWork.Put(w)
	defer w.flush()
	for page := range slices.Chunk(all, fetchMessages) {
		cl.fetchOrphans(page)
		for _, o := range page {
			if o.m != nil && matches(o.g.sub.filter, o.m.topic) {
				cl.handOne(w, o, there)
			} else if o.counts {
				cl.takeBack(o.e)
			}
		}
	}
}

func (cl *client) fetchOrphans(page []orphan) {
	var es []entry
	for _, o := range page {
		if o.m == nil {
			es = append(es, o.e)
		}
	}
	if len(es) == 0 {
		return
	}
	bodies, err := cl.bodies(es)
	if err != nil {
		cl.broker.o.Log.Error("shared messages that wait cannot be read", slog.String("client", cl.id), slog.Any("err", err))
		return
	}
	for i := range page {
		if it, ok := bodies[page[i].e.seq]; ok && page[i].m == nil {
			page[i].m = it.m
		}
	}
}

func (cl *client) handOne(w *batch, o orphan, there bool) {
	var res outcome
	if wake := o.g.deliver(o.m, &res, cl, there); wake != nil {
		w.touched = append(w.touched, wake)
	}
	if res.heard == 0 && o.counts {
		cl.takeBack(o.e)
		return
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if !o.counts {
		cl.broker.settle(&res, nil, nil)
		return
	}
	// Who gets it has it on the disk no later than it is gone here.
	cl.broker.settle(&res, cl, nil)
	cl.finished(o.e.k, o.e.seq, int(o.e.size))
}

// takeBack lets an entry wait on, in its place.
func (cl *client) takeBack(e entry) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.over {
		cl.finished(e.k, e.seq, int(e.size))
		return
	}
	l := cl.lasting
	at, _ := slices.BinarySearchFunc(l.backlog, e.seq, func(x entry, seq int64) int { return cmp.Compare(x.seq, seq) })
	l.backlog = slices.Insert(l.backlog, at, e)
}
