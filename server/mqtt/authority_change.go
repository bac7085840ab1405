package mqtt

import (
	"math/rand/v2"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/session"
)

// authorityChanged removes what a does not allow any more. It is a callback of the session, called
// with its lock held.
func (c *conn) authorityChanged(a *session.Authority) {
	c.session.mu.Lock()
	if c.out.closed || c.session.conn != c {
		c.session.mu.Unlock()
		return
	}
	listens := c.noticeSubscription != nil
	lost, redistributions := c.session.removeDeniedSubscriptions(a) // without that subscription the next CONNACK reports it
	var r *lossReport
	if listens && len(lost) > 0 && c.session.persistent != nil {
		r = &lossReport{lost: c.session.unreportedLosses()}
	}
	if len(lost) > 0 {
		c.updatePump()
	}
	c.recheckWill(a)
	if listens {
		c.refreshTimer.Reset(rand.N(c.broker.options.RefreshSpread)) // added permissions take effect with the next refresh
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
		c.close(watchword.Refuse(watchword.Denied, "a subscription of this connection is not allowed any more"))
	}
}

// closeOnLostAuthority is the callback for the end of the session.
func (c *conn) closeOnLostAuthority(cause error) {
	if cause != nil {
		c.close(cause)
	}
}

// checkRefreshCovers is the Covers callback of the session, called with its lock held: it checks
// that a new token covers the connection.
func (c *conn) checkRefreshCovers(a *session.Authority) error {
	if !a.AnyTopic() {
		return watchword.Refuse(watchword.Denied, "the token allows no topic, neither to publish nor to subscribe")
	}
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if c.out.closed || c.session.conn != c {
		return nil
	}
	return c.session.checkCovers(a)
}
