package mqtt

import (
	"net/netip"
	"time"

	"github.com/watchword-iot/watchword/internal/quota"
)

// The bounds of what is done for a connection after its end. A socket that is closed
// with unread input resets its connection, which may take the final packet (CONNACK or
// DISCONNECT with a reason) from a client that was still sending. So a little is read
// and thrown away, for at most byeTimeout.
const (
	lingerBytes         = 16 << 10 // that are read of each connection; decrypted ones of TLS, with their frames of WebSocket
	lingerReadCost      = 64       // bytes that a read counts at least: each TLS record is one
	maxLingerPerNetwork = 256      // connections of one network that may wait at once
	maxLingerTotal      = 4096     // of all networks
)

// newLingerQuota counts the connections that wait for their peer to read the final packet.
func newLingerQuota() *quota.Ledger[netip.Prefix] {
	return quota.New[netip.Prefix](quota.Resource{
		Name: "connections that ended", Unit: "connections",
		Subject: quota.Bound{Max: maxLingerPerNetwork, Name: "one network"},
		Total:   quota.Bound{Max: maxLingerTotal, Name: "all networks"},
	})
}

// linger is what the reader does after the end: it returns when the peer has ended the
// connection too, when there is no place to wait, or byeTimeout after the final packet. When
// lingerBytes have been read it reads no more, so that a flood fills the peer's own
// buffers and costs the server nothing.
func (c *conn) linger(in *readBuffer) {
	in.buffered = 0
	for left := lingerBytes; left > 0; {
		if c.noLinger.Load() { // the read deadline alone may have been set anew by the reader meanwhile
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
	c.farewells.Wait()
	if !c.noLinger.Load() {
		c.broker.sleep(time.Until(c.lingerUntil))
	}
}

// lingerForPeer is the last step of the farewell: the peer has byeTimeout to hear it and to
// end the connection. Where too many wait already, the connection is closed at once.
func (c *conn) lingerForPeer() {
	if c.broker.lingerQuota.Reserve(addressPrefix(c.remote), 1) != nil {
		c.noLinger.Store(true)
		_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // wakes the reader; the error is that of a connection that is gone
		return
	}
	c.lingerUntil = time.Now().Add(closeTimeout)
	if w, ok := c.nc.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite() // the error is that of a peer that is gone: then the reader ends by itself
	}
	_ = c.nc.SetReadDeadline(c.lingerUntil) // the error is that of a closed connection, which the next read reports
}

// endLinger gives back the place of awaitPeer. The connection is closed.
func (c *conn) endLinger() {
	if !c.lingerUntil.IsZero() {
		c.broker.lingerQuota.Release(addressPrefix(c.remote), 1)
	}
}
