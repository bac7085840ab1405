package mqtt

import (
	"encoding/binary"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqttstore"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// will is a will message: published when a connection is lost and its client does not reconnect in
// time (MQTT 5.0 §3.1.2.5, §3.1.3.2). It is in [willStore] until it is published or cancelled.
// Fields without a comment are immutable.
type will struct {
	id      int64     // id in the store; never reused
	account quota.Key // account that it is charged to
	session *sessionState
	message *message // without expiry, which starts when it is published
	delay   time.Duration
	expiry  time.Duration // 0: no expiry

	// Protected by willStore.mu.
	credentials session.Credentials // credentials without permissions, which allow its topic for as long as the token is valid
	due         time.Time           // zero while connected
	graceUntil  time.Time           // a reconnect until then cancels it, whether the session is resumed or not
	timer       *time.Timer         // while due is set
	offline     *session.Session    // offline session of its subject, while due is set
	finished    bool                // published, being published, or cancelled
}

// willGracePeriod is how long a client has to reconnect before its will is published, where the
// server closed the connection or the token expired.
const willGracePeriod = time.Minute

// willOverhead is the size of a will beside its message: memory, and a row in the store.
const willOverhead = 512

func (w *will) size() int64 { return int64(w.message.size() + willOverhead) }

// encodeStored returns the will as stored: delay and expiry in seconds, then the message.
func (w *will) encodeStored() []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(w.delay/time.Second))
	b = binary.BigEndian.AppendUint32(b, uint32(w.expiry/time.Second))
	return append(b, w.message.encodeStored()...)
}

func decodeStoredWill(b []byte) (*will, error) {
	if len(b) < 8 {
		return nil, watchword.Refuse(watchword.Internal, "a stored will cannot be read")
	}
	m, err := decodeStored(b[8:], time.Time{})
	if err != nil {
		return nil, err
	}
	return &will{message: m, delay: time.Duration(binary.BigEndian.Uint32(b)) * time.Second, expiry: time.Duration(binary.BigEndian.Uint32(b[4:])) * time.Second}, nil
}

// newWill makes the will of a CONNECT whose session outlives the connection by expiry seconds, if a
// may publish it now; nil for none. Codes: denied; a [packet.Error] for its topic.
func (c *conn) newWill(p *packet.Will, expiry uint32, a *session.Authority) (*will, error) {
	if p == nil {
		return nil, nil
	}
	if policy.CheckTopic(p.Topic) != nil || strings.HasPrefix(p.Topic, connTopicPrefix) || !c.broker.acceptsText(p.Topic) {
		return nil, protocolError(packet.TopicNameInvalid, packet.CONNECT, "the will topic must be UTF-8 without NUL, + and #, with 1 to 1024 bytes and at most 64 levels, not below $watchword/")
	}
	if err := c.broker.checkPropertyText(&p.Properties, packet.CONNECT); err != nil {
		return nil, err
	}
	if v := decidePublish(a, p.Topic); !v.decision.Allowed {
		return nil, v.decision.Err()
	}
	w := &will{message: c.newMessage(&packet.Publish{Topic: p.Topic, Payload: p.Payload, QoS: p.QoS, Retain: p.Retain, Properties: p.Properties}, nil, time.Time{})}
	w.message.sender, w.message.expiresAt = nil, 0 // the publisher is not connected when it is published
	if n, ok := p.Properties.Number(packet.WillDelayInterval); ok {
		w.delay = time.Duration(min(n, expiry)) * time.Second // MQTT 5.0 §3.1.3.2.2
	}
	if n, ok := p.Properties.Number(packet.MessageExpiryInterval); ok {
		w.expiry = time.Duration(n) * time.Second
	}
	return w, nil
}

// storeWill adds a will (nil: none) within the quota, and returns the commit that must be durable
// before CONNACK, nil for none. Code: denied, where s may not publish it any more.
func (c *conn) storeWill(w *will, s *session.Session) (at *commit, err error) {
	if w == nil {
		return nil, nil
	}
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	// Checked with the lock held: a later change of authority finds the will.
	a := s.Authority()
	if v := decidePublish(a, w.message.topic); !v.decision.Allowed {
		c.broker.wills.releaseQuota(w)
		return nil, v.decision.Err()
	}
	if c.session.conn != c { // another connection took over, with a will of its own
		c.broker.wills.releaseQuota(w)
		return nil, nil
	}
	w.session, w.credentials = c.session, willCredentials(a)
	c.session.will = w
	return c.broker.wills.add(w), nil
}

// willCredentials returns what a will keeps of an authority. Neither a token's permissions nor a
// will's topic change, so the permission is checked once and not kept.
func willCredentials(a *session.Authority) session.Credentials {
	p := a.Credentials()
	p.Permissions = nil
	return p
}

// recheckWill removes the will if a does not allow it. mu is held.
func (c *conn) recheckWill(a *session.Authority) {
	if c.session.will == nil {
		return
	}
	if decidePublish(a, c.session.will.message.topic).decision.Allowed {
		c.broker.wills.rebind(c.session.will, willCredentials(a))
		return
	}
	c.broker.wills.cancel(c.session.will)
	c.session.will = nil
}

// endWill decides on the will of a connection that ended: to be published now by the caller, later,
// or never. expiry is how long its session outlives the connection. cause is as in [conn.close]. mu
// is held.
func (c *conn) endWill(cause error, expiry time.Duration, now time.Time) (publish, later *will) {
	w := c.session.will
	if c.session.will = nil; w == nil {
		return nil, nil
	}
	wills, delay := &c.broker.wills, min(w.delay, expiry)
	s := c.live()
	switch {
	case !c.out.connackSent: // its client never received CONNACK
		wills.cancel(w)
	case s != nil && s.Ended() && cause != nil:
		return nil, wills.sessionEnded(w, cause, delay, now)
	case delay > 0:
		wills.schedule(w, now.Add(delay), time.Time{})
		return nil, w
	default:
		return w, nil
	}
	return nil, nil
}

// cancelsWill reports whether a session's end for that cause cancels its will: the authority was
// withdrawn. Otherwise the client has willGracePeriod.
func cancelsWill(cause error) bool {
	switch watchword.CodeOf(cause) {
	case watchword.SubjectNew, watchword.SubjectSuspended, watchword.SubjectRevoked, watchword.TokenRevoked, watchword.IssuerRevoked, watchword.ProofRequired, watchword.Denied:
		return true
	}
	return false
}

// row returns the will as it is to be written.
func (w *will) row() mqttstore.Will {
	ws := &w.session.broker.wills
	ws.mu.Lock()
	defer ws.mu.Unlock()
	r := mqttstore.Will{ID: w.id}
	if _, stands := ws.all[w.id]; !stands {
		return r
	}
	st, p := w.session, &w.credentials
	r.Tenant, r.Client, r.Subject, r.Incarnation = st.tenant.id, st.id, st.owner.subject, st.owner.incarnation
	r.Token, r.Key, r.IssuerKey, r.KeyProved = p.JTI, p.Key, p.IssuerKey, p.KeyProved
	r.Due, r.Bytes = w.due, w.encodeStored()
	return r
}
