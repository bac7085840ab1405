package mqtt

import (
	"context"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/session"
)

// retainedListBatch is how often [Broker.Retained] looks for more before it returns a short page.
const retainedListBatch = 16

// Retained returns what is retained for the topics that a filter matches ("": for all) and
// by an owner ("": by any), behind a topic and in order of the topics' levels, n at most.
// next is the topic to go on behind, "" where there is nothing more; a page may be short,
// or empty, before that. Code: unavailable, where nobody can say what an owner may.
func (b *Broker) Retained(ctx context.Context, t watchword.TenantID, filter string, by watchword.SubjectID, after string, n int) (out []session.Retained, next string, err error) {
	tn, last := b.tenant(t), []byte(after)
	for tries := 0; tries < retainedListBatch && len(out) < n; tries++ {
		var page []*bus.Retained
		page, last = tn.bus.Retained.Page(filter, by, last, n-len(out), b.options.Now())
		for _, x := range page {
			v, err := b.viewRetained(ctx, tn, x)
			if err != nil {
				return nil, "", err
			}
			out = append(out, v)
		}
		if last == nil {
			return out, "", nil
		}
	}
	return out, string(last), nil
}

// RetainedMessage returns what is retained for a topic. Codes: not_found, unavailable.
func (b *Broker) RetainedMessage(ctx context.Context, t watchword.TenantID, topic string) (session.Retained, error) {
	tn := b.tenant(t)
	x := tn.bus.Retained.Of(topic, b.options.Now())
	if x == nil {
		return session.Retained{}, errNotRetained
	}
	return b.viewRetained(ctx, tn, x)
}

var errNotRetained = watchword.Refuse(watchword.NotFound, "nothing is retained for this topic")

// DeleteRetained removes what is retained for a topic, once note has written down what
// that is; it returns when it is off the disk too. Codes: not_found, unavailable, those of
// note.
func (b *Broker) DeleteRetained(ctx context.Context, t watchword.TenantID, topic string, note func(session.Retained) error) error {
	v, err := b.RetainedMessage(ctx, t, topic)
	if err != nil {
		return err
	}
	if err := b.journal.unavailable(); err != nil {
		return err
	}
	if err := note(v); err != nil {
		return err
	}
	tn := b.tenant(t)
	tn.bus.Retained.Delete(topic) // whatever is there now: what came since is deleted too
	at := b.journal.add(change{retained: &retainedKey{tenant: tn, topic: topic}})
	if at == nil {
		return nil
	}
	if <-at.ended; !at.written() {
		return watchword.Refuse(watchword.Unavailable, "it is removed, and that could not be written yet")
	}
	return nil
}

// viewRetained is a record as lists show it.
func (b *Broker) viewRetained(ctx context.Context, tn *tenant, x *bus.Retained) (session.Retained, error) {
	m, err := retainedMessage(x)
	if err != nil {
		return session.Retained{}, err
	}
	out := session.Retained{Topic: m.topic, QoS: m.qos, MemoryBytes: int(x.Bytes()), Expires: m.expires(), Payload: m.payload}
	if m.props != nil {
		out.ContentType, _ = m.props.Text(packet.ContentType)
	}
	owner, given, err := tn.bus.Retained.Given(ctx, x, b.ask(tn.id))
	out.Owner, out.Incarnation, out.Deliverable = owner.Subject, owner.Incarnation, given
	return out, err
}
