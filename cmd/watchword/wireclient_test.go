package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
)

const (
	hubURL  = "https://hub.example"
	hubName = "hub.example"
)

// hub is a server of the real binary, and the record of what raw clients do to it. The
// clients use nothing of this module but the codecs of MQTT and JOSE.
type hub struct {
	*trace
	https, mqtts string
	roots        *x509.CertPool
	client       *http.Client
	operator     *wireActor
	jti          int
	dpopNonce    string
	live         map[string]int // open MQTT sessions by subject
}

// wireActor is a subject with its keys and its access token.
type wireActor struct {
	id         string
	sign, seal *jose.PrivateKey
	token      string
}

// newHub starts `watchword serve` on a new data folder, and stops it at the end of the test.
func newHub(t *testing.T) *hub {
	t.Helper()
	bin, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	link, data := filepath.Join(dir, "watchword"), filepath.Join(dir, "data") // testscript's main looks at the name
	if err := os.Symlink(bin, link); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(link, "serve")
	c.Env = append(os.Environ(), "WATCHWORD_DATA="+data, "WATCHWORD_SERVER_HTTPS=localhost:0", "WATCHWORD_SERVER_MQTTS=localhost:0", "WATCHWORD_METRICS_LISTEN=",
		"WATCHWORD_SERVER_PUBLIC_URL="+hubURL, "WATCHWORD_SERVER_NAMES="+hubName, "WATCHWORD_PAIRING_INTERVAL=1ms", "WATCHWORD_LOG_LEVEL=warn")
	message, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ready, ended := make(chan struct{}), make(chan string, 1)
	go func() {
		var all strings.Builder
		for s := bufio.NewScanner(message); s.Scan(); {
			all.WriteString(s.Text() + "\n")
			if strings.HasPrefix(s.Text(), "next ") {
				close(ready)
			}
		}
		ended <- all.String()
	}()
	t.Cleanup(func() {
		_ = c.Process.Signal(os.Interrupt) // it may have ended, which Wait says
		all := testwait.For(t, "the end of the server", ended)
		if err := c.Wait(); err != nil || t.Failed() {
			t.Errorf("the server ended: %v\n%s", err, all)
		}
	})
	testwait.For(t, "the server", ready)
	h := &hub{trace: newTrace(t), live: map[string]int{}}
	var place struct{ HTTPS, MQTTS string }
	h.must(json.Unmarshal(h.read(filepath.Join(data, "server.json")), &place))
	h.https, h.mqtts = place.HTTPS, place.MQTTS
	h.roots = x509.NewCertPool()
	h.roots.AppendCertsFromPEM(h.read(filepath.Join(data, "tls", "ca.pem")))
	h.client = &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: h.roots},
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", h.https)
			},
		},
	}
	t.Cleanup(h.client.CloseIdleConnections)
	key, err := jose.ParsePrivateJWK(h.read(filepath.Join(data, "operator.jwk")), jose.ForSigning)
	h.must(err)
	h.operator = &wireActor{id: "operator", sign: key}
	return h
}

func (h *hub) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("%v\nso far:\n%s", err, tail(h.out.String()))
	}
}

func tail(s string) string {
	lines := strings.Split(s, "\n")
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}

func (h *hub) read(path string) []byte {
	b, err := os.ReadFile(path)
	h.must(err)
	return b
}

func (h *hub) newActor(id string) *wireActor {
	sign, err := jose.GenerateKey(jose.P256)
	h.must(err)
	seal, err := jose.GenerateKey(jose.P256)
	h.must(err)
	o, err := seal.Decrypter()
	h.must(err)
	h.openers = append(h.openers, o)
	return &wireActor{id: id, sign: sign, seal: seal}
}

// signed is a compact JWS of claims by a key.
func (h *hub) signed(key *jose.PrivateKey, typ string, claims map[string]any) string {
	s, err := key.Signer()
	h.must(err)
	b, err := json.Marshal(claims)
	h.must(err)
	raw, err := s.Sign(typ, b)
	h.must(err)
	return raw
}

