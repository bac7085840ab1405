package bus

import (
	"cmp"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/policy"
)

// Member is a subscriber that is a member of a [Group]. Its transport implements it. No method is called with a lock of the
// group held; all must be safe for concurrent use.
type Member interface {
	// Load returns how many messages wait to be written to the member or to be acknowledged by it, [OfflineLoad] where it
	// has no connection. It is one atomic load.
	Load() int32
	// Stores reports whether m can be stored for the member while it is offline.
	Stores(m Message) bool
	// Offer is [Subscriber.Deliver] for a message of the group g. A member that has no room adds nothing to r.Receivers.
	Offer(m Message, g *Group, b *Batch, r *Result)
	// CountDropped counts a message of the group that is lost: no member has room for it, and this one was asked first.
	CountDropped()
	// HasCapacity reports whether the member is connected and has few messages that wait, so that it may take those
	// that are stored for offline members.
	HasCapacity() bool
	// MoveStored takes a page of the oldest messages that are stored for offline members of the group, and offers each to
	// the connected ones by [Group.Offer]. It returns how many there were, and how many of them no member took: they stay
	// stored for the member that they were stored for.
	MoveStored(g *Group, members []Member) (taken, refused int)
	// Account is whose memory the subscription takes.
	Account() quota.Key
}

// OfflineLoad is the [Member.Load] of a member without a connection, above that of any connected one.
const OfflineLoad = 1 << 30

// Group is a shared subscription: each message goes to one of its members (MQTT 5.0 §4.8.2). It is one subscriber of the
// bus. It is safe for concurrent use.
type Group struct {
	tenant  *Tenant
	name    string       // as clients write the filter: $share/group/filter
	entry   Subscription // its entry in the tree
	members atomic.Pointer[[]member]
	next    atomic.Uint32 // the member that is looked at first

	charged Member       // under the lock of the tree: the member that is charged for the group
	stored  atomic.Bool  // messages of the group may be stored for offline members
	holder  atomic.Int64 // number of the member with the newest stored message; later ones are stored for it too
	pulling atomic.Bool  // see [Group.Pull]
}

// member is one membership.
type member struct {
	Member
	sub *Subscription
}

// GroupBytes is the memory of a group beside its members and tree levels, with its entry in the map of groups and in the
// tree.
const GroupBytes = int64(unsafe.Sizeof(Group{})) + 40 + 64

// groups holds the shared subscriptions of a tenant.
type groups struct {
	mu     lockrank.Mutex[groupsLock]
	byName map[string]*Group
}

func newGroup(t *Tenant, name, filter string) *Group {
	g := &Group{tenant: t, name: name}
	g.entry.Filter, g.entry.Subscriber, g.entry.authority = filter, g, membersDecide{}
	return g
}

// membersDecide is the authority of a group: each member has its own, which is asked when a member is chosen.
type membersDecide struct{}

func (membersDecide) AuthorityVersion() uint64         { return 1 }
func (membersDecide) Subscribe(string) policy.Decision { return policy.Decision{Allowed: true} }

// JoinGroup makes s, whose authority is a, the membership of m in the group name, which is $share/group/filter. The group is
// created if necessary. bytes is what s takes of memory. Limits do not refuse it where it is not bounded. Code: busy.
func (t *Tenant) JoinGroup(name string, s *Subscription, m Member, a Authority, bytes int64, bounded bool) (*Group, error) {
	s.authority, s.name = a, name
	if !bounded {
		t.bus.subscribed.Add(m.Account(), bytes)
	} else if err := t.bus.subscribed.Reserve(m.Account(), bytes); err != nil {
		return nil, err
	}
	t.groups.mu.Lock()
	defer t.groups.mu.Unlock()
	g := t.groups.byName[name]
	if g == nil {
		g = newGroup(t, name, s.Filter)
		g.charged = m
		if err := t.add(&g.entry, GroupBytes, bounded); err != nil {
			t.bus.subscribed.Release(m.Account(), bytes)
			return nil, err
		}
		if t.groups.byName == nil {
			t.groups.byName = map[string]*Group{}
		}
		t.groups.byName[name] = g
	}
	list := []member{{m, s}}
	if old := g.members.Load(); old != nil {
		list = append(slices.Clip(*old), list...)
	}
	g.members.Store(&list)
	return g, nil
}

