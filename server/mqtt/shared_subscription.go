package mqtt

import (
	"cmp"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/policy"
)

// sharedGroup is a shared subscription: each message is delivered to one of its members (MQTT 5.0 §4.8.2).
type sharedGroup struct {
	name               string           // as clients write the filter
	treeEntry          bus.Subscription // its entry in the tree
	members            atomic.Pointer[[]*subscription]
	next               atomic.Uint32
	chargedMember      *sessionState                // under the lock of the tree: the member that is charged for it
	hasOfflineMessages atomic.Bool                  // offline members may have stored messages of it
	offlineHolder      atomic.Pointer[sessionState] // the offline member that has the newest stored message; later ones are stored for it too
	pulling            atomic.Bool                  // a pull is running
}

// newSharedGroup returns a group without members, by the filter name, which is $share/group/filter.
func newSharedGroup(name, filter string) *sharedGroup {
	g := &sharedGroup{name: name}
	g.treeEntry.Filter, g.treeEntry.Subscriber = filter, g
	return g
}

// Deliver gives a publication to one member; see [bus.Subscriber].
func (g *sharedGroup) Deliver(x bus.Message, _ []*bus.Subscription, b *bus.Batch, r *bus.Result) {
	if c := g.deliverToMember(messageOf(x), r, nil, false); c != nil {
		b.MarkForFlush(c)
	}
}

// Account is that of the member that is charged for the group. The lock of the tree is held.
func (g *sharedGroup) Account() quota.Key { return g.chargedMember.account() }

// sharedGroups holds the shared subscriptions of a tenant.
type sharedGroups struct {
	mu       lockrank.Mutex[sharedLock]
	byFilter map[string]*sharedGroup // by the filter as sent by clients
}

// joinGroup adds s to its group, which is created if necessary. Code: busy.
func (tn *tenant) joinGroup(s *subscription, bounded bool) error {
	tn.groups.mu.Lock()
	defer tn.groups.mu.Unlock()
	g := tn.groups.byFilter[s.clientFilter]
	if g == nil {
		g = newSharedGroup(s.clientFilter, s.Filter)
		g.chargedMember = s.session
		if err := tn.bus.AddSubscription(&g.treeEntry, groupBytes, bounded); err != nil {
			return err
		}
		if tn.groups.byFilter == nil {
			tn.groups.byFilter = map[string]*sharedGroup{}
		}
		tn.groups.byFilter[s.clientFilter] = g
	}
	s.memberOf = g
	list := []*subscription{s}
	if old := g.members.Load(); old != nil {
		list = append(slices.Clip(*old), s)
	}
	g.members.Store(&list)
	return nil
}

func (tn *tenant) leaveGroup(s *subscription) {
	tn.groups.mu.Lock()
	defer tn.groups.mu.Unlock()
	g := s.memberOf
	old := g.members.Load()
	if old == nil {
		return
	}
	list := slices.DeleteFunc(slices.Clone(*old), func(m *subscription) bool { return m == s })
	if len(list) > 0 {
		g.members.Store(&list)
		tn.bus.MoveCharge(&g.treeEntry, groupBytes, func() bool {
			if g.chargedMember != s.session {
				return false
			}
			g.chargedMember = list[0].session
			return true
		})
		return
	}
	g.members.Store(nil)
	delete(tn.groups.byFilter, s.clientFilter)
	tn.bus.Unsubscribe(&g.treeEntry, groupBytes)
}

