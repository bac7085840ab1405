package mqtt

import (
	"context"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/session"
)

// retainedListBatch is how often [Broker.Retained] searches on before it returns a short page.
const retainedListBatch = 16

// Retained returns at most n retained messages for topics of a filter ("": all) of an owner ("":
// any), after a topic, sorted level by level. next is where to continue, "" at the end; a page may
// be short or empty before that. Code: unavailable, where an owner's authority cannot be read.
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

// RetainedMessage returns the retained message of a topic. Codes: not_found, unavailable.
func (b *Broker) RetainedMessage(ctx context.Context, t watchword.TenantID, topic string) (session.Retained, error) {
	tn := b.tenant(t)
	x := tn.bus.Retained.Message(topic, b.options.Now())
	if x == nil {
		return session.Retained{}, errNotRetained
	}
	return b.viewRetained(ctx, tn, x)
}

var errNotRetained = watchword.Refuse(watchword.NotFound, "no message is retained for this topic")

// DeleteRetained calls note with the retained message of a topic, then removes it; it returns when
// the removal is durable. Codes: not_found, unavailable, those of note.
func (b *Broker) DeleteRetained(ctx context.Context, t watchword.TenantID, topic string, note func(session.Retained) error) error {
	v, err := b.RetainedMessage(ctx, t, topic)
	if err != nil {
		return err
	}
	if err := b.committer.unavailable(); err != nil {
		return err
	}
	if err := note(v); err != nil {
		return err
	}
	tn := b.tenant(t)
	tn.bus.Retained.Delete(topic) // including a message that was set meanwhile
	at := b.committer.add(change{retained: &retainedKey{tenant: tn, topic: topic}})
	if at == nil {
		return nil
	}
	if <-at.ended; !at.written() {
		return watchword.Refuse(watchword.Unavailable, "the message is removed from memory, but the removal is not committed yet")
	}
	return nil
}

// viewRetained converts a record for lists.
func (b *Broker) viewRetained(ctx context.Context, tn *tenant, x *bus.Retained) (session.Retained, error) {
	m, err := retainedMessage(x)
	if err != nil {
		return session.Retained{}, err
	}
	out := session.Retained{Topic: m.topic, QoS: m.qos, MemoryBytes: int(x.Bytes()), Expires: m.expires(), Payload: m.payload}
	if m.props != nil {
		out.ContentType, _ = m.props.Text(packet.ContentType)
	}
	owner, given, err := tn.bus.Retained.IsDeliverable(ctx, x, b.ownerAuthority(tn.id))
	out.Owner, out.Incarnation, out.Deliverable = owner.Subject, owner.Incarnation, given
	return out, err
}
