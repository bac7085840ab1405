package server

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// limitListener limits connections, in all and by address. A connection over the limit is closed
// before its first byte is read, so that a flood costs no handshakes.
type limitListener struct {
	net.Listener
	maxTotal, maxPerAddress int

	mu        sync.Mutex
	open      int
	byAddress map[netip.Addr]int // only addresses with open connections
}

func newLimitListener(l net.Listener, total, each int) net.Listener {
	return &limitListener{Listener: l, maxTotal: total, maxPerAddress: each, byAddress: map[netip.Addr]int{}}
}

// Accept returns the next connection within the limits.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var from netip.Addr
		if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			from = a.AddrPort().Addr().Unmap()
		}
		if l.enter(from) {
			return &limitedConn{Conn: c, listener: l, from: from}, nil
		}
		_ = c.Close() // nothing was read or written on it
	}
}

func (l *limitListener) enter(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.maxTotal || l.byAddress[a] >= l.maxPerAddress {
		return false
	}
	l.open++
	l.byAddress[a]++
	return true
}

func (l *limitListener) leave(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.byAddress[a]--; l.byAddress[a] == 0 {
		delete(l.byAddress, a)
	}
}

type limitedConn struct {
	net.Conn
	listener *limitListener
	from     netip.Addr
	left     atomic.Bool
}

// Close closes the connection and releases its place.
func (c *limitedConn) Close() error {
	if !c.left.Swap(true) {
		defer c.listener.leave(c.from)
	}
	return c.Conn.Close()
}

// Below returns the wrapped connection.
func (c *limitedConn) Below() net.Conn { return c.Conn }

// CloseWrite closes the writing side.
func (c *limitedConn) CloseWrite() error { return closeWrite(c.Conn) }

// closeWrite closes the writing side of c, if it can be closed alone.
func closeWrite(c net.Conn) error {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}
