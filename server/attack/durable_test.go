package attack_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testport"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/token"
)

// persistentClient is a client with a persistent session and the client's session state (MQTT 5.0 §4.1): it sends
// unacknowledged packets again over the next connection.
type persistentClient struct {
	t        testing.TB
	id       string
	address  string
	password func() string

	mu      sync.Mutex
	changed *sync.Cond
	nc      net.Conn
	sent    []inflightPublish
	next    uint16
	acked   []string
	held    map[uint16]bool
	heard   []string
	wrong   []string
	over    bool
}

type inflightPublish struct {
	p        *packet.Publish
	released bool
}

func newPeer(t testing.TB, id, address string, credentials func() string) *persistentClient {
	p := &persistentClient{t: t, id: id, address: address, password: credentials, held: map[uint16]bool{}}
	p.changed = sync.NewCond(&p.mu)
	return p
}

// run keeps a connection until ctx ends.
func (p *persistentClient) run(ctx context.Context, filters ...string) {
	for first := true; ctx.Err() == nil; {
		if err := p.connect(ctx, first, filters); err != nil {
			select {
			case <-time.After(20 * time.Millisecond): // the server is away
			case <-ctx.Done():
			}
			continue
		}
		first = false
	}
}

// connect lives one connection. first is whether no session is there yet.
func (p *persistentClient) connect(ctx context.Context, first bool, filters []string) error {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", p.address)
	if err != nil {
		return err
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { _ = nc.Close() })()
	c := &packet.Connect{Version: packet.V5, ClientID: p.id, Username: "jwt", HasUser: true, HasPass: true, Password: []byte(p.password())}
	c.Properties.SetNumber(packet.SessionExpiryInterval, 3600)
	b := packet.Append(nil, c, packet.V5)
	if first && len(filters) > 0 {
		s := &packet.Subscribe{ID: 1}
		for _, f := range filters {
			s.Filters = append(s.Filters, packet.Filter{Topic: f, QoS: 2})
		}
		b = packet.Append(b, s, packet.V5)
	}
	if _, err := nc.Write(b); err != nil {
		return err
	}
	r := bufio.NewReader(nc)
	got, err := readPacket(r)
	if err != nil {
		return err
	}
	ack, ok := got.(*packet.Connack)
	if !ok || ack.Code != packet.Success {
		return fmt.Errorf("%+v", got)
	}
	p.mu.Lock()
	if !first && !ack.SessionPresent {
		p.wrong = append(p.wrong, "its session is gone")
	}
	b = b[:0]
	for _, f := range p.sent {
		if f.released {
			b = packet.Append(b, &packet.Ack{Kind: packet.PUBREL, ID: f.p.ID}, packet.V5)
			continue
		}
		f.p.Dup = true
		b = packet.Append(b, f.p, packet.V5)
	}
	p.nc = nc
	_, err = nc.Write(b)
	p.changed.Broadcast()
	p.mu.Unlock()
	for err == nil {
		if got, err = readPacket(r); err == nil {
			err = p.take(got)
		}
	}
	p.mu.Lock()
	p.nc = nil
	p.mu.Unlock()
	return nil // it was there
}

func readPacket(r *bufio.Reader) (packet.Packet, error) {
	head, err := r.Peek(2)
	if err != nil {
		return nil, err
	}
	for n := 2; ; n++ {
		if need := packet.NeededBytes(head); need > 0 {
			b := make([]byte, need)
			if _, err := io.ReadFull(r, b); err != nil {
				return nil, err
			}
			first, body, _, err := packet.Frame(b, packet.MaxSize)
			if err != nil {
				return nil, err
			}
			return packet.Parse(first, body, packet.V5)
		}
		if head, err = r.Peek(n + 1); err != nil {
			return nil, err
		}
	}
}

func (p *persistentClient) take(got packet.Packet) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var answer packet.Packet
	switch m := got.(type) {
	case *packet.Publish:
		payload := string(m.Payload)
		answer = &packet.Ack{Kind: packet.PUBACK, ID: m.ID}
		if m.QoS == 2 {
			answer = &packet.Ack{Kind: packet.PUBREC, ID: m.ID}
			if p.held[m.ID] {
				break
			}
			p.held[m.ID] = true
		}
		p.heard = append(p.heard, payload)
	case *packet.Ack:
		i := slices.IndexFunc(p.sent, func(f inflightPublish) bool { return f.p.ID == m.ID })
		switch {
		case m.Kind == packet.PUBREL:
			delete(p.held, m.ID)
			answer = &packet.Ack{Kind: packet.PUBCOMP, ID: m.ID}
		case i < 0:
		case m.Reason.Failed() && m.Reason != packet.PacketIdentifierNotFound:
			p.wrong = append(p.wrong, fmt.Sprintf("%s %#x", m.Kind, m.Reason))
			p.sent = slices.Delete(p.sent, i, i+1)
		case m.Kind == packet.PUBCOMP:
			p.sent = slices.Delete(p.sent, i, i+1)
		case !p.sent[i].released:
			p.acked = append(p.acked, string(p.sent[i].p.Payload))
			if m.Kind == packet.PUBREC {
				p.sent[i].released = true
				answer = &packet.Ack{Kind: packet.PUBREL, ID: m.ID}
			} else {
				p.sent = slices.Delete(p.sent, i, i+1)
			}
		}
	case *packet.Disconnect:
		return errors.New("told to go")
	}
	p.changed.Broadcast()
	if answer == nil || p.nc == nil {
		return nil
	}
	_, err := p.nc.Write(packet.Append(nil, answer, packet.V5))
	return err
}

