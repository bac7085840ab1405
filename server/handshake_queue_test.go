package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/testwait"
)

// queueServer answers TLS handshakes in turns, over the given curves if any, and closes each connection after its
// handshake.
func queueServer(t *testing.T, room *fair.Semaphore, curves ...tls.CurveID) (address string, over <-chan error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, CurvePreferences: curves, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	l := tls.NewListener(handshakeListener{raw, room}, limitHandshakes(config))
	t.Cleanup(func() { _ = l.Close() })
	done := make(chan error, 16)
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				c := nc.(*tls.Conn)
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				err := c.Handshake()
				_ = c.Close()
				done <- err
			}()
		}
	}()
	return raw.Addr().String(), done
}

// occupySlots enters the room as often as it has places, and fails where one is not free.
func occupySlots(t *testing.T, room *fair.Semaphore) (leave func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testwait.Limit)
	defer cancel()
	n := max(1, runtime.GOMAXPROCS(0)-1)
	for i := range n {
		if err := room.Acquire(ctx); err != nil {
			t.Fatalf("awaited place %d of %d: %v", i+1, n, err)
		}
	}
	return func() {
		for range n {
			room.Release()
		}
	}
}

func TestHandshakeWaitsForSlot(t *testing.T) {
	room := fair.NewSemaphore()
	address, over := queueServer(t, room)
	leave := occupySlots(t, room)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	raw, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	answered := make(chan error, 1)
	go func() {
		answered <- tls.Client(raw, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx)
	}()
	waitsForSlot(t, room, leave, answered, over)
}

// waitsForSlot checks that the handshake in progress waits, and continues once leave releases a slot.
func waitsForSlot(t *testing.T, room *fair.Semaphore, leave func(), answered, over <-chan error) {
	t.Helper()
	for wait := testwait.Within(); room.Waiting() == 0; runtime.Gosched() {
		wait.Check(t, "a handshake that waits for its turn")
	}
	select {
	case err := <-answered:
		t.Fatalf("it was answered while no place was free: %v", err)
	default:
	}
	leave()
	if err := testwait.For(t, "the end of a handshake", over); err != nil {
		t.Error("the handshake whose turn came:", err)
	}
	if err := testwait.For(t, "the client's side of the handshake", answered); err != nil {
		t.Error("the client:", err)
	}
}

// If the server requests another hello, the second one waits for its turn too: the expensive part follows it.
func TestSecondClientHelloWaitsForSlot(t *testing.T) {
	room := fair.NewSemaphore()
	address, over := queueServer(t, room, tls.CurveP384) // for which a client has no key share in its first hello
	raw, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	c := &pausesAfterHello{Conn: raw, paused: make(chan struct{}), goOn: make(chan struct{})}
	answered := make(chan error, 1)
	go func() { answered <- tls.Client(c, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(t.Context()) }()
	testwait.For(t, "the server's wish for a second hello", c.paused)
	leave := occupySlots(t, room) // that none is lost meanwhile is shown too
	close(c.goOn)
	waitsForSlot(t, room, leave, answered, over)
	occupySlots(t, room)()
}

// pausesAfterHello is a connection on which a client waits before it writes for the second time.
type pausesAfterHello struct {
	net.Conn
	writes       int
	paused, goOn chan struct{}
}

func (c *pausesAfterHello) Write(b []byte) (int, error) {
	if c.writes++; c.writes == 2 {
		close(c.paused)
		<-c.goOn
	}
	return c.Conn.Write(b)
}

// However a handshake ends, its place is free again: also while it waits for a client that says no more.
func TestHandshakeReleasesItsSlot(t *testing.T) {
	room := fair.NewSemaphore()
	address, over := queueServer(t, room)
	silent := make([]net.Conn, 0, 8)
	defer func() {
		for _, c := range silent {
			_ = c.Close()
		}
	}()
	for name, client := range map[string]func(net.Conn) error{
		"done":    func(c net.Conn) error { return tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake() },
		"refused": func(c net.Conn) error { return tls.Client(c, &tls.Config{ServerName: "localhost"}).Handshake() },
		"version": func(c net.Conn) error {
			return tls.Client(c, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}).Handshake()
		},
		"gone": func(c net.Conn) error {
			return tls.Client(helloOnly{c}, &tls.Config{InsecureSkipVerify: true}).Handshake()
		},
		"silent": nil,
	} {
		for range max(1, runtime.GOMAXPROCS(0)-1) {
			raw, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			if client == nil { // it sends its hello, takes the answer, and stays
				c := helloOnly{raw}
				silent = append(silent, raw)
				_ = tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake()
				if _, err := raw.Read(make([]byte, 1)); err != nil {
					t.Fatal("the answer to a hello:", err)
				}
				continue
			}
			_ = client(raw) // the server says how it ended
			_ = raw.Close()
			if err := testwait.For(t, "the end of a handshake", over); (err == nil) != (name == "done") {
				t.Errorf("%s: %v", name, err)
			}
		}
		occupySlots(t, room)()
	}
}

// A client that takes no answer holds no place either.
func TestHandshakeHoldsNoSlotWhileWriting(t *testing.T) {
	room := fair.NewSemaphore()
	for range max(1, runtime.GOMAXPROCS(0)-1) {
		ours, theirs := net.Pipe() // a write waits for the reader
		defer ours.Close()
		writes := make(chan struct{}, 1)
		go func() {
			c := &handshakeConn{Conn: tellsOfWrites{ours, writes}, slots: room}
			_ = tls.Server(c, limitHandshakes(&tls.Config{MinVersion: tls.VersionTLS13})).Handshake() // it has no certificate, and says so
		}()
		defer theirs.Close()
		go func() { _ = tls.Client(helloOnly{theirs}, &tls.Config{InsecureSkipVerify: true}).Handshake() }()
		testwait.For(t, "the server's answer to a hello", writes)
	}
	occupySlots(t, room)()
}

// tellsOfWrites signals each write before it waits.
type tellsOfWrites struct {
	net.Conn
	writes chan<- struct{}
}

func (c tellsOfWrites) Write(b []byte) (int, error) {
	select {
	case c.writes <- struct{}{}:
	default:
	}
	return c.Conn.Write(b)
}

// helloOnly is a connection whose client receives nothing.
type helloOnly struct{ net.Conn }

func (helloOnly) Read([]byte) (int, error) { return 0, net.ErrClosed }
