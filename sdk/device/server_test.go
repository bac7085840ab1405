package device

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/token"
)

// fakeServer is a server that the tests script: HTTPS and MQTT over TLS under one
// certificate, which the device's trust bundle names.
type fakeServer struct {
	t       *testing.T
	https   *httptest.Server
	mqtt    net.Listener
	dial    func(ctx context.Context, network, address string) (net.Conn, error) // nil: by the network
	root    *jose.Signer
	command *jose.Signer
	clock   *jose.Signer
	trust   token.Trust
	bundle  string

	mu     sync.Mutex
	routes map[string]http.HandlerFunc // "METHOD /path" of what is not answered as usual
	begin  func(*fakeConn) bool        // of each MQTT connection; false ends it, nil is CONNACK
	orders []string                    // sealed commands, in sequence; over HTTPS each until a later number is acknowledged
	seqs   []int64

	receipts chan string    // that came, over whichever way
	conns    chan *fakeConn // that subscribed
	asked    chan string    // "METHOD /path" of each request; dropped if it is not read
}

func newFakeServer(t *testing.T) *fakeServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mqtt, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return fakeServerOn(t, ln, mqtt)
}

// newBubbleServer is [newFakeServer] for a bubble of testing/synctest.
func newBubbleServer(t *testing.T) *fakeServer {
	t.Helper()
	ln, mqtt := newPipeListener("127.0.0.1:1"), newPipeListener("127.0.0.1:2")
	s := fakeServerOn(t, ln, mqtt)
	s.dial = func(ctx context.Context, _, address string) (net.Conn, error) {
		if address == string(ln.address) {
			return ln.dial(ctx)
		}
		return mqtt.dial(ctx)
	}
	return s
}

// pipeListener takes connections that are pipes.
type pipeListener struct {
	address pipeAddress
	came    chan net.Conn
	once    sync.Once
	over    chan struct{}
	down    atomic.Bool // no connection is made
}

type pipeAddress string

func (pipeAddress) Network() string  { return "tcp" }
func (a pipeAddress) String() string { return string(a) }

func newPipeListener(address string) *pipeListener {
	return &pipeListener{address: pipeAddress(address), came: make(chan net.Conn), over: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.came:
		return c, nil
	case <-l.over:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.over) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return l.address }

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	if l.down.Load() {
		return nil, errors.New("connection refused")
	}
	here, there := net.Pipe()
	select {
	case l.came <- there:
		return here, nil
	case <-l.over:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func fakeServerOn(t *testing.T, ln, mqtt net.Listener) *fakeServer {
	t.Helper()
	s := &fakeServer{
		t: t, root: testSigner(t), command: testSigner(t), clock: testSigner(t), routes: map[string]http.HandlerFunc{},
		receipts: make(chan string, 1000), conns: make(chan *fakeConn, 100), asked: make(chan string, 10_000),
	}
	s.https = &httptest.Server{Listener: ln, Config: &http.Server{
		Handler: http.HandlerFunc(s.serve), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
	}}
	s.https.StartTLS()
	t.Cleanup(func() {
		s.https.CloseClientConnections()
		s.https.Close()
	})
	conf := s.https.TLS.Clone()
	conf.NextProtos, conf.MinVersion = []string{"mqtt"}, tls.VersionTLS13
	s.mqtt = tls.NewListener(mqtt, conf)
	var serving sync.WaitGroup
	t.Cleanup(func() {
		_ = s.mqtt.Close()
		testwait.All(t, "the end of the MQTT connections", &serving)
	})
	serving.Go(func() {
		for {
			nc, err := s.mqtt.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { s.converse(nc) })
		}
	})
	now := time.Now()
	s.trust = token.Trust{
		Issuer: s.https.URL, Version: 1, Epoch: 1, Issued: now.Add(-time.Hour), Expires: now.Add(24 * time.Hour), CAs: [][]byte{s.https.Certificate().Raw},
		Roots: []*jose.PublicKey{s.root.Public()}, Command: []*jose.PublicKey{s.command.Public()}, Time: []*jose.PublicKey{s.clock.Public()},
		Issuers: []*jose.PublicKey{testSigner(t).Public()}, Log: []*jose.PublicKey{testSigner(t).Public()},
	}
	var err error
	if s.bundle, err = token.SignTrust(s.trust, s.root); err != nil {
		t.Fatal(err)
	}
	return s
}

