package device

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/token"
)

// memoryNet is a network in memory with one address, for bubbles of testing/synctest: the peer at the address can be
// replaced at any time.
type memoryNet struct {
	t     *testing.T
	peer  atomic.Pointer[memoryPeer]
	dials atomic.Int64
}

// memoryPeer is the peer that answers. If mute is set it does not even use TLS.
type memoryPeer struct {
	tls  *tls.Config
	mute bool

	mu     sync.Mutex
	asked  []string                    // "METHOD /path"
	answer map[string]http.HandlerFunc // by the same; "" is every other
}

func (p *memoryPeer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	route := r.Method + " " + r.URL.Path
	p.mu.Lock()
	p.asked = append(p.asked, route)
	h := p.answer[route]
	if h == nil {
		h = p.answer[""]
	}
	p.mu.Unlock()
	h(w, r)
}

// set says how a route is answered from now on.
func (p *memoryPeer) set(route string, h http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer[route] = h
}

// times returns how often each route was requested.
func (p *memoryPeer) times() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]int{}
	for _, r := range p.asked {
		out[r]++
	}
	return out
}

func (n *memoryNet) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	n.dials.Add(1)
	p := n.peer.Load()
	if p == nil {
		return nil, &net.OpError{Op: "dial", Err: errors.New("no server is there")}
	}
	near, far := net.Pipe()
	if p.mute {
		go func() { _, _ = io.Copy(io.Discard, far) }()
		return near, nil
	}
	srv := &http.Server{Handler: p, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	l := &oneConn{conn: tls.Server(far, p.tls), served: make(chan struct{})}
	srv.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateClosed || s == http.StateHijacked {
			l.end()
		}
	}
	go func() { _ = srv.Serve(l) }()
	return near, nil
}

// oneConn is a listener with one connection.
type oneConn struct {
	conn   net.Conn
	once   sync.Once
	served chan struct{}
}

func (l *oneConn) Accept() (c net.Conn, err error) {
	if c, l.conn = l.conn, nil; c != nil {
		return c, nil
	}
	<-l.served
	return nil, net.ErrClosed
}

func (l *oneConn) end()         { l.once.Do(func() { close(l.served) }) }
func (l *oneConn) Close() error { l.end(); return nil }
func (*oneConn) Addr() net.Addr { return &net.TCPAddr{} }

const hub = "https://hub.test"

// certified returns an authority's certificate and the configuration of a server that it certifies.
func certified(t *testing.T) (ca []byte, conf *tls.Config) {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	caKey, own := key(), key()
	sign := func(c, parent *x509.Certificate, k *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, c, parent, k.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	begin, end := time.Now().Add(-time.Hour), time.Now().AddDate(10, 0, 0)
	root := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: begin, NotAfter: end, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca = sign(root, root, caKey)
	parsed, err := x509.ParseCertificate(ca)
	if err != nil {
		t.Fatal(err)
	}
	leaf := sign(&x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: begin, NotAfter: end, DNSNames: []string{"hub.test"}}, parsed, own)
	return ca, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf}, PrivateKey: own}}, MinVersion: tls.VersionTLS13}
}