// claims returns a token's claims with iat, exp and a new jti beside.
func (h *hub) claims(life int64, c map[string]any) map[string]any {
	h.jti++
	now := time.Now().Unix()
	c["jti"], c["iat"], c["exp"] = fmt.Sprintf("jti-%d", h.jti), now, now+life
	return c
}

func (h *hub) assertion(a *wireActor) string {
	return h.signed(a.sign, "client-authentication+jwt", h.claims(60, map[string]any{"iss": a.id, "sub": a.id, "aud": hubURL}))
}

func (h *hub) enrollmentProof(a *wireActor, code string) string {
	return h.signed(a.sign, "vnd.watchword.enrollment+jwt", h.claims(60, map[string]any{
		"aud": hubURL, "code_hash": jose.Hash([]byte(code)), "seal_jkt": string(a.seal.Public().ID()),
	}))
}

// dpop is a proof for one request, with the nonce that the server gave last.
func (h *hub) dpop(key *jose.PrivateKey, method, path, access string) string {
	h.jti++
	c := map[string]any{"jti": fmt.Sprintf("jti-%d", h.jti), "htm": method, "htu": hubURL + path, "iat": time.Now().Unix()}
	if h.dpopNonce != "" {
		c["nonce"] = h.dpopNonce
	}
	if access != "" {
		sum := sha256.Sum256([]byte(access))
		c["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	s, err := key.Signer()
	h.must(err)
	b, err := json.Marshal(c)
	h.must(err)
	raw, err := s.SignProof("dpop+jwt", b)
	h.must(err)
	return raw
}

// wireAnswer is an answer of the HTTPS endpoint.
type wireAnswer struct {
	h      *hub
	status int
	header http.Header
	body   []byte
}

// member reads a member of a JSON answer by its path, as "enrollment.code"; of an array it is the first element's.
func (a wireAnswer) member(path string) string {
	a.h.t.Helper()
	var v any
	a.h.must(json.Unmarshal(a.body, &v))
	for name := range strings.SplitSeq(path, ".") {
		if list, ok := v.([]any); ok { // its first element
			if len(list) == 0 {
				a.h.t.Fatalf("%s: an empty array in %s", path, a.body)
			}
			v = list[0]
		}
		object, _ := v.(map[string]any)
		v = object[name]
	}
	s, ok := v.(string)
	if !ok {
		a.h.t.Fatalf("no %s in %d %s", path, a.status, a.body)
	}
	return s
}

// Response headers that are not compared: they say when, how long and under which trace id.
var passedOver = []string{"Date", "Content-Length", "Trace-Id"}

func (h *hub) recordHeader(mark string, head http.Header) {
	var names []string
	for name := range head {
		if !slices.Contains(passedOver, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		for _, v := range head[name] {
			switch name {
			case "Authorization":
				scheme, _, _ := strings.Cut(v, " ")
				v = scheme + " TOKEN"
			case "Dpop":
				out, ok := h.compact(v)
				if !ok {
					h.t.Fatalf("no compact proof: %s", v)
				}
				v = out
			case "Dpop-Nonce":
				h.dpopNonce, v = v, "NONCE"
			case "Www-Authenticate":
				v = descriptionForm.ReplaceAllString(v, `error_description="TEXT"`)
			default:
				v = h.text(v)
			}
			h.printf("%s %s: %s", mark, name, v)
		}
	}
}

// do makes one request and records both sides. heads are name, value pairs.
func (h *hub) do(as *wireActor, method, path, body string, heads ...string) wireAnswer {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), testwait.Limit)
	defer cancel()
	res := h.open(ctx, as, method, path, body, heads...)
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	h.must(err)
	if len(b) > 0 {
		switch res.Header.Get("Content-Type") {
		case "application/jsonl":
			for line := range strings.Lines(string(b)) {
				h.printf("< %s", h.body([]byte(strings.TrimSpace(line))))
			}
		case "application/toml", "text/plain", "text/plain; charset=utf-8":
			h.printf("< %s", strings.ReplaceAll(h.text(strings.TrimSpace(string(b))), "\n", "\n< "))
		case "text/html; charset=utf-8":
			h.printf("< HTML")
		default:
			h.printf("< %s", h.body(b))
		}
	}
	return wireAnswer{h, res.StatusCode, res.Header, b}
}

// open makes a request and records it with the head of its answer.
func (h *hub) open(ctx context.Context, as *wireActor, method, path, body string, heads ...string) *http.Response {
	h.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, hubURL+path, strings.NewReader(body))
	h.must(err)
	req.Header.Set("User-Agent", "trace")
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if as != nil {
		req.Header.Set("Authorization", "Bearer "+as.token)
	}
	for i := 0; i < len(heads); i += 2 {
		req.Header.Set(heads[i], heads[i+1])
	}
	who := "nobody"
	if as != nil {
		who = as.id
	}
	h.printf("\n%s > %s %s", who, method, h.text(path))
	h.recordHeader(">", req.Header)
	switch {
	case body == "":
	case req.Header.Get("Content-Type") == "application/x-www-form-urlencoded":
		h.printf("> %s", h.form(body))
	case req.Header.Get("Content-Type") == "application/toml":
		h.printf("> %s", strings.ReplaceAll(body, "\n", "\n> "))
	default:
		h.printf("> %s", h.body([]byte(body)))
	}
	res, err := h.client.Do(req)
	h.must(err)
	h.printf("< %d", res.StatusCode)
	h.recordHeader("<", res.Header)
	return res
}

