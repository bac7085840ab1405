package mqtt_test

import (
	"bufio"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/mqtt"
)

// meteredConn counts what the server reads of a connection.
type meteredConn struct {
	net.Conn
	remote       netip.AddrPort
	bytes, reads atomic.Int64
}

func (m *meteredConn) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	m.bytes.Add(int64(n))
	m.reads.Add(1)
	return n, err
}

func (m *meteredConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(m.remote) }

// from opens a connection from an address. The server's end is returned first.
func (srv *testServer) from(address string) (*meteredConn, net.Conn) {
	mine, theirs := net.Pipe()
	return &meteredConn{Conn: theirs, remote: netip.MustParseAddrPort(address)}, mine
}

// transports open a connection, and return the client's end.
var transports = map[string]func(*testing.T, *testServer) (*meteredConn, net.Conn){
	"plain": func(_ *testing.T, h *testServer) (*meteredConn, net.Conn) {
		m, mine := h.from("192.0.2.1:1")
		h.broker.Handle(m)
		return m, mine
	},
	"TLS": func(t *testing.T, h *testServer) (*meteredConn, net.Conn) {
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, cert, cert, public, private)
		if err != nil {
			t.Fatal(err)
		}
		m, mine := h.from("192.0.2.1:1")
		h.broker.Handle(tls.Server(m, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}}))
		c := tls.Client(mine, &tls.Config{InsecureSkipVerify: true})
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		return m, c
	},
	"WebSocket": func(t *testing.T, h *testServer) (*meteredConn, net.Conn) {
		m, mine := h.from("192.0.2.1:1")
		l := &channelListener{of: make(chan net.Conn, 1)}
		l.of <- m
		s := &http.Server{Handler: h.broker}
		go func() { _ = s.Serve(l) }()      // it ends with the listener
		t.Cleanup(func() { _ = s.Close() }) // of the listener: what was upgraded is the broker's
		if _, err := io.WriteString(mine, "GET / HTTP/1.1\r\nHost: server\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
			"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(mine)
		if a, err := http.ReadResponse(r, nil); err != nil || a.StatusCode != http.StatusSwitchingProtocols {
			t.Fatal(a, err)
		}
		return m, &webSocketFrames{Conn: mine, r: r}
	},
}

// webSocketFrames is a WebSocket whose client continues after the server's close frame.
type webSocketFrames struct {
	net.Conn
	r    *bufio.Reader
	rest int64 // of the message that is being read
}

func (f *webSocketFrames) Write(b []byte) (int, error) {
	frame := append(binary.BigEndian.AppendUint16([]byte{0x82, 0x80 | 126}, uint16(len(b))), 0, 0, 0, 0) // a mask of zeros
	if _, err := f.Conn.Write(append(frame, b...)); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (f *webSocketFrames) Read(b []byte) (int, error) {
	for f.rest == 0 {
		var head [2]byte
		if _, err := io.ReadFull(f.r, head[:]); err != nil {
			return 0, err
		}
		if f.rest = int64(head[1]); head[1] == 126 { // RFC 6455 §5.2: the length is in the next two bytes
			var length [2]byte
			if _, err := io.ReadFull(f.r, length[:]); err != nil {
				return 0, err
			}
			f.rest = int64(binary.BigEndian.Uint16(length[:]))
		}
		if head[0] != 0x82 { // its close frame
			if _, err := io.CopyN(io.Discard, f.r, f.rest); err != nil {
				return 0, err
			}
			f.rest = 0
		}
	}
	n, err := f.r.Read(b[:min(int64(len(b)), f.rest)])
	f.rest -= int64(n)
	return n, err
}

// channelListener accepts what is in it.
type channelListener struct{ of chan net.Conn }

func (l *channelListener) Accept() (net.Conn, error) {
	if nc, ok := <-l.of; ok {
		return nc, nil
	}
	return nil, net.ErrClosed
}

func (l *channelListener) Close() error {
	close(l.of)
	return nil
}

func (l *channelListener) Addr() net.Addr { return &net.TCPAddr{} }

// trailingPackets is n bytes of complete packets that the server does not expect.
func trailingPackets(n int) []byte {
	one := packet.Append(nil, &packet.Publish{Topic: "t", Payload: []byte("x")}, packet.V5)
	var b []byte
	for len(b)+len(one) <= n {
		b = append(b, one...)
	}
	return b
}

// ends are what the server ends a connection for: what is sent, and what it says last.
var ends = map[string]func(*testServer) (send []byte, last packet.Reason){
	"CONNACK": func(*testServer) ([]byte, packet.Reason) {
		return packet.Append(nil, hello(packet.V5, "lamp-7", "a wrong token"), packet.V5), packet.NotAuthorized
	},
	"DISCONNECT": func(h *testServer) ([]byte, packet.Reason) {
		p := hello(packet.V5, "lamp-7", h.token("lamp-7", time.Hour))
		return packet.Append(packet.Append(nil, p, packet.V5), p, packet.V5), packet.ProtocolError
	},
}

// wantLastPacket reads all packets up to the end, of which the last must have the reason.
func wantLastPacket(t *testing.T, c *testClient, want packet.Reason) {
	t.Helper()
	var last packet.Packet
	for p := range c.got {
		last = p
	}
	got := packet.Success
	switch p := last.(type) {
	case *packet.Connack:
		got = p.Code
	case *packet.Disconnect:
		got = p.Reason
	}
	if got != want {
		t.Errorf("the last is %T %+v, want reason %#x", last, last, want)
	}
}

// A client that sends for a while after the end, and reads only then, reads the reason.
func TestFinalPacketIsReadAfterFurtherPackets(t *testing.T) {
	for transport, open := range transports {
		for name, end := range ends {
			t.Run(transport+" "+name, func(t *testing.T) {
				inBubble(t, func(t *testing.T, srv *testServer) {
					_, nc := open(t, srv)
					defer nc.Close()
					send, reason := end(srv)
					if err := nc.SetWriteDeadline(time.Now().Add(time.Second / 2)); err != nil {
						t.Fatal(err)
					}
					if _, err := nc.Write(send); err != nil {
						t.Fatal(err)
					}
					more := trailingPackets(14 << 10) // and the frames of the transport
					for len(more) > 0 {
						n := min(len(more), 1024)
						if _, err := nc.Write(more[:n]); err != nil { // a pipe takes no byte that is not read
							t.Fatal("further packets are not read: ", err)
						}
						more = more[n:]
					}
					wantLastPacket(t, srv.serveConn(nc, packet.V5), reason)
				})
			})
		}
	}
}

// Over a real connection, where unread input would reset it.
func TestFinalPacketIsNotReset(t *testing.T) {
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			srv := newTestServer(t, mqtt.Options{})
			defer srv.close()
			nc, err := net.Dial("tcp", srv.listen())
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if err := nc.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			send, _ := end(srv)
			if _, err := nc.Write(append(send, trailingPackets(15<<10)...)); err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(nc); err != nil || len(b) == 0 {
				t.Errorf("%d bytes, then %v", len(b), err)
			}
		})
	}
}