// scene is a device, its server, and an attacker that may answer instead of the server.
type scene struct {
	t        *testing.T
	net      *memoryNet
	good     *memoryPeer // the server
	stranger *memoryPeer // with a certificate of another authority
	root     *jose.Signer
	command  *jose.Signer
	clock    *jose.Signer
	trust    token.Trust
	bundle   string
	log      *syncBuffer
	devices  map[string]*Device
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{t: t, net: &memoryNet{t: t}, root: testSigner(t), command: testSigner(t), clock: testSigner(t), log: &syncBuffer{}, devices: map[string]*Device{}}
	ca, conf := certified(t)
	_, strange := certified(t)
	now := time.Now()
	s.trust = token.Trust{
		Issuer: hub, Version: 2, Epoch: 1, Issued: now.Add(-time.Hour), Expires: now.Add(240 * time.Hour), CAs: [][]byte{ca},
		Roots: []*jose.PublicKey{s.root.Public()}, Command: []*jose.PublicKey{s.command.Public()}, Time: []*jose.PublicKey{s.clock.Public()},
		Issuers: []*jose.PublicKey{testSigner(t).Public()}, Log: []*jose.PublicKey{testSigner(t).Public()},
	}
	var err error
	if s.bundle, err = token.SignTrust(s.trust, s.root); err != nil {
		t.Fatal(err)
	}
	text := func(b string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, b) }
	}
	id := `{"id":"lamp-1","issuer":"` + hub + `","token_endpoint":"` + hub + `/oauth/token","https":"` + hub + `"}`
	s.good = &memoryPeer{tls: conf, answer: map[string]http.HandlerFunc{
		"":                                 text("{}"),
		"GET /v1/trust":                    text(s.bundle),
		"POST /v1/enroll":                  text(id),
		"POST /oauth/device_authorization": text(`{"device_code":"` + someCode + `","user_code":"BCDF-GHJK","verification_uri":"x","expires_in":600,"interval":0}`),
		"POST /v1/time": func(w http.ResponseWriter, r *http.Request) {
			var q struct{ Nonce string }
			_ = json.NewDecoder(r.Body).Decode(&q)
			signed, err := token.SignTime(s.clock, hub, q.Nonce, time.Now())
			if err != nil {
				t.Error(err)
			}
			_, _ = io.WriteString(w, signed)
		},
		"POST /oauth/token": func(w http.ResponseWriter, r *http.Request) {
			if r.FormValue("device_code") != "" {
				text(id)(w, r)
				return
			}
			text(`{"access_token":"t","token_type":"Bearer","expires_in":300}`)(w, r)
		},
		"GET /v1/self/config":   func(w http.ResponseWriter, _ *http.Request) { problem(w, 404, watchword.NotFound, "") },
		"GET /v1/self/commands": held,
	}}
	s.stranger = &memoryPeer{tls: strange, answer: map[string]http.HandlerFunc{"": text("")}}
	s.net.peer.Store(s.good)
	t.Cleanup(func() { time.Sleep(2 * time.Minute) }) // of the bubble: both ends of each connection go
	return s
}

// held is a long poll that ends with nothing.
func held(w http.ResponseWriter, r *http.Request) {
	wait, err := time.ParseDuration(r.URL.Query().Get("wait"))
	if err != nil {
		wait = 0
	}
	select {
	case <-time.After(wait):
	case <-r.Context().Done():
	}
	_, _ = io.WriteString(w, `{"commands":[]}`)
}

const someCode = "AAAAAAAAAAAAAAAAAAAAAA"

func (s *scene) options() Options {
	return Options{Dial: s.net.dial, Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
}

// open opens a new folder.
func (s *scene) open(o Options) *Device {
	s.t.Helper()
	dir := filepath.Join(s.t.TempDir(), "device")
	d, err := OpenWith(dir, o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := d.Close(); err != nil {
			s.t.Error(err)
		}
	})
	if err := d.makeKeys(); err != nil {
		s.t.Fatal(err)
	}
	return d
}

// enrolled returns a device of the server.
func (s *scene) enrolled(o Options) *Device {
	s.t.Helper()
	d := s.open(o)
	if err := d.persist(&identity{ID: "lamp-1", Issuer: hub, HTTPS: hub, Pin: token.TrustPin(s.root.Public())}, s.bundle, &s.trust); err != nil {
		s.t.Fatal(err)
	}
	d.OnConfig(func(context.Context, Config) error { return nil })
	return d
}

func (s *scene) link() string {
	return token.EnrollmentLink(hub, someCode, token.TrustPin(s.root.Public()))
}

// once gives up where the device would wait.
var errOnce = errors.New("once is enough")

func once(context.Context, time.Duration) error { return errOnce }

// A request of the device, and the call that causes it.
type request struct {
	route string
	new   bool // the device is not enrolled
	blind bool // the device has no clock
	mild  bool // no answer is not an error
	do    func(context.Context, *scene, *Device) error
}

