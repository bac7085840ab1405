package mqtt

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/session"
)

// The topics of one connection: consumed here, never routed, kept or logged.
const (
	ownTopicPrefix = "$watchword/"
	authTopic      = ownTopicPrefix + "auth"
	helloTopic     = ownTopicPrefix + "hello"
)

// hello is what a device may say first: the nonce that its commands must carry,
// the number of the last one that it began, if it obeys only what is logged, the
// size of the log that it saw last (0: it saw none), and the bytes of the largest sealed
// command that it can hold (0: any).
type hello struct {
	Nonce string `json:"nonce"`
	Epoch int64  `json:"epoch"`
	Seq   int64  `json:"seq"`
	Log   *int64 `json:"log"`
	Max   int    `json:"max"`
}

// Notice is what the server says on $watchword/auth, as JSON.
type Notice struct {
	// Type is "refreshed", "refresh" (please do), "lost", "refused", or "trust": the
	// trust bundle is another one, please fetch it.
	Type      string         `json:"type"`
	ExpiresAt *time.Time     `json:"expires_at,omitempty"`
	Code      watchword.Code `json:"code,omitempty"`
	Detail    string         `json:"detail,omitempty"`
	// Subscriptions is what was taken away.
	Subscriptions []string `json:"subscriptions,omitempty"`
}

// handleOwnTopic takes what a client says to the server alone.
func (c *conn) handleOwnTopic(ctx context.Context, now time.Time, p *packet.Publish) error {
	switch p.Topic {
	case authTopic:
		return c.refreshByPublish(ctx, now, string(p.Payload))
	case helloTopic:
		return c.handleHello(p.Payload)
	}
	return watchword.Refuse(watchword.Denied, "of $watchword/… a client publishes to auth and hello alone")
}

func (c *conn) handleHello(b []byte) error {
	h := &hello{}
	if err := jose.DecodeExact(b, h); err != nil {
		return &watchword.Error{Code: watchword.BadRequest, Field: "hello", Detail: "must be {nonce, epoch, seq, log, max}", Err: err}
	}
	if len(h.Nonce) > 64 || h.Nonce != "" && len(h.Nonce) < 22 || h.Epoch < 0 || h.Seq < 0 || h.Log != nil && *h.Log < 0 || h.Max < 0 {
		return watchword.RefuseField("hello", "nonce has 22 to 64 characters, epoch, seq, log and max are not negative")
	}
	c.session.mu.Lock()
	c.hello = h
	p := c.pump
	c.session.mu.Unlock()
	if p != nil {
		p.handleHello(h)
	}
	return nil
}

// refreshByPublish puts newer papers behind the session: refresh without AUTH. The answer
// goes to whoever listens on $watchword/auth, beside the PUBACK.
func (c *conn) refreshByPublish(ctx context.Context, now time.Time, password string) error {
	if c.enhancedAuth {
		return watchword.Refuse(watchword.Denied, "this session proved its key: it is refreshed by AUTH, with a proof")
	}
	may := func(p session.Credentials) error { return c.live().MayRefresh(ctx, p) }
	credentials, err := c.authenticate(ctx, now, strings.TrimSpace(password), may)
	if err == nil {
		err = c.live().Refresh(ctx, credentials)
	}
	if err != nil {
		c.queueNotice(Notice{Type: "refused", Code: codeOf(err), Detail: publicText(err)})
		return err
	}
	c.scheduleRefreshRequest()
	return nil
}

func (c *conn) scheduleRefreshRequest() {
	end := c.live().Authority().Expires().UTC()
	c.broker.stats.refreshes.Add(1)
	c.queueNotice(Notice{Type: "refreshed", ExpiresAt: &end})
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if c.refreshTimer != nil {
		c.refreshTimer.Reset(c.refreshRequestDelay())
	}
}

// setNoticeSubscription lets the client hear the server on $watchword/auth, or no more. It is
// called with mu held.
func (c *conn) setNoticeSubscription(s *subscription) {
	if c.noticeSubscription != nil {
		c.noticeSubscription.removed = true
	}
	c.noticeSubscription = s
	switch {
	case s == nil && c.refreshTimer != nil:
		c.refreshTimer.Stop()
		c.refreshTimer = nil
	case s != nil && c.refreshTimer == nil:
		c.refreshTimer = time.AfterFunc(c.refreshRequestDelay(), func() { c.requestRefresh("the token ends soon") })
	}
}

// refreshRequestDelay is when to ask for a refresh: after 70 to 85 of 100 parts of what is
// left, never two sessions alike.
func (c *conn) refreshRequestDelay() time.Duration {
	left := c.live().Authority().Expires().Sub(c.broker.options.Now())
	return left*70/100 + rand.N(max(left*15/100, 1))
}

func (c *conn) requestRefresh(reason string) {
	end := c.live().Authority().Expires().UTC()
	c.sendNotice(Notice{Type: "refresh", ExpiresAt: &end, Detail: reason})
}

// TrustChanged tells every client that listens on $watchword/auth that the trust
// bundle is another one.
func (b *Broker) TrustChanged() {
	for _, c := range b.connections(func(*conn) bool { return true }) {
		c.sendNotice(Notice{Type: "trust"})
	}
}

// sendNotice says n on $watchword/auth, if the client listens there. Anybody may call it.
func (c *conn) sendNotice(n Notice) { c.sendLossNotice(n, nil) }

// sendLossNotice is tell for a notice that reports losses; r may be nil.
func (c *conn) sendLossNotice(n Notice, r *lossReport) {
	if c.queueLossNotice(n, r) {
		go c.flush(true)
	}
}

// queueNotice is tell for the reader, which flushes when it has answered too.
func (c *conn) queueNotice(n Notice) (wake bool) { return c.queueLossNotice(n, nil) }

func (c *conn) queueLossNotice(n Notice, r *lossReport) (wake bool) {
	b, err := json.Marshal(n)
	if err != nil {
		return false
	}
	m := &message{topic: authTopic, payload: b, qos: 1, unicast: &unicast{receiver: c, report: r}}
	c.session.mu.Lock()
	s := c.noticeSubscription
	c.session.mu.Unlock()
	return s != nil && c.session.deliver(m, &bus.Result{}, nil, &s.Subscription) != nil
}
