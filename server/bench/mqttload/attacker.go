package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/token"
)

// attackerAddress is the attacker's address. The other clients use 127.0.0.1, so that limits by
// address are not shared.
const attackerAddress = "127.0.0.2"

// attackMost limits how often each part of an attack runs in one round; time runs out before.
const attackMost = 1_000_000

// attack is one round of the attacker, which is a process of its own.
type attack struct {
	ID      watchword.SubjectID
	Folder  string // the device's folder, with sign.jwk
	Issuer  string
	URL     string
	MQTTS   string // host and port
	CA      string // path of the CA file
	Turn    int    // so that names differ between rounds
	Seconds float64

	signer *jose.Signer
	roots  *x509.CertPool
	hc     *http.Client
	token  string
}

// attackResult is the result of one part of an attack: how often it was sent, and how often a
// request or connection was refused or broke.
type attackResult struct {
	Name string
	Did  [2]int64
	Last string // text of the last refusal
}

// attackMain is the attacker's process. It prints a line when it begins and, at the end, how often
// it did what, as JSON.
func attackMain(ctx context.Context, path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	a := &attack{}
	if err := json.Unmarshal(raw, a); err != nil {
		return err
	}
	if err := a.prepare(ctx); err != nil {
		return err
	}
	did, err := a.run(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(did)
}

func (a *attack) prepare(ctx context.Context) error {
	raw, err := os.ReadFile(filepath.Join(a.Folder, "sign.jwk"))
	if err != nil {
		return err
	}
	k, err := jose.ParsePrivateJWK(raw, jose.ForSigning)
	if err != nil {
		return err
	}
	if a.signer, err = k.Signer(); err != nil {
		return err
	}
	pem, err := os.ReadFile(a.CA)
	if err != nil {
		return err
	}
	a.roots = x509.NewCertPool()
	a.roots.AppendCertsFromPEM(pem)
	a.hc = &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: a.roots}, MaxIdleConnsPerHost: 16,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) { return a.dial(ctx, address) },
	}}
	// The round before may have used up the device's token rate.
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		a.token, err = a.newToken(ctx)
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

func (a *attack) dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(attackerAddress)}}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	return d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", port))
}

func (a *attack) assertion() (string, error) {
	return token.SignAssertion(a.signer, a.ID, a.Issuer, time.Now(), token.AssertionLifetime)
}

func (a *attack) newToken(ctx context.Context) (string, error) {
	as, err := a.assertion()
	if err != nil {
		return "", err
	}
	form := url.Values{
		"grant_type": {"client_credentials"}, "client_assertion": {as},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	}
	var out struct {
		Token string `json:"access_token"`
	}
	b, err := a.request(ctx, http.MethodPost, "/oauth/token", "application/x-www-form-urlencoded", []byte(form.Encode()))
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	return out.Token, err
}

// request returns an error for every unsuccessful answer.
func (a *attack) request(ctx context.Context, method, path, kind string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, a.URL+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", kind)
	if a.token != "" && path != "/oauth/token" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	res, err := a.hc.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: status %d: %s", method, path, res.StatusCode, b)
	}
	return b, err
}

// attackerConn is an MQTT connection of the attacker; responses are discarded.
type attackerConn struct {
	nc     net.Conn
	answer chan packet.Reason // of CONNACK
	done   chan struct{}      // closed by the server
	out    []byte
}