// requests is every request of this package; TestEveryRequestIsListed holds that.
var requests = map[string]request{
	"enrollment: the trust bundle": {route: "GET /v1/trust", new: true, do: func(ctx context.Context, s *scene, d *Device) error { return d.Enroll(ctx, s.link()) }},
	"enrollment":                   {route: "POST /v1/enroll", new: true, do: func(ctx context.Context, s *scene, d *Device) error { return d.Enroll(ctx, s.link()) }},
	"pairing: the trust bundle": {route: "GET /v1/trust", new: true, do: func(ctx context.Context, s *scene, d *Device) error {
		return d.Pair(ctx, hub, PairOptions{Pin: token.TrustPin(s.root.Public()), Wait: once})
	}},
	"pairing: the codes": {route: "POST /oauth/device_authorization", new: true, do: func(ctx context.Context, s *scene, d *Device) error {
		return d.Pair(ctx, hub, PairOptions{Pin: token.TrustPin(s.root.Public()), Wait: once})
	}},
	"pairing: the decision": {route: "POST /oauth/token", new: true, do: func(ctx context.Context, s *scene, d *Device) error {
		err := d.Pair(ctx, hub, PairOptions{Pin: token.TrustPin(s.root.Public()), Wait: once})
		if errors.Is(err, errOnce) { // otherwise it would be sent again
			err = watchword.Wrap(err, watchword.Unavailable, "not yet")
		}
		return err
	}},
	"the time":         {route: "POST /v1/time", blind: true, mild: true, do: func(ctx context.Context, _ *scene, d *Device) error { d.SyncTime(ctx); return nil }},
	"the trust bundle": {route: "GET /v1/trust", do: func(ctx context.Context, _ *scene, d *Device) error { return d.renewTrust(ctx) }},
	"a token": {route: "POST /oauth/token", do: func(ctx context.Context, _ *scene, d *Device) error {
		_, err := d.NewToken(ctx)
		return err
	}},
	"an event":      {route: "POST /v1/self/events/x", do: func(ctx context.Context, _ *scene, d *Device) error { return d.Publish(ctx, "x", 1) }},
	"the state":     {route: "PUT /v1/self/state", do: func(ctx context.Context, _ *scene, d *Device) error { return d.ReportState(ctx, map[string]int{}) }},
	"the functions": {route: "PUT /v1/self/functions", do: func(ctx context.Context, _ *scene, d *Device) error { return d.Announce(ctx) }},
	"an order": {route: "POST /v1/commands", do: func(ctx context.Context, _ *scene, d *Device) error {
		_, err := d.Call(ctx, "lamp-2", "f", nil, 20*time.Second)
		return err
	}},
	"the configuration": {route: "GET /v1/self/config", do: func(ctx context.Context, _ *scene, d *Device) error { return d.fetchConfig(ctx) }},
	"commands":          {route: "GET /v1/self/commands", do: func(ctx context.Context, _ *scene, d *Device) error { return newRun(d).poll(ctx, pollWait) }},
	"a receipt":         {route: "POST /v1/self/receipts", do: func(ctx context.Context, _ *scene, d *Device) error { return d.SendReceipt(ctx, "x") }},
	"its trust bundle": {route: "PUT /v1/self/trust", do: func(ctx context.Context, _ *scene, d *Device) error {
		older, err := os.ReadFile(d.path(trustFile))
		if err != nil {
			return err
		}
		known := *d.trust.Load()
		known.Epoch++ // the server's bundle is of a lower epoch than the device's
		return d.handInTrust(ctx, string(older), &known)
	}},
	"new keys": {route: "POST /v1/self/keys", do: func(ctx context.Context, _ *scene, d *Device) error { return d.Rekey(ctx, RekeyOptions{}) }},
}

// device returns one that may make a request; requests share those that none of them changes.
func (s *scene) device(what string, q request) *Device {
	kind := "enrolled"
	switch {
	case q.new:
		kind = "new"
	case q.blind:
		kind = "blind"
	case what == "new keys":
		kind = what
	}
	d := s.devices[kind]
	if d == nil {
		o := s.options()
		o.NoClock = q.blind
		if q.new {
			d = s.open(o)
		} else {
			d = s.enrolled(o)
		}
		s.devices[kind] = d
	}
	if q.new {
		if err := d.forgetPairing(); err != nil {
			s.t.Fatal(err)
		}
	}
	return d
}

