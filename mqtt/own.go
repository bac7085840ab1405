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
	ownTopics  = "$watchword/"
	authTopic  = ownTopics + "auth"
	helloTopic = ownTopics + "hello"
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

// own takes what a client says to the server alone.
func (c *conn) own(ctx context.Context, now time.Time, p *packet.Publish) error {
	switch p.Topic {
	case authTopic:
		return c.refresh(ctx, now, string(p.Payload))
	case helloTopic:
		return c.greeted(p.Payload)
	}
	return watchword.Refuse(watchword.Denied, "of $watchword/… a client publishes to auth and hello alone")
}

func (c *conn) greeted(b []byte) error {
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
		p.greeted(h)
	}
	return nil
}

// refresh puts newer papers behind the session: refresh without AUTH. The answer
// goes to whoever listens on $watchword/auth, beside the PUBACK.
func (c *conn) refresh(ctx context.Context, now time.Time, password string) error {
	if c.byAce {
		return watchword.Refuse(watchword.Denied, "this session proved its key: it is refreshed by AUTH, with a proof")
	}
	may := func(p session.Papers) error { return c.live().MayRefresh(ctx, p) }
	papers, err := c.papers(ctx, now, strings.TrimSpace(password), may)
	if err == nil {
		err = c.live().Refresh(ctx, papers)
	}
	if err != nil {
		c.say(Notice{Type: "refused", Code: codeOf(err), Detail: words(err)})
		return err
	}
	c.refreshed()
	return nil
}

func (c *conn) refreshed() {
	end := c.live().Authority().Expires().UTC()
	c.broker.stats.refreshes.Add(1)
	c.say(Notice{Type: "refreshed", ExpiresAt: &end})
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if c.ask != nil {
		c.ask.Reset(c.askIn())
	}
}

// listen lets the client hear the server on $watchword/auth, or no more. It is
// called with mu held.
func (c *conn) listen(s *subscription) {
	if c.auth != nil {
		c.auth.dead = true
	}
	c.auth = s
	switch {
	case s == nil && c.ask != nil:
		c.ask.Stop()
		c.ask = nil
	case s != nil && c.ask == nil:
		c.ask = time.AfterFunc(c.askIn(), func() { c.askFor("the token ends soon") })
	}
}

// askIn is when to ask for a refresh: after 70 to 85 of 100 parts of what is
// left, never two sessions alike.
func (c *conn) askIn() time.Duration {
	left := c.live().Authority().Expires().Sub(c.broker.options.Now())
	return left*70/100 + rand.N(max(left*15/100, 1))
}

func (c *conn) askFor(why string) {
	end := c.live().Authority().Expires().UTC()
	c.tell(Notice{Type: "refresh", ExpiresAt: &end, Detail: why})
}

// TrustChanged tells every client that listens on $watchword/auth that the trust
// bundle is another one.
func (b *Broker) TrustChanged() {
	for _, c := range b.connected(func(*conn) bool { return true }) {
		c.tell(Notice{Type: "trust"})
	}
}

// tell says n on $watchword/auth, if the client listens there. Anybody may call it.
func (c *conn) tell(n Notice) { c.tellOf(n, nil) }

// tellOf is tell for a notice that reports losses; r may be nil.
func (c *conn) tellOf(n Notice, r *report) {
	if c.sayOf(n, r) {
		go c.flush(true)
	}
}

// say is tell for the reader, which flushes when it has answered too.
func (c *conn) say(n Notice) (wake bool) { return c.sayOf(n, nil) }

func (c *conn) sayOf(n Notice, r *report) (wake bool) {
	b, err := json.Marshal(n)
	if err != nil {
		return false
	}
	m := &message{topic: authTopic, payload: b, qos: 1, private: &private{only: c, report: r}}
	c.session.mu.Lock()
	s := c.auth
	c.session.mu.Unlock()
	return s != nil && c.session.offer(m, &bus.Result{}, nil, &s.Subscription) != nil
}

// changed takes away what a no longer allows: it is the session's, which holds
// its own lock meanwhile.
func (c *conn) changed(a *session.Authority) {
	c.session.mu.Lock()
	if c.out.closed || c.session.conn != c {
		c.session.mu.Unlock()
		return
	}
	listens := c.auth != nil
	lost, orphans := c.session.lose(a) // who does not listen hears it when it comes back
	var r *report
	if listens && len(lost) > 0 && c.session.lasting != nil {
		r = &report{lost: c.session.untold()}
	}
	if len(lost) > 0 {
		c.keepPump()
	}
	c.recheckWill(a)
	if listens {
		c.ask.Reset(rand.N(c.broker.options.Spread)) // what was given works from the next refresh
	}
	c.session.mu.Unlock()
	if len(orphans) > 0 {
		go c.session.hand(orphans, false)
	}
	switch {
	case len(lost) == 0:
	case listens:
		c.tellOf(Notice{Type: "lost", Code: watchword.Denied, Subscriptions: lost}, r)
	default:
		c.end(watchword.Refuse(watchword.Denied, "a subscription is no longer allowed"))
	}
}

// ended is the session's: nothing is left to stand on.
func (c *conn) ended(cause error) {
	if cause != nil {
		c.end(cause)
	}
}
