package mqtt

import (
	"bytes"
	"context"
	"strings"
	"time"

	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/session"
)

// publish passes a message on, if the session's authority says so now. An error
// ends the connection; a refusal alone does not, where the version has a word for it.
func (c *conn) publish(ctx context.Context, w *batch, p *packet.Publish) error {
	if !p.Properties.Empty() {
		if err := c.resolve(p); err != nil {
			return err
		}
	}
	n := c.verdict.cost
	if p.Topic != c.verdict.topic {
		n = costOf(p.Topic)
	}
	if n > 0 && !c.pay(controlRate, n, w.tick) {
		c.pace.credit[publishRate]++ // it is handled again
		return errHeld
	}
	c.broker.stats.received.Add(1)
	if p.QoS == 2 {
		st := c.session
		st.receiving.Lock()
		defer st.receiving.Unlock()
	}
	if p.QoS > 0 {
		if again, err := c.took(p); again || err != nil {
			return err
		}
	}
	if p.QoS == 2 {
		if err := c.roomFor2(); err != nil {
			return c.refuse(p, err)
		}
	}
	at, heard, err := c.pass(ctx, w, p)
	switch {
	case err != nil:
		return c.refuse(p, err)
	case p.QoS == 0:
	case heard || c.version == packet.V311:
		c.acknowledge(at, ackOf(p.QoS), p.ID)
	default:
		c.answerAfter(at, &packet.Ack{Kind: ackOf(p.QoS), ID: p.ID, Reason: packet.NoSubscribers})
	}
	return nil
}

// ackOf is what a publish is answered with.
func ackOf(qos byte) packet.Type {
	if qos == 2 {
		return packet.PUBREC
	}
	return packet.PUBACK
}

// resolve puts the topic in the place of its alias, and refuses properties that are not
// a client's.
func (c *conn) resolve(p *packet.Publish) error {
	if len(p.Properties.Subscriptions) > 0 {
		return wrong(packet.ProtocolError, packet.PUBLISH, "a subscription identifier from a client")
	}
	n, aliased := p.Properties.Number(packet.TopicAlias)
	switch {
	case !aliased:
		return nil
	case n > maxAliases:
		return wrong(packet.BadTopicAlias, packet.PUBLISH, "a topic alias above the maximum")
	case p.Topic != "":
		return c.hear(int(n), p.Topic)
	case int(n) > len(c.heard) || c.heard[n-1] == "":
		return wrong(packet.ProtocolError, packet.PUBLISH, "a topic alias that stands for nothing yet")
	default:
		p.Topic = c.heard[n-1]
	}
	return nil
}

// took says whether a publish was taken before: the client did not hear so, and says
// it again (MQTT 5.0 §4.3.3). More of them than the client may have open end the
// connection.
func (c *conn) took(p *packet.Publish) (again bool, err error) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if c.session.conn != c || c.out.closed {
		return true, nil
	}
	at, known := c.session.received[p.ID]
	if known && at != nil && at.state.Load() == commitFailed { // nobody has it: neither a receiver nor the disk
		c.session.unreceive(p.ID)
		known = false
	}
	if known && p.QoS == 2 {
		c.acknowledgeLocked(at, packet.PUBREC, p.ID)
		return true, nil
	}
	switch n := c.unanswered(); {
	case c.version == packet.V5 && n >= ReceiveMaximum:
		return false, wrong(packet.ReceiveMaximumOver, packet.PUBLISH, "more publishes open than the receive maximum")
	case p.QoS == 2 && len(c.session.received) >= maxAnswers:
		return false, wrong(packet.QuotaExceeded, packet.PUBLISH, "too many publishes with QoS 2 that were not released")
	}
	return false, nil
}

// roomFor2 makes room for the identifier of a publish with QoS 2. Code: busy.
func (c *conn) roomFor2() error {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	return c.session.roomForReceived(true)
}