const formType = "application/x-www-form-urlencoded"

// post posts a form of name, value pairs.
func (h *hub) post(as *wireActor, path string, heads []string, pairs ...string) wireAnswer {
	h.t.Helper()
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		v.Add(pairs[i], pairs[i+1])
	}
	return h.do(as, http.MethodPost, path, v.Encode(), append([]string{"Content-Type", formType}, heads...)...)
}

// authenticate gets an access token by an assertion; extra are further members of the form.
func (h *hub) authenticate(a *wireActor, extra ...string) wireAnswer {
	h.t.Helper()
	got := h.post(nil, "/oauth/token", nil, append([]string{
		"grant_type", "client_credentials", "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", h.assertion(a),
	}, extra...)...)
	if got.status == http.StatusOK {
		a.token = got.member("access_token")
	}
	return got
}

// wireStream is a stream of server-sent events.
type wireStream struct {
	h    *hub
	name string
	body io.ReadCloser
	in   *bufio.Reader
	stop func()
}

func (h *hub) stream(as *wireActor, path string, heads ...string) *wireStream {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*testwait.Limit)
	res := h.open(ctx, as, http.MethodGet, path, "", append([]string{"Accept", "text/event-stream"}, heads...)...)
	s := &wireStream{h, as.id + " " + path, res.Body, bufio.NewReader(res.Body), cancel}
	h.t.Cleanup(s.close)
	return s
}

func (s *wireStream) close() {
	s.stop()
	_ = s.body.Close() // the context has ended, and so has the body
}

// event reads the next event and records it. Comments keep a stream alive and say nothing.
func (s *wireStream) event() {
	s.h.t.Helper()
	var lines []string
	for {
		line, err := s.in.ReadString('\n')
		if errors.Is(err, io.EOF) && line == "" {
			s.h.printf("%s < END", s.name)
			return
		}
		s.h.must(err)
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, ":"):
		case strings.HasPrefix(line, "id: ") && len(lines) == 1 && lines[0] == "event: session": // added since the record was made; TestStreamsResume needs it
		case line == "" && len(lines) > 0:
			s.h.printf("%s < %s", s.name, strings.Join(lines, " | "))
			return
		case strings.HasPrefix(line, "data: "):
			lines = append(lines, "data: "+s.h.body([]byte(line[len("data: "):])))
		case line != "":
			lines = append(lines, s.h.text(line))
		}
	}
}

