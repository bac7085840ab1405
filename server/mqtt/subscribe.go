package mqtt

import (
	"context"
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/policy"
)

// handleSubscribe answers each filter separately.
func (c *conn) handleSubscribe(ctx context.Context, p *packet.Subscribe) error {
	var identifier uint32
	if ids := p.Properties.Subscriptions; len(ids) > 0 {
		identifier = ids[0]
	}
	ack := &packet.Suback{ID: p.ID}
	var stand []*subscription
	var reason error
	said := make(map[packet.Filter]packet.Reason, len(p.Filters)) // an existing subscription with the same options stays
	var latest map[string]packet.Filter
	var final map[string]int // the last occurrence of each filter decides its options (MQTT 5.0 §3.8.4)
	if len(p.Filters) > 1 {
		latest, final = map[string]packet.Filter{}, map[string]int{}
		for i, f := range p.Filters {
			final[f.Topic] = i
		}
	}
	for i, f := range p.Filters {
		if code, again := said[f]; again && (latest[f.Topic] == f || i < final[f.Topic]) {
			ack.Codes = append(ack.Codes, code)
			continue
		}
		if latest != nil {
			latest[f.Topic] = f
		}
		s, fresh, err := c.subscribeOne(f, identifier)
		if err != nil {
			reason = err
			c.broker.recordRefusal(c, "subscription refused", f.Topic, err)
			r := reasonCodeOf(err)
			if c.version == packet.V311 || !packet.MayCarry(packet.SUBACK, r) {
				r = packet.UnspecifiedError
			}
			said[f] = r
			ack.Codes = append(ack.Codes, r)
			continue
		}
		if s.memberOf == nil && !slices.Contains(stand, s) && (f.RetainHandling == 0 || f.RetainHandling == 1 && fresh) { // MQTT 5.0 §3.8.3.1, §4.8.2
			stand = append(stand, s)
		}
		said[f] = packet.Reason(f.QoS)
		ack.Codes = append(ack.Codes, packet.Reason(f.QoS))
	}
	if reason != nil && c.wantsReasonStrings {
		ack.Properties.SetText(packet.ReasonString, publicText(reason))
	}
	c.session.mu.Lock()
	at := c.session.markChanged()
	c.updatePump()
	c.session.mu.Unlock()
	c.respondAfter(at, ack)
	for _, s := range stand {
		c.deliverRetained(ctx, s)
	}
	return nil
}

// subscribeOne adds one subscription or returns why not. fresh is false if it existed before.
func (c *conn) subscribeOne(f packet.Filter, identifier uint32) (s *subscription, fresh bool, err error) {
	_, filter, shared, err := policy.Share(f.Topic)
	if err == nil {
		err = policy.CheckFilter(filter)
	}
	if err == nil && !c.broker.acceptsText(f.Topic) { // no valid topic could match that level
		err = watchword.RefuseField("filter", "must not contain control characters")
	}
	if err != nil {
		return nil, false, protocolError(packet.TopicFilterInvalid, packet.SUBSCRIBE, "the topic filter "+watchword.DetailOf(err))
	}
	own := strings.HasPrefix(filter, connTopicPrefix)
	if own && f.Topic != authTopic {
		return nil, false, watchword.Refuse(watchword.Denied, "the only topic below $watchword/ for subscriptions is %s", authTopic)
	}
	if c.isCommandsFilter(f.Topic) && f.QoS == 0 {
		return nil, false, protocolError(packet.ImplementationSpecificError, packet.SUBSCRIBE, "the filter for commands must have QoS 1")
	}
	if c.isCommandsFilter(filter) && shared {
		return nil, false, watchword.Refuse(watchword.Denied, "the filter for commands must not be a shared subscription")
	}
	s = newSubscription(c.session, f.Topic, filter)
	s.qos, s.noLocal, s.retainAsPublished, s.identifier = f.QoS, f.NoLocal, f.RetainAsPublished, identifier
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if c.out.closed {
		return nil, false, watchword.Refuse(watchword.Conflict, "the connection is closing")
	}
	if own {
		c.setNoticeSubscription(s)
		return s, true, nil
	}
	old := c.session.subs[f.Topic]
	if old == nil && len(c.session.subs) >= maxSubscriptions {
		return nil, false, protocolError(packet.QuotaExceeded, packet.SUBSCRIBE, "a connection must have at most 1024 subscriptions")
	}
	// Checked with the lock held: a later change of authority finds the subscription and removes
	// it.
	if err := c.live().Authority().Subscribe(f.Topic).Err(); err != nil {
		return nil, false, err
	}
	if old != nil {
		c.session.replaceSubscription(old, s)
		return old, false, nil
	}
	if err := c.session.addSubscription(s, shared, true); err != nil {
		s.removed = true
		return nil, false, err
	}
	return s, old == nil, nil
}
