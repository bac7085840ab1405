package server

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// Limits of PROXY headers.
const (
	proxyHeaderTimeout = 5 * time.Second
	proxyBytes         = 4096 // header bytes of version 2 after the first 16
	proxyLineBytes     = 107  // the longest header of version 1, with its CRLF
	maxProxyWaiting    = 1024 // connections whose header was not read yet
)

// What PROXY headers of the two versions begin with. The shortest header of version 1 has 15 bytes, so neither is read over by
// reading as many bytes as the longer of these.
var (
	proxySignature = []byte("\r\n\r\n\x00\r\nQUIT\n") // version 2
	proxyLine      = []byte("PROXY ")                 // version 1
)

// proxyListener reads the PROXY header (version 1 or 2) of connections from trusted proxies and refuses
// those without one; other connections pass unread. It reads exactly the header, in the background,
// so that a silent proxy does not block Accept.
//
// A connection of a proxy that itself ends TLS, and names clients in HTTP headers, may begin with TLS instead: nginx sends no PROXY
// header to an HTTP server. No client writes the first bytes of such a connection.
type proxyListener struct {
	net.Listener
	trusted networks
	tls     networks // whose connections may begin with TLS instead
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

func newProxyListener(l net.Listener, trusted, tls networks, log *slog.Logger) net.Listener {
	if len(trusted) == 0 {
		return l
	}
	p := &proxyListener{Listener: l, trusted: trusted, tls: tls, log: log, ready: make(chan acceptResult), slots: make(chan struct{}, maxProxyWaiting), closed: make(chan struct{})}
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
		if !p.trusted.containPeer(nc) {
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

func (p *proxyListener) read(nc net.Conn) {
	defer func() { <-p.slots }()
	out, err := readProxy(nc, p.tls.containPeer(nc))
	if err != nil {
		p.log.Info("no PROXY header from a proxy", slog.String("remote", nc.RemoteAddr().String()), slog.Any("err", err))
		_ = nc.Close() // nothing was written on it
		return
	}
	p.deliver(acceptResult{nc: out})
}

// tlsHandshake is the first byte of a TLS connection: a record of type handshake (RFC 8446 §5.1).
const tlsHandshake = 22

// readProxy reads the header, and no byte behind it, and returns the connection with the client's address. That is the proxy's for
// the command LOCAL of version 2, which proxies use for health checks, for UNKNOWN of version 1, and where the connection begins
// with TLS and may.
func readProxy(nc net.Conn, orTLS bool) (net.Conn, error) {
	if err := nc.SetReadDeadline(time.Now().Add(proxyHeaderTimeout)); err != nil {
		return nil, err
	}
	head := make([]byte, len(proxySignature), 16)
	if _, err := io.ReadFull(nc, head[:1]); err != nil {
		return nil, err
	}
	if orTLS && head[0] == tlsHandshake {
		return &unreadConn{nc, head[0], false}, nc.SetReadDeadline(time.Time{})
	}
	if _, err := io.ReadFull(nc, head[1:]); err != nil {
		return nil, err
	}
	var client netip.AddrPort
	var err error
	switch {
	case bytes.Equal(head, proxySignature):
		client, err = readProxyBinary(nc, head[:16])
	case bytes.HasPrefix(head, proxyLine):
		client, err = readProxyLine(nc, head)
	default:
		err = watchword.Refuse(watchword.BadRequest, "the connection must begin with a PROXY header of version 1 or 2")
	}
	if err == nil {
		err = nc.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return nil, err
	}
	if client.IsValid() {
		nc = &proxiedConn{nc, net.TCPAddrFromAddrPort(client)}
	}
	return nc, nil
}

// unreadConn is a connection whose first byte was read. Its reads are not concurrent.
type unreadConn struct {
	net.Conn
	first byte
	read  bool
}

// Read returns the first byte alone, and then what follows.
func (c *unreadConn) Read(b []byte) (int, error) {
	if c.read || len(b) == 0 {
		return c.Conn.Read(b)
	}
	b[0], c.read = c.first, true
	return 1, nil
}

// CloseWrite closes the writing side.
func (c *unreadConn) CloseWrite() error { return closeWrite(c.Conn) }

// readProxyBinary reads the rest of a header of version 2, whose first bytes head has.
func readProxyBinary(nc net.Conn, head []byte) (client netip.AddrPort, err error) {
	if _, err := io.ReadFull(nc, head[len(proxySignature):]); err != nil {
		return client, err
	}
	length := int(binary.BigEndian.Uint16(head[14:]))
	if head[12]>>4 != 2 || length > proxyBytes {
		return client, watchword.Refuse(watchword.BadRequest, "the PROXY header must be of version 1 or 2, with at most %d bytes", proxyBytes)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(nc, body); err != nil {
		return client, err
	}
	return proxyAddress(head[12]&15, head[13], body)
}

// readProxyLine reads the rest of a header of version 1, whose first bytes line has. It reads byte by byte, since what follows the
// line belongs to the client.
func readProxyLine(nc net.Conn, line []byte) (client netip.AddrPort, err error) {
	for b := make([]byte, 1); !bytes.HasSuffix(line, []byte("\r\n")); line = append(line, b[0]) {
		if len(line) == proxyLineBytes {
			return client, errProxyLine
		}
		if _, err := io.ReadFull(nc, b); err != nil {
			return client, err
		}
	}
	f := strings.Split(string(line[:len(line)-2]), " ")
	if f[1] == "UNKNOWN" { // what follows is to be ignored
		return client, nil
	}
	if len(f) != 6 || f[1] != "TCP4" && f[1] != "TCP6" {
		return client, errProxyLine
	}
	for i := range 2 { // the client's address and port, and the proxy's
		a, err := netip.ParseAddr(f[2+i])
		port, perr := strconv.ParseUint(f[4+i], 10, 16)
		if err != nil || perr != nil || a.Zone() != "" || a.Is4() != (f[1] == "TCP4") {
			return client, errProxyLine
		}
		if i == 0 {
			client = netip.AddrPortFrom(a.Unmap(), uint16(port))
		}
	}
	return client, nil
}

var errProxyLine = watchword.Refuse(watchword.BadRequest, "the PROXY header must be one line, PROXY TCP4|TCP6 CLIENT PROXY CLIENTPORT PROXYPORT or PROXY UNKNOWN, that CRLF ends within %d bytes", proxyLineBytes)

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