// LeaveGroup undoes JoinGroup. A message that is being delivered may still be offered to the member. bytes is as in JoinGroup.
func (t *Tenant) LeaveGroup(g *Group, s *Subscription, bytes int64) {
	t.groups.mu.Lock()
	defer t.groups.mu.Unlock()
	old := g.members.Load()
	if old == nil {
		return
	}
	at := slices.IndexFunc(*old, func(m member) bool { return m.sub == s })
	if at < 0 {
		return
	}
	left := (*old)[at].Member
	t.bus.subscribed.Release(left.Account(), bytes)
	list := slices.Delete(slices.Clone(*old), at, at+1)
	if len(list) > 0 {
		g.members.Store(&list)
		t.MoveCharge(&g.entry, GroupBytes, func() bool {
			if g.charged != left {
				return false
			}
			g.charged = list[0].Member
			return true
		})
		return
	}
	g.members.Store(nil)
	delete(t.groups.byName, g.name)
	t.Unsubscribe(&g.entry, GroupBytes)
}

// Group returns the group of that name, or one without members; nil where name is not that of a shared subscription.
func (t *Tenant) Group(name string) *Group {
	t.groups.mu.Lock()
	defer t.groups.mu.Unlock()
	if g := t.groups.byName[name]; g != nil {
		return g
	}
	_, filter, shared, err := policy.Share(name)
	if err != nil || !shared {
		return nil
	}
	return newGroup(t, name, filter)
}

// Name returns the filter as clients write it: $share/group/filter.
func (g *Group) Name() string { return g.name }

// Filter returns the filter without $share/group/.
func (g *Group) Filter() string { return g.entry.Filter }

// Levels returns how many bytes of the tree's levels are charged for the group.
func (g *Group) Levels() int64 { return g.entry.Levels() }

// Account is that of the member who is charged for the group. The lock of the tree is held.
func (g *Group) Account() quota.Key { return g.charged.Account() }

// Deliver gives a publication to one member; see [Subscriber].
func (g *Group) Deliver(m Message, _ []*Subscription, b *Batch, r *Result) {
	g.Offer(m, 0, false, b, r)
}

// mostOffers is to how many members a message is offered: those before the last had no room, or were disconnected at that
// moment.
const mostOffers = 8

// Offer gives m to one member, which r says: the connected member with the lowest load, in turn among equals; if none is
// connected, or older messages are stored, an offline member with room, unless connectedOnly. The member with the number
// except is not asked; 0 is none. A message that is redistributed is offered so too.
func (g *Group) Offer(m Message, except int64, connectedOnly bool, b *Batch, r *Result) {
	list := g.members.Load()
	if list == nil {
		return
	}
	from := int(g.next.Add(1))
	var tried [mostOffers]*Subscription
	before, flushes := *r, len(b.toFlush)
	var full Member // the first one without room
	var err error
	for n := range tried {
		best := g.choose(*list, from, tried[:n], m, except, connectedOnly)
		if best == nil {
			break
		}
		r.Err = nil
		if best.Offer(m, g, b, r); r.Receivers > before.Receivers {
			r.Err = before.Err                                      // another member without room is no error
			if len(b.toFlush) == flushes && g.anyConnected(*list) { // a member connected meanwhile, or had no room
				g.Pull()
			}
			return
		}
		if IsFull(r.Err) && full == nil {
			full = best.Member
		}
		err = cmp.Or(r.Err, err)
		tried[n] = best.sub
	}
	if full != nil && !connectedOnly {
		full.CountDropped()
	}
	r.Err = cmp.Or(err, before.Err)
}

func (g *Group) anyConnected(list []member) bool {
	return slices.ContainsFunc(list, func(m member) bool { return m.Load() != OfflineLoad })
}

// choose returns the member that m is offered to next, nil for none.
func (g *Group) choose(list []member, from int, tried []*Subscription, m Message, except int64, connectedOnly bool) (best *member) {
	holder := g.holder.Load()
	behind := g.stored.Load() || g.pulling.Load() // stored messages come first
	var least int32
	for i := range list {
		x := &list[(from+i)%len(list)]
		n := x.Load()
		if best != nil && n >= least && n < OfflineLoad-1 { // connected, and not better: nothing below changes that
			continue
		}
		if except != 0 && x.sub.Number == except || slices.Contains(tried, x.sub) {
			continue
		}
		if n == OfflineLoad && (connectedOnly || !x.Stores(m)) {
			continue
		}
		if n == OfflineLoad && x.sub.Number == holder {
			n-- // so that stored messages stay in order
		}
		if n >= OfflineLoad-1 && behind {
			n -= OfflineLoad + 1
		}
		if (best == nil || n < least) && x.sub.mayRead() {
			best, least = x, n
		}
	}
	return best
}
