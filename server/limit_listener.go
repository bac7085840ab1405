package server

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// limitListener is a listener with a bound on connections, in all and by address. A
// connection over the bound is closed before its first byte is read, so that a
// flood costs no handshake.
type limitListener struct {
	net.Listener
	maxTotal, maxPerAddress int

	mu        sync.Mutex
	open      int
	byAddress map[netip.Addr]int // never holds more than open addresses
}

func newLimitListener(l net.Listener, total, each int) net.Listener {
	return &limitListener{Listener: l, maxTotal: total, maxPerAddress: each, byAddress: map[netip.Addr]int{}}
}

// Accept returns the next connection that is within the bounds.
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
		_ = c.Close() // refused: nothing was read or written
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

// Close closes the connection and makes room for another.
func (c *limitedConn) Close() error {
	if !c.left.Swap(true) {
		defer c.listener.leave(c.from)
	}
	return c.Conn.Close()
}

// Below returns the connection that is counted.
func (c *limitedConn) Below() net.Conn { return c.Conn }

// CloseWrite says that nothing more will be written.
func (c *limitedConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}