// Every path in the source of this package is one of a request that the tests go over, and
// has its row in docs/protocol.md.
func TestEveryRequestIsListed(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(doc), "| request of a device |")
	if !ok {
		t.Fatal("docs/protocol.md has no table of the requests of a device")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	listed := map[string]bool{}
	for name, q := range requests {
		listed[strings.TrimSuffix(strings.Fields(q.route)[1], "/x")] = true
		if !strings.Contains(table, "`"+strings.TrimSuffix(q.route, "/x")) {
			t.Errorf("%s: docs/protocol.md has no row with %s", name, q.route)
		}
	}
	path := regexp.MustCompile(`"(/(?:v1|oauth|\.well-known|log)/[^"]*)"`)
	found := 0
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range path.FindAllStringSubmatch(string(b), -1) {
			if found++; !listed[strings.TrimSuffix(m[1], "/")] {
				t.Errorf("%s asks for %s, which no test of peers goes over", f, m[1])
			}
		}
	}
	if found < 12 {
		t.Errorf("%d paths", found)
	}
}

// refusing answers with a refusal whose words are no one's but a liar's.
func refusing(code watchword.Code) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(403)
		_, _ = fmt.Fprintf(w, `{"code":%q,"detail":"lies","retry_after":3600}`, code)
	}
}

// A peer whose certificate the device cannot verify gets only two kinds of requests, and only answers that prove their
// authenticity are used.
func TestUnverifiedServersLearnNothing(t *testing.T) {
	old := func(s *scene) string {
		b := s.trust
		b.Version = 1
		raw, err := token.SignTrust(b, s.root)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	other := func(s *scene) string {
		b, root := s.trust, testSigner(t)
		b.Version, b.Roots = 9, []*jose.PublicKey{root.Public()}
		raw, err := token.SignTrust(b, root)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for name, answer := range map[string]func(s *scene) http.HandlerFunc{
		"revoked":   func(*scene) http.HandlerFunc { return refusing(watchword.SubjectRevoked) },
		"busy":      func(*scene) http.HandlerFunc { return refusing(watchword.Busy) },
		"its nonce": func(*scene) http.HandlerFunc { return refusing(watchword.DPoPNonce) },
		"not found": func(*scene) http.HandlerFunc { return refusing(watchword.NotFound) },
		"no bundle": func(*scene) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, `{"code":"subject_revoked","detail":"lies"}`)
			}
		},
		"the public bundle": func(s *scene) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, s.bundle) }
		},
		"an old bundle": func(s *scene) http.HandlerFunc {
			b := old(s)
			return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, b) }
		},
		"a bundle of its own": func(s *scene) http.HandlerFunc {
			b := other(s)
			return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, b) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t)
				s.stranger.set("", answer(s))
				s.net.peer.Store(s.stranger)
				for what, q := range requests {
					d := s.device(what, q)
					err := q.do(t.Context(), s, d)
					e, ok := errors.AsType[*watchword.Error](err)
					own := []watchword.Code{watchword.Unavailable}
					if q.new { // what the device finds out by itself ends an enrollment
						own = append(own, watchword.PinMismatch, watchword.BundleInvalid, watchword.PeerUntrusted)
					}
					switch {
					case q.mild && err == nil:
					case !ok || !slices.Contains(own, e.Code) || e.RetryAfter != 0:
						t.Errorf("%s: got %v, %+v", what, err, e)
					case !strings.Contains(name, "bundle") && e.Code != watchword.Unavailable:
						t.Errorf("%s: got %v", what, err)
					}
					if text := fmt.Sprint(err, s.log); strings.Contains(text, "lies") {
						t.Errorf("%s: the foreign server's words are in %s", what, text)
					}
					for route := range s.stranger.times() {
						if route != "GET /v1/trust" && route != "POST /v1/time" {
							t.Errorf("%s: the foreign server was told %s", what, route)
						}
					}
					if d.revoked.current() != nil {
						t.Errorf("%s: the device takes itself for revoked", what)
					}
					if d.Enrolled() == q.new || !q.new && d.Trust().Version != 2 {
						t.Errorf("%s: the device goes by another server", what)
					}
				}
			})
		})
	}
}

