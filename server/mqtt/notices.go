package mqtt

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/session"
)

// Topics of one connection: handled here, never forwarded, stored or logged.
const (
	connTopicPrefix = "$watchword/"
	authTopic       = connTopicPrefix + "auth"
	helloTopic      = connTopicPrefix + "hello"
)

// hello is what a device may publish first: the nonce for its commands, the epoch of its trust bundle, the sequence number of the
// last command of that epoch that it started, if it executes only logged commands the size of the log that it saw
// last (0: none), and the largest sealed command that it accepts, in bytes (0: any).
type hello struct {
	Nonce string `json:"nonce"`
	Epoch int64  `json:"epoch"`
	Seq   int64  `json:"seq"`
	Log   *int64 `json:"log"`
	Max   int    `json:"max"`
}

// Notice is a message of the server on $watchword/auth, as JSON.
type Notice struct {
	// Type is "refreshed", "refresh" (a request to refresh), "lost", "refused", or "trust" (the
	// trust bundle changed: fetch it).
	Type      string         `json:"type"`
	ExpiresAt *time.Time     `json:"expires_at,omitempty"`
	Code      watchword.Code `json:"code,omitempty"`
	Detail    string         `json:"detail,omitempty"`
	// Subscriptions lists the removed subscriptions.
	Subscriptions []string `json:"subscriptions,omitempty"`
}

// handleConnTopic handles a publish to $watchword/….
func (c *conn) handleConnTopic(ctx context.Context, now time.Time, p *packet.Publish) error {
	switch p.Topic {
	case authTopic:
		return c.refreshByPublish(ctx, now, string(p.Payload))
	case helloTopic:
		return c.handleHello(p.Payload)
	}
	return watchword.Refuse(watchword.Denied, "the only topics below $watchword/ for publishing are $watchword/auth and $watchword/hello")
}

func (c *conn) handleHello(b []byte) error {
	h := &hello{}
	if err := jose.DecodeExact(b, h); err != nil {
		return &watchword.Error{Code: watchword.BadRequest, Field: "hello", Detail: "must be a JSON object with no members but nonce, epoch, seq, log and max", Err: err}
	}
	if len(h.Nonce) > 64 || h.Nonce != "" && len(h.Nonce) < 22 || h.Epoch < 0 || h.Seq < 0 || h.Log != nil && *h.Log < 0 || h.Max < 0 {
		return watchword.RefuseField("hello", "nonce must have 22 to 64 characters; epoch, seq, log and max must not be negative")
	}
	var superseded error
	if c.broker.deps.Commands != nil {
		superseded = c.broker.deps.Commands.CheckEpoch(h.Epoch)
	}
	c.session.mu.Lock()
	c.hello = h
	p := c.pump
	switch {
	case superseded != nil && p != nil: // it also had commands before this hello
		p.stop()
		c.pump = nil
	case superseded == nil && p == nil:
		c.updatePump() // an earlier hello may have been refused
	}
	c.session.mu.Unlock()
	if superseded != nil {
		return superseded
	}
	if p != nil {
		p.handleHello(h)
	}
	return nil
}

// refreshByPublish refreshes the session's credentials by a publish, without AUTH. The result is
// sent on $watchword/auth, in addition to PUBACK.
func (c *conn) refreshByPublish(ctx context.Context, now time.Time, password string) error {
	if c.enhancedAuth {
		return watchword.Refuse(watchword.Denied, "the session was opened with a proof of the key: refresh it by AUTH with a proof")
	}
	may := func(p session.Credentials) error { return c.live().CheckRefresh(ctx, p) }
	credentials, err := c.authenticate(ctx, now, strings.TrimSpace(password), may)
	if err == nil {
		err = c.live().Refresh(ctx, credentials)
	}
	if err != nil {
		c.queueNotice(Notice{Type: "refused", Code: errorCodeOf(err), Detail: publicText(err)})
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

// setNoticeSubscription sets or removes the subscription to $watchword/auth. mu is held.
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

// refreshRequestDelay returns when to request a refresh: after 70 to 85 percent of the remaining
// lifetime, at random.
func (c *conn) refreshRequestDelay() time.Duration {
	left := c.live().Authority().Expires().Sub(c.broker.options.Now())
	return left*70/100 + rand.N(max(left*15/100, 1))
}

func (c *conn) requestRefresh(reason string) {
	end := c.live().Authority().Expires().UTC()
	c.sendNotice(Notice{Type: "refresh", ExpiresAt: &end, Detail: reason})
}

// TrustChanged notifies every client that subscribes to $watchword/auth that the trust bundle changed.
func (b *Broker) TrustChanged() {
	for _, c := range b.connections(func(*conn) bool { return true }) {
		c.sendNotice(Notice{Type: "trust"})
	}
}

// sendNotice sends n on $watchword/auth if the client subscribes to it. It is safe for concurrent
// use.
func (c *conn) sendNotice(n Notice) { c.sendLossNotice(n, nil) }

// sendLossNotice is sendNotice for a notice with a loss report; r may be nil.
func (c *conn) sendLossNotice(n Notice, r *lossReport) {
	if c.queueLossNotice(n, r) {
		go c.flush(true)
	}
}

// queueNotice is sendNotice for the reader, which flushes after its response.
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