// wireConn is an MQTT connection. Packets are read when the scenario says so, one after
// another, so that the record has an order.
type wireConn struct {
	h       *hub
	name    string
	version packet.Version
	nc      net.Conn
	tls     *tls.Conn
	buf     []byte
	subject string // subject of the session; empty if it is no session
}

func (h *hub) dial(name string, v packet.Version) *wireConn {
	h.t.Helper()
	nc, err := tls.Dial("tcp", h.mqtts, &tls.Config{RootCAs: h.roots, ServerName: hubName, NextProtos: []string{"mqtt"}})
	h.must(err)
	c := &wireConn{h: h, name: name, version: v, nc: nc, tls: nc}
	h.t.Cleanup(func() { _ = nc.Close() }) // closed already where the server ended it
	h.must(nc.SetDeadline(time.Now().Add(testwait.Limit)))
	return c
}

func (c *wireConn) send(p packet.Packet) {
	c.h.t.Helper()
	c.h.printf("%s > %s", c.name, c.h.packet(p))
	_, err := c.nc.Write(packet.Append(nil, p, c.version))
	c.h.must(err)
}

// raw sends bytes that no codec makes.
func (c *wireConn) raw(b ...byte) {
	c.h.t.Helper()
	c.h.printf("%s > bytes % X", c.name, b)
	_, err := c.nc.Write(b)
	c.h.must(err)
}

// next reads one packet without recording it; nil at the end of the connection.
func (c *wireConn) next() packet.Packet {
	c.h.t.Helper()
	for {
		first, body, n, err := packet.Frame(c.buf, packet.MaxSize)
		c.h.must(err)
		if n > 0 {
			p, err := packet.Parse(first, slices.Clone(body), c.version)
			c.h.must(err)
			c.buf = c.buf[n:]
			return p
		}
		b := make([]byte, 64<<10)
		n, err = c.nc.Read(b)
		if n == 0 && err != nil {
			var stalled net.Error
			if errors.As(err, &stalled) && stalled.Timeout() {
				c.h.t.Fatalf("%s: nothing more came; so far:\n%s", c.name, tail(c.h.out.String()))
			}
			c.closed()
			return nil
		}
		c.buf = append(c.buf, b[:n]...)
	}
}

// closed closes this side too, and waits until the server counts the session no more: a subject
// may have eight, and lists of sessions are compared.
func (c *wireConn) closed() {
	c.h.t.Helper()
	_ = c.nc.Close() // closed twice where the other side came first
	if c.subject == "" {
		return
	}
	c.h.live[c.subject]--
	for wait := testwait.Within(); c.h.sessions(c.subject) > c.h.live[c.subject]; {
		wait.Check(c.h.t, "the end of the session of "+c.name)
	}
	c.subject = ""
}

// sessions is how many MQTT sessions of a subject are open. It is not recorded.
func (h *hub) sessions(subject string) (n int) {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), http.MethodGet, hubURL+"/v1/sessions?device="+subject, nil)
	h.must(err)
	req.Header.Set("Authorization", "Bearer "+h.operator.token)
	res, err := h.client.Do(req)
	h.must(err)
	defer res.Body.Close()
	var list struct{ Sessions []struct{ Transport string } }
	h.must(json.NewDecoder(res.Body).Decode(&list))
	for _, s := range list.Sessions {
		if s.Transport == "mqtt" {
			n++
		}
	}
	return n
}

// lose ends the connection without DISCONNECT.
func (c *wireConn) lose() {
	c.h.t.Helper()
	c.h.printf("%s > CLOSED", c.name)
	c.closed()
}

// opened counts the session where the server took the connection.
func (c *wireConn) opened(subject string, last packet.Packet) *wireConn {
	if p, ok := last.(*packet.Connack); ok && p.Code == packet.Success {
		c.subject = subject
		c.h.live[subject]++
	}
	return c
}

