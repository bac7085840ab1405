package server

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// Limits of PROXY headers.
const (
	proxyHeaderTimeout = 5 * time.Second
	proxyBytes         = 4096 // header bytes after the first 16
	maxProxyWaiting    = 1024 // connections whose header was not read yet
)

// proxySignature begins a PROXY protocol header of version 2.
var proxySignature = []byte("\r\n\r\n\x00\r\nQUIT\n")

// proxyListener reads the PROXY header (version 2) of connections from trusted proxies and refuses
// those without one; other connections pass unread. It reads exactly the header, in the background,
// so that a silent proxy does not block Accept.
type proxyListener struct {
	net.Listener
	trusted []netip.Prefix
	log     *slog.Logger
	ready   chan acceptResult
	slots   chan struct{}
	closed  chan struct{}
	once    sync.Once
}

type acceptResult struct {
	nc  net.Conn
	err error
}

func newProxyListener(l net.Listener, trusted []netip.Prefix, log *slog.Logger) net.Listener {
	if len(trusted) == 0 {
		return l
	}
	p := &proxyListener{Listener: l, trusted: trusted, log: log, ready: make(chan acceptResult), slots: make(chan struct{}, maxProxyWaiting), closed: make(chan struct{})}
	go p.run()
	return p
}

func (p *proxyListener) run() {
	for {
		nc, err := p.Listener.Accept()
		if err != nil {
			p.deliver(acceptResult{err: err})
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		if !p.trusts(nc) {
			p.deliver(acceptResult{nc: nc})
			continue
		}
		select {
		case p.slots <- struct{}{}:
			go p.read(nc)
		default:
			_ = nc.Close() // nothing was read or written on it
		}
	}
}

func (p *proxyListener) deliver(a acceptResult) {
	select {
	case p.ready <- a:
	case <-p.closed:
		if a.nc != nil {
			_ = a.nc.Close() // nothing was written on it
		}
	}
}

func (p *proxyListener) trusts(nc net.Conn) bool {
	a, ok := nc.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return false
	}
	from := a.AddrPort().Addr().Unmap()
	for _, t := range p.trusted {
		if t.Contains(from) {
			return true
		}
	}
	return false
}

func (p *proxyListener) read(nc net.Conn) {
	defer func() { <-p.slots }()
	client, err := readProxy(nc)
	if err != nil {
		p.log.Info("no PROXY header from a proxy", slog.String("remote", nc.RemoteAddr().String()), slog.Any("err", err))
		_ = nc.Close() // nothing was written on it
		return
	}
	if client.IsValid() {
		nc = &proxiedConn{nc, net.TCPAddrFromAddrPort(client)}
	}
	p.deliver(acceptResult{nc: nc})
}

// readProxy reads the header. The address is not valid for the command LOCAL, which proxies use for
// health checks.
func readProxy(nc net.Conn) (client netip.AddrPort, err error) {
	if err := nc.SetReadDeadline(time.Now().Add(proxyHeaderTimeout)); err != nil {
		return client, err
	}
	var head [16]byte
	if _, err := io.ReadFull(nc, head[:]); err != nil {
		return client, err
	}
	length := int(binary.BigEndian.Uint16(head[14:]))
	if !bytes.Equal(head[:12], proxySignature) || head[12]>>4 != 2 || length > proxyBytes {
		return client, watchword.Refuse(watchword.BadRequest, "the connection must begin with a PROXY header of version 2")
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(nc, body); err != nil {
		return client, err
	}
	if client, err = proxyAddress(head[12]&15, head[13], body); err != nil {
		return client, err
	}
	return client, nc.SetReadDeadline(time.Time{})
}

func proxyAddress(command, family byte, body []byte) (client netip.AddrPort, err error) {
	switch {
	case command == 0: // LOCAL
		return client, nil
	case command != 1:
	case family == 0x11 && len(body) >= 12: // TCP over IPv4: two addresses and two ports
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(body)), binary.BigEndian.Uint16(body[8:])), nil
	case family == 0x21 && len(body) >= 36: // TCP over IPv6
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(body)).Unmap(), binary.BigEndian.Uint16(body[32:])), nil
	}
	return client, watchword.Refuse(watchword.BadRequest, "the PROXY header must name a TCP client")
}

// Accept returns the next connection whose client address is known.
func (p *proxyListener) Accept() (net.Conn, error) {
	select {
	case a := <-p.ready:
		return a.nc, a.err
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// Close closes the listener and the connections whose header was not read yet.
func (p *proxyListener) Close() error {
	p.once.Do(func() { close(p.closed) })
	return p.Listener.Close()
}

// proxiedConn is a proxy's connection with the address of the client.
type proxiedConn struct {
	net.Conn
	client net.Addr
}

// RemoteAddr returns the client's address.
func (c *proxiedConn) RemoteAddr() net.Addr { return c.client }

// Below returns the wrapped connection.
func (c *proxiedConn) Below() net.Conn { return c.Conn }

// CloseWrite closes the writing side.
func (c *proxiedConn) CloseWrite() error { return closeWrite(c.Conn) }