// A bundle that the known root has signed is accepted from any server: the server may have another authority by now.
func TestANewerBundleIsTakenFromAnyServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		d := s.enrolled(s.options())
		ca, conf := certified(t)
		next := s.trust
		next.Version, next.CAs = 3, [][]byte{ca}
		raw, err := token.SignTrust(next, s.root)
		if err != nil {
			t.Fatal(err)
		}
		s.good.set("GET /v1/trust", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, raw) })
		s.good.tls = conf
		if err := d.Publish(t.Context(), "x", 1); watchword.CodeOf(err) != watchword.Unavailable {
			t.Errorf("under the old bundle: %v", err)
		}
		if err := d.renewTrust(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := d.Publish(t.Context(), "x", 1); err != nil {
			t.Errorf("under the new bundle: %v", err)
		}
	})
}

// A device that runs finds out by the certificate that the authority is another one, long before it
// looks for a bundle again.
func TestADeviceFollowsItsServersAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		d := s.enrolled(s.options())
		s.running(d)
		time.Sleep(time.Hour)
		ca, conf := certified(t)
		next := s.trust
		next.Version, next.CAs = 3, [][]byte{ca}
		raw, err := token.SignTrust(next, s.root)
		if err != nil {
			t.Fatal(err)
		}
		moved := &memoryPeer{tls: conf, answer: maps.Clone(s.good.answer)}
		moved.answer["GET /v1/trust"] = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, raw) }
		s.net.peer.Store(moved)
		s.good.set("", quiet["no answer"]) // the old server stops
		s.good.set("GET /v1/self/commands", quiet["no answer"])
		for begun := time.Now(); moved.times()["GET /v1/self/commands"] == 0; time.Sleep(time.Second) {
			if time.Since(begun) > 2*pollWait+backoffMax+exchangeMargin {
				t.Fatalf("it is not back after %s", time.Since(begun))
			}
		}
	})
}

// quiet is one way to say nothing.
var quiet = map[string]func(w http.ResponseWriter, r *http.Request){
	"no answer": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	"one byte": func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "{")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	},
	"half a refusal": func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(403)
		_, _ = io.WriteString(w, `{"code":"subject_revoked"`)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	},
	"a byte now and then": func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, " "); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
			select {
			case <-time.After(3 * time.Second):
			case <-r.Context().Done():
			}
		}
	},
}

// Every request ends, wherever the server falls silent, authenticated or not.
func TestEveryRequestEnds(t *testing.T) {
	const most = 70 * time.Second // a long poll has 30 s more than others
	for how, h := range quiet {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t)
				for what, q := range requests {
					d := s.device(what, q)
					was := s.good.answer[q.route]
					s.good.set(q.route, h)
					begun := time.Now()
					err := q.do(t.Context(), s, d)
					if duration := time.Since(begun); duration > most || duration < 9*time.Second && how != "half a refusal" { // of an unauthenticated peer it is not read
						t.Errorf("%s: it took %s", what, duration)
					}
					if watchword.CodeOf(err) != watchword.Unavailable && !q.mild {
						t.Errorf("%s: got %v", what, err)
					}
					if s.good.times()[q.route] == 0 {
						t.Errorf("%s: %s was not requested", what, q.route)
					}
					s.good.set(q.route, was)
				}
			})
		})
	}
	t.Run("no handshake", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t)
			s.net.peer.Store(&memoryPeer{mute: true})
			for what, q := range requests {
				d := s.device(what, q)
				begun := time.Now()
				err := q.do(t.Context(), s, d)
				if duration := time.Since(begun); duration > most {
					t.Errorf("%s: it took %s", what, duration)
				}
				if watchword.CodeOf(err) != watchword.Unavailable && !q.mild {
					t.Errorf("%s: got %v", what, err)
				}
			}
		})
	})
}

// running runs a device until the end of the test.
func (s *scene) running(d *Device) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Errorf("Run ended: %v", err)
		}
	})
}

