package mqtt

import (
	"context"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/policy"
)

// subscribe answers each filter by itself.
func (c *conn) subscribe(ctx context.Context, p *packet.Subscribe) error {
	if len(p.Properties.Subscriptions) > 0 {
		return wrong(packet.NoSubscriptionIDs, packet.SUBSCRIBE, "subscription identifiers are not available")
	}
	ack := &packet.Suback{ID: p.ID}
	var stand []*subscription
	var why error
	for _, f := range p.Filters {
		s, fresh, err := c.subscribeOne(f)
		if err != nil {
			why = err
			c.broker.refused(c, "subscription refused", f.Topic, err)
			r := reasonFor(err)
			if c.version == packet.V311 || !packet.MayCarry(packet.SUBACK, r) {
				r = packet.Unspecified
			}
			ack.Codes = append(ack.Codes, r)
			continue
		}
		if f.RetainHandling == 0 || f.RetainHandling == 1 && fresh { // MQTT 5.0 §3.8.3.1
			stand = append(stand, s)
		}
		ack.Codes = append(ack.Codes, packet.Reason(s.qos))
	}
	if why != nil && c.problems {
		ack.Properties.SetText(packet.ReasonString, words(why))
	}
	c.answer(ack)
	c.mu.Lock()
	c.keepPump()
	c.mu.Unlock()
	for _, s := range stand {
		c.give(ctx, s)
	}
	return nil
}

// subscribeOne lets one subscription stand, or says why not. fresh is false where it
// was there before.
func (c *conn) subscribeOne(f packet.Filter) (s *subscription, fresh bool, err error) {
	if strings.HasPrefix(f.Topic, "$share/") {
		return nil, false, wrong(packet.NoShared, packet.SUBSCRIBE, "shared subscriptions are not available")
	}
	if err := policy.CheckFilter(f.Topic); err != nil {
		return nil, false, wrong(packet.BadFilter, packet.SUBSCRIBE, err.Error())
	}
	own := strings.HasPrefix(f.Topic, ownTopics)
	if own && f.Topic != authTopic {
		return nil, false, watchword.Refuse(watchword.Denied, "of $watchword/… only %s can be subscribed to", authTopic)
	}
	if c.isCommands(f.Topic) && f.QoS == 0 {
		return nil, false, wrong(packet.Implementation, packet.SUBSCRIBE, "commands come with QoS 1: subscribe with it")
	}
	s = &subscription{c: c, filter: f.Topic, qos: min(f.QoS, 1), noLocal: f.NoLocal, asPublished: f.RetainAsPublished}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, false, watchword.Refuse(watchword.Conflict, "the connection is closing")
	}
	if own {
		c.listen(s)
		return s, true, nil
	}
	old := c.subs[f.Topic]
	if old == nil && len(c.subs) >= maxSubs {
		return nil, false, wrong(packet.QuotaExceeded, packet.SUBSCRIBE, "1024 subscriptions are the most of one connection")
	}
	// Asked with the lock held: a change of authority after this line finds the
	// subscription and takes it away again.
	if err := c.live().Authority().Subscribe(f.Topic).Err(); err != nil {
		return nil, false, err
	}
	if old != nil {
		c.unsubscribeOne(old)
	}
	if c.subs == nil {
		c.subs = map[string]*subscription{}
	}
	c.subs[f.Topic] = s
	c.world.tree.add(f.Topic, s)
	c.broker.stats.subscriptions.Add(1)
	return s, old == nil, nil
}

// unsubscribeOne is called with mu held. What is queued already still goes out,
// unless it is dropped too.
func (c *conn) unsubscribeOne(s *subscription) {
	s.dead = true
	delete(c.subs, s.filter)
	c.world.tree.remove(s.filter, s)
	c.broker.stats.subscriptions.Add(-1)
}

// unsubscribeAll is called with mu held.
func (c *conn) unsubscribeAll() {
	for _, s := range c.subs {
		c.unsubscribeOne(s)
	}
	c.subs = nil
	c.listen(nil)
	if c.pump != nil {
		c.pump.stop()
		c.pump = nil
	}
}

func (c *conn) unsubscribe(p *packet.Unsubscribe) error {
	ack := &packet.Unsuback{ID: p.ID}
	c.mu.Lock()
	for _, f := range p.Filters {
		code := packet.NoSubscription
		if s := c.subs[f]; s != nil {
			c.unsubscribeOne(s)
			code = packet.Success
		} else if f == authTopic && c.auth != nil {
			c.listen(nil)
			code = packet.Success
		}
		ack.Codes = append(ack.Codes, code)
	}
	c.keepPump()
	c.mu.Unlock()
	c.answer(ack)
	return nil
}
