package server

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// connectionLimit counts connections, in all and by address. It is safe for concurrent use.
type connectionLimit struct {
	maxTotal, maxPerAddress int
	shared                  networks // of proxies, each of which has connections of many clients; not limited by address

	mu        sync.Mutex
	open      int
	byAddress map[netip.Addr]int // only addresses with open connections
}

func newConnectionLimit(total, each int, shared networks) *connectionLimit {
	return &connectionLimit{maxTotal: total, maxPerAddress: each, shared: shared, byAddress: map[netip.Addr]int{}}
}

// enter takes a place for a connection from an address, which [connectionLimit.leave] releases; false: there is none.
func (l *connectionLimit) enter(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.maxTotal || l.byAddress[from] >= l.maxPerAddress && !l.shared.contain(from) {
		return false
	}
	l.open++
	l.byAddress[from]++
	return true
}

func (l *connectionLimit) leave(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.byAddress[a]--; l.byAddress[a] == 0 {
		delete(l.byAddress, a)
	}
}

// limitListener limits connections, in all and by address. A connection over the limit is closed
// before its first byte is read, so that a flood costs no handshakes.
type limitListener struct {
	net.Listener
	limit *connectionLimit
}

// Accept returns the next connection within the limits.
func (l limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var from netip.Addr
		if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			from = a.AddrPort().Addr().Unmap()
		}
		if l.limit.enter(from) {
			return &limitedConn{Conn: c, limit: l.limit, from: from}, nil
		}
		_ = c.Close() // nothing was read or written on it
	}
}

type limitedConn struct {
	net.Conn
	limit *connectionLimit
	from  netip.Addr
	left  atomic.Bool
}

// Close closes the connection and releases its place.
func (c *limitedConn) Close() error {
	if !c.left.Swap(true) {
		defer c.limit.leave(c.from)
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
