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
	clientID  string
	assigned  bool
	owner     owner
	clean     bool
	expiry    uint32
	will      *will // nil for none
	authority *session.Authority
	narrowed  bool             // the session would begin with a narrowed token
	reserved  *session.Session // entered, not started
}

// admit judges a CONNECT and takes its place within the bounds. Codes: those of
// [session.Guard.Check] and [session.Guard.Reserve]; rate_limited by limits.control_rate; denied where the token gives no right
// to any topic, where it does not give the will's, and where it does not cover what the
// session of this client identifier holds; busy where a bound of wills is met. Reasons: client identifier not valid, topic
// name invalid, quota exceeded.
func (c *conn) admit(ctx context.Context, p *packet.Connect, credentials session.Credentials) (err error) {
	ad := &admission{owner: owner{credentials.Subject, credentials.Incarnation}, clean: p.CleanStart, expiry: c.sessionExpiry(p)}
	if ad.clientID, ad.assigned, err = c.assignClientID(p, credentials.Subject); err != nil {
		return err
	}
	if err := c.checkConnackFits(p, ad); err != nil {
		return err
	}
	lockrank.Block()
	if ad.authority, err = c.broker.deps.Guard.Check(ctx, credentials); err != nil {
		return err
	}
	if err := c.broker.controlRates.Take(quota.Key{Tenant: credentials.Tenant, Subject: credentials.Subject}, proofCost, time.Now()); err != nil {
		return err
	}
	if !ad.authority.AnyTopic() {
		return watchword.Refuse(watchword.Denied, "the token gives no right to publish or subscribe to any topic")
	}
	ad.narrowed = ad.expiry > 0 && !ad.authority.CoversPolicyTopics()
	if ad.will, err = c.newWill(p.Will, ad.expiry, ad.authority); err != nil {
		return err
	}
	replaces, err := c.broker.tenant(credentials.Tenant).checkTakeover(c.broker, ad)
	if err != nil {
		return err
	}
	if err := c.broker.wills.reserve(ad.will, quota.Key{Tenant: credentials.Tenant, Subject: credentials.Subject}); err != nil {
		return err
	}
	ad.reserved, err = c.broker.deps.Guard.Reserve(credentials, session.Options{
		Transport: "mqtt", Remote: c.remote, Changed: c.authorityChanged, Ended: c.authorityEnded, Covers: c.checkRefreshCovers, Replaces: replaces,
	})
	if err != nil {
		c.broker.wills.releaseReservation(ad.will)
		return err
	}
	c.admission = ad
	return nil
}

// checkSessionQuota says whether a subject may have one more client that lasts, beside prev, whose
// place it takes and which may be nil. w.mu is held.
func (tn *tenant) checkSessionQuota(b *Broker, prev *sessionState, ad *admission) error {
	if ad.expiry == 0 || prev != nil && prev.counted {
		return nil
	}
	if int(b.persistentCount.Load()) >= b.options.PersistentSessions {
		return protocolError(packet.QuotaExceeded, packet.CONNECT, "the server keeps no more sessions that outlive their connection")
	}
	if n := tn.persistent[ad.owner.subject]; n >= maxPersistentPerSubject {
		return protocolError(packet.QuotaExceeded, packet.CONNECT, fmt.Sprintf("%q has %d sessions that outlive their connection, the most that one subject may have: clean one, or let it end", ad.owner.subject, n))
	}
	return nil
}

// checkCovers says whether a's token covers what the client holds: its subscriptions, by
// which also what waits for it came, and its will. What today's policy does not give is
// not the token's to cover: that is taken away in any case. Code: denied. mu is held.
func (st *sessionState) checkCovers(a *session.Authority) error {
	for name := range st.subs {
		if a.WithholdsSubscription(name) {
			return errTokenTooNarrow("the subscription " + clipLogText(name))
		}
	}
	topics := st.broker.wills.waitingTopics(st)
	if st.will != nil {
		topics = append(topics, st.will.message.topic)
	}
	for _, topic := range topics {
		if a.WithholdsPublish(topic) {
			return errTokenTooNarrow("the will's topic " + clipLogText(topic))
		}
	}
	return nil
}

// errTokenTooNarrow keeps to the log what it is: whoever has so narrow a token need not learn it.
func errTokenTooNarrow(of string) error {
	return watchword.Wrap(fmt.Errorf("the token does not cover %s", of), watchword.Denied, "the token does not cover what this session holds: its subscriptions and its will")
}

// releaseReservation gives up the place of a session that does not start.
func (c *conn) releaseReservation() {
	if ad := c.admission; ad != nil {
		c.admission = nil
		ad.reserved.Close(nil)
		c.broker.wills.releaseReservation(ad.will)
	}
}
