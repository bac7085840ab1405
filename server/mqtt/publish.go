package mqtt

import (
	"bytes"
	"context"
	"strings"
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// handlePublish handles PUBLISH under the session's current authority. An error ends the
// connection; refusals do not, if the version can report them.
func (c *conn) handlePublish(ctx context.Context, w *workBatch, p *packet.Publish) error {
	if !p.Properties.Empty() {
		if err := c.resolveTopicAlias(p); err != nil {
			return err
		}
	}
	n := c.publishDecision.cost
	if p.Topic != c.publishDecision.topic {
		n = controlCost(p.Topic)
	}
	if n > 0 && !c.takeRate(controlRate, n, w.monotonic) {
		c.limiter.credit[publishRate]++ // it is handled again later
		return errDelayed
	}
	c.broker.stats.received.Add(1)
	if p.QoS == 2 {
		st := c.session
		st.receiving.Lock()
		defer st.receiving.Unlock()
	}
	if p.QoS > 0 {
		if again, err := c.isDuplicate(p); again || err != nil {
			return err
		}
	}
	if p.QoS == 2 {
		if err := c.reserveQoS2(); err != nil {
			return c.refusePublish(p, err)
		}
	}
	at, received, err := c.routePublish(ctx, w, p)
	switch {
	case err != nil:
		return c.refusePublish(p, err)
	case p.QoS == 0:
	case received || c.version == packet.V311:
		c.acknowledge(at, ackType(p.QoS), p.ID)
	default:
		c.respondAfter(at, &packet.Ack{Kind: ackType(p.QoS), ID: p.ID, Reason: packet.NoMatchingSubscribers})
	}
	return nil
}

// ackType returns the packet type that acknowledges a publish.
func ackType(qos byte) packet.Type {
	if qos == 2 {
		return packet.PUBREC
	}
	return packet.PUBACK
}

// routePublish decides on a publish and routes it. received says whether any subscriber has it, at what must be on the
// disk before it is acknowledged.
func (c *conn) routePublish(ctx context.Context, w *workBatch, p *packet.Publish) (at *commit, received bool, err error) {
	if strings.HasPrefix(p.Topic, "$") && strings.HasPrefix(p.Topic, connTopicPrefix) {
		if err := c.handleConnTopic(ctx, w.now, p); err != nil {
			return nil, false, err
		}
		return c.commitPublish(p, &bus.Result{}, nil), true, nil
	}
	v := c.decidePublish(p.Topic)
	if v == nil {
		return nil, false, protocolError(packet.TopicNameInvalid, packet.PUBLISH, "the topic name must be UTF-8 without NUL, + and #, with 1 to 1024 bytes and at most 64 levels")
	}
	if !v.decision.Allowed {
		return nil, false, v.decision.Err()
	}
	if err := c.broker.checkPropertyText(&p.Properties, packet.PUBLISH); err != nil {
		return nil, false, err
	}
	m := c.newMessage(p, w.encoded, w.now)
	o := &w.result
	*o = bus.Result{}
	key, err := c.session.routeMessage(ctx, w, m, v.system, o, publisher{session: c.live()})
	if bus.IsFull(err) && c.version == packet.V311 {
		err = nil // 3.1.1 cannot report it, and an offline subscriber must not end the publisher's connection
	}
	if err != nil {
		c.broker.commitOutcome(o, nil, key) // a part of it may be in progress already
		return nil, false, err
	}
	return c.commitPublish(p, o, key), o.Receivers > 0, nil
}

// commitPublish adds what must be durable before p is acknowledged to the open commit. The packet
// identifier of a QoS 2 publish is written with its message or not at all.
func (c *conn) commitPublish(p *packet.Publish, o *bus.Result, key *retainedKey) (at *commit) {
	if p.QoS < 2 {
		return c.broker.commitOutcome(o, nil, key)
	}
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if c.session.removed {
		return c.broker.commitOutcome(o, nil, key)
	}
	at = c.broker.commitOutcome(o, c.session, key)
	c.session.addReceived(p.ID, at)
	return at
}

// routeMessage publishes a message that may pass, or consumes it. It returns the topic whose retained message is to be written,
// nil for none. An error says that an acknowledgement would lie.
func (st *sessionState) routeMessage(ctx context.Context, w *workBatch, m *message, sys systemTopic, o *bus.Result, by publisher) (key *retainedKey, err error) {
	p := bus.Publication{Message: m}
	if m.retain && sys.kind != topicState && sys.kind != topicReceipts {
		if err := st.broker.committer.unavailable(); err != nil {
			return nil, err // pending writes would grow without limit
		}
		p.Retain = st.retainFor(m)
	}
	if sys.kind != 0 {
		err = st.handleSystemTopic(ctx, w, sys, p, m, o, by)
	} else {
		err = st.tenant.bus.Publish(p, &w.Batch, o)
	}
	if o.Retained {
		key = &retainedKey{st.tenant, m.topic, st.owner.subject}
	}
	return key, err
}

// decidePublish checks the authority of the session, once for each authority and repeated topic. It returns nil for an
// invalid topic.
func (c *conn) decidePublish(topic string) *publishDecision {
	a := c.live().Authority()
	if c.publishDecision.authority != a || c.publishDecision.topic != topic {
		if policy.CheckTopic(topic) != nil || !c.broker.acceptsText(topic) {
			return nil
		}
		c.publishDecision = decidePublish(a, topic)
	}
	return &c.publishDecision
}

// decidePublish decides on a publish by authority a; nothing else does.
func decidePublish(a *session.Authority, topic string) publishDecision {
	v := publishDecision{authority: a, topic: topic, cost: controlCost(topic), system: parseSystemTopic(topic)}
	v.system.invalid = v.system.check()
	if v.decision = a.Publish(topic); v.system.kind == topicServerOnly {
		v.decision = policy.Decision{} // regardless of policy
	}
	return v
}

// newMessage copies what outlives the read buffer. encoded is the packet as received, nil
// for a will.
func (c *conn) newMessage(p *packet.Publish, encoded []byte, now time.Time) *message {
	m := &message{topic: p.Topic, qos: p.QoS, retain: p.Retain, sender: c.session}
	if encoded != nil && p.Properties.Empty() {
		m.reuseEncoding(p, encoded, c.version)
		return m
	}
	m.payload = bytes.Clone(p.Payload)
	if !p.Properties.Empty() {
		m.props = p.Properties.Forwarded()
		if n, ok := p.Properties.Number(packet.MessageExpiryInterval); ok {
			m.expireAt(now.Add(time.Duration(n) * time.Second))
		}
	}
	return m
}

// refusePublish reports a refused publish to the client; it never acknowledges it as a success.
func (c *conn) refusePublish(p *packet.Publish, err error) error {
	c.broker.recordRefusal(c, "publish refused", p.Topic, err)
	switch {
	case c.version == packet.V311:
		return err
	case p.QoS == 0:
		return nil
	}
	a := &packet.Ack{Kind: ackType(p.QoS), ID: p.ID, Reason: reasonCodeOf(err)}
	if !packet.MayCarry(a.Kind, a.Reason) {
		a.Reason = packet.ImplementationSpecificError
	}
	if c.wantsReasonStrings {
		a.Properties.SetText(packet.ReasonString, publicText(err))
	}
	c.respond(a)
	return nil
}

// publishDecision is the decision on the topic that was last published to, valid for one authority.
type publishDecision struct {
	authority *session.Authority
	topic     string
	cost      int // cost against controlRate
	decision  policy.Decision
	system    systemTopic
}
