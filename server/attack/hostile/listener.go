package hostile

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// connection is an accepted connection.
type connection struct {
	net.Conn
	server *Server
	took   atomic.Int64 // bytes read by the device, or buffered by the network
	web    bool         // each answer over it is counted separately
	asking atomic.Int64 // requests in progress
	asked  atomic.Int64 // requests
}

// Write counts what the peer reads.
func (c *connection) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.took.Add(int64(n))
	return n, err
}

func (s *Server) accept(endpoint Endpoint, l net.Listener) {
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		c := &connection{Conn: nc, server: s}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			_ = nc.Close() // nothing serves it
			return
		}
		s.connections[c] = struct{}{}
		s.attempts = append(s.attempts, time.Now())
		mode := s.now
		s.running.Add(1)
		s.mu.Unlock()
		go func() {
			defer s.running.Done()
			if handed := s.serve(endpoint, mode, c); !handed {
				_ = c.Close() // it may be closed already
			}
		}()
	}
}

type countKey struct{}

// counting makes the connection available to each request.
func (s *Server) counting(ctx context.Context, nc net.Conn) context.Context {
	tc, ok := nc.(*tls.Conn)
	if !ok {
		return ctx
	}
	return context.WithValue(ctx, countKey{}, tc.NetConn())
}

// counted starts counting the bytes of one answer, and returns the function that ends it. The
// connection's bytes count if no other request used it meanwhile, the body's in any case.
func (s *Server) counted(w http.ResponseWriter, r *http.Request) (*counter, func()) {
	body := &counter{ResponseWriter: w}
	c, ok := r.Context().Value(countKey{}).(*connection)
	if !ok {
		return body, func() {}
	}
	before, alone, number := c.took.Load(), c.asking.Add(1) == 1, c.asked.Add(1)
	return body, func() {
		c.asking.Add(-1)
		n := body.n
		if alone && c.asked.Load() == number {
			n = max(n, c.took.Load()-before)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.largest = max(s.largest, n)
	}
}

// counter counts the body of an answer.
type counter struct {
	http.ResponseWriter
	n int64
}

// Write implements [io.Writer].
func (c *counter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n += int64(n)
	return n, err
}

// Unwrap implements the interface that [http.ResponseController] expects.
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// Close closes the connection.
func (c *connection) Close() error {
	err := c.Conn.Close()
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	delete(c.server.connections, c)
	if !c.web {
		c.server.largest = max(c.server.largest, c.took.Load())
	}
	return err
}

// serve serves a connection to its end, or hands it over.
func (s *Server) serve(endpoint Endpoint, mode *Case, c *connection) (handed bool) {
	if mode == nil {
		mode = &Case{}
	}
	if mode.Connection != nil && mode.Connection(s, endpoint, c) {
		return false
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.keys.certificate}, NextProtos: []string{"mqtt"}, SessionTicketsDisabled: true}
	if endpoint == HTTPS {
		conf.NextProtos = []string{"h2", "http/1.1"}
		if mode.Protocols != nil {
			conf.NextProtos = mode.Protocols
		}
	}
	if mode.UnknownCA {
		conf.Certificates = []tls.Certificate{s.stranger}
	}
	tc := tls.Server(c, conf)
	if err := tc.Handshake(); err != nil {
		return false
	}
	if mode.Raw != nil && mode.Raw(s, endpoint, tc) {
		return false
	}
	if endpoint == HTTPS {
		s.mu.Lock()
		c.web = true
		s.mu.Unlock()
		return s.requests.give(tc) == nil
	}
	m := &Session{Server: s, Conn: tc, writing: make(chan struct{}, 1)}
	if mode.Session != nil {
		mode.Session(m)
	} else {
		m.Serve()
	}
	m.end()
	return false
}

// handover is a listener for connections that were accepted elsewhere.
type handover struct {
	address net.Addr
	next    chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newHandover(a net.Addr) *handover {
	return &handover{address: a, next: make(chan net.Conn), closed: make(chan struct{})}
}

func (h *handover) give(c net.Conn) error {
	select {
	case h.next <- c:
		return nil
	case <-h.closed:
		return net.ErrClosed
	}
}

// Accept implements [net.Listener].
func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.next:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (h *handover) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements [net.Listener].
func (h *handover) Addr() net.Addr { return h.address }
