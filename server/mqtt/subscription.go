package mqtt

import (
	"slices"

	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// subscription is one filter of one client, which is its subscriber on the bus. What may change is under the
// client's mu.
type subscription struct {
	bus.Subscription // Filter is name without $share/group/

	session           *sessionState
	clientFilter      string // filter as the client sent it
	qos               byte
	noLocal           bool
	retainAsPublished bool
	identifier        uint32 // 0: none
	removed           bool
	liveTopics        map[string]struct{} // topics received since a retained delivery began; else nil

	memberOf *bus.Group // for shared subscriptions
}

// AuthorityVersion is [bus.Authority]'s, as Subscribe is.
func (st *sessionState) AuthorityVersion() uint64 {
	if a := st.readAuthority(); a != nil {
		return a.Serial()
	}
	return authorityUnknown
}

// authorityUnknown is the version of no authority; those of [session.Authority.Serial] are above it.
const authorityUnknown = 1

// Subscribe decides on a filter by the authority of the connection, after its end by that of the offline session. Where
// neither is known, as after a restart, messages are stored; they are checked when they are sent.
func (st *sessionState) Subscribe(filter string) policy.Decision {
	if a := st.readAuthority(); a != nil {
		return a.Subscribe(filter)
	}
	return policy.Decision{Allowed: true}
}

// readAuthority returns the authority under which the subscriptions are read, nil where it is not known.
func (st *sessionState) readAuthority() *session.Authority {
	if s := st.reads.Load(); s != nil {
		return s.Authority()
	}
	return nil
}

// newSubscription returns a subscription of st by the filter name, which is without $share/group/.
func newSubscription(st *sessionState, name, filter string) *subscription {
	s := &subscription{session: st, clientFilter: name}
	s.Filter, s.Subscriber, s.Number = filter, s, st.number
	return s
}

// options returns the Subscription Options byte (MQTT 5.0 §3.8.3.1).
func (s *subscription) options() byte {
	o := s.qos
	if s.noLocal {
		o |= 4
	}
	if s.retainAsPublished {
		o |= 8
	}
	return o
}

// Account is that of the session's subject.
func (s *subscription) Account() quota.Key { return s.session.account() }

// Deliver queues a publication for the session; subs are its own. See [bus.Subscriber].
func (s *subscription) Deliver(x bus.Message, subs []*bus.Subscription, b *bus.Batch, r *bus.Result) {
	if c := s.session.deliver(messageOf(x), r, nil, subs...); c != nil {
		b.MarkForFlush(c)
	}
}

// addSubscription adds a subscription. bounded is false for existing ones, which are not limited.
// Code: busy, where a quota is used up. mu is held.
func (st *sessionState) addSubscription(s *subscription, shared, bounded bool) error {
	if err := st.tenant.joinBus(s, shared, bounded); err != nil {
		return err
	}
	if st.subs == nil {
		st.subs = map[string]*subscription{}
	}
	st.subs[s.clientFilter] = s
	if shared {
		st.inGroup = true
		st.groups = append(st.groups, s.memberOf)
		st.updateLoad()
	}
	if st.persistent != nil {
		st.persistent.rowChanged.changeFilter(s.clientFilter)
	}
	st.broker.stats.subscriptions.Add(1)
	return nil
}

// replaceSubscription replaces a subscription with the same filter without a gap (MQTT 5.0 §3.8.4).
// mu is held.
func (st *sessionState) replaceSubscription(old, s *subscription) {
	old.qos, old.noLocal, old.retainAsPublished, old.identifier = s.qos, s.noLocal, s.retainAsPublished, s.identifier
	if st.persistent != nil {
		st.persistent.rowChanged.changeFilter(s.clientFilter)
	}
}

// removeSubscription removes a subscription. Messages queued by it are still sent, unless dropped
// too. mu is held.
func (st *sessionState) removeSubscription(s *subscription) {
	s.removed = true
	delete(st.subs, s.clientFilter)
	st.tenant.leaveBus(s)
	if g := s.memberOf; g != nil {
		st.groups = slices.DeleteFunc(st.groups, func(x *bus.Group) bool { return x == g })
	}
	if st.persistent != nil {
		st.persistent.rowChanged.changeFilter(s.clientFilter)
	}
	st.broker.stats.subscriptions.Add(-1)
}

// removeAllSubscriptions removes all subscriptions. mu is held.
func (st *sessionState) removeAllSubscriptions() {
	for _, s := range st.subs {
		st.removeSubscription(s)
	}
	st.subs = nil
}

// removeDeniedSubscriptions removes the subscriptions that a does not allow, and the messages
// received by them only. It returns their filters. mu is held.
func (st *sessionState) removeDeniedSubscriptions(a *session.Authority) (lost []string, redistributions []redistribution) {
	for name, s := range st.subs {
		if a.Subscribe(name).Allowed {
			continue
		}
		lost = append(lost, name)
		st.removeSubscription(s)
		if s.memberOf != nil {
			redistributions = append(redistributions, st.takeForRedistribution(s)...)
		}
		if per := st.persistent; per != nil {
			per.losses.add(s.Filter, st.lastSeq)
			st.markChanged()
		}
	}
	if len(lost) > 0 {
		st.dropQueued(func(it *queuedMessage) bool {
			return it.subscription != nil && it.subscription.removed && !st.stillSubscribed(it) || it.subscription == nil && st.isFromLostSubscription(it.message.topic, it.sequence()) && !st.stillSubscribed(it)
		})
	}
	if st.head < len(st.queue) { // received by a subscription that the client unsubscribed
		st.dropQueued(func(it *queuedMessage) bool {
			return (it.subscription == nil || it.subscription.removed) && it.message.unicast == nil && !a.Subscribe(it.message.topic).Allowed
		})
	}
	return lost, redistributions
}

// isFromLostSubscription reports whether a stored message was received by a subscription lost since. mu is
// held.
func (st *sessionState) isFromLostSubscription(topic string, seq int64) bool {
	return st.persistent.losses.affects(topic, seq)
}

// stillSubscribed reports whether a queued message matches another subscription. mu is held.
func (st *sessionState) stillSubscribed(it *queuedMessage) bool {
	if it.message.command() > 0 {
		return false
	}
	for _, s := range st.subs {
		if policy.Match(s.Filter, it.message.topic) {
			it.subscription = s
			return true
		}
	}
	return false
}
