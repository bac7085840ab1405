package bus

import (
	"context"
	"sync/atomic"

	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/policy"
)

// Subscriber is the receiver of a subscription.
type Subscriber interface {
	// Deliver takes m, once for all subscriptions of the subscriber that match its topic, adds to r what became of it, and
	// puts what is to be flushed into b. It must not wait, nor publish, and keeps neither subs nor b nor r.
	Deliver(m Message, subs []*Subscription, b *Batch, r *Result)
	// Account is whose memory its subscriptions take.
	Account() quota.Key
}

// Authority is what a subscriber may read, at this moment. Each subscription has one, which the bus asks at each delivery:
// what a transport forgets to remove when authority changes is not delivered. It must not wait, and takes no lock.
type Authority interface {
	// AuthorityVersion changes before Subscribe decides otherwise. It is a few atomic loads, and below 1<<63.
	AuthorityVersion() uint64
	// Subscribe decides on a filter, as the subscriber wrote it.
	Subscribe(filter string) policy.Decision
}

// Subscription is one filter of one subscriber, in the tree of one tenant. The subscriber creates it and does not modify it
// while it is in the tree.
type Subscription struct {
	Filter     string // without $share/group/
	Subscriber Subscriber
	// Number is that of the subscriber: subscriptions of equal number are offered a message together. Zero is for a subscriber
	// with a single subscription.
	Number int64

	levels int64 // under tree.mu: bytes of the tree's levels that its account is charged for

	authority Authority
	name      string        // the filter as the subscriber wrote it
	decided   atomic.Uint64 // the last decision: twice the version of the authority, and 1 more if it allowed
}

// mayRead reports whether the authority of the subscriber allows the subscription now. It asks again only where the version
// is another one than that of the last decision.
func (s *Subscription) mayRead() bool {
	version := s.authority.AuthorityVersion() << 1 // before Subscribe: a change meanwhile makes the next call ask again
	if last := s.decided.Load(); last > 1 && last&^1 == version {
		return last&1 != 0
	}
	allowed := s.authority.Subscribe(s.name).Allowed
	if allowed {
		version |= 1
	}
	s.decided.Store(version)
	return allowed
}

// Levels returns how many bytes of the tree's levels the subscription's account is charged for.
func (s *Subscription) Levels() int64 { return s.levels }

// Subscribe adds s, if a allows name, which is the filter as the subscriber wrote it. bytes is the memory of s besides the
// levels of the tree. Every publication that begins after Subscribe returns reaches s. ctx bounds the wait for publishers
// on other nodes; all publishers of this process have s at once, and nothing waits. Codes: denied; busy, if the account or
// the server has no room for s.
func (t *Tenant) Subscribe(ctx context.Context, s *Subscription, a Authority, name string, bytes int64) error {
	if err := a.Subscribe(name).Err(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return t.AddSubscription(s, a, name, bytes, true)
}

// AddSubscription is Subscribe without an authorization check: for a subscription that is loaded from a store, or that the
// transport has checked. The bus asks a at each delivery all the same. Limits do not refuse it unless bounded is set. Code:
// busy.
func (t *Tenant) AddSubscription(s *Subscription, a Authority, name string, bytes int64, bounded bool) error {
	s.authority, s.name = a, name
	return t.add(s, bytes, bounded)
}

func (t *Tenant) add(s *Subscription, bytes int64, bounded bool) error {
	_, err := t.tree.add(s.Filter, s, func(levels int64) error {
		k, n := s.Subscriber.Account(), bytes+levels
		if !bounded {
			t.bus.subscribed.Add(k, n)
		} else if err := t.bus.subscribed.Reserve(k, n); err != nil {
			return err
		}
		s.levels = levels
		return nil
	})
	return err
}

// Unsubscribe takes s away; bytes is as in Subscribe. A publication under way may still reach it. A subscription that
// needs levels which s was charged for is charged for them from here on, also above its limit: it may have
// less without them, never more.
func (t *Tenant) Unsubscribe(s *Subscription, bytes int64) {
	t.tree.remove(s.Filter, s, func(freed int64, successor func() (*Subscription, bool)) {
		t.bus.subscribed.Release(s.Subscriber.Account(), bytes+s.levels)
		rest := s.levels - freed
		s.levels = 0
		if rest == 0 {
			return
		}
		if h, found := successor(); found {
			h.levels += rest
			t.bus.subscribed.Add(h.Subscriber.Account(), rest)
		}
	})
}

// MoveCharge moves the charge for s, with bytes as in Subscribe, from one account to the one that its subscriber has after
// change. Meanwhile no other account is charged.
func (t *Tenant) MoveCharge(s *Subscription, bytes int64, change func() bool) {
	t.tree.mu.Lock()
	defer t.tree.mu.Unlock()
	before := s.Subscriber.Account()
	if change() {
		t.bus.subscribed.Release(before, bytes+s.levels)
		t.bus.subscribed.Add(s.Subscriber.Account(), bytes+s.levels)
	}
}
