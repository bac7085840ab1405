package mqtt

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/mqttstore"
	"github.com/watchword-iot/watchword/server/session"
)

// retainedKey is a topic whose retained message is to be written, and the account that it is
// charged to until then.
type retainedKey struct {
	tenant  *tenant
	topic   string
	subject watchword.SubjectID
}

// row is what is to be written of the topic now.
func (k retainedKey) row() mqttstore.Retained {
	encoded, expires, owner := k.tenant.bus.Retained.StoredForm(k.topic)
	return mqttstore.Retained{Tenant: k.tenant.id, Topic: k.topic, Packet: encoded, Expires: unixNano(expires), Subject: owner.Subject, Incarnation: owner.Incarnation}
}

// retainFor returns what is to be retained of m, which the session publishes: nothing where its payload is empty, which removes
// what there is (MQTT 5.0 §3.3.1.3).
func (st *sessionState) retainFor(m *message) *bus.Retain {
	r := &bus.Retain{Owner: bus.Owner{Subject: st.owner.subject, Incarnation: st.owner.incarnation}}
	if len(m.payload) > 0 {
		r.Message = newRetained(m)
	}
	return r
}

func newRetained(m *message) *bus.Retained {
	kept := message{topic: m.topic, payload: m.payload, qos: m.qos, retain: true, props: m.props, expiresAt: m.expiresAt}
	return retainedOf(kept.encodeStored(), m.expiresAt)
}

// retainedOf makes a retained message of an encoded PUBLISH.
func retainedOf(encoded []byte, ends int64) *bus.Retained {
	at := 2
	for encoded[at-1] >= 128 { // remaining length
		at++
	}
	return bus.NewRetained(encoded, at+2, int(binary.BigEndian.Uint16(encoded[at:])), ends)
}

// retainedMessage is what is given of x.
func retainedMessage(x *bus.Retained) (*message, error) {
	encoded, topic := x.Encoded(), x.Topic()
	qos := encoded[0] >> 1 & 3
	after := encoded[x.TopicEnd():]
	if qos > 0 {
		after = after[2:]
	}
	if after[0] == 0 { // most have no properties
		return &message{topic: string(topic), payload: after[1:], qos: qos, retain: true, retained: true, expiresAt: x.Expires()}, nil
	}
	m, err := decodeStored(encoded, unixNano(x.Expires()))
	if err == nil {
		m.retain, m.retained = true, true
	}
	return m, err
}

// offlineAuthorization is what a subject may publish that shows no token, by today's policy.
type offlineAuthorization struct{ a *session.Authority }

// MayPublish is that of [bus.PublishAuthority].
func (r offlineAuthorization) MayPublish(topic string) bool {
	return decidePublish(r.a, topic).decision.Allowed
}

// ownerAuthority returns what owners of a tenant's retained messages may publish today, without a token.
func (b *Broker) ownerAuthority(t watchword.TenantID) bus.OwnerAuthority {
	return func(ctx context.Context, owner bus.Owner) (bus.PublishAuthority, error) {
		a, err := b.deps.Guard.OfflineAuthority(ctx, t, owner.Subject, owner.Incarnation)
		if a == nil {
			return nil, err
		}
		return offlineAuthorization{a}, err
	}
}

// retainedSweepInterval is how often expired retained messages are removed.
const retainedSweepInterval = time.Minute

// sweepRetained removes expired retained messages.
func (b *Broker) sweepRetained() {
	for b.sleep(retainedSweepInterval) {
		for _, tn := range b.allTenants() {
			now := b.options.Now().UnixNano()
			b.forgetRetained(tn, func(x *bus.Retained) bool { return x.Expired(now) })
			b.enqueueUncheckedOwners(tn)
		}
	}
}

// forgetRetained removes matching retained messages of a tenant from memory and store, in steps.
func (b *Broker) forgetRetained(tn *tenant, f func(*bus.Retained) bool) {
	tn.bus.Retained.Forget(f, func(topics []string) {
		var at *commit
		for _, topic := range topics {
			at = b.committer.add(change{retained: &retainedKey{tenant: tn, topic: topic}})
		}
		if at != nil {
			lockrank.Block()
			select {
			case <-at.ended:
			case <-b.ctx.Done():
			}
		}
	})
}
