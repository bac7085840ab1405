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
	"github.com/watchword-iot/watchword/internal/rates"
)

// A TLS handshake costs the server about as much as all else that a stranger can ask for: a key exchange and a
// signature. So handshakes take turns with the checks of signatures, by network: however many come from one, those who
// are connected keep a processor, and a newcomer from another waits for one of them.

// handshakeListener accepts connections whose TLS handshakes take turns in room.
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

// limitHandshakes is the TLS configuration for the connections of a [handshakeListener].
func limitHandshakes(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if t, ok := hello.Conn.(*handshakeConn); ok {
			return nil, t.enter(hello)
		}
		return nil, nil
	}
	return c
}

// handshakeConn has a place in the room from the client's hello until the server's answer to it is made: when it writes,
// or reads on, or ends. Where the answer is a HelloRetryRequest (RFC 8446 §4.1.4) nothing was calculated yet: it has a
// place again from the second hello on, which tells nobody else of itself.
type handshakeConn struct {
	net.Conn
	slots         *fair.Semaphore
	ctx           context.Context // of the handshake, with its network; from the first hello on
	holdsSlot     atomic.Bool
	retry         atomic.Bool // a second hello is awaited
	helloAnswered bool        // the server has answered the hello, and what comes may be an alert in the clear; for the one who reads
}

// enter waits for a place. Code: busy.
func (c *handshakeConn) enter(hello *tls.ClientHelloInfo) error {
	var network netip.Prefix
	if ap, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil { // the zero network has a line too
		network = rates.Network(ap.Addr().Unmap())
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

// Read gives the place back first: it waits for the client. An alert in the clear ends the handshake as the error that it
// is. With a part of a second hello it waits for a place. Code: busy.
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

// clearAlert looks at what a client sent behind the server's hello: whether the next read may still hold an alert in the
// clear, and the alert that these bytes are. A client on OpenSSL that refuses the server's certificate says so before it
// seals anything, where crypto/tls takes sealed records alone and would call the alert a bad MAC (RFC 8446, 5.1).
func clearAlert(b []byte) (more bool, alert error) {
	const closeNotify = 0 // of the alerts (RFC 8446 §6)
	if len(b) >= 6 && b[0] == changeCipherSpec {
		b = b[6:] // of one byte, for the sake of middleboxes (RFC 8446, D.4)
	}
	switch {
	case len(b) == 0:
		return true, nil
	case len(b) == 7 && b[0] == alertRecord && b[3] == 0 && b[4] == 2 && b[6] != closeNotify:
		return false, fmt.Errorf("remote error: %w", tls.AlertError(b[6]))
	}
	return b[0] == handshakeRecord, nil // a second hello; TLS 1.2
}

// Write gives the place back first.
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

// Close gives the place back too.
func (c *handshakeConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// Of RFC 8446: the types of records (§5.1), and of a handshake message (§4).
const (
	changeCipherSpec = 20 // one may follow a HelloRetryRequest (appendix D.4)
	alertRecord      = 21
	handshakeRecord  = 22
	serverHello      = 2
)

// retryRandom is the random of a ServerHello that is a HelloRetryRequest: SHA-256 of these words (RFC 8446 §4.1.3).
var retryRandom = sha256.Sum256([]byte("HelloRetryRequest"))

// isHelloRetryRequest reports whether a write begins with the record of a HelloRetryRequest.
func isHelloRetryRequest(b []byte) bool {
	const at = 5 + 4 + 2 // behind the headers of the record and of the message, and the version
	return len(b) >= at+len(retryRandom) && b[0] == handshakeRecord && b[5] == serverHello && [32]byte(b[at:]) == retryRandom
}
