package mqtt_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/mqtt"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/server/twin"
)

// testServer is the engine with a guard behind it, and with an authentication service and a directory that
// the test fills.
type testServer struct {
	t        testing.TB
	broker   *mqtt.Broker
	guard    *session.Guard
	bus      *bus.Bus
	limits   bus.Options // of the next life of the engine
	twins    *fakeTwins
	store    *memoryStore
	commands *command.Service // nil: no commands are handed over

	mu       sync.Mutex
	subjects map[watchword.SubjectID]*watchword.Subject
	set      *policy.Set
	tokens   map[string]session.Credentials
	serial   int
	asked    map[watchword.SubjectID]int // how often the directory was
	onSpend  func()                      // called while an assertion is spent, where it is set
	proofKey ed25519.PublicKey           // of every subject, where a test proves keys
}

// inBubble runs a test with a fake clock: nothing waits for time, and Wait knows
// when nothing more will come.
func inBubble(t *testing.T, f func(t *testing.T, srv *testServer)) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestServer(t, mqtt.Options{})
		defer func() { // also where it failed: nothing is left hanging
			srv.store.unblock()
			srv.close()
		}()
		f(t, srv)
	})
}

func newTestServer(t testing.TB, o mqtt.Options, limits ...bus.Options) *testServer {
	srv := &testServer{t: t, subjects: map[watchword.SubjectID]*watchword.Subject{}, tokens: map[string]session.Credentials{}, twins: &fakeTwins{states: map[watchword.SubjectID][]byte{}}}
	if len(limits) > 0 {
		srv.limits = limits[0]
	}
	srv.store = newMemory()
	srv.start(o)
	srv.policy(`publish = ["#"]`, `subscribe = ["#"]`)
	return srv
}

// start begins a life of the engine on what the store has.
func (srv *testServer) start(o mqtt.Options) {
	srv.t.Helper()
	srv.guard = session.NewGuard(srv, session.GuardOptions{})
	o.Log = slog.New(slog.DiscardHandler)
	o.KeepAlive = 18 * time.Hour // so that clients may be silent while the clock runs
	srv.bus = bus.New(srv.limits)
	srv.broker = mqtt.New(mqtt.Dependencies{Auth: srv, Guard: srv.guard, Bus: srv.bus, Commands: srv.commands, Twins: twin.New(srv.twins, noSealing{}), Store: srv.store}, o)
	if err := srv.broker.Restore(srv.t.Context()); err != nil {
		srv.t.Fatal(err)
	}
}

// publish publishes what does not come over MQTT.
func (h *testServer) publish(d *bus.Document) error {
	return h.bus.Tenant(watchword.DefaultTenant).PublishDocument(d, nil)
}

