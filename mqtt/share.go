package mqtt

import (
	"cmp"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/policy"
)

// group is a shared subscription: of its members one gets each message (MQTT 5.0
// §4.8.2).
type group struct {
	name    string           // as clients write the filter
	sub     bus.Subscription // that stands for it in the tree
	members atomic.Pointer[[]*subscription]
	next    atomic.Uint32
	payer   *sessionState                // under the lock of the tree: the member who is charged for it
	waits   atomic.Bool                  // messages may wait for it with members that are away
	holder  atomic.Pointer[sessionState] // with whom the newest of them waits; the next ones go behind it
	pulling atomic.Bool                  // somebody moves them to a member that is there
}

// newGroup returns a group without members, by the filter name, which is $share/group/filter.
func newGroup(name, filter string) *group {
	g := &group{name: name}
	g.sub.Filter, g.sub.Subscriber = filter, g
	return g
}

// Deliver gives a publication to one member; see [bus.Subscriber].
func (g *group) Deliver(x bus.Message, _ []*bus.Subscription, b *bus.Batch, r *bus.Result) {
	if c := g.deliver(messageOf(x), r, nil, false); c != nil {
		b.Touch(c)
	}
}

// Account is that of the member who is charged for the group. The lock of the tree is held.
func (g *group) Account() quota.Key { return g.payer.account() }

// groups is the shared subscriptions of a world.
type groups struct {
	mu  lockrank.Mutex[sharedLock]
	all map[string]*group // by the filter as clients write it
}

// join makes s a member of its group, which is made if there is none. Code: busy.
func (w *world) join(s *subscription, bounded bool) error {
	w.groups.mu.Lock()
	defer w.groups.mu.Unlock()
	g := w.groups.all[s.name]
	if g == nil {
		g = newGroup(s.name, s.Filter)
		g.payer = s.session
		if err := w.bus.Place(&g.sub, groupBytes, bounded); err != nil {
			return err
		}
		if w.groups.all == nil {
			w.groups.all = map[string]*group{}
		}
		w.groups.all[s.name] = g
	}
	s.memberOf = g
	list := []*subscription{s}
	if old := g.members.Load(); old != nil {
		list = append(slices.Clip(*old), s)
	}
	g.members.Store(&list)
	return nil
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
		w.bus.Recharge(&g.sub, groupBytes, func() bool {
			if g.payer != s.session {
				return false
			}
			g.payer = list[0].session
			return true
		})
		return
	}
	g.members.Store(nil)
	delete(w.groups.all, s.name)
	w.bus.Unsubscribe(&g.sub, groupBytes)
}

// deliver gives m to one member: of those with a connection the one that has the least
// to do, in turn where several have; where nobody has one, or older messages wait, to one
// for whom it can wait, unless only who is there will do. not, if not nil, is whom it is not for.
func (g *group) deliver(m *message, o *bus.Result, not *sessionState, there bool) (wake *conn) {
	list := g.members.Load()
	if list == nil {
		return nil
	}
	ms := *list
	from := int(g.next.Add(1))
	var tried [8]*subscription // they had no room, or had just gone
	before := *o
	var full *sessionState // the first that had no room
	var err error
	for n := range tried {
		best := g.choose(ms, from, tried[:n], m, not, there)
		if best == nil {
			break
		}
		o.Err = nil
		if wake = best.session.offer(m, o, g, &best.Subscription); o.Receivers > before.Receivers {
			o.Err = before.Err                     // another of them had no room: that is nothing to anybody
			if wake == nil && g.someoneThere(ms) { // it came after the choice, or had no room
				g.pull()
			}
			return wake
		}
		if bus.IsFull(o.Err) && full == nil {
			full = best.session
		}
		err = cmp.Or(o.Err, err)
		tried[n] = best
	}
	if full != nil && !there {
		full.noRoom()
	}
	o.Err = cmp.Or(err, before.Err)
	return nil
}

