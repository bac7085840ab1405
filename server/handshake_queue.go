package server

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/watchword-iot/watchword/internal/fair"
)

// A TLS handshake costs about as much as anything else that an unauthenticated peer can request: a
// key exchange and a signature. Handshakes therefore share a semaphore with signature checks, fair
// by network: however many come from one network, connected clients keep a processor, and a new
// client of another network waits for at most one of them.

// handshakeListener accepts connections whose TLS handshakes need a slot of the semaphore.
type handshakeListener struct {
	net.Listener
	slots *fair.Semaphore
}

// Accept returns the next connection.
func (l handshakeListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &handshakeConn{Conn: c, slots: l.slots}, nil
}

// limitHandshakes returns the TLS configuration for connections of a [handshakeListener]. The GetConfigForClient of c is called once a
// handshake has a slot.
func limitHandshakes(c *tls.Config) *tls.Config {
	other := c.GetConfigForClient
	c = c.Clone()
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (conf *tls.Config, err error) {
		if t, ok := hello.Conn.(*handshakeConn); ok {
			if err := t.enter(hello); err != nil {
				return nil, err
			}
		}
		if other == nil {
			return nil, nil
		}
		return other(hello)
	}
	return c
}

// handshakeConn holds a slot of the semaphore from the ClientHello until the server's answer is
// computed: until it writes, reads on, or ends. After a HelloRetryRequest (RFC 8446 §4.1.4), for
// which nothing was computed, it acquires a slot again at the second ClientHello, for which
// crypto/tls has no callback.
type handshakeConn struct {
	net.Conn
	slots         *fair.Semaphore
	ctx           context.Context // context of the handshake with its network; set at the first ClientHello
	holdsSlot     atomic.Bool
	retry         atomic.Bool // a second ClientHello is expected
	helloAnswered bool        // the ServerHello was sent, so an unencrypted alert may follow; used by the reader only
}

// enter acquires a slot. Code: busy.
func (c *handshakeConn) enter(hello *tls.ClientHelloInfo) error {
	var network netip.Prefix
	if ap, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil { // unparsable addresses share one queue
		network = fair.Network(ap.Addr().Unmap())
	}
	c.ctx = fair.WithNetwork(hello.Context(), network)
	return c.wait()
}

func (c *handshakeConn) wait() error {
	if err := c.slots.Acquire(c.ctx); err != nil {
		return err
	}
	c.holdsSlot.Store(true)
	c.helloAnswered = true
	return nil
}

func (c *handshakeConn) leave() {
	if c.holdsSlot.Load() && c.holdsSlot.Swap(false) {
		c.slots.Release()
	}
}

// Read releases the slot first, since it waits for the client. An unencrypted alert ends the
// handshake with the error that it stands for. The first bytes of a second ClientHello acquire a
// slot. Code: busy.
func (c *handshakeConn) Read(b []byte) (int, error) {
	c.leave()
	n, err := c.Conn.Read(b)
	if c.helloAnswered && n > 0 {
		var alert error
		if c.helloAnswered, alert = clearAlert(b[:n]); alert != nil {
			return 0, alert
		}
	}
	if n > 0 && c.retry.Load() {
		if err := c.wait(); err != nil {
			return 0, err
		}
	}
	return n, err
}

// clearAlert examines what a client sent after the ServerHello. more reports whether the next read
// may still hold an unencrypted alert; alert is the alert in these bytes. An OpenSSL client that
// refuses the certificate sends its alert unencrypted; crypto/tls expects encrypted records there
// and would report a bad MAC (RFC 8446 §5.1).
func clearAlert(b []byte) (more bool, alert error) {
	const closeNotify = 0 // alert codes (RFC 8446 §6)
	if len(b) >= 6 && b[0] == changeCipherSpec {
		b = b[6:] // a one-byte record for middlebox compatibility (RFC 8446, D.4)
	}
	switch {
	case len(b) == 0:
		return true, nil
	case len(b) == 7 && b[0] == alertRecord && b[3] == 0 && b[4] == 2 && b[6] != closeNotify:
		return false, fmt.Errorf("remote error: %w", tls.AlertError(b[6]))
	}
	return b[0] == handshakeRecord, nil // a second ClientHello; TLS 1.2
}

// Write releases the slot first.
func (c *handshakeConn) Write(b []byte) (int, error) {
	c.leave()
	switch {
	case isHelloRetryRequest(b):
		c.retry.Store(true)
	case len(b) > 0 && b[0] != changeCipherSpec && c.retry.Load():
		c.retry.Store(false)
	}
	return c.Conn.Write(b)
}

// Close releases the slot.
func (c *handshakeConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// Record types (RFC 8446 §5.1) and a handshake message type (§4).
const (
	changeCipherSpec = 20 // one may follow a HelloRetryRequest (appendix D.4)
	alertRecord      = 21
	handshakeRecord  = 22
	serverHello      = 2
)

// retryRandom is the random value of a HelloRetryRequest (RFC 8446 §4.1.3).
var retryRandom = sha256.Sum256([]byte("HelloRetryRequest"))

// isHelloRetryRequest reports whether b begins with the record of a HelloRetryRequest.
func isHelloRetryRequest(b []byte) bool {
	const at = 5 + 4 + 2 // after record header, message header and version
	return len(b) >= at+len(retryRandom) && b[0] == handshakeRecord && b[5] == serverHello && [32]byte(b[at:]) == retryRandom
}
