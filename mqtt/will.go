package mqtt

import (
	"encoding/binary"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/mqttstore"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/session"
)

// will is what is published when a connection is lost and its client does not come back
// in time (MQTT 5.0 §3.1.2.5, §3.1.3.2). It stands in [willStore] until it is published or
// cancelled. Fields without a comment of their own are immutable.
type will struct {
	id      int64     // of its row in the store; no other will has it, nor ever had
	account quota.Key // whose account it counts in
	session *sessionState
	message *message // without an end of life: that begins when it is published
	delay   time.Duration
	expiry  time.Duration // 0: for ever

	// Under wills.mu.
	credentials session.Credentials // of the token that it stands on, without permissions: these allow its topic
	due         time.Time           // zero while its connection is there
	graceUntil  time.Time           // its client cancels it by coming back until then, whether its session goes on or not
	timer       *time.Timer         // while due is set
	offline     *session.Session    // what its subject may, while due is set
	finished    bool                // it is published, is being published, or is cancelled
}

// willGracePeriod is how long a client has to come back, before its will is published, where
// the server ended the connection or the session's token ran out.
const willGracePeriod = time.Minute

// willOverhead is what one will counts beside its message: structures here, a row in the store.
const willOverhead = 512

func (w *will) size() int64 { return int64(w.message.size() + willOverhead) }

// encodeStored is the will as the store has it: delay and life in seconds, then the message.
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

// newWill is the will of a CONNECT whose session outlives the connection by expiry
// seconds, if a may publish it now; nil for none. Codes: denied,
// and a [packet.Error] for its topic.
func (c *conn) newWill(p *packet.Will, expiry uint32, a *session.Authority) (*will, error) {
	if p == nil {
		return nil, nil
	}
	if policy.CheckTopic(p.Topic) != nil || strings.HasPrefix(p.Topic, ownTopicPrefix) || !c.broker.acceptsText(p.Topic) {
		return nil, protocolError(packet.TopicNameInvalid, packet.CONNECT, "the will's topic is none that this server takes")
	}
	if err := c.broker.checkPropertyText(&p.Properties, packet.CONNECT); err != nil {
		return nil, err
	}
	if v := decidePublish(a, p.Topic); !v.decision.Allowed {
		return nil, v.decision.Err()
	}
	w := &will{message: c.newMessage(&packet.Publish{Topic: p.Topic, Payload: p.Payload, QoS: p.QoS, Retain: p.Retain, Properties: p.Properties}, nil, time.Time{})}
	w.message.sender, w.message.expiresAt = nil, 0 // its publisher is gone when it comes
	if n, ok := p.Properties.Number(packet.WillDelayInterval); ok {
		w.delay = time.Duration(min(n, expiry)) * time.Second // MQTT 5.0 §3.1.3.2.2
	}
	if n, ok := p.Properties.Number(packet.MessageExpiryInterval); ok {
		w.expiry = time.Duration(n) * time.Second
	}
	return w, nil
}

// storeWill lets a will stand for which there is room, nil for none. It returns what must
// be in the store before the client hears CONNACK, nil for nothing. Code: denied, where s
// may not publish it any more.
func (c *conn) storeWill(w *will, s *session.Session) (at *commit, err error) {
	if w == nil {
		return nil, nil
	}
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	// Asked with the lock held: a change of authority after this line finds the will.
	a := s.Authority()
	if v := decidePublish(a, w.message.topic); !v.decision.Allowed {
		c.broker.wills.releaseReservation(w)
		return nil, v.decision.Err()
	}
	if c.session.conn != c { // another connection has its place already, and a will of its own
		c.broker.wills.releaseReservation(w)
		return nil, nil
	}
	w.session, w.credentials = c.session, willCredentials(a)
	c.session.will = w
	return c.broker.wills.add(w), nil
}

// willCredentials is what a will keeps of an authority. Permissions of a token never change, and
// neither does the topic of a will: that they allow it was asked, and is not kept.
func willCredentials(a *session.Authority) session.Credentials {
	p := a.Credentials()
	p.Permissions = nil
	return p
}

// recheckWill takes the will away if a does not allow it. mu is held.
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

// endWill decides on the will of a connection that ended: now, which is the caller's to
// do, or later, or never. expiry is how long its session outlives the connection. cause
// is as in [conn.close]. mu is held.
func (c *conn) endWill(cause error, expiry time.Duration, now time.Time) (publish, later *will) {
	w := c.session.will
	if c.session.will = nil; w == nil {
		return nil, nil
	}
	wills, delay := &c.broker.wills, min(w.delay, expiry)
	s := c.live()
	switch {
	case !c.out.connackSent: // its client never heard that it is connected
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

// cancelsWill reports whether the end of a session for that cause is the end of its will:
// it has lost its authority. Else its client has a minute.
func cancelsWill(cause error) bool {
	switch watchword.CodeOf(cause) {
	case watchword.SubjectNew, watchword.SubjectSuspended, watchword.SubjectRevoked, watchword.TokenRevoked, watchword.IssuerRevoked, watchword.ProofRequired, watchword.Denied:
		return true
	}
	return false
}

// row is the will as it is to be written.
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
