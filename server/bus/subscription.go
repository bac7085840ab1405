package bus

import (
	"context"

	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/policy"
)

// Subscriber is who a subscription is for.
type Subscriber interface {
	// Deliver takes m, once for all subscriptions of the subscriber that match its topic, adds to r what became of it, and
	// puts what is to be flushed into b. It must not wait, nor publish, and keeps neither subs nor b nor r.
	Deliver(m Message, subs []*Subscription, b *Batch, r *Result)
	// Account is whose memory its subscriptions take.
	Account() quota.Key
}

// Authority is what a subscriber may read, at this moment.
type Authority interface {
	// Subscribe decides on a filter, as the subscriber wrote it.
	Subscribe(filter string) policy.Decision
}

// Subscription is one filter of one subscriber, in the tree of one tenant. The subscriber makes it and does not change
// it while it stands.
type Subscription struct {
	Filter     string // without $share/group/
	Subscriber Subscriber
	// Number is that of the subscriber: subscriptions of equal number are offered a message together. Zero is for a subscriber
	// with a single subscription.
	Number int64

	levels int64 // under tree.mu: bytes of the tree's levels that its account is charged for
}

// Levels returns how many bytes of the tree's levels the subscription's account is charged for.
func (s *Subscription) Levels() int64 { return s.levels }

// Subscribe lets s stand, if a allows name, which is the filter as the subscriber wrote it. bytes is what s takes of
// memory beside the levels of the tree. Every publication that begins after Subscribe returns reaches s. ctx bounds
// the wait for publishers elsewhere to know of it; all publishers of this process know at once, and nothing waits. Codes:
// denied; busy, where the account or the server has no room for s.
func (t *Tenant) Subscribe(ctx context.Context, s *Subscription, a Authority, name string, bytes int64) error {
	if err := a.Subscribe(name).Err(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return t.AddSubscription(s, bytes, true)
}

// AddSubscription is Subscribe for what was decided before: a subscription that comes back from a store, or stands for a group.
// Limits do not refuse it where it is not bounded. Code: busy.
func (t *Tenant) AddSubscription(s *Subscription, bytes int64, bounded bool) error {
	_, err := t.tree.addCharged(s.Filter, s, func(levels int64) error {
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
	t.tree.removeCharged(s.Filter, s, func(freed int64, successor func() (*Subscription, bool)) {
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

// MoveCharge moves what s is charged, with bytes as in Subscribe, from one account to that which its subscriber has after
// change. Meanwhile nobody else is charged.
func (t *Tenant) MoveCharge(s *Subscription, bytes int64, change func() bool) {
	t.tree.mu.Lock()
	defer t.tree.mu.Unlock()
	before := s.Subscriber.Account()
	if change() {
		t.bus.subscribed.Release(before, bytes+s.levels)
		t.bus.subscribed.Add(s.Subscriber.Account(), bytes+s.levels)
	}
}
