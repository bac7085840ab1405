package mqtt

import (
	"bytes"
	"context"
	"strings"
	"time"

	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/session"
)

// publish passes a message on, if the session's authority says so now. An error
// ends the connection; a refusal alone does not, where the version has a word for it.
func (c *conn) publish(ctx context.Context, w *batch, p *packet.Publish) error {
	c.broker.stats.received.Add(1)
	if p.QoS > 1 {
		return wrong(packet.NoQoS, packet.PUBLISH, "QoS 2; 1 is the most here")
	}
	if _, aliased := p.Properties.Number(packet.TopicAlias); aliased {
		return wrong(packet.BadTopicAlias, packet.PUBLISH, "topic aliases are not available")
	}
	if p.Retain && !isState(p.Topic) {
		return wrong(packet.NoRetain, packet.PUBLISH, "a retained message; the server keeps devices/{id}/state alone")
	}
	if len(p.Properties.Subscriptions) > 0 {
		return wrong(packet.ProtocolError, packet.PUBLISH, "a subscription identifier from a client")
	}
	if !c.flow.take(w.now) {
		w.flush()
		c.flush(true)
		if !c.holdBack(ctx) {
			return nil
		}
	}
	reached, err := c.pass(ctx, w, p)
	if err != nil {
		return c.refuse(p, err)
	}
	switch {
	case p.QoS == 0:
	case reached || c.version == packet.V311:
		c.puback(p.ID)
	default:
		c.answer(&packet.Ack{Kind: packet.PUBACK, ID: p.ID, Reason: packet.NoSubscribers})
	}
	return nil
}

// pass decides, and hands on. reached is whether anybody hears it.
func (c *conn) pass(ctx context.Context, w *batch, p *packet.Publish) (reached bool, err error) {
	if strings.HasPrefix(p.Topic, "$") && strings.HasPrefix(p.Topic, ownTopics) {
		return true, c.own(ctx, w.now, p)
	}
	v := c.decide(p.Topic)
	if v == nil {
		return false, wrong(packet.BadTopic, packet.PUBLISH, "not a topic that this server takes")
	}
	if !v.decision.Allowed {
		return false, v.decision.Err()
	}
	m := c.message(p, w.whole)
	if v.house.kind != 0 {
		return c.toTheHouse(ctx, w, v.house, m)
	}
	return c.world.route(m, w) > 0, nil
}

// decide asks the session, once for each authority and topic in a row. It returns
// nil for a topic that is none.
func (c *conn) decide(topic string) *verdict {
	a := c.live().Authority()
	if c.verdict.by != a || c.verdict.topic != topic {
		if policy.CheckTopic(topic) != nil {
			return nil
		}
		c.verdict = judge(a, topic)
	}
	return &c.verdict
}

// judge is the one place that decides on a publish.
func judge(a *session.Authority, topic string) verdict {
	v := verdict{by: a, topic: topic, house: houseOf(topic)}
	if v.decision = a.Publish(topic); v.house.kind == serverOnly {
		v.decision = policy.Decision{} // whatever policy says
	}
	return v
}

// message copies what outlives the read buffer. whole is the packet as it came, nil
// for a will.
func (c *conn) message(p *packet.Publish, whole []byte) *message {
	m := &message{topic: p.Topic, qos: p.QoS, retain: p.Retain, from: c}
	if whole != nil && p.Properties.Empty() {
		m.adopt(p, whole, c.version)
		return m
	}
	m.payload = bytes.Clone(p.Payload)
	if !p.Properties.Empty() {
		m.props = p.Properties.Forwarded()
	}
	return m
}

// refuse tells the client of a publish that did not pass, and never acknowledges
// it as if it had.
func (c *conn) refuse(p *packet.Publish, err error) error {
	c.broker.refused(c, "publish refused", p.Topic, err)
	switch {
	case c.version == packet.V311:
		return err
	case p.QoS == 0:
		return nil
	}
	a := &packet.Ack{Kind: packet.PUBACK, ID: p.ID, Reason: reasonFor(err)}
	if !packet.MayCarry(packet.PUBACK, a.Reason) {
		a.Reason = packet.Implementation
	}
	if c.problems {
		a.Properties.SetText(packet.ReasonString, words(err))
	}
	c.answer(a)
	return nil
}

// setWill keeps the will of a client, if it may be published now.
func (c *conn) setWill(w *packet.Will, a *session.Authority) error {
	if w == nil {
		return nil
	}
	if policy.CheckTopic(w.Topic) != nil || strings.HasPrefix(w.Topic, ownTopics) {
		return wrong(packet.BadTopic, packet.CONNECT, "the will's topic is none that this server takes")
	}
	if v := judge(a, w.Topic); !v.decision.Allowed {
		return v.decision.Err()
	}
	p := &packet.Publish{Topic: w.Topic, Payload: w.Payload, QoS: w.QoS, Retain: w.Retain, Properties: w.Properties}
	m := c.message(p, nil)
	m.from = nil // its publisher is gone when it comes
	c.mu.Lock()
	defer c.mu.Unlock()
	c.will = m
	return nil
}

// publishWill is the last act of a connection that was lost, if its session may
// still publish it at that moment: not where what ended is its authority, nor
// where the server goes.
func (c *conn) publishWill(ctx context.Context, m *message) {
	s := c.live()
	if m == nil {
		return
	}
	if c.broker.Guard.Settled(); s.Over() && s.Cause() != nil {
		return
	}
	v := judge(s.Authority(), m.topic)
	if !v.decision.Allowed {
		return
	}
	w := batchesOfWork.Get().(*batch)
	defer batchesOfWork.Put(w)
	w.now = c.broker.o.Now()
	defer w.flush()
	if v.house.kind == 0 {
		c.world.route(m, w)
		return
	}
	if _, err := c.toTheHouse(ctx, w, v.house, m); err != nil {
		c.broker.refused(c, "will refused", m.topic, err)
	}
}

// bucket bounds how fast one connection publishes. It is the reader's own.
type bucket struct {
	rate float64 // a second; 0 for no bound
	have float64
	at   time.Time
}

// take reports false where this one comes too early. Two seconds' worth may come at once.
func (b *bucket) take(now time.Time) bool {
	if b.rate <= 0 {
		return true
	}
	b.have = min(2*b.rate, b.have+now.Sub(b.at).Seconds()*b.rate)
	if b.at.IsZero() {
		b.have = 2 * b.rate
	}
	b.at = now
	b.have--
	return b.have >= 0
}

// holdBack reads nothing from a client that publishes too fast until it is in
// time again: nothing is lost, and TCP tells the client.
func (c *conn) holdBack(ctx context.Context) bool {
	c.broker.stats.heldBack.Add(1)
	t := time.NewTimer(time.Duration(-c.flow.have / c.flow.rate * float64(time.Second)))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.live().Done():
	case <-ctx.Done():
	}
	return false
}