// A device that meets hostile peers for an hour sends few requests meanwhile, and reconnects within a pause of its server's
// return.
func TestDeviceReconnectsAfterServerPause(t *testing.T) {
	for name, hostile := range map[string]func(s *scene) *memoryPeer{
		"a foreign server that says revoked": func(s *scene) *memoryPeer { s.stranger.set("", refusing(watchword.SubjectRevoked)); return s.stranger },
		"a foreign server that says busy":    func(s *scene) *memoryPeer { s.stranger.set("", refusing(watchword.Busy)); return s.stranger },
		"a foreign server with the bundle": func(s *scene) *memoryPeer {
			s.stranger.set("", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, s.bundle) })
			return s.stranger
		},
		"a foreign server that says nothing": func(s *scene) *memoryPeer { s.stranger.set("", quiet["one byte"]); return s.stranger },
		"a foreign server without TLS":       func(*scene) *memoryPeer { return &memoryPeer{mute: true} },
		"nobody":                             func(*scene) *memoryPeer { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t)
				d := s.enrolled(s.options())
				s.net.peer.Store(hostile(s))
				s.running(d)
				time.Sleep(time.Hour)
				if n := s.net.dials.Load(); n < 30 || n > 400 {
					t.Errorf("it dialled %d times in an hour", n)
				}
				if n := s.good.times()["GET /v1/self/commands"]; n != 0 {
					t.Errorf("the server was asked %d times", n)
				}
				s.net.peer.Store(s.good)
				for begun := time.Now(); s.good.times()["GET /v1/self/commands"] == 0; time.Sleep(time.Second) {
					if time.Since(begun) > backoffMax+exchangeMargin {
						t.Fatalf("it is not back after %s", time.Since(begun))
					}
				}
			})
		})
	}
}

// exchangeMargin is the remaining time of a request to another peer.
const exchangeMargin = 45 * time.Second

// Requests without a result are paced, however fast they are answered.
func TestEmptyPollsArePaced(t *testing.T) {
	say := func(status int, body string) func(*testing.T, *scene, *Device) http.HandlerFunc {
		return func(*testing.T, *scene, *Device) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				if body != "" {
					_, _ = io.WriteString(w, body)
				}
			}
		}
	}
	for name, c := range map[string]struct {
		route string // "" is every one but the token's
		h     func(*testing.T, *scene, *Device) http.HandlerFunc
	}{
		"no commands, at once": {"GET /v1/self/commands", say(200, `{"commands":[]}`)},
		"long polls that fail": {"GET /v1/self/commands", func(*testing.T, *scene, *Device) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Has("wait") {
					w.WriteHeader(500)
				}
				_, _ = io.WriteString(w, `{"commands":[]}`)
			}
		}},
		"no list":            {"GET /v1/self/commands", say(200, `{}`)},
		"nothing at all":     {"GET /v1/self/commands", say(204, "")},
		"not modified":       {"GET /v1/self/commands", say(304, "")},
		"no JSON":            {"GET /v1/self/commands", say(200, "commands")},
		"an invalid command": {"GET /v1/self/commands", say(200, `{"commands":[{"jwe":"x"}]}`)},
		"one command, again and again": {"GET /v1/self/commands", func(t *testing.T, s *scene, d *Device) http.HandlerFunc {
			return say(200, `{"commands":[{"jwe":"`+s.order(t, d)+`"}]}`)(t, s, d)
		}},
		"tokens that end at once":  {"POST /oauth/token", say(200, `{"access_token":"t","token_type":"Bearer","expires_in":1}`)},
		"tokens that do not count": {"", say(401, `{"code":"token_expired"}`)},
		"nonces without end":       {"", say(401, `{"code":"dpop_nonce"}`)},
		"proofs without end":       {"", say(401, `{"code":"proof_required"}`)},
		"errors":                   {"", say(500, "")},
		"everything is there":      {"", say(200, "{}")},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t)
				d := s.enrolled(s.options())
				d.Handle("f", func(context.Context, *Command) (any, error) { return nil, nil })
				if c.route == "" {
					tok := s.good.answer["POST /oauth/token"]
					s.good.answer = map[string]http.HandlerFunc{"POST /oauth/token": tok}
				}
				s.good.set(c.route, c.h(t, s, d))
				s.running(d)
				time.Sleep(10 * time.Minute)
				all := 0
				for route, n := range s.good.times() {
					if all += n; n > 260 { // three tries of each round
						t.Errorf("%s: %d times in ten minutes", route, n)
					}
				}
				if all > 700 {
					t.Errorf("%d requests in ten minutes: %v", all, s.good.times())
				}
				s.good.set("GET /v1/self/commands", held)
			})
		})
	}
}