// reader reads events with an authority that may read all of them.
func (h *testServer) reader(filter string) *bus.Reader {
	h.t.Helper()
	r, err := h.bus.Tenant(watchword.DefaultTenant).Read(h.t.Context(), anything{}, quota.Key{Tenant: watchword.DefaultTenant, Subject: "reader"}, filter, "")
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// anything is an authority that may read everything.
type anything struct{}

func (anything) AuthorityVersion() uint64 { return 1 }

func (anything) Subscribe(string) policy.Decision { return policy.Decision{Allowed: true} }

// crash ends the engine as kill -9 does: what is not in the store is gone, and nothing
// that it does any more gets there. It starts again on the rest.
func (srv *testServer) crash(o mqtt.Options) {
	srv.t.Helper()
	old := srv.store
	srv.store = old.freeze()
	srv.guard.Close(watchword.Refuse(watchword.Unavailable, "killed")) // nothing is delivered any more
	synctest.Wait()
	old.fail(true)
	srv.close()
	srv.start(o)
}

func (srv *testServer) close() {
	srv.guard.Close(watchword.Refuse(watchword.Unavailable, "going down"))
	if err := srv.broker.Close(context.Background()); err != nil {
		srv.t.Error(err)
	}
}

// policy applies one document for all subjects, with an allow rule for each line; a line that begins with "deny " makes a
// deny rule.
func (srv *testServer) policy(lines ...string) {
	srv.t.Helper()
	src := "for = {}\n"
	for _, l := range lines {
		kind := "allow"
		if len(l) > 5 && l[:5] == "deny " {
			kind, l = "deny", l[5:]
		}
		src += "[[" + kind + "]]\n" + l + "\n"
	}
	d, err := policy.Parse("test", []byte(src))
	if err != nil {
		srv.t.Fatal(err)
	}
	srv.mu.Lock()
	srv.set = policy.NewSet(d)
	srv.mu.Unlock()
	srv.changed(watchword.PoliciesChanged, "")
}

func (srv *testServer) state(id watchword.SubjectID, st watchword.State) {
	srv.mu.Lock()
	srv.subjects[id].State = st
	srv.mu.Unlock()
	srv.changed(watchword.SubjectChanged, string(id))
}

// token makes a token for a subject, which is added if there is none yet.
func (srv *testServer) token(id watchword.SubjectID, life time.Duration, perm ...watchword.Permission) string {
	srv.t.Helper()
	if perm == nil {
		perm = []watchword.Permission{{Resource: "topic:#", Actions: []string{"pub", "sub"}}}
	}
	g, err := policy.FromPermissions(perm, nil)
	if err != nil {
		srv.t.Fatal(err)
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.subjects[id] == nil {
		srv.subjects[id] = &watchword.Subject{
			Tenant: watchword.DefaultTenant, ID: id, Kind: watchword.Device, State: watchword.Active, Incarnation: 1,
			Keys: []watchword.Key{{ID: "k1", Purpose: watchword.Sign, State: watchword.KeyActive}},
		}
	}
	srv.serial++
	raw := fmt.Sprintf("token-%d", srv.serial)
	now := time.Now()
	srv.tokens[raw] = session.Credentials{
		Tenant: watchword.DefaultTenant, Subject: id, Incarnation: 1, Key: "k1", JTI: raw, Issued: now, Expires: now.Add(life), Permissions: g,
	}
	return raw
}

func (srv *testServer) Refresh(context.Context, watchword.TenantID, watchword.SubjectID, string, watchword.KeyID) error {
	return nil
}

func (h *testServer) Policies(context.Context, watchword.TenantID) (*policy.Set, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.set, nil
}

func (h *testServer) TokenSubject(_ context.Context, _ watchword.TenantID, jti string) (watchword.SubjectID, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tokens[jti].Subject, nil
}

// changed takes a change to the engine and the guard, in the order of the server.
func (h *testServer) changed(kind watchword.ChangeKind, id string) {
	h.t.Helper()
	live := session.NewLive()
	live.Register(h.broker, h.guard)
	if err := live.Apply(context.Background(), watchword.Change{Tenant: watchword.DefaultTenant, Kind: kind, ID: id}); err != nil {
		h.t.Error(err)
	}
}

func (h *testServer) Principal(_ context.Context, _ watchword.TenantID, id watchword.SubjectID) (*session.Principal, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.asked == nil {
		h.asked = map[watchword.SubjectID]int{}
	}
	h.asked[id]++
	s := h.subjects[id]
	if s == nil {
		return nil, watchword.Refuse(watchword.NotFound, "nobody")
	}
	c := *s
	return session.NewPrincipal(&c, h.set), nil
}

func (srv *testServer) VerifyBearer(_ context.Context, _ watchword.TenantID, raw string, now time.Time) (session.Credentials, error) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	p, ok := srv.tokens[raw]
	switch {
	case !ok:
		return p, watchword.Refuse(watchword.TokenUnrecorded, "not on record")
	case !now.Before(p.Expires):
		return p, watchword.Refuse(watchword.TokenExpired, "over")
	}
	return p, nil
}

func (srv *testServer) VerifyPoP(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (session.Credentials, error) {
	return srv.VerifyBearer(ctx, t, raw, now)
}

func (srv *testServer) AuthenticateAssertion(ctx context.Context, t watchword.TenantID, raw string, may func(session.Credentials) error, _ string, now time.Time) (session.Credentials, error) {
	p, err := srv.VerifyBearer(ctx, t, raw, now)
	if err == nil {
		err = may(p)
	}
	if err == nil && srv.onSpend != nil {
		srv.onSpend()
	}
	return p, err
}

func (srv *testServer) VerifyPossession(_ context.Context, _ session.Credentials, message, sig []byte, _ time.Time) error {
	if !ed25519.Verify(srv.proofKey, message, sig) {
		return watchword.Refuse(watchword.SignatureInvalid, "not the key's")
	}
	return nil
}

// testClient is the other side of one connection.
type testClient struct {
	t    testing.TB
	v    packet.Version
	nc   net.Conn
	got  chan packet.Packet // closed at the end of the connection
	ack  *packet.Connack
	next uint16

	ahead []packet.Packet // came, and was not asked for yet
	last  packet.Packet
}

// dialRaw opens a connection and says nothing on it.
func (srv *testServer) dialRaw(v packet.Version) *testClient {
	mine, theirs := net.Pipe()
	srv.broker.Handle(theirs)
	return srv.serveConn(mine, v)
}

// serveConn speaks over a connection that is the broker's already.
func (srv *testServer) serveConn(nc net.Conn, v packet.Version) *testClient {
	c := &testClient{t: srv.t, v: v, nc: nc, got: make(chan packet.Packet, 4096)}
	go c.read()
	return c
}

// listen takes real connections, and returns where.
func (srv *testServer) listen() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		srv.t.Fatal(err)
	}
	go func() { _ = srv.broker.Serve(l) }()
	srv.t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// dial opens a real connection and says nothing on it.
func (srv *testServer) dial(address string) *testClient {
	srv.t.Helper()
	nc, err := net.Dial("tcp", address)
	if err != nil {
		srv.t.Fatal(err)
	}
	return srv.serveConn(nc, packet.V5)
}

func (c *testClient) read() {
	defer close(c.got)
	var b []byte
	buf := make([]byte, 4096)
	for {
		n, err := c.nc.Read(buf)
		b = append(b, buf[:n]...)
		for {
			first, body, n, ferr := packet.Frame(b, packet.MaxSize)
			if ferr != nil || n == 0 {
				break
			}
			p, perr := packet.Parse(first, append([]byte(nil), body...), c.v)
			if perr != nil {
				c.t.Errorf("the server sent what is no packet: %v", perr)
				return
			}
			b = b[n:]
			c.got <- p
		}
		if err != nil {
			return
		}
	}
}

func (c *testClient) send(ps ...packet.Packet) {
	var b []byte
	for _, p := range ps {
		b = packet.Append(b, p, c.v)
	}
	_, _ = c.nc.Write(b) // the server may have closed the connection: the test notices it when it reads
}

// hello is a CONNECT that is good.
func hello(v packet.Version, id, token string) *packet.Connect {
	return &packet.Connect{Version: v, CleanStart: true, ClientID: id, Username: "jwt", HasUser: true, HasPass: true, Password: []byte(token)}
}

// connect opens a connection of a subject that must succeed. edit may change CONNECT.
func (srv *testServer) connect(v packet.Version, id, token string, edit ...func(*packet.Connect)) *testClient {
	srv.t.Helper()
	c := srv.dialRaw(v)
	p := hello(v, id, token)
	for _, e := range edit {
		e(p)
	}
	c.send(p)
	if c.ack = want[*packet.Connack](c); c.ack.Code != packet.Success {
		srv.t.Fatalf("CONNACK %#x %v", c.ack.Code, c.ack.Properties)
	}
	return c
}

// device connects a device of this name under a fresh token, over version 5.
func (srv *testServer) device(id watchword.SubjectID, edit ...func(*packet.Connect)) *testClient {
	srv.t.Helper()
	return srv.connect(packet.V5, string(id), srv.token(id, time.Hour), edit...)
}

// want returns the next packet, which must be a P.
func want[P packet.Packet](c *testClient) P {
	c.t.Helper()
	if len(c.ahead) > 0 {
		c.last, c.ahead = c.ahead[0], c.ahead[1:]
	} else {
		next(c)
	}
	out, ok := c.last.(P)
	if !ok {
		c.t.Fatalf("got %T %+v, want %T", c.last, c.last, out)
	}
	return out
}

// next returns the next packet from the wire.
func next(c *testClient) packet.Packet {
	c.t.Helper()
	p, ok := <-c.got
	if !ok {
		c.t.Fatal("the connection ended")
	}
	c.last = p
	return p
}

// wantNothing fails where anything came, or the connection ended. Only in a bubble.
func (c *testClient) wantNothing() {
	c.t.Helper()
	synctest.Wait()
	if len(c.ahead) > 0 {
		c.t.Fatalf("got %T %+v, want nothing", c.ahead[0], c.ahead[0])
	}
	select {
	case p, ok := <-c.got:
		c.t.Fatalf("got %T %+v (open %v), want nothing", p, p, ok)
	default:
	}
}

// wantDisconnect takes DISCONNECT with this reason and the end; for 3.1.1 the end alone.
func (c *testClient) wantDisconnect(r packet.Reason) {
	c.t.Helper()
	if c.v == packet.V5 {
		if d := want[*packet.Disconnect](c); d.Reason != r {
			c.t.Fatalf("DISCONNECT %#x %v, want %#x", d.Reason, d.Properties, r)
		}
	}
	if p, ok := <-c.got; ok {
		c.t.Fatalf("got %T %+v, want the end", p, p)
	}
}

func (c *testClient) id() uint16 {
	if c.next++; c.next == 0 {
		c.next = 1
	}
	return c.next
}

// subscribe asks for filters at one QoS and returns the codes. Messages of the subscription
// may come before its SUBACK (MQTT 5.0 §3.8.4): they are kept for the next calls.
func (c *testClient) subscribe(qos byte, filters ...string) []packet.Reason {
	c.t.Helper()
	p := &packet.Subscribe{ID: c.id()}
	for _, f := range filters {
		p.Filters = append(p.Filters, packet.Filter{Topic: f, QoS: qos})
	}
	c.send(p)
	for {
		switch got := next(c).(type) {
		case *packet.Suback:
			if got.ID != p.ID {
				c.t.Fatalf("SUBACK for %d, want %d", got.ID, p.ID)
			}
			return got.Codes
		case *packet.Publish:
			c.ahead = append(c.ahead, got)
		default:
			c.t.Fatalf("got %T %+v, want SUBACK", got, got)
		}
	}
}

// publish sends one message; with QoS 1 it returns the reason of its PUBACK.
func (c *testClient) publish(qos byte, topic, payload string) packet.Reason {
	c.t.Helper()
	p := &packet.Publish{Topic: topic, QoS: qos, Payload: []byte(payload)}
	if qos > 0 {
		p.ID = c.id()
	}
	c.send(p)
	if qos == 0 {
		return packet.Success
	}
	a := want[*packet.Ack](c)
	if a.ID != p.ID || a.Kind != packet.PUBACK {
		c.t.Fatalf("%s for %d, want PUBACK for %d", a.Kind, a.ID, p.ID)
	}
	return a.Reason
}

// receiveAndAck takes the next publish, and acknowledges it.
func (c *testClient) receiveAndAck() *packet.Publish {
	c.t.Helper()
	p := want[*packet.Publish](c)
	if p.QoS > 0 {
		c.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
	}
	return p
}

func (c *testClient) wantMessage(topic, payload string) {
	c.t.Helper()
	if p := c.receiveAndAck(); p.Topic != topic || string(p.Payload) != payload {
		c.t.Fatalf("got %q on %s, want %q on %s", p.Payload, p.Topic, payload, topic)
	}
}

// closeAbruptly breaks the connection off.
func (c *testClient) closeAbruptly() { _ = c.nc.Close() }

// net2 is the two ends of a connection.
func net2() (net.Conn, net.Conn) { return net.Pipe() }