// A flood after the end is not read: neither its bytes nor its records are. The
// connection is closed a second after the last words, which the client can read until then.
func TestPacketsAfterCloseAreNotRead(t *testing.T) {
	for transport, open := range transports {
		for name, end := range ends {
			for _, size := range []int{1, 4096} {
				t.Run(fmt.Sprint(transport, " ", name, " by ", size), func(t *testing.T) {
					inBubble(t, func(t *testing.T, srv *testServer) {
						m, nc := open(t, srv)
						defer nc.Close()
						send, reason := end(srv)
						c := srv.serveConn(nc, packet.V5)
						if _, err := nc.Write(send); err != nil {
							t.Fatal(err)
						}
						synctest.Wait()
						bytes, reads, begun := m.bytes.Load(), m.reads.Load(), time.Now()
						stopped := make(chan struct{})
						go func() {
							defer close(stopped)
							b := trailingPackets(4096)
							for range 2000 {
								if _, err := nc.Write(b[:size]); err != nil {
									return
								}
							}
						}()
						wantLastPacket(t, c, reason)
						testwait.For(t, "the end of the writes", stopped)
						if d := time.Since(begun); d != time.Second {
							t.Errorf("the end came after %s", d)
						}
						bytes, reads = m.bytes.Load()-bytes, m.reads.Load()-reads
						if bytes > 20<<10 || reads > 600 { // with the records and frames of the transport
							t.Errorf("%d bytes were read after the end, in %d reads", bytes, reads)
						}
					})
				})
			}
		}
	}
}

// The number of connections that wait for their peer to read the final packet is limited by network and in all: others are
// closed at once, and their peers get the packet nevertheless.
func TestLingeringConnectionsAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, srv *testServer) {
		send, reason := ends["CONNACK"](srv)
		begun, opened := time.Now(), 0
		refused := func(network, n int) (open int) {
			t.Helper()
			for range n {
				m, nc := srv.from(fmt.Sprintf("192.0.%d.1:1", network))
				srv.broker.Handle(m)
				opened++
				if _, err := nc.Write(send); err != nil {
					t.Fatal(err)
				}
				var b [512]byte // and it stays, without a word
				got, err := nc.Read(b[:])
				if err != nil {
					t.Fatal(err)
				}
				if p, err := packet.Parse(b[0], b[2:got], packet.V5); err != nil || p.(*packet.Connack).Code != reason {
					t.Fatalf("%+v, %v", p, err)
				}
			}
			synctest.Wait()
			return int(srv.broker.Stats().Connections)
		}
		if open := refused(0, 300); open != 256 {
			t.Errorf("%d of one network wait, want 256", open)
		}
		for network := 1; network < 16; network++ {
			refused(network, 256)
		}
		if open := refused(16, 10); open != 4096 {
			t.Errorf("%d wait, want 4096", open)
		}
		if d := time.Since(begun); d > 0 {
			t.Errorf("it took %s", d)
		}
		time.Sleep(1100 * time.Millisecond)
		if open := refused(0, 300); open != 256 {
			t.Errorf("%d wait later, want 256", open)
		}
	})
}
