package hostile

import (
	"context"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// pipeBytes is the buffer size of one direction of a connection.
const pipeBytes = 64 << 10

// Network is an in-memory network for devices in this process. Its connections have buffers and
// deadlines like TCP's, and block in ways that testing/synctest recognizes, so that waits take
// virtual time only. The zero value is ready to use. It is safe for concurrent use.
type Network struct {
	mu        sync.Mutex
	listeners map[string]*memoryListener // by address
	port      int
}

// Listen returns a listener with an address "localhost:PORT" of its own.
func (n *Network) Listen() net.Listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners == nil {
		n.listeners, n.port = map[string]*memoryListener{}, 20_000
	}
	n.port++
	l := &memoryListener{network: n, port: n.port, accept: make(chan net.Conn), closed: make(chan struct{})}
	n.listeners[l.address()] = l
	return l
}

// Dial connects to a listener, like [net.Dialer.DialContext].
func (n *Network) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.mu.Unlock()
	if l == nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
	near, far := pipe()
	select {
	case l.accept <- far:
		return near, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	case <-ctx.Done():
		return nil, &net.OpError{Op: "dial", Net: network, Err: ctx.Err()}
	}
}

type memoryListener struct {
	network *Network
	port    int
	accept  chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func (l *memoryListener) address() string { return net.JoinHostPort("localhost", strconv.Itoa(l.port)) }

// Accept implements [net.Listener].
func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (l *memoryListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.network.mu.Lock()
		defer l.network.mu.Unlock()
		delete(l.network.listeners, l.address())
	})
	return nil
}

// Addr implements [net.Listener].
func (l *memoryListener) Addr() net.Addr { return memoryAddr(l.port) }

type memoryAddr int

// Network implements [net.Addr].
func (memoryAddr) Network() string { return "tcp" }

// String implements [net.Addr].
func (a memoryAddr) String() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(a))) }

// pipe returns both ends of a connection.
func pipe() (near, far net.Conn) {
	there, back := newFlow(), newFlow()
	return &memoryConn{in: back, out: there, port: 1}, &memoryConn{in: there, out: back, port: 2}
}

// flow is one direction of a connection.
type flow struct {
	mu        sync.Mutex
	moved     *sync.Cond
	held      []byte
	ended     bool // closed by the writer: buffered bytes may still be read
	abandoned bool // closed by the reader
	read      deadline
	write     deadline
}

func newFlow() *flow {
	f := &flow{}
	f.moved = sync.NewCond(&f.mu)
	return f
}

// deadline wakes a flow when it passes. The flow's mutex protects it.
type deadline struct {
	passed bool
	timer  *time.Timer
	number int // counts settings, so that the timer of an earlier one has no effect
}

func (f *flow) set(d *deadline, t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.number++
	d.passed = false
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.passed = true
		f.moved.Broadcast()
		return
	}
	number := d.number
	d.timer = time.AfterFunc(wait, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if d.number == number {
			d.passed = true
			f.moved.Broadcast()
		}
	})
}

func (f *flow) take(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case f.abandoned:
			return 0, net.ErrClosed
		case f.read.passed:
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case len(f.held) > 0:
			n := copy(b, f.held)
			f.held = f.held[n:]
			f.moved.Broadcast()
			return n, nil
		case f.ended:
			return 0, io.EOF
		}
		f.moved.Wait()
	}
}

func (f *flow) put(b []byte) (n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch room := pipeBytes - len(f.held); {
		case f.ended:
			return n, net.ErrClosed
		case f.abandoned:
			return n, syscall.EPIPE
		case f.write.passed:
			return n, os.ErrDeadlineExceeded
		case n == len(b):
			return n, nil
		case room > 0:
			k := min(room, len(b)-n)
			f.held = append(f.held, b[n:n+k]...)
			n += k
			f.moved.Broadcast()
			continue
		}
		f.moved.Wait()
	}
}

func (f *flow) end(abandoned bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if abandoned {
		f.abandoned, f.held = true, nil
	} else {
		f.ended = true
	}
	for _, d := range []*deadline{&f.read, &f.write} {
		if d.timer != nil && (d == &f.read) == abandoned {
			d.timer.Stop()
		}
	}
	f.moved.Broadcast()
}

// memoryConn is one end of a connection.
type memoryConn struct {
	in, out *flow
	port    int
}

// Read implements [net.Conn].
func (c *memoryConn) Read(b []byte) (int, error) { return c.in.take(b) }

// Write implements [net.Conn].
func (c *memoryConn) Write(b []byte) (int, error) { return c.out.put(b) }

// Close implements [net.Conn]. What was written may still be read at the other end.
func (c *memoryConn) Close() error {
	c.in.end(true)
	c.out.end(false)
	return nil
}

// LocalAddr implements [net.Conn].
func (c *memoryConn) LocalAddr() net.Addr { return memoryAddr(c.port) }

// RemoteAddr implements [net.Conn].
func (c *memoryConn) RemoteAddr() net.Addr { return memoryAddr(3 - c.port) }

// SetDeadline implements [net.Conn].
func (c *memoryConn) SetDeadline(t time.Time) error {
	c.in.set(&c.in.read, t)
	c.out.set(&c.out.write, t)
	return nil
}

// SetReadDeadline implements [net.Conn].
func (c *memoryConn) SetReadDeadline(t time.Time) error {
	c.in.set(&c.in.read, t)
	return nil
}

// SetWriteDeadline implements [net.Conn].
func (c *memoryConn) SetWriteDeadline(t time.Time) error {
	c.out.set(&c.out.write, t)
	return nil
}
