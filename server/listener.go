package server

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// limited is a listener with a bound on connections, in all and by address. A
// connection over the bound is closed before its first byte is read, so that a
// flood costs no handshake.
type limited struct {
	net.Listener
	total, each int

	mu   sync.Mutex
	open int
	by   map[netip.Addr]int // never holds more than open addresses
}

func limitListener(l net.Listener, total, each int) net.Listener {
	return &limited{Listener: l, total: total, each: each, by: map[netip.Addr]int{}}
}

// Accept returns the next connection that is within the bounds.
func (l *limited) Accept() (net.Conn, error) {
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
			return &limitedConn{Conn: c, of: l, from: from}, nil
		}
		_ = c.Close() // refused: nothing was read or written
	}
}

func (l *limited) enter(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.total || l.by[a] >= l.each {
		return false
	}
	l.open++
	l.by[a]++
	return true
}

func (l *limited) leave(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.by[a]--; l.by[a] == 0 {
		delete(l.by, a)
	}
}

type limitedConn struct {
	net.Conn
	of   *limited
	from netip.Addr
	left atomic.Bool
}

// Close closes the connection and makes room for another.
func (c *limitedConn) Close() error {
	if !c.left.Swap(true) {
		defer c.of.leave(c.from)
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
