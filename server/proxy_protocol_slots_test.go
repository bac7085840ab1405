package server

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/watchword-iot/watchword/internal/testwait"
)

// channelListener is a listener of connections that a test makes.
type channelListener struct {
	net.Listener
	c chan net.Conn
}

func (l channelListener) Accept() (net.Conn, error) {
	c, open := <-l.c
	if !open {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (l channelListener) Close() error { return nil }

func TestConnectionsWithoutTheirPROXYHeaderAreBounded(t *testing.T) {
	proxy := net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.1:1"))
	in := channelListener{c: make(chan net.Conn)}
	l := newProxyListener(in, networks{netip.MustParsePrefix("10.0.0.0/8")}, nil, slog.New(slog.DiscardHandler))
	defer l.Close()
	defer close(in.c)
	connect := func() net.Conn {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { _ = theirs.Close() })
		in.c <- &proxiedConn{ours, proxy}
		return theirs
	}
	silent := make([]net.Conn, maxProxyWaiting)
	for i := range silent {
		silent[i] = connect()
	}
	ended := func(c net.Conn) <-chan error {
		out := make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 1))
			out <- err
		}()
		return out
	}
	if err := testwait.For(t, "the end of one connection too many", ended(connect())); err != io.EOF {
		t.Errorf("one too many ends with %v", err)
	}
	// Those within the bound still wait for their header, and one that is refused makes room.
	local := append(append([]byte{}, proxySignature...), 0x20, 0, 0, 0)
	if _, err := silent[0].Write(local); err != nil {
		t.Fatal("the first one:", err)
	}
	accepted := make(chan net.Conn, 2)
	go func() {
		for range cap(accepted) {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	testwait.For(t, "the first connection", accepted)
	if err := silent[1].Close(); err != nil {
		t.Fatal(err)
	}
	for wait := testwait.Within(); ; {
		wait.Check(t, "room for another connection")
		c := connect()
		if _, err := c.Write(local); err == nil {
			break
		}
	}
	testwait.For(t, "a connection in the place of one that ended", accepted)
}
