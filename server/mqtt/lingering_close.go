package mqtt

import (
	"net/netip"
	"time"

	"github.com/watchword-iot/watchword/internal/quota"
)

// Limits of the wait for the peer after the final packet. Closing a socket with unread input resets
// the connection, and the reset may discard the final packet (CONNACK or DISCONNECT with a reason)
// at a client that is still sending. So the server reads and discards a little, for at most
// closeTimeout.
const (
	lingerBytes         = 16 << 10 // bytes read of each connection, after TLS and before WebSocket framing
	lingerReadCost      = 64       // bytes that each read counts at least: each TLS record is one read
	maxLingerPerNetwork = 256      // lingering connections of one network
	maxLingerTotal      = 4096     // of all networks
)

// newLingerQuota counts lingering connections.
func newLingerQuota() *quota.Ledger[netip.Prefix] {
	return quota.New[netip.Prefix](quota.Resource{
		Name: "connections that ended", Unit: "connections",
		Subject: quota.Bound{Max: maxLingerPerNetwork, Name: "one network"},
		Total:   quota.Bound{Max: maxLingerTotal, Name: "all networks"},
	})
}

// linger is called by the reader after the final packet: it returns when the peer has closed the
// connection, no quota is left, or closeTimeout has passed. After lingerBytes it reads no more, so
// that a flood fills the peer's buffers and costs the server nothing.
func (c *conn) linger(in *readBuffer) {
	in.buffered = 0
	for left := lingerBytes; left > 0; {
		if c.noLinger.Load() { // the reader may have extended the read deadline meanwhile
			return
		}
		room := in.room()
		n, err := c.nc.Read(room[:min(len(room), left)])
		if err != nil {
			return
		}
		left -= max(n, lingerReadCost)
	}
	in.release()
	c.finalWrites.Wait()
	if !c.noLinger.Load() {
		c.broker.sleep(time.Until(c.lingerUntil))
	}
}

// lingerForPeer gives the peer closeTimeout to read the final packet and close the connection.
// Without quota the connection is closed at once.
func (c *conn) lingerForPeer() {
	if c.broker.lingerQuota.Reserve(addressPrefix(c.remote), 1) != nil {
		c.noLinger.Store(true)
		_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // wakes the reader; an error means that the connection is closed
		return
	}
	c.lingerUntil = time.Now().Add(closeTimeout)
	if w, ok := c.nc.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite() // an error means that the peer has closed, and then the reader ends
	}
	_ = c.nc.SetReadDeadline(c.lingerUntil) // an error means that the connection is closed, which the next read reports
}

// endLinger releases the quota of lingerForPeer. The connection is closed.
func (c *conn) endLinger() {
	if !c.lingerUntil.IsZero() {
		c.broker.lingerQuota.Release(addressPrefix(c.remote), 1)
	}
}