func (g *group) someoneThere(ms []*subscription) bool {
	return slices.ContainsFunc(ms, func(s *subscription) bool { return s.session.load.Load() != loadAway })
}

func (g *group) choose(ms []*subscription, from int, tried []*subscription, m *message, not *sessionState, there bool) (best *subscription) {
	holder := g.holder.Load()
	behind := g.waits.Load() || g.pulling.Load() // what waits comes first
	var least int32
	for i := range ms {
		s := ms[(from+i)%len(ms)]
		n := s.session.load.Load()
		if s.session == not || n == loadAway && (there || min(s.qos, m.qos) == 0) || slices.Contains(tried, s) {
			continue
		}
		if n == loadAway && s.session == holder {
			n-- // so that what waits stays in order
		}
		if n >= loadAway-1 && behind {
			n -= loadAway + 1
		}
		if best == nil || n < least {
			best, least = s, n
		}
	}
	return best
}

// groupOf returns the group of that name, or one without members; nil for "".
func (w *world) groupOf(name string) *group {
	if name == "" {
		return nil
	}
	w.groups.mu.Lock()
	defer w.groups.mu.Unlock()
	if g := w.groups.all[name]; g != nil {
		return g
	}
	_, filter, _, err := policy.Share(name)
	if err != nil {
		return nil
	}
	return newGroup(name, filter)
}

// loadAway is the load of a client without a connection: more than of any that has one.
const loadAway = 1 << 30

// weigh says how much the client has to do, if a group may ask. mu is held.
func (st *sessionState) weigh() {
	if !st.grouped {
		return
	}
	if st.conn == nil {
		st.load.Store(loadAway)
		return
	}
	st.load.Store(int32(len(st.queue) - st.head + len(st.flights)))
	if st.takesMore() {
		for _, g := range st.shares {
			g.pull()
		}
	}
}

// orphan is a message of a shared subscription whose member may not come to have it.
type orphan struct {
	session *sessionState // that has it until another does
	g       *group
	m       *message // nil where it is to be fetched from the shelf
	e       entry
	counts  bool // it waits there
	gone    bool // it could not be written when it came: its publisher heard so
}

// orphans takes away what the client has for its groups and has not acknowledged: of
// one subscription, or of all with nil, and then without what waits on the shelf for
// the client's return. QoS 2 that is under way is nobody else's (MQTT 5.0 §4.8.2). What
// waits on the shelf is moving from here on: it is the client's until another has it. mu
// is held.
func (st *sessionState) orphans(of *subscription) (out []orphan) {
	mine := func(g *group) bool { return g != nil && (of == nil || g.name == of.name) }
	take := func(g *group, m *message, e entry, counts bool) {
		out = append(out, orphan{session: st, g: g, m: m, e: e, counts: counts})
		if counts {
			st.lasting.moving = append(st.lasting.moving, e)
		}
	}
	stays := st.queue[:0]
	for i := range st.queue[st.head:] {
		it := st.queue[st.head+i]
		if it.x == nil || !mine(it.x.shared) || it.qos == 2 && st.wasSent(&it) {
			stays = append(stays, it)
			continue
		}
		st.bytes -= it.size()
		if it.x.k != nil {
			take(it.x.shared, it.m, entryOf(&it), true)
		} else {
			take(it.x.shared, it.m, entry{}, false)
		}
	}
	clear(st.queue[len(stays):])
	st.queue, st.head = stays, 0
	st.dischargeQueue()
	st.flights = slices.DeleteFunc(st.flights, func(f flight) bool {
		if f.m == nil || f.qos != 1 || !mine(f.shared) {
			return false
		}
		take(f.shared, f.m, f.entry(), f.counts)
		return true
	})
	if l := st.lasting; l != nil && of != nil {
		l.backlog = slices.DeleteFunc(l.backlog, func(e entry) bool {
			if !mine(e.shared) || e.released || e.qos == 2 && e.seq <= l.sent {
				return false
			}
			take(e.shared, nil, e, true)
			return true
		})
	}
	return out
}

