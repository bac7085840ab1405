package hostile

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Function is the function of devices under test. Its arguments are {"n":N}, and the device reports
// N through [Device.Acted].
const Function = "act"

// DeviceID is the id of the device.
const DeviceID watchword.SubjectID = "device-1"

// Endpoint is one of a server's two listeners.
type Endpoint int

// Endpoints.
const (
	HTTPS Endpoint = iota
	MQTT
)

// Server is the server of one device under test. It is good until [Server.Switch]. It is safe for
// concurrent use.
type Server struct {
	keys      *authority
	stranger  tls.Certificate // of another CA
	code      string          // enrollment code
	listeners [2]net.Listener
	web       *http.Server
	requests  *handover
	running   sync.WaitGroup
	closing   context.Context // ends with Close
	close     context.CancelFunc

	mu          sync.Mutex
	closed      bool
	now         *Case // nil: the good server
	connections map[*connection]struct{}
	wake        chan struct{} // closed and replaced when anything below changes
	sign, seal  *jose.PublicKey
	tokens      map[string]bool
	commands    []*Command
	config      *token.Config
	version     int64 // of the trust bundle
	attempts    []time.Time
	largest     int64    // bytes read of one connection, or of one HTTP answer
	problems    []string // invalid input of the device
	subscribed  int
}

// New returns a server on two listeners, which it closes in [Server.Close].
func New(https, mqtts net.Listener) (*Server, error) {
	now := time.Now()
	keys, err := newAuthority(now)
	if err != nil {
		return nil, err
	}
	_, other, err := newCertificate(now)
	if err != nil {
		return nil, err
	}
	s := &Server{
		keys: keys, stranger: other, code: watchword.NewNonce(), listeners: [2]net.Listener{https, mqtts}, version: 1, wake: make(chan struct{}),
		connections: map[*connection]struct{}{}, tokens: map[string]bool{}, requests: newHandover(https.Addr()),
	}
	s.closing, s.close = context.WithCancel(context.Background())
	s.web = &http.Server{Handler: http.HandlerFunc(s.serveHTTP), ErrorLog: log.New(io.Discard, "", 0), MaxHeaderBytes: 1 << 20, ConnContext: s.counting}
	s.running.Go(func() { _ = s.web.Serve(s.requests) }) // ends with its handover listener
	for door, l := range s.listeners {
		s.running.Go(func() { s.accept(Endpoint(door), l) })
	}
	return s, nil
}

// Close closes the listeners and all connections, and waits for what served them.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.close()
	err := errors.Join(s.listeners[HTTPS].Close(), s.listeners[MQTT].Close(), s.requests.Close())
	s.Cut()
	err = errors.Join(err, s.web.Close())
	s.running.Wait()
	return err
}

// Link returns the enrollment link; it can be used any number of times.
func (s *Server) Link() string {
	return token.EnrollmentLink(s.url(), s.code, token.TrustPin(s.keys.root.Public()))
}

func (s *Server) url() string { return "https://" + s.address(HTTPS) }

// address returns HOST:PORT of an endpoint, with the host of the certificate.
func (s *Server) address(d Endpoint) string {
	_, port, err := net.SplitHostPort(s.listeners[d].Addr().String())
	if err != nil {
		return s.listeners[d].Addr().String()
	}
	return net.JoinHostPort("localhost", port)
}

// Switch switches to a case; nil: to the good server. Earlier connections are closed, unless their
// case keeps them.
func (s *Server) Switch(c *Case) {
	s.mu.Lock()
	before := s.now
	s.now = c
	s.changed()
	s.mu.Unlock()
	if before == nil || !before.KeepsConnections {
		s.Cut()
	}
}

// Cut closes all connections.
func (s *Server) Cut() {
	s.mu.Lock()
	var all []*connection
	for c := range s.connections {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		_ = c.Close() // nothing more is wanted of it
	}
}

// changed wakes waiters. The caller holds mu.
func (s *Server) changed() {
	close(s.wake)
	s.wake = make(chan struct{})
}

// state returns the current case and the channel that is closed at the next change.
func (s *Server) state() (*Case, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now, s.wake
}

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

