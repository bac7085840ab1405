package mqtt

import (
	"math/rand/v2"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/session"
)

// authorityChanged takes away what a no longer allows: it is the session's, which holds
// its own lock meanwhile.
func (c *conn) authorityChanged(a *session.Authority) {
	c.session.mu.Lock()
	if c.out.closed || c.session.conn != c {
		c.session.mu.Unlock()
		return
	}
	listens := c.noticeSubscription != nil
	lost, redistributions := c.session.removeDeniedSubscriptions(a) // who does not listen hears it when it comes back
	var r *lossReport
	if listens && len(lost) > 0 && c.session.persistent != nil {
		r = &lossReport{lost: c.session.unreportedLosses()}
	}
	if len(lost) > 0 {
		c.updatePump()
	}
	c.recheckWill(a)
	if listens {
		c.refreshTimer.Reset(rand.N(c.broker.options.RefreshSpread)) // what was given works from the next refresh
	}
	c.session.mu.Unlock()
	if len(redistributions) > 0 {
		go c.session.redistribute(redistributions, false)
	}
	switch {
	case len(lost) == 0:
	case listens:
		c.sendLossNotice(Notice{Type: "lost", Code: watchword.Denied, Subscriptions: lost}, r)
	default:
		c.close(watchword.Refuse(watchword.Denied, "a subscription is no longer allowed"))
	}
}

// authorityEnded is the session's: nothing is left to stand on.
func (c *conn) authorityEnded(cause error) {
	if cause != nil {
		c.close(cause)
	}
}

// checkRefreshCovers is the session's, which holds its own lock meanwhile: whether the authority of
// a newer token is enough for a refresh.
func (c *conn) checkRefreshCovers(a *session.Authority) error {
	if !a.AnyTopic() {
		return watchword.Refuse(watchword.Denied, "the token gives no right to publish or subscribe to any topic")
	}
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if c.out.closed || c.session.conn != c {
		return nil
	}
	return c.session.checkCovers(a)
}