// device returns a device that is enrolled here; its server has an MQTT address if overMQTT is set.
func (s *fakeServer) device(overMQTT bool, o Options) *Device {
	s.t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		o.Dial = s.dial
	}
	dir := s.t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	d, err := OpenWith(dir, o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = d.Close() })
	if err := d.makeKeys(); err != nil {
		s.t.Fatal(err)
	}
	id := &identity{ID: "lamp-1", Issuer: s.https.URL, HTTPS: s.https.URL, Pin: token.TrustPin(s.root.Public())}
	if overMQTT {
		id.MQTTS = s.mqtt.Addr().String()
	}
	if err := d.persist(id, s.bundle, &s.trust); err != nil {
		s.t.Fatal(err)
	}
	return d
}

// run runs a device until the test ends it or has ended; ended receives what Run returned.
func (s *fakeServer) run(d *Device) (end context.CancelFunc, ended <-chan error) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := make(chan error, 1)
	over := make(chan struct{})
	go func() {
		c <- d.Run(ctx)
		close(over)
	}()
	s.t.Cleanup(func() {
		cancel()
		testwait.For(s.t, "the end of Run", over)
	})
	return cancel, c
}

// handle answers "METHOD /path" otherwise than usual.
func (s *fakeServer) handle(route string, f http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.routes[route] = f
}

// beginWith is what each MQTT connection begins with, once CONNECT was read.
func (s *fakeServer) beginWith(f func(*fakeConn) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begin = f
}

func (s *fakeServer) serve(w http.ResponseWriter, r *http.Request) {
	route := r.Method + " " + r.URL.Path
	select {
	case s.asked <- route:
	default:
	}
	s.mu.Lock()
	f := s.routes[route]
	s.mu.Unlock()
	if f != nil {
		f(w, r)
		return
	}
	switch route {
	case "POST /oauth/token":
		_, _ = io.WriteString(w, `{"access_token":"t","token_type":"Bearer","expires_in":300}`)
	case "GET /v1/trust":
		_, _ = io.WriteString(w, s.bundle)
	case "PUT /v1/self/functions":
		w.WriteHeader(http.StatusNoContent)
	case "GET /v1/self/config":
		problem(w, http.StatusNotFound, watchword.NotFound, "")
	case "POST /v1/self/receipts":
		var in struct{ Receipt string }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			s.t.Error(err)
		}
		s.receipts <- in.Receipt
	case "GET /v1/self/commands":
		s.poll(w, r)
	default:
		problem(w, http.StatusNotFound, watchword.NotFound, "")
	}
}

func problem(w http.ResponseWriter, status int, code watchword.Code, field string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"code": code, "detail": "a test says so", "field": field})
}

// stall answers with a status and one byte, and then nothing until the client or the test ends.
func (s *fakeServer) stall(w http.ResponseWriter, r *http.Request) {
	_, _ = io.WriteString(w, "{")
	_ = http.NewResponseController(w).Flush()
	select {
	case <-r.Context().Done():
	case <-s.t.Context().Done():
	}
}