func (s *Server) accept(door Endpoint, l net.Listener) {
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
			if handed := s.serve(door, mode, c); !handed {
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
func (s *Server) serve(door Endpoint, mode *Case, c *connection) (handed bool) {
	if mode == nil {
		mode = &Case{}
	}
	if mode.Connection != nil && mode.Connection(s, door, c) {
		return false
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.keys.certificate}, NextProtos: []string{"mqtt"}, SessionTicketsDisabled: true}
	if door == HTTPS {
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
	if mode.Raw != nil && mode.Raw(s, door, tc) {
		return false
	}
	if door == HTTPS {
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

// Command is a command for the device.
type Command struct {
	N    int64 // the argument n
	Seq  int64
	ID   watchword.CommandID
	Done chan struct{} // closed at the device's first receipt with status done
	done bool
	had  bool // acknowledged by the device
}

// Order adds a command, which is sent as soon as possible.
func (s *Server) Order() *Command {
	s.mu.Lock()
	defer s.mu.Unlock()
	seq := int64(1)
	if len(s.commands) > 0 {
		seq = s.commands[len(s.commands)-1].Seq + 1
	}
	o := &Command{N: seq, Seq: seq, ID: newCommandID(time.Now()), Done: make(chan struct{})}
	s.commands = append(s.commands, o)
	s.changed()
	return o
}

// skipNumbers skips the next n sequence numbers, for a case that used them.
func (s *Server) skipNumbers(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := &Command{Seq: n, had: true, done: true}
	if len(s.commands) > 0 {
		o.Seq += s.commands[len(s.commands)-1].Seq
	}
	s.commands = append(s.commands, o)
}

// next returns the commands that the device has not acknowledged, oldest first.
func (s *Server) next() (out []*Command) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.commands {
		if !o.had && !o.done {
			out = append(out, o)
		}
	}
	return out
}

func (s *Server) last() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.commands) == 0 {
		return 0
	}
	return s.commands[len(s.commands)-1].Seq
}

// acknowledge records that the device has stored the commands up to seq.
func (s *Server) acknowledge(seq int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.commands {
		if o.Seq <= seq {
			o.had = true
		}
	}
}

// sealed signs and encrypts a command. nonce is the device's current nonce, or empty.
func (s *Server) sealed(o *Command, nonce string) (string, error) {
	return s.Seal(s.keys.command, o.N, func(c *token.Command) { c.ID, c.Seq, c.Nonce = o.ID, o.Seq, nonce })
}

// Seal makes a command with the next sequence number and argument n, as changed by edit, signed by
// a signer (nil: the command key) and encrypted to the device.
func (s *Server) Seal(by *jose.Signer, n int64, edit func(*token.Command)) (string, error) {
	now := time.Now()
	c := token.Command{
		Issuer: Issuer, Device: DeviceID, ID: newCommandID(now), Epoch: epoch, Seq: s.last() + 1, Function: Function, Args: fmt.Appendf(nil, `{"n":%d}`, n),
		By: "operator", Issued: now, Expires: now.Add(time.Hour),
	}
	if edit != nil {
		edit(&c)
	}
	if by == nil {
		by = s.keys.command
	}
	jws, err := token.SignCommand(by, c)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	to := s.seal
	s.mu.Unlock()
	if to == nil {
		return "", errors.New("no device has enrolled")
	}
	return jose.Encrypt(to, "JWT", []byte(jws))
}

// receipt verifies a receipt. Code: receipt_invalid.
func (s *Server) receipt(raw string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, _, err := token.VerifyReceipt(raw, token.NewKeySet(s.sign), DeviceID, Issuer)
	if err != nil {
		s.problems = append(s.problems, fmt.Sprintf("a receipt that does not verify: %v", err))
		return err
	}
	i := slices.IndexFunc(s.commands, func(o *Command) bool { return o.Done != nil && o.ID == r.Command })
	if i < 0 {
		return nil // made by the case itself
	}
	if o := s.commands[i]; r.Status == watchword.StatusDone && !o.done {
		o.done, o.had = true, true
		close(o.Done)
		s.changed()
	} else if r.Status != watchword.StatusDone && r.Status != watchword.StatusAccepted {
		s.problems = append(s.problems, fmt.Sprintf("command %d ended as %s: %s", o.N, r.Status, r.Result))
	}
	return nil
}

// Configure sets the device's configuration; nil: none.
func (s *Server) Configure(version int64, document json.RawMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config = &token.Config{Issuer: Issuer, Device: DeviceID, Epoch: epoch, Version: version, Document: document, Issued: time.Now()}
	s.changed()
}

// Renew increments the version of the trust bundle.
func (s *Server) Renew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
}

func (s *Server) trust() (string, error) {
	s.mu.Lock()
	version := s.version
	s.mu.Unlock()
	return s.keys.bundle(version, time.Now(), nil)
}

// Online waits until the device receives commands, over MQTT or by polling; false: ctx ended first.
func (s *Server) Online(ctx context.Context) bool {
	for {
		s.mu.Lock()
		n, wake := s.subscribed, s.wake
		s.mu.Unlock()
		if n > 0 {
			return true
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return false
		}
	}
}

// countSubscribers counts connections and polls that receive commands.
func (s *Server) countSubscribers(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribed += n
	s.changed()
}
