package mqtt

import (
	"context"
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/policy"
)

// subscribe answers each filter by itself.
func (c *conn) subscribe(ctx context.Context, p *packet.Subscribe) error {
	var identifier uint32
	if ids := p.Properties.Subscriptions; len(ids) > 0 {
		identifier = ids[0]
	}
	ack := &packet.Suback{ID: p.ID}
	var stand []*subscription
	var why error
	said := make(map[packet.Filter]packet.Reason, len(p.Filters)) // one that is there again, with the same options, is the same
	var latest map[string]packet.Filter
	var final map[string]int // where each filter is for the last time: its options there are those that stay (MQTT 5.0 §3.8.4)
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
			why = err
			c.broker.refused(c, "subscription refused", f.Topic, err)
			r := reasonFor(err)
			if c.version == packet.V311 || !packet.MayCarry(packet.SUBACK, r) {
				r = packet.Unspecified
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
	if why != nil && c.problems {
		ack.Properties.SetText(packet.ReasonString, words(why))
	}
	c.session.mu.Lock()
	at := c.session.touch()
	c.keepPump()
	c.session.mu.Unlock()
	c.answerAfter(at, ack)
	for _, s := range stand {
		c.give(ctx, s)
	}
	return nil
}

// subscribeOne lets one subscription stand, or says why not. fresh is false where it
// was there before.
func (c *conn) subscribeOne(f packet.Filter, identifier uint32) (s *subscription, fresh bool, err error) {
	_, filter, shared, err := policy.Share(f.Topic)
	if err == nil {
		err = policy.CheckFilter(filter)
	}
	if err == nil && !c.broker.takes(f.Topic) { // no topic that is taken could match it by that level
		err = watchword.RefuseField("filter", "holds control characters")
	}
	if err != nil {
		return nil, false, wrong(packet.BadFilter, packet.SUBSCRIBE, err.Error())
	}
	own := strings.HasPrefix(filter, ownTopics)
	if own && f.Topic != authTopic {
		return nil, false, watchword.Refuse(watchword.Denied, "of $watchword/… only %s can be subscribed to", authTopic)
	}
	if c.isCommands(f.Topic) && f.QoS == 0 {
		return nil, false, wrong(packet.Implementation, packet.SUBSCRIBE, "commands come with QoS 1: subscribe with it")
	}
	if c.isCommands(filter) && shared {
		return nil, false, watchword.Refuse(watchword.Denied, "commands are for one connection, and for no group")
	}
	s = newSubscription(c.session, f.Topic, filter)
	s.qos, s.noLocal, s.asPublished, s.identifier = f.QoS, f.NoLocal, f.RetainAsPublished, identifier
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if c.out.closed {
		return nil, false, watchword.Refuse(watchword.Conflict, "the connection is closing")
	}
	if own {
		c.listen(s)
		return s, true, nil
	}
	old := c.session.subs[f.Topic]
	if old == nil && len(c.session.subs) >= maxSubs {
		return nil, false, wrong(packet.QuotaExceeded, packet.SUBSCRIBE, "1024 subscriptions are the most of one connection")
	}
	// Asked with the lock held: a change of authority after this line finds the
	// subscription and takes it away again.
	if err := c.live().Authority().Subscribe(f.Topic).Err(); err != nil {
		return nil, false, err
	}
	if old != nil {
		c.session.replace(old, s)
		return old, false, nil
	}
	if err := c.session.stand(s, shared, true); err != nil {
		s.dead = true
		return nil, false, err
	}
	return s, old == nil, nil
}

// stand lets a subscription stand. bounded is false for what stood before, whatever the
// bounds say. Code: busy, where the subject or the server has no room for it. mu is held.
func (st *sessionState) stand(s *subscription, shared, bounded bool) error {
	if err := st.world.charge(s, shared, bounded); err != nil {
		return err
	}
	if st.subs == nil {
		st.subs = map[string]*subscription{}
	}
	st.subs[s.name] = s
	if shared {
		st.grouped = true
		st.shares = append(st.shares, s.memberOf)
		st.weigh()
	}
	if st.lasting != nil {
		st.lasting.change(s.name)
	}
	st.broker.stats.subscriptions.Add(1)
	return nil
}

// replace puts s in the place of an equal filter's, without a gap (MQTT 5.0 §3.8.4).
// mu is held.
func (st *sessionState) replace(old, s *subscription) {
	old.qos, old.noLocal, old.asPublished, old.identifier = s.qos, s.noLocal, s.asPublished, s.identifier
	if st.lasting != nil {
		st.lasting.change(s.name)
	}
}

// unsubscribeOne is called with mu held. What is queued already still goes out,
// unless it is dropped too.
func (st *sessionState) unsubscribeOne(s *subscription) {
	s.dead = true
	delete(st.subs, s.name)
	st.world.discharge(s)
	if g := s.memberOf; g != nil {
		st.shares = slices.DeleteFunc(st.shares, func(x *group) bool { return x == g })
	}
	if st.lasting != nil {
		st.lasting.change(s.name)
	}
	st.broker.stats.subscriptions.Add(-1)
}

// unsubscribeAll is called with mu held.
func (st *sessionState) unsubscribeAll() {
	for _, s := range st.subs {
		st.unsubscribeOne(s)
	}
	st.subs = nil
}

func (c *conn) unsubscribe(p *packet.Unsubscribe) error {
	ack := &packet.Unsuback{ID: p.ID}
	var orphans []orphan
	c.session.mu.Lock()
	if c.session.conn != c || c.out.closed {
		c.session.mu.Unlock()
		return nil
	}
	for _, f := range p.Filters {
		code := packet.NoSubscription
		if s := c.session.subs[f]; s != nil {
			c.session.unsubscribeOne(s)
			if s.memberOf != nil {
				orphans = append(orphans, c.session.orphans(s)...)
			}
			code = packet.Success
		} else if f == authTopic && c.auth != nil {
			c.listen(nil)
			code = packet.Success
		} else if _, filter, _, err := policy.Share(f); err != nil || policy.CheckFilter(filter) != nil {
			code = packet.BadFilter // MQTT 5.0 §3.11.3
		}
		ack.Codes = append(ack.Codes, code)
	}
	c.keepPump()
	at := c.session.touch()
	c.session.mu.Unlock()
	c.answerAfter(at, ack)
	c.session.hand(orphans, false)
	return nil
}
