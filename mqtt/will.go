package mqtt

import (
	"context"
	"encoding/binary"
	"log/slog"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/session"
)

// will is what is published when a connection is lost and its client does not come back
// in time (MQTT 5.0 §3.1.2.5, §3.1.3.2).
type will struct {
	m     *message // without an end of life: that begins when it is published
	delay time.Duration
	life  time.Duration // 0: for ever
}

// stored is the will as it lies on the shelf: delay and life in seconds, then the message.
func (w *will) stored() []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(w.delay/time.Second))
	b = binary.BigEndian.AppendUint32(b, uint32(w.life/time.Second))
	return append(b, w.m.stored()...)
}

func unstoredWill(b []byte) (*will, error) {
	if len(b) < 8 {
		return nil, watchword.Refuse(watchword.Internal, "a will on the shelf is none")
	}
	m, err := unstored(b[8:], time.Time{})
	if err != nil {
		return nil, err
	}
	return &will{m, time.Duration(binary.BigEndian.Uint32(b)) * time.Second, time.Duration(binary.BigEndian.Uint32(b[4:])) * time.Second}, nil
}

// newWill is the will of a CONNECT, if it may be published now; nil for none.
func (c *conn) newWill(w *packet.Will, a *session.Authority) (*will, error) {
	if w == nil {
		return nil, nil
	}
	if policy.CheckTopic(w.Topic) != nil || strings.HasPrefix(w.Topic, ownTopics) {
		return nil, wrong(packet.BadTopic, packet.CONNECT, "the will's topic is none that this server takes")
	}
	if v := judge(a, w.Topic); !v.decision.Allowed {
		return nil, v.decision.Err()
	}
	p := &packet.Publish{Topic: w.Topic, Payload: w.Payload, QoS: w.QoS, Retain: w.Retain, Properties: w.Properties}
	new := &will{m: c.message(p, nil, time.Time{})}
	new.m.from, new.m.ends = nil, 0 // its publisher is gone when it comes
	if n, ok := w.Properties.Number(packet.WillDelay); ok {
		new.delay = time.Duration(n) * time.Second
	}
	if n, ok := w.Properties.Number(packet.MessageExpiry); ok {
		new.life = time.Duration(n) * time.Second
	}
	return new, nil
}

// setWill keeps the will of a client, nil for none, in the place of one before.
func (c *conn) setWill(new *will) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != c {
		return // somebody has its place already, and a will of its own
	}
	if c.will = new; c.lasting != nil {
		c.lasting.row = true
		c.touch()
	}
}

// publishWill is the last act of a connection that was lost, if its session may
// still publish it at that moment: not where what ended is its authority, nor
// where the server goes.
func (c *conn) publishWill(ctx context.Context, w *will) {
	s := c.live()
	if c.broker.Guard.Settled(); s == nil || s.Over() && s.Cause() != nil {
		return
	}
	c.client.publishWill(ctx, s.Authority(), w)
}

// publishWill publishes it if a says so.
func (cl *client) publishWill(ctx context.Context, a *session.Authority, w *will) {
	v := judge(a, w.m.topic)
	if !v.decision.Allowed {
		return
	}
	b := batchesOfWork.Get().(*batch)
	defer batchesOfWork.Put(b)
	b.now = cl.broker.o.Now()
	defer b.flush()
	m := &message{topic: w.m.topic, payload: w.m.payload, qos: w.m.qos, retain: w.m.retain, props: w.m.props}
	if w.life > 0 {
		m.expireAt(b.now.Add(w.life))
	}
	var o outcome
	key, err := cl.send(ctx, b, m, v.house, &o, "")
	cl.broker.settle(&o, nil, key)
	if err != nil {
		cl.broker.o.Log.WarnContext(ctx, "will refused", slog.String("client", cl.id), slog.String("topic", m.topic), slog.Any("err", err))
	}
}
