package mqtt

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/session"
)

// listedAtOnce is how often [Broker.Retained] looks for more before it returns a short page.
const listedAtOnce = 16

// Retained returns what is retained for the topics that a filter matches ("": for all) and
// by an owner ("": by any), behind a topic and in order of the topics' levels, n at most.
// next is the topic to go on behind, "" where there is nothing more; a page may be short,
// or empty, before that. Code: unavailable, where nobody can say what an owner may.
func (b *Broker) Retained(ctx context.Context, t watchword.TenantID, filter string, by watchword.SubjectID, after string, n int) (out []session.Retained, next string, err error) {
	w, last := b.world(t), []byte(after)
	for tries := 0; tries < listedAtOnce && len(out) < n; tries++ {
		var page []*record
		page, last = w.retained.page(filter, by, last, n-len(out), b.options.Now())
		for _, x := range page {
			v, err := b.view(ctx, w, x)
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
	w := b.world(t)
	x := w.retained.of(topic, b.options.Now())
	if x == nil {
		return session.Retained{}, errNotRetained
	}
	return b.view(ctx, w, x)
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
	if err := b.journal.refusal(); err != nil {
		return err
	}
	if err := note(v); err != nil {
		return err
	}
	w := b.world(t)
	w.retained.delete(topic) // whatever is there now: what came since is deleted too
	at := b.journal.add(adding{retained: &retainKey{world: w, topic: topic}})
	if at == nil {
		return nil
	}
	if <-at.ended; !at.over() {
		return watchword.Refuse(watchword.Unavailable, "it is removed, and that could not be written yet")
	}
	return nil
}

// of returns the record of a topic, nil for none.
func (r *retained) of(topic string, now time.Time) *record {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if x := r.records.find([]byte(topic)); x != nil && !x.expired(now.UnixNano()) {
		return x
	}
	return nil
}

func (r *retained) delete(topic string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.records.find([]byte(topic)); x != nil {
		_ = r.count(x, nil, false) // never refused: it does not ask
		r.replace(x, nil)
	}
}

// view is a record as lists show it.
func (b *Broker) view(ctx context.Context, w *world, x *record) (session.Retained, error) {
	m, err := x.message()
	if err != nil {
		return session.Retained{}, err
	}
	out := session.Retained{Topic: m.topic, QoS: m.qos, Memory: int(x.bytes()), Expires: m.expires(), Payload: m.payload}
	if m.props != nil {
		out.ContentType, _ = m.props.Text(packet.ContentType)
	}
	r := &w.retained
	for known := false; !known; {
		r.mu.RLock()
		o := x.owner
		out.Owner, out.Incarnation = o.whose().subject, o.whose().incarnation
		out.Given, known = o.mayBeGiven(m.topic)
		r.mu.RUnlock()
		if !known {
			if err := b.decide(ctx, w, o); err != nil {
				return out, err
			}
		}
	}
	return out, nil
}