// get reads n packets and records them in their order. It returns the last.
func (c *wireConn) get(n int) (p packet.Packet) {
	c.h.t.Helper()
	for range n {
		if p = c.next(); p == nil {
			c.h.printf("%s < CLOSED", c.name)
			continue
		}
		c.h.printf("%s < %s", c.name, c.h.packet(p))
	}
	return p
}

// getSorted reads n packets whose order among each other is not promised.
func (c *wireConn) getSorted(n int) {
	c.h.t.Helper()
	var lines []string
	for range n {
		p := c.next()
		if p == nil {
			c.h.t.Fatalf("%s ended; so far:\n%s", c.name, tail(c.h.out.String()))
		}
		lines = append(lines, fmt.Sprintf("%s < %s", c.name, c.h.packet(p)))
	}
	slices.Sort(lines)
	c.h.printf("%s", strings.Join(lines, "\n"))
}

// ping shows that no packet arrived before: all packets to a client are in one queue.
func (c *wireConn) ping() {
	c.h.t.Helper()
	c.send(&packet.Ping{})
	c.get(1)
}

// bye ends the connection as a client does.
func (c *wireConn) bye() {
	c.h.t.Helper()
	c.send(&packet.Disconnect{})
	c.get(1)
}

func (c *wireConn) subscribe(id uint16, filters ...packet.Filter) {
	c.h.t.Helper()
	c.send(&packet.Subscribe{ID: id, Filters: filters})
}

// connect dials and sends CONNECT of a version, by the access token of a subject.
func (h *hub) connect(v packet.Version, a *wireActor, suffix string, change func(*packet.Connect)) *wireConn {
	h.t.Helper()
	c := h.dial(a.id+suffix, v)
	p := &packet.Connect{Version: v, CleanStart: true, KeepAlive: 120, ClientID: a.id + suffix, Username: "jwt", HasUser: true, Password: []byte(a.token), HasPass: true}
	if change != nil {
		change(p)
	}
	c.send(p)
	return c.opened(a.id, c.get(1))
}

// aceConnect authenticates by the method ace: with the TLS exporter in CONNECT, or with the server's challenge.
func (h *hub) aceConnect(a *wireActor, suffix string, challenge bool) *wireConn {
	h.t.Helper()
	c := h.dial(a.id+suffix, packet.V5)
	data := append(binary.BigEndian.AppendUint16(nil, uint16(len(a.token))), a.token...)
	if !challenge {
		state := c.tls.ConnectionState()
		material, err := state.ExportKeyingMaterial("EXPORTER-ACE-MQTT-Sign-Challenge", nil, 32)
		h.must(err)
		data = append(data, h.prove(a, material)...)
	}
	p := &packet.Connect{Version: packet.V5, CleanStart: true, KeepAlive: 120, ClientID: a.id + suffix}
	p.Properties.SetText(packet.AuthenticationMethod, "ace")
	p.Properties.SetData(packet.AuthenticationData, data)
	c.send(p)
	if challenge {
		c.answerChallenge(a)
	}
	return c.opened(a.id, c.get(1))
}

func (c *wireConn) answerChallenge(a *wireActor) {
	c.h.t.Helper()
	asked, ok := c.get(1).(*packet.Auth)
	if !ok {
		c.h.t.Fatalf("no challenge; so far:\n%s", tail(c.h.out.String()))
	}
	theirs, _ := asked.Properties.Data(packet.AuthenticationData)
	own := make([]byte, 8)
	_, err := rand.Read(own)
	c.h.must(err)
	p := &packet.Auth{Reason: packet.ContinueAuthentication}
	p.Properties.SetText(packet.AuthenticationMethod, "ace")
	p.Properties.SetData(packet.AuthenticationData, slices.Concat([]byte{0, 8}, own, c.h.prove(a, slices.Concat(theirs, own))))
	c.send(p)
}

func (h *hub) prove(a *wireActor, message []byte) []byte {
	s, err := a.sign.Signer()
	h.must(err)
	sig, err := s.SignBytes(message)
	h.must(err)
	return sig
}

var descriptionForm = regexp.MustCompile(`error_description="[^"]*"`)
