package mqtt

import (
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/policy"
)

func (c *conn) handleUnsubscribe(p *packet.Unsubscribe) error {
	ack := &packet.Unsuback{ID: p.ID}
	var redistributions []redistribution
	c.session.mu.Lock()
	if c.session.conn != c || c.out.closed {
		c.session.mu.Unlock()
		return nil
	}
	for _, f := range p.Filters {
		code := packet.NoSubscriptionExisted
		if s := c.session.subs[f]; s != nil {
			c.session.removeSubscription(s)
			if s.memberOf != nil {
				redistributions = append(redistributions, c.session.takeForRedistribution(s)...)
			}
			code = packet.Success
		} else if f == authTopic && c.noticeSubscription != nil {
			c.setNoticeSubscription(nil)
			code = packet.Success
		} else if _, filter, _, err := policy.Share(f); err != nil || policy.CheckFilter(filter) != nil {
			code = packet.TopicFilterInvalid // MQTT 5.0 §3.11.3
		}
		ack.Codes = append(ack.Codes, code)
	}
	c.updatePump()
	at := c.session.markChanged()
	c.session.mu.Unlock()
	c.respondAfter(at, ack)
	c.session.redistribute(redistributions, false)
	return nil
}