// poll returns the first command after the acknowledged number; if there is none it waits a moment, which paces a device
// that polls without a pause.
func (s *fakeServer) poll(w http.ResponseWriter, r *http.Request) {
	var after int64
	_, _ = fmt.Sscan(r.URL.Query().Get("after"), &after)
	type one struct {
		JWE string `json:"jwe"`
	}
	out := struct {
		Commands []one `json:"commands"`
	}{[]one{}}
	s.mu.Lock()
	for i, seq := range s.seqs {
		if seq > after {
			out.Commands = append(out.Commands, one{s.orders[i]})
			break
		}
	}
	s.mu.Unlock()
	if len(out.Commands) == 0 {
		select {
		case <-r.Context().Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	_ = json.NewEncoder(w).Encode(out)
}

// order encrypts a command to a device and stores it for polls over HTTPS.
func (s *fakeServer) order(d *Device, seq int64, function string) string {
	s.t.Helper()
	return s.orderFor(d, seq, function, time.Hour)
}

// orderFor is order of a command that may be begun for life.
func (s *fakeServer) orderFor(d *Device, seq int64, function string, life time.Duration) string {
	s.t.Helper()
	now := time.Now()
	jws, err := token.SignCommand(s.command, token.Command{
		Issuer: s.https.URL, Device: "lamp-1", ID: watchword.CommandID(watchword.NewID("cmd_", now)), Epoch: 1, Seq: seq,
		Function: function, Args: []byte(`{}`), By: "operator", Issued: now, Expires: now.Add(life),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	_, seal := d.Keys()
	jwe, err := jose.Encrypt(seal, "JWT", []byte(jws))
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders, s.seqs = append(s.orders, jwe), append(s.seqs, seq)
	return jwe
}

// receipt waits for a receipt and returns what it says.
func (s *fakeServer) receipt(what string) (seq int64, st watchword.ReceiptStatus) {
	s.t.Helper()
	r := readReceipt(s.t, testwait.For(s.t, "the receipt of "+what, s.receipts))
	return r.Seq, r.Status
}

func readReceipt(t *testing.T, raw string) (r struct {
	Seq    int64                   `json:"seq"`
	Status watchword.ReceiptStatus `json:"st"`
},
) {
	t.Helper()
	u, err := jose.ParseJWS(raw, watchword.MaxDocument)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(u.UnverifiedPayload(), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// fakeConn is one MQTT connection, as the server has it.
type fakeConn struct {
	s       *fakeServer
	nc      net.Conn
	r       *bufio.Reader
	connect *packet.Connect

	mu    sync.Mutex // of writes
	ended chan struct{}
	acked chan uint16 // PUBACKs that came

	rejected chan uint16 // those with a reason code of an error
	left     chan packet.Reason
	filters  []packet.Filter
	silent   bool        // PUBLISH is not acknowledged
	quiet    atomic.Bool // from now on
	noPings  bool        // PINGREQ is not answered

	noSuback, shortSuback bool // of SUBSCRIBE: no answer; one that lacks a line
	received              chan *packet.Publish
}

// converse is the server's side of one connection.
func (s *fakeServer) converse(nc net.Conn) {
	c := &fakeConn{
		s: s, nc: nc, r: bufio.NewReader(nc), ended: make(chan struct{}), acked: make(chan uint16, 1000), rejected: make(chan uint16, 1000), left: make(chan packet.Reason, 1), received: make(chan *packet.Publish, 1000),
	}
	stop := context.AfterFunc(s.t.Context(), func() { _ = nc.Close() })
	defer func() {
		stop()
		_ = nc.Close()
		close(c.ended)
	}()
	first, err := c.read()
	if err != nil {
		return
	}
	var ok bool
	if c.connect, ok = first.(*packet.Connect); !ok {
		s.t.Errorf("the first packet is %s", first.Type())
		return
	}
	s.mu.Lock()
	begin := s.begin
	s.mu.Unlock()
	if begin == nil {
		c.send(&packet.Connack{})
	} else if !begin(c) {
		return
	}
	for {
		p, err := c.read()
		if err != nil {
			return
		}
		switch p := p.(type) {
		case *packet.Publish:
			c.published(p)
		case *packet.Subscribe:
			if c.filters = p.Filters; c.noSuback {
				continue
			}
			a := &packet.Suback{ID: p.ID}
			for _, f := range p.Filters {
				a.Codes = append(a.Codes, packet.Reason(f.QoS))
			}
			if c.shortSuback {
				a.Codes = a.Codes[:1]
				c.send(a)
				continue
			}
			c.send(a)
			s.conns <- c
		case *packet.Ack:
			if p.Reason.Failed() {
				c.rejected <- p.ID
				continue
			}
			c.acked <- p.ID
		case *packet.Ping:
			if !c.noPings {
				c.send(&packet.Ping{Response: true})
			}
		case *packet.Disconnect:
			c.left <- p.Reason
			return
		default:
			s.t.Errorf("a packet %s", p.Type())
			return
		}
	}
}

func (c *fakeConn) published(p *packet.Publish) {
	if p.Topic == "devices/lamp-1/receipts" {
		c.s.receipts <- string(p.Payload)
	}
	select {
	case c.received <- p:
	default:
	}
	if p.QoS > 0 && !c.silent && !c.quiet.Load() {
		c.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
	}
}

func (c *fakeConn) read() (packet.Packet, error) {
	first, err := c.r.ReadByte()
	if err != nil {
		return nil, err
	}
	n := 0
	for shift := 0; ; shift += 7 {
		b, err := c.r.ReadByte()
		if err != nil {
			return nil, err
		}
		n |= int(b&127) << shift
		if b < 128 {
			break
		}
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return nil, err
	}
	p, err := packet.Parse(first, body, packet.V5)
	if err != nil {
		c.s.t.Errorf("the device sends a packet that is none: %v", err)
	}
	return p, err
}

// send sends packets; a missing device is detected by the code that waits for it.
func (c *fakeConn) send(ps ...packet.Packet) {
	var b []byte
	for _, p := range ps {
		b = packet.Append(b, p, packet.V5)
	}
	c.raw(b)
}

func (c *fakeConn) raw(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.nc.SetWriteDeadline(time.Now().Add(testwait.Limit))
	_, _ = c.nc.Write(b)
}

func (c *fakeConn) hand(id uint16, jwe string) {
	c.send(&packet.Publish{QoS: 1, ID: id, Topic: "devices/lamp-1/commands", Payload: []byte(jwe)})
}

// connected waits for a connection that has subscribed.
func (s *fakeServer) connected(what string) *fakeConn {
	s.t.Helper()
	return testwait.For(s.t, what, s.conns)
}
