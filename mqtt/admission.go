package mqtt

import (
	"context"
	"fmt"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/session"
)

// admission is a CONNECT that was found good: what it asks for, and the authority that
// it was judged under. Everything that can be refused without an effect is refused
// before there is one: no assertion is spent, and no session ended, for a CONNECT that
// does not pass.
type admission struct {
	id       string
	assigned bool
	owner    owner
	clean    bool
	expiry   uint32
	will     *will // nil for none
	by       *session.Authority
	narrow   bool             // the session would begin with a narrowed token
	place    *session.Session // entered, not started
}

// admit judges a CONNECT and takes its place within the bounds. Codes: those of
// [session.Guard.Check] and [session.Guard.Enter]; rate_limited by limits.control_rate; denied where the token gives no right
// to any topic, where it does not give the will's, and where it does not cover what the
// session of this client identifier holds; busy where a bound of wills is met. Reasons: client identifier not valid, topic
// name invalid, quota exceeded.
func (c *conn) admit(ctx context.Context, p *packet.Connect, papers session.Papers) (err error) {
	ad := &admission{owner: owner{papers.Subject, papers.Incarnation}, clean: p.CleanStart, expiry: c.expiry(p)}
	if ad.id, ad.assigned, err = c.name(p, papers.Subject); err != nil {
		return err
	}
	if err := c.mayAnswerConnect(p, ad); err != nil {
		return err
	}
	lockrank.Block()
	if ad.by, err = c.broker.deps.Guard.Check(ctx, papers); err != nil {
		return err
	}
	if err := c.broker.controls.Take(quota.Key{Tenant: papers.Tenant, Subject: papers.Subject}, proofCost, time.Now()); err != nil {
		return err
	}
	if !ad.by.AnyTopic() {
		return watchword.Refuse(watchword.Denied, "the token gives no right to publish or subscribe to any topic")
	}
	ad.narrow = ad.expiry > 0 && !ad.by.WholeTopics()
	if ad.will, err = c.newWill(p.Will, ad.expiry, ad.by); err != nil {
		return err
	}
	replaces, err := c.broker.world(papers.Tenant).mayEnter(c.broker, ad)
	if err != nil {
		return err
	}
	if err := c.broker.wills.reserve(ad.will, quota.Key{Tenant: papers.Tenant, Subject: papers.Subject}); err != nil {
		return err
	}
	ad.place, err = c.broker.deps.Guard.Enter(papers, session.Options{
		Transport: "mqtt", Remote: c.remote, Changed: c.changed, Ended: c.ended, Covers: c.covers, Replaces: replaces,
	})
	if err != nil {
		c.broker.wills.giveBack(ad.will)
		return err
	}
	c.admission = ad
	return nil
}

// mayEnter says why a client may not take the place of its identifier, and which live
// session ends when it does; nil for none.
func (w *world) mayEnter(b *Broker, ad *admission) (replaces *session.Session, err error) {
	w.mu.Lock()
	prev := w.clients[ad.id]
	err = w.admit(b, prev, ad)
	w.mu.Unlock()
	if prev == nil || err != nil {
		return nil, err
	}
	prev.mu.Lock()
	defer prev.mu.Unlock()
	if prev.conn != nil {
		replaces = prev.conn.live()
	}
	return replaces, prev.yields(ad)
}

// admit says whether a subject may have one more client that lasts, beside prev, whose
// place it takes and which may be nil. w.mu is held.
func (w *world) admit(b *Broker, prev *sessionState, ad *admission) error {
	if ad.expiry == 0 || prev != nil && prev.counted {
		return nil
	}
	if int(b.lasting.Load()) >= b.options.Sessions {
		return wrong(packet.QuotaExceeded, packet.CONNECT, "the server keeps no more sessions that outlive their connection")
	}
	if n := w.lasting[ad.owner.subject]; n >= maxLasting {
		return wrong(packet.QuotaExceeded, packet.CONNECT, fmt.Sprintf("%q has %d sessions that outlive their connection, the most that one subject may have: clean one, or let it end", ad.owner.subject, n))
	}
	return nil
}

// yields says why an admission does not suffice to resume, take over or end this client.
// One of an earlier life of its subject holds nothing against it. mu is held.
func (st *sessionState) yields(ad *admission) error {
	if st.over || st.owner != ad.owner {
		return nil
	}
	return st.covered(ad.by)
}

// covered says whether a's token covers what the client holds: its subscriptions, by
// which also what waits for it came, and its will. What today's policy does not give is
// not the token's to cover: that is taken away in any case. Code: denied. mu is held.
func (st *sessionState) covered(a *session.Authority) error {
	for name := range st.subs {
		if a.WithholdsSubscription(name) {
			return tooNarrow("the subscription " + clip(name))
		}
	}
	topics := st.broker.wills.waitingOf(st)
	if st.will != nil {
		topics = append(topics, st.will.m.topic)
	}
	for _, topic := range topics {
		if a.WithholdsPublish(topic) {
			return tooNarrow("the will's topic " + clip(topic))
		}
	}
	return nil
}

// tooNarrow keeps to the log what it is: whoever has so narrow a token need not learn it.
func tooNarrow(of string) error {
	return watchword.Because(fmt.Errorf("the token does not cover %s", of), watchword.Denied, "the token does not cover what this session holds: its subscriptions and its will")
}

// covers is the session's, which holds its own lock meanwhile: whether the authority of
// a newer token is enough for a refresh.
func (c *conn) covers(a *session.Authority) error {
	if !a.AnyTopic() {
		return watchword.Refuse(watchword.Denied, "the token gives no right to publish or subscribe to any topic")
	}
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if c.out.closed || c.session.conn != c {
		return nil
	}
	return c.session.covered(a)
}