// pass decides, and hands on. heard is whether anybody hears it, at what must be on the
// disk before it is acknowledged.
func (c *conn) pass(ctx context.Context, w *batch, p *packet.Publish) (at *commit, heard bool, err error) {
	if strings.HasPrefix(p.Topic, "$") && strings.HasPrefix(p.Topic, ownTopics) {
		if err := c.own(ctx, w.now, p); err != nil {
			return nil, false, err
		}
		return c.handOn(p, &bus.Result{}, nil), true, nil
	}
	v := c.decide(p.Topic)
	if v == nil {
		return nil, false, wrong(packet.BadTopic, packet.PUBLISH, "not a topic that this server takes")
	}
	if !v.decision.Allowed {
		return nil, false, v.decision.Err()
	}
	if err := c.broker.takesProperties(&p.Properties, packet.PUBLISH); err != nil {
		return nil, false, err
	}
	m := c.message(p, w.whole, w.now)
	var o bus.Result
	key, err := c.session.send(ctx, w, m, v.house, &o, actor{session: c.live()})
	if bus.IsFull(err) && c.version == packet.V311 {
		err = nil // it cannot be told, and one who is away must not end who publishes
	}
	if err != nil {
		c.broker.settle(&o, nil, key) // a part of it may be under way already
		return nil, false, err
	}
	return c.handOn(p, &o, key), o.Receivers > 0, nil
}

// handOn has written what there is to be written before p is acknowledged. The
// identifier of a QoS 2 publish is written with the message, or neither is.
func (c *conn) handOn(p *packet.Publish, o *bus.Result, key *retainKey) (at *commit) {
	if p.QoS < 2 {
		return c.broker.settle(o, nil, key)
	}
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if c.session.over {
		return c.broker.settle(o, nil, key)
	}
	at = c.broker.settle(o, c.session, key)
	c.session.receive(p.ID, at)
	return at
}

// send routes a message that may pass. It returns the topic whose retained message is to
// be written, nil for none.
func (st *sessionState) send(ctx context.Context, w *batch, m *message, h house, o *bus.Result, by actor) (key *retainKey, err error) {
	if m.retain && h.kind != toState && h.kind != toReceipts {
		if err := st.broker.journal.refusal(); err != nil {
			return nil, err // what waits to be written would grow without end
		}
		undo, err := st.world.retained.set(m, st.owner)
		if err != nil {
			return nil, err
		}
		key = &retainKey{st.world, m.topic, st.owner.subject}
		if err := st.sendOn(ctx, w, m, h, o, by, true); err != nil {
			undo() // what is refused is not retained either
			return key, err
		}
		return key, nil
	}
	return nil, st.sendOn(ctx, w, m, h, o, by, false)
}

// sendOn is send for what is retained already, or is not to be. An error says that an
// acknowledgement would lie.
func (st *sessionState) sendOn(ctx context.Context, w *batch, m *message, h house, o *bus.Result, by actor, retained bool) error {
	if h.kind != 0 {
		if err := st.toTheHouse(ctx, w, h, m, o, by); err != nil {
			return err
		}
	} else {
		st.world.bus.Publish(m, &w.Batch, o)
	}
	if bus.IsFull(o.Err) && (o.Receivers > 0 || retained) {
		return nil // somebody has it
	}
	return o.Err
}

// decide asks the session, once for each authority and topic in a row. It returns
// nil for a topic that is none.
func (c *conn) decide(topic string) *verdict {
	a := c.live().Authority()
	if c.verdict.by != a || c.verdict.topic != topic {
		if policy.CheckTopic(topic) != nil || !c.broker.takes(topic) {
			return nil
		}
		c.verdict = judge(a, topic)
	}
	return &c.verdict
}

// judge is the one place that decides on a publish.
func judge(a *session.Authority, topic string) verdict {
	v := verdict{by: a, topic: topic, cost: costOf(topic), house: houseOf(topic)}
	if v.decision = a.Publish(topic); v.house.kind == serverOnly {
		v.decision = policy.Decision{} // whatever policy says
	}
	return v
}

// message copies what outlives the read buffer. whole is the packet as it came, nil
// for a will.
func (c *conn) message(p *packet.Publish, whole []byte, now time.Time) *message {
	m := &message{topic: p.Topic, qos: p.QoS, retain: p.Retain, from: c.session}
	if whole != nil && p.Properties.Empty() {
		m.adopt(p, whole, c.version)
		return m
	}
	m.payload = bytes.Clone(p.Payload)
	if !p.Properties.Empty() {
		m.props = p.Properties.Forwarded()
		if n, ok := p.Properties.Number(packet.MessageExpiry); ok {
			m.expireAt(now.Add(time.Duration(n) * time.Second))
		}
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
	a := &packet.Ack{Kind: ackOf(p.QoS), ID: p.ID, Reason: reasonFor(err)}
	if !packet.MayCarry(a.Kind, a.Reason) {
		a.Reason = packet.Implementation
	}
	if c.problems {
		a.Properties.SetText(packet.ReasonString, words(err))
	}
	c.answer(a)
	return nil
}