// publish sends one message as soon as fewer than 50 are under way.
func (p *persistentClient) publish(qos byte, topic, payload string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.sent) >= 50 && !p.over {
		p.changed.Wait()
	}
	for {
		if p.next = p.next%1000 + 1; !slices.ContainsFunc(p.sent, func(f inflightPublish) bool { return f.p.ID == p.next }) {
			break
		}
	}
	m := &packet.Publish{Topic: topic, QoS: qos, ID: p.next, Payload: []byte(payload)}
	p.sent = append(p.sent, inflightPublish{p: m})
	if p.nc != nil {
		_, _ = p.nc.Write(packet.Append(nil, m, packet.V5)) // what is lost is said again
	}
}

// until waits for something to be true of it.
func (p *persistentClient) until(is func() bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !is() {
		p.changed.Wait()
	}
}

// kill -9 while messages are sent through sessions that connect and disconnect: acknowledged messages are received, in
// order, and with QoS 2 exactly once, counted message by message.
func TestAKilledServerLosesNoMessage(t *testing.T) {
	const publishers, kills, each = 3, 5, 250
	data := filepath.Join(t.TempDir(), "data")
	address := "127.0.0.1:" + testport.Reserve(t)
	t.Setenv("WATCHWORD_SERVER_MQTT", address)
	t.Setenv("WATCHWORD_SERVER_HTTPS", "localhost:"+testport.Reserve(t)) // one port for all starts: the issuer names it
	s := start(t, data, "serve")
	s.until("next ")
	credentials := operatorPasswords(t, data)

	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	go1 := func(p *persistentClient, filters ...string) {
		running.Go(func() { p.run(ctx, filters...) })
		p.until(func() bool { return p.nc != nil })
	}
	there, away := newPeer(t, "operator/there", address, credentials), newPeer(t, "operator/away", address, credentials)
	go1(there, "counted/#")
	// The other client is there to subscribe, and reconnects in the end.
	leave, left := context.WithCancel(ctx)
	defer left()
	done := make(chan struct{})
	go func() { away.run(leave, "counted/#"); close(done) }()
	away.until(func() bool { return away.nc != nil })
	there.until(func() bool { return there.nc != nil })

	var pubs []*persistentClient
	var sending sync.WaitGroup
	for i := range publishers {
		p := newPeer(t, fmt.Sprintf("operator/p%d", i), address, credentials)
		go1(p)
		pubs = append(pubs, p)
		if i == 0 { // subscribed for sure once a message has come
			p.publish(1, "counted/first", "first")
			for _, s := range []*persistentClient{there, away} {
				s.until(func() bool { return len(s.heard) > 0 })
			}
			left()
			<-done
		}
		sending.Go(func() {
			for n := range kills * each {
				qos := byte(1 + n%2)
				p.publish(qos, fmt.Sprintf("counted/p%d/%d", i, qos), fmt.Sprintf("p%d-%d %06d", i, qos, n))
			}
		})
	}
	for k := range kills {
		pubs[0].until(func() bool { return len(pubs[0].acked) > (k+1)*each-each/3 })
		s.kill9()
		s = start(t, data, "serve")
		s.until("next ")
	}
	sending.Wait()
	running.Go(func() { away.run(ctx) })
	for _, p := range pubs {
		p.until(func() bool { return len(p.sent) == 0 })
		p.publish(2, "counted/"+p.id, "last "+p.id)
		p.until(func() bool { return len(p.sent) == 0 })
	}
	for _, s := range []*persistentClient{there, away} {
		s.until(func() bool {
			n := 0
			for _, m := range s.heard {
				if strings.HasPrefix(m, "last ") {
					n++
				}
			}
			return n == publishers
		})
	}
	cancel()
	running.Wait()
	for _, s := range []*persistentClient{there, away} {
		for i := range pubs {
			for _, qos := range []string{"1", "2"} {
				countHeard(t, s, pubs[i], fmt.Sprintf("p%d-%s", i, qos), qos == "2")
			}
		}
	}
	for _, p := range append(pubs, there, away) {
		for _, w := range p.wrong {
			t.Errorf("%s: %s", p.id, w)
		}
	}
}

// countHeard compares the messages that one client received with those that were acknowledged to another.
func countHeard(t *testing.T, s, p *persistentClient, prefix string, once bool) {
	t.Helper()
	seen := map[string]int{}
	var order []string
	for _, m := range s.heard {
		if !strings.HasPrefix(m, prefix) {
			continue
		}
		if seen[m]++; seen[m] == 1 {
			order = append(order, m)
		} else if once {
			t.Errorf("%s received %q %d times", s.id, m, seen[m])
		}
	}
	if !slices.IsSorted(order) {
		t.Errorf("%s received %s out of order", s.id, prefix)
	}
	n := 0
	for _, m := range p.acked {
		if strings.HasPrefix(m, prefix) {
			if n++; seen[m] == 0 {
				t.Errorf("%s never received %q", s.id, m)
			}
		}
	}
	t.Logf("%s: %s: %d acknowledged, %d received", s.id, prefix, n, len(seen))
}

// operatorPasswords makes passwords of the first operator.
func operatorPasswords(t testing.TB, data string) func() string {
	raw, err := os.ReadFile(filepath.Join(data, "operator.jwk"))
	must(t, err)
	k, err := jose.ParsePrivateJWK(raw, jose.ForSigning)
	must(t, err)
	signer, err := k.Signer()
	must(t, err)
	issuer := "https://localhost:" + port(t, data)
	return func() string {
		a, err := token.SignAssertion(signer, watchword.SubjectID("operator"), issuer, time.Now(), token.AssertionLifetime)
		if err != nil {
			t.Error(err)
		}
		return a
	}
}