// deliverToMember delivers m to one member: the connected member with the lowest load, in turn among
// equals; if none is connected, or older messages are stored, to an offline member with room,
// unless online says that only connected members are wanted. not, if not nil, is excluded.
func (g *sharedGroup) deliverToMember(m *message, o *bus.Result, not *sessionState, online bool) (wake *conn) {
	list := g.members.Load()
	if list == nil {
		return nil
	}
	ms := *list
	from := int(g.next.Add(1))
	var tried [8]*subscription // they had no room, or just disconnected
	before := *o
	var full *sessionState // the first one without room
	var err error
	for n := range tried {
		best := g.choose(ms, from, tried[:n], m, not, online)
		if best == nil {
			break
		}
		o.Err = nil
		if wake = best.session.deliver(m, o, g, &best.Subscription); o.Receivers > before.Receivers {
			o.Err = before.Err                  // another member without room is no error
			if wake == nil && g.anyOnline(ms) { // a member connected meanwhile, or had no room
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
	if full != nil && !online {
		full.countDroppedLocking()
	}
	o.Err = cmp.Or(err, before.Err)
	return nil
}

func (g *sharedGroup) anyOnline(ms []*subscription) bool {
	return slices.ContainsFunc(ms, func(s *subscription) bool { return s.session.load.Load() != offlineLoad })
}

func (g *sharedGroup) choose(ms []*subscription, from int, tried []*subscription, m *message, not *sessionState, online bool) (best *subscription) {
	holder := g.offlineHolder.Load()
	behind := g.hasOfflineMessages.Load() || g.pulling.Load() // stored messages come first
	var least int32
	for i := range ms {
		s := ms[(from+i)%len(ms)]
		n := s.session.load.Load()
		if s.session == not || n == offlineLoad && (online || min(s.qos, m.qos) == 0) || slices.Contains(tried, s) {
			continue
		}
		if n == offlineLoad && s.session == holder {
			n-- // so that stored messages stay in order
		}
		if n >= offlineLoad-1 && behind {
			n -= offlineLoad + 1
		}
		if best == nil || n < least {
			best, least = s, n
		}
	}
	return best
}

// findGroup returns the group of that name, or an empty one; nil for "".
func (tn *tenant) findGroup(name string) *sharedGroup {
	if name == "" {
		return nil
	}
	tn.groups.mu.Lock()
	defer tn.groups.mu.Unlock()
	if g := tn.groups.byFilter[name]; g != nil {
		return g
	}
	_, filter, _, err := policy.Share(name)
	if err != nil {
		return nil
	}
	return newSharedGroup(name, filter)
}

// offlineLoad is the load of an offline session, above that of any connected one.
const offlineLoad = 1 << 30

// updateLoad updates the session's load for its groups. mu is held.
func (st *sessionState) updateLoad() {
	if !st.inGroup {
		return
	}
	if st.conn == nil {
		st.load.Store(offlineLoad)
		return
	}
	st.load.Store(int32(len(st.queue) - st.head + len(st.inflight)))
	if st.hasCapacity() {
		for _, g := range st.groups {
			g.pull()
		}
	}
}

// redistribution is a message of a shared subscription that moves from one member to another.
type redistribution struct {
	session     *sessionState // member that has it until another one does
	group       *sharedGroup
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
	mine := func(g *sharedGroup) bool { return g != nil && (of == nil || g.name == of.clientFilter) }
	take := func(g *sharedGroup, m *message, e backlogEntry, counts bool) {
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
	if rd.message == nil || !policy.Match(rd.group.treeEntry.Filter, rd.message.topic) {
		switch {
		case rd.writeFailed:
			st.redistributed(rd.entry)
		case rd.counted:
			st.undoRedistribution(&rd)
		}
		return rd.writeFailed
	}
	if g := st.tenant.findGroup(rd.group.name); g != nil {
		if wake := g.deliverToMember(rd.message, &res, st, online); wake != nil {
			w.MarkForFlush(wake)
		}
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
				time.AfterFunc(fetchRetryDelay, rd.group.pull)
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
	if per == nil || e.seq <= per.backlog.minSeq || st.subs[rd.group.name] == nil && e.seq > per.backlog.lastSent {
		st.uncountOffline(e.stored, e.seq, int(e.size))
		return
	}
	per.backlog.insert(e)
	e.markGroupWaiting(st)
	if c := st.conn; c != nil {
		c.refill()
	}
}
