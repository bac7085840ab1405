package mqtt

import (
	"context"
	"fmt"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/internal/truncate"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/session"
)

// admission is a CONNECT that passed all checks, with the authority that it was checked under. All
// checks come before the first effect: a refused CONNECT consumes no assertion and ends no session.
type admission struct {
	clientID  string
	assigned  bool
	owner     owner
	clean     bool
	expiry    uint32
	will      *will // nil: no tokens
	authority *session.Authority
	narrowed  bool             // the session will be opened with a narrowed token
	reserved  *session.Session // reserved, not started
}

// admit checks a CONNECT and reserves a session within the limits. Codes: those of
// [session.Guard.Check] and [session.Guard.Reserve]; rate_limited by limits.control_rate; denied
// where the token allows no topic, not the will's topic, or does not cover the session of this
// client identifier; busy where a limit of wills is reached. Reasons: client identifier not valid,
// topic name invalid, quota exceeded.
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
		return watchword.Refuse(watchword.Denied, "the token allows no topic, neither to publish nor to subscribe")
	}
	ad.narrowed = ad.expiry > 0 && !ad.authority.CoversPolicyTopics()
	if ad.will, err = c.newWill(p.Will, ad.expiry, ad.authority); err != nil {
		return err
	}
	replaces, err := c.broker.tenant(credentials.Tenant).checkTakeover(c.broker, ad)
	if err != nil {
		return err
	}
	if err := c.broker.wills.reserveQuota(ad.will, quota.Key{Tenant: credentials.Tenant, Subject: credentials.Subject}); err != nil {
		return err
	}
	ad.reserved, err = c.broker.deps.Guard.Reserve(credentials, session.Options{
		Transport: "mqtt", Remote: c.remote, Client: ad.clientID, Changed: c.authorityChanged, Ended: c.closeOnLostAuthority, Covers: c.checkRefreshCovers, Replaces: replaces,
	})
	if err != nil {
		c.broker.wills.releaseQuota(ad.will)
		return err
	}
	c.admission = ad
	return nil
}

// checkSessionQuota returns an error if the subject may not have one more persistent session, not
// counting prev, which it replaces and which may be nil. tn.mu is held.
func (tn *tenant) checkSessionQuota(b *Broker, prev *sessionState, ad *admission) error {
	if ad.expiry == 0 || prev != nil && prev.counted {
		return nil
	}
	if int(b.persistentCount.Load()) >= b.options.PersistentSessions {
		return protocolError(packet.QuotaExceeded, packet.CONNECT, "the limit of persistent sessions is reached (limits.sessions)")
	}
	if n := tn.persistent[ad.owner.subject]; n >= maxPersistentPerSubject {
		return protocolError(packet.QuotaExceeded, packet.CONNECT, fmt.Sprintf("%q has %d persistent sessions, which is the limit of one subject: end one with Clean Start, or let one expire", ad.owner.subject, n))
	}
	return nil
}

// checkCovers checks that a's token covers the session: its subscriptions, by which its stored
// messages came, and its will. What current policy does not allow need not be covered, since it is
// removed in any case. Code: denied. mu is held.
func (st *sessionState) checkCovers(a *session.Authority) error {
	for name := range st.subs {
		if a.TokenLacksSubscribe(name) {
			return errTokenTooNarrow("the subscription " + truncate.LogText(name))
		}
	}
	topics := st.broker.wills.waitingTopics(st)
	if st.will != nil {
		topics = append(topics, st.will.message.topic)
	}
	for _, topic := range topics {
		if a.TokenLacksPublish(topic) {
			return errTokenTooNarrow("the will's topic " + truncate.LogText(topic))
		}
	}
	return nil
}

// errTokenTooNarrow has the reason for the log only; the client gets denied without detail.
func errTokenTooNarrow(of string) error {
	return watchword.Wrap(fmt.Errorf("the token does not cover %s", of), watchword.Denied, "the token must allow the subscriptions and the will of this session")
}

// releaseReservation releases the reserved session of a CONNECT that does not start.
func (c *conn) releaseReservation() {
	if ad := c.admission; ad != nil {
		c.admission = nil
		ad.reserved.End(nil)
		c.broker.wills.releaseQuota(ad.will)
	}
}
