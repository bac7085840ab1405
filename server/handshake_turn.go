package server

import (
	"crypto/tls"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/rates"
)

// A TLS handshake costs the server about as much as all else that a stranger can ask for: a key exchange and a
// signature. So handshakes take turns with the checks of signatures, by network: however many come from one, those who
// are connected keep a processor, and a newcomer from another waits for one of them.

// turnListener accepts connections whose TLS handshakes take turns in room.
type turnListener struct {
	net.Listener
	room *fair.Room
}

// Accept returns the next connection.
func (l turnListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &turnConn{Conn: c, room: l.room}, nil
}

// inTurn is the TLS configuration for the connections of a [turnListener].
func inTurn(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if t, ok := hello.Conn.(*turnConn); ok {
			return nil, t.enter(hello)
		}
		return nil, nil
	}
	return c
}

// turnConn has a place in the room from the client's hello until the server's answer to it is made: when it writes,
// or reads on, or ends.
type turnConn struct {
	net.Conn
	room   *fair.Room
	inside atomic.Bool
}

// enter waits for a place. Code: busy.
func (c *turnConn) enter(hello *tls.ClientHelloInfo) error {
	var network netip.Prefix
	if ap, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil { // the zero network has a line too
		network = rates.Network(ap.Addr().Unmap())
	}
	if err := c.room.Enter(fair.With(hello.Context(), network)); err != nil {
		return err
	}
	c.inside.Store(true)
	return nil
}

func (c *turnConn) leave() {
	if c.inside.Load() && c.inside.Swap(false) {
		c.room.Leave()
	}
}

// Read gives the place back first: it waits for the client.
func (c *turnConn) Read(b []byte) (int, error) {
	c.leave()
	return c.Conn.Read(b)
}

// Write gives the place back first.
func (c *turnConn) Write(b []byte) (int, error) {
	c.leave()
	return c.Conn.Write(b)
}

// Close gives the place back too.
func (c *turnConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
