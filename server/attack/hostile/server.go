package hostile

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
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
	for endpoint, l := range s.listeners {
		s.running.Go(func() { s.accept(Endpoint(endpoint), l) })
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