// order returns a sealed command.
func (s *scene) order(t *testing.T, d *Device) string {
	t.Helper()
	now := time.Now()
	jws, err := token.SignCommand(s.command, token.Command{
		Issuer: hub, Device: "lamp-1", ID: watchword.CommandID(watchword.NewID("cmd_", now)), Epoch: 1, Seq: 1, Function: "f", Args: []byte(`{}`), By: "operator", Issued: now, Expires: now.Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	_, seal := d.Keys()
	jwe, err := jose.Encrypt(seal, "JWT", []byte(jws))
	if err != nil {
		t.Fatal(err)
	}
	return jwe
}

// A revoked device sends one request a day, and continues if the server accepts it again.
func TestARevokedDeviceAsksOnceADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t)
		o := s.options()
		var told atomic.Int64
		o.Revoked = func(pause time.Duration) {
			told.Add(1)
			if pause < 21*time.Hour || pause > 27*time.Hour {
				t.Errorf("it asks again after %s", pause)
			}
		}
		connected := make(chan struct{}, 100)
		o.Connected = func(string) { connected <- struct{}{} }
		d := s.enrolled(o)
		good := s.good.answer
		s.good.answer = map[string]http.HandlerFunc{"": refusing(watchword.SubjectRevoked), "GET /v1/trust": good["GET /v1/trust"]}
		s.running(d)
		time.Sleep(time.Minute)
		count := func() (n int) {
			for _, times := range s.good.times() {
				n += times
			}
			return n
		}
		first := count()
		if first == 0 || first > 20 {
			t.Errorf("%d requests before it knew", first)
		}
		if err := d.Publish(t.Context(), "x", 1); watchword.CodeOf(err) != watchword.SubjectRevoked {
			t.Errorf("an event: %v", err)
		}
		if _, err := d.Token(t.Context()); watchword.CodeOf(err) != watchword.SubjectRevoked {
			t.Errorf("a token: %v", err)
		}
		if n := count(); n != first {
			t.Errorf("it asked %d times more", n-first)
		}
		const days = 8
		time.Sleep(days * 24 * time.Hour)
		if n := told.Load(); n < days-1 || n > days+2 {
			t.Errorf("told %d times in %d days", n, days)
		}
		times := s.good.times()
		if n := times["POST /oauth/token"] + times["GET /v1/self/commands"]; n < days-1 || n > 4*days {
			t.Errorf("it asked %v in %d days", times, days)
		}
		s.good.mu.Lock()
		s.good.answer = good
		s.good.mu.Unlock()
		for len(connected) > 0 {
			<-connected
		}
		time.Sleep(28 * time.Hour)
		if err := d.Publish(t.Context(), "x", 1); err != nil {
			t.Errorf("after the server took it back: %v", err)
		}
		if s.good.times()["GET /v1/self/commands"] < 100 {
			t.Error("it does not poll")
		}
	})
}

// The server states how often a pairing device may poll, within limits.
func TestAPairingHasAPace(t *testing.T) {
	for interval, bounds := range map[string][2]int{`0`: {300, 601}, `-5`: {300, 601}, `9223372036854775807`: {1, 2}, `null`: {100, 121}} {
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t)
			s.good.set("POST /oauth/device_authorization", func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, `{"device_code":"`+someCode+`","user_code":"BCDF-GHJK","verification_uri":"x","expires_in":600,"interval":`+interval+`}`)
			})
			s.good.set("POST /oauth/token", func(w http.ResponseWriter, _ *http.Request) { problem(w, 400, watchword.PairingPending, "") })
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			if err := s.open(s.options()).Pair(ctx, hub, PairOptions{Pin: token.TrustPin(s.root.Public())}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			if n := s.good.times()["POST /oauth/token"]; n < bounds[0] || n > bounds[1] {
				t.Errorf("interval %s: it asked %d times in ten minutes", interval, n)
			}
		})
	}
}

// The codes of refusals over MQTT are in reason strings, which the server omits if a client requests that (MQTT 5.0
// §3.1.2.11.7).
func TestADeviceAsksMQTTForReasons(t *testing.T) {
	s := newFakeServer(t)
	s.run(s.device(true, Options{}))
	if n, ok := s.connected("a connection").connect.Properties.Number(packet.RequestProblemInformation); ok && n == 0 {
		t.Error("it asks for none")
	}
}