// connect opens a connection, sends CONNECT and waits for the answer.
func (a *attack) connect(ctx context.Context, suffix string, edit ...func(*packet.Connect)) (*attackerConn, error) {
	l, err := a.begin(ctx, suffix, edit...)
	if l == nil {
		return nil, err
	}
	if err == nil {
		select {
		case code := <-l.answer:
			if code.Failed() {
				err = fmt.Errorf("CONNECT is refused: 0x%02X", byte(code))
			}
		case <-l.done:
			err = errors.New("the connection ended before CONNACK")
		}
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// begin is connect without waiting. The connection is not nil if it must be closed.
func (a *attack) begin(ctx context.Context, suffix string, edit ...func(*packet.Connect)) (*attackerConn, error) {
	raw, err := a.dial(ctx, a.MQTTS)
	if err != nil {
		return nil, err
	}
	nc := tls.Client(raw, &tls.Config{RootCAs: a.roots, ServerName: "localhost"})
	if err := nc.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	p := &packet.Connect{
		Version: packet.V5, CleanStart: true, ClientID: string(a.ID) + "/" + suffix,
		Username: "jwt", HasUser: true, Password: []byte(a.token), HasPass: true,
	}
	for _, e := range edit {
		e(p)
	}
	l := &attackerConn{nc: nc, answer: make(chan packet.Reason, 1), done: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() }) // also where a write waits
	go func() {
		defer close(l.done)
		defer stop()
		r := bufio.NewReader(nc)
		first, err := next(r)
		if err != nil {
			return
		}
		if ack, ok := first.(*packet.Connack); ok {
			l.answer <- ack.Code
		}
		_, _ = io.Copy(io.Discard, r)
	}()
	return l, l.send(p)
}

// send sends packets in one write.
func (l *attackerConn) send(ps ...packet.Packet) error {
	l.out = l.out[:0]
	for _, p := range ps {
		l.out = packet.Append(l.out, p, packet.V5)
	}
	_, err := l.nc.Write(l.out)
	return err
}

func (l *attackerConn) close() {
	_ = l.nc.Close() // the attacker ignores it
	<-l.done
}

// attackPart is one repeated action of the attacker. do returns how often it acted; n differs each
// time.
type attackPart struct {
	name  string
	after time.Duration                   // it begins that much later
	open  func(ctx context.Context) error // connects before all parts begin, if not nil
	do    func(ctx context.Context, n int) (times int, err error)
}

// overMQTT is a part that uses one of the eight connections of a device, and reconnects when the
// server closes it.
func (a *attack) overMQTT(name, suffix string, after time.Duration, packets func(n int) []packet.Packet) attackPart {
	var l *attackerConn
	open := func(ctx context.Context) (err error) {
		l, err = a.connect(ctx, suffix)
		return err
	}
	return attackPart{name, after, open, func(ctx context.Context, n int) (int, error) {
		if l == nil {
			if err := open(ctx); err != nil {
				return 0, err
			}
		}
		ps := packets(n)
		if err := l.send(ps...); err != nil {
			l.close()
			l = nil
			return 0, err
		}
		return len(ps), nil
	}}
}

// deepTopic returns a topic or filter of 63 levels.
func deepTopic(prefix string, n int) string {
	levels := strings.Split(prefix, "/")
	for i := len(levels); i < 63; i++ {
		levels = append(levels, fmt.Sprintf("%x.%x", n, i))
	}
	return strings.Join(levels, "/")
}

// groupName returns a group name of 900 bytes.
func groupName(n int) string { return fmt.Sprintf("%08x", n) + strings.Repeat("g", 892) }

// schemas returns an announcement that is expensive to compile, within the limits: 3,720 schema
// objects in 90 kB. The bad one has references that fan out, and is refused.
func schemas(bad bool) []byte {
	type function struct {
		Name   string          `json:"name"`
		Schema json.RawMessage `json:"schema"`
	}
	var in struct {
		Functions []function `json:"functions"`
	}
	if bad {
		defs := []string{`"d0":{"type":"string"}`}
		for i := 1; i < 12; i++ {
			ref := fmt.Sprintf(`{"$ref":"#/$defs/d%d"}`, i-1)
			defs = append(defs, fmt.Sprintf(`"d%d":{"allOf":[%s]}`, i, strings.Join([]string{ref, ref, ref, ref, ref, ref, ref, ref}, ",")))
		}
		in.Functions = []function{{"bad", json.RawMessage(`{"$ref":"#/$defs/d11","$defs":{` + strings.Join(defs, ",") + `}}`)}}
	} else {
		for i := range 60 {
			props := make([]string, 61)
			for j := range props {
				props[j] = fmt.Sprintf(`"p%d":{"minLength":1}`, j)
			}
			in.Functions = append(in.Functions, function{fmt.Sprintf("f%d", i), json.RawMessage(`{"properties":{` + strings.Join(props, ",") + `}}`)})
		}
	}
	b, _ := json.Marshal(in) // of strings and raw JSON
	return b
}

// run runs all attacks that one device can try, concurrently, for that many seconds.
func (a *attack) run(ctx context.Context) ([]attackResult, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	own := "devices/" + string(a.ID) + "/"
	large, state := make([]byte, 65_000), append(append([]byte(`{"x":"`), bytes.Repeat([]byte("x"), 32_000)...), `"}`...)
	heavy, refused := schemas(false), schemas(true)
	same := &packet.Subscribe{ID: 1}
	for range 1000 {
		same.Filters = append(same.Filters, packet.Filter{Topic: own + "state", QoS: 1})
	}
	tiny := make([]packet.Packet, 2400)
	for i := range tiny {
		tiny[i] = &packet.Publish{Topic: own + "events/t", Payload: []byte{1}}
	}
	// Packets that use up the rate of connections are sent in the second half of a turn, so that the connections are made
	// in the first.
	later := time.Duration(a.Seconds / 2 * float64(time.Second))
	handshakes := []*tls.Config{
		{RootCAs: a.roots, ServerName: "localhost", MaxVersion: tls.VersionTLS12},
		{RootCAs: x509.NewCertPool(), ServerName: "localhost"}, // the certificate is not taken
		{RootCAs: a.roots, ServerName: "localhost", NextProtos: []string{"other"}},
	}
	parts := []attackPart{
		a.overMQTT("retained messages, topics of 63 levels", "deep", 0, func(n int) []packet.Packet {
			out := make([]packet.Packet, 32)
			for i := range out {
				out[i] = &packet.Publish{Topic: deepTopic(own+"events", n*len(out)+i), Retain: true, Payload: []byte("1")}
			}
			return out
		}),
		a.overMQTT("publishes of 64 KiB", "large", 0, func(int) []packet.Packet {
			return []packet.Packet{&packet.Publish{Topic: own + "events/large", Payload: large}}
		}),
		a.overMQTT("publishes of one byte", "tiny", 0, func(int) []packet.Packet { return tiny }),
		a.overMQTT("SUBSCRIBE, 1,000 × one filter", "same", later, func(int) []packet.Packet { return []packet.Packet{same} }),
		a.overMQTT("SUBSCRIBE, 64 filters: 63 levels, groups of 900 bytes", "filters", later, func(n int) []packet.Packet {
			s := &packet.Subscribe{ID: 1}
			for i := range 32 {
				s.Filters = append(s.Filters, packet.Filter{Topic: deepTopic(own+"events", n*32+i), QoS: 1},
					packet.Filter{Topic: "$share/" + groupName(n*32+i) + "/" + own + "state", QoS: 1})
			}
			return []packet.Packet{s}
		}),
		a.overMQTT("refreshes on $watchword/auth, hellos", "auth", later, func(n int) []packet.Packet {
			proof := a.token
			if as, err := a.assertion(); err == nil && n%2 == 1 {
				proof = as
			}
			return []packet.Packet{
				&packet.Publish{Topic: "$watchword/auth", Payload: []byte(proof)},
				&packet.Publish{Topic: "$watchword/hello", Payload: []byte(`{"nonce":"` + watchword.NewNonce() + `","epoch":1,"seq":0}`)},
			}
		}),
		{"connections with a will, whose sessions stay", 0, nil, func(ctx context.Context, n int) (int, error) {
			l, err := a.connect(ctx, fmt.Sprintf("stays-%d", n), func(p *packet.Connect) {
				p.Properties.SetNumber(packet.SessionExpiryInterval, 3600)
				p.Will = &packet.Will{Topic: own + "events/will", Payload: large[:8<<10], QoS: 1} // CONNECT may have 16 KiB
			})
			if err != nil {
				return 0, err
			}
			err = l.send(&packet.Subscribe{ID: 1, Filters: []packet.Filter{{Topic: own + "state", QoS: 1}}})
			l.close()
			return 1, err
		}},
		{"connections with a malformed packet", 0, nil, func(ctx context.Context, _ int) (int, error) {
			l, err := a.connect(ctx, "malformed")
			if err != nil {
				return 0, err
			}
			if _, err = l.nc.Write([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}); err == nil {
				select {
				case <-l.done:
				case <-time.After(time.Second):
				}
			}
			l.close()
			return 1, err
		}},
		{"publishes of 64 KiB after a CONNECT that was refused", 0, nil, func(ctx context.Context, n int) (int, error) {
			l, err := a.begin(ctx, "refused", func(p *packet.Connect) { p.Password = []byte("wrong") })
			if l == nil {
				return 0, err
			}
			sent := 0
			for ; err == nil && sent < attackMost; sent++ {
				err = l.send(&packet.Publish{Topic: own + "events/large", Payload: large})
			}
			l.close()
			return sent, nil // it is to be refused
		}},
		{"PUT /v1/self/functions", 0, nil, func(ctx context.Context, n int) (int, error) {
			body := heavy
			if n%4 == 3 {
				body = refused
			}
			_, err := a.request(ctx, http.MethodPut, "/v1/self/functions", "application/json", body)
			return 1, err
		}},
		{"PUT /v1/self/state, 32 kB", 0, nil, func(ctx context.Context, _ int) (int, error) {
			_, err := a.request(ctx, http.MethodPut, "/v1/self/state", "application/json", state)
			return 1, err
		}},
		{"POST /v1/self/events, 1 byte and 32 kB", 0, nil, func(ctx context.Context, n int) (int, error) {
			body := large[:1]
			if n%2 == 1 {
				body = large[:32<<10]
			}
			_, err := a.request(ctx, http.MethodPost, "/v1/self/events/http", "application/octet-stream", body)
			return 1, err
		}},
		{"token requests", 0, nil, func(ctx context.Context, _ int) (int, error) {
			_, err := a.newToken(ctx)
			return 1, err
		}},
		{"TLS handshakes that fail", 0, nil, func(ctx context.Context, n int) (int, error) {
			nc, err := a.dial(ctx, a.MQTTS)
			if err != nil {
				return 0, err
			}
			defer nc.Close()
			if n%4 == 3 {
				_, err = nc.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
				return 1, err
			}
			if err := nc.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
				return 0, err
			}
			// It is to fail: what is counted as refused are the connections that were not taken.
			_ = tls.Client(nc, handshakes[n%4]).HandshakeContext(ctx)
			return 1, nil
		}},
	}
	for _, p := range parts {
		if p.open == nil {
			continue
		}
		for until := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) { // the turn before may have used up the rate
			err := p.open(ctx)
			if err == nil {
				break
			}
			if time.Now().After(until) {
				return nil, err
			}
		}
	}
	fmt.Println("begins")
	end := time.Now().Add(time.Duration(a.Seconds * float64(time.Second)))
	defer time.AfterFunc(time.Until(end), cancel).Stop()
	out := make([]attackResult, len(parts))
	var wg sync.WaitGroup
	for i, p := range parts {
		wg.Go(func() {
			did := attackResult{Name: p.name}
			time.Sleep(p.after)
			for n := 0; n < attackMost && time.Now().Before(end); n++ {
				times, err := p.do(ctx, a.Turn*attackMost+n)
				did.Did[0] += int64(times)
				if err != nil && time.Now().Before(end) {
					did.Did[1]++
					did.Last = err.Error()
				}
			}
			out[i] = did
		})
	}
	wg.Wait()
	a.hc.CloseIdleConnections()
	return out, nil
}