// heirless is orphans of all, with what waits on the shelf: the client will not come. mu
// is held.
func (st *sessionState) heirless() (out []orphan) {
	for _, s := range st.subs {
		if s.memberOf != nil {
			out = append(out, st.orphans(s)...)
		}
	}
	return out
}

// hand gives orphans to other members of their groups, and takes back those that
// nobody takes while the client may come for them.
func (st *sessionState) hand(all []orphan, there bool) {
	if len(all) == 0 {
		return
	}
	w := batchesOfWork.Get().(*batch)
	defer batchesOfWork.Put(w)
	defer w.Flush()
	for page := range slices.Chunk(all, fetchMessages) {
		st.fetchOrphans(page)
		for _, o := range page {
			o.session.handOne(w, o, there)
		}
	}
}

func (st *sessionState) fetchOrphans(page []orphan) {
	var es []entry
	for _, o := range page {
		if o.m == nil {
			es = append(es, o.e)
		}
	}
	if len(es) == 0 {
		return
	}
	bodies, err := st.bodies(es)
	if err != nil {
		st.broker.options.Log.Error("shared messages that wait cannot be read", slog.String("client", st.id), slog.Any("err", err))
		return
	}
	for i := range page {
		if o := &page[i]; o.m == nil {
			o.m = bodies[o.e.k.id]
			o.gone = o.m == nil
		}
	}
}

// handOne reports whether another member has it, or will when it is on the disk.
func (st *sessionState) handOne(w *batch, o orphan, there bool) bool {
	res := bus.Result{Redelivered: true}
	if o.m == nil || !matches(o.g.sub.Filter, o.m.topic) {
		switch {
		case o.gone:
			st.handed(o.e)
		case o.counts:
			st.takeBack(&o)
		}
		return o.gone
	}
	if g := st.world.groupOf(o.g.name); g != nil {
		if wake := g.deliver(o.m, &res, st, there); wake != nil {
			w.Touch(wake)
		}
	}
	at := st.broker.settle(&res, nil, nil)
	switch {
	case !o.counts:
	case res.Receivers == 0:
		st.takeBack(&o)
	case at == nil:
		st.handed(o.e)
	default: // another has it when that is on the disk, and not before
		go func() {
			if <-at.ended; at.over() {
				st.handed(o.e)
			} else {
				st.takeBack(&o)
				time.AfterFunc(fetchRetry, o.g.pull)
			}
		}()
	}
	return res.Receivers > 0
}

// stopMoving is called with mu held, once for each that was moving.
func (st *sessionState) stopMoving(e entry) {
	if l := st.lasting; l != nil {
		l.moving = slices.DeleteFunc(l.moving, func(x entry) bool { return x.seq == e.seq })
	}
}

// handed is for what another member has.
func (st *sessionState) handed(e entry) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.stopMoving(e)
	st.finished(e.k, e.seq, int(e.size))
}

// takeBack lets an entry wait on, in its place, unless the session has ended, or the entry
// was not sent and the client has left the group: no member is left then who may have it.
func (st *sessionState) takeBack(o *orphan) {
	st.mu.Lock()
	defer st.mu.Unlock()
	e, l := o.e, st.lasting
	st.stopMoving(e)
	if l == nil || e.seq <= l.floor || st.subs[o.g.name] == nil && e.seq > l.sent {
		st.finished(e.k, e.seq, int(e.size))
		return
	}
	at, _ := slices.BinarySearchFunc(l.backlog, e.seq, func(x entry, seq int64) int { return cmp.Compare(x.seq, seq) })
	l.backlog = slices.Insert(l.backlog, at, e)
	e.waitsForGroup(st)
	if c := st.conn; c != nil {
		c.refill()
	}
}
