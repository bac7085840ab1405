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
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/command"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/mqtt"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/session"
	"github.com/watchword-iot/watchword/twin"
)

// house is the engine with a guard behind it, and with an office and a roll that
// the test fills.
type house struct {
	t      testing.TB
	broker *mqtt.Broker
	guard  *session.Guard
	bus    *bus.Bus
	limits bus.Options // of the next life of the engine
	twins  *fakeTwins
	store  *memory
	desk   *command.Desk // nil: nobody is handed commands

	mu       sync.Mutex
	roll     map[watchword.SubjectID]*watchword.Subject
	set      *policy.Set
	tokens   map[string]session.Papers
	serial   int
	asked    map[watchword.SubjectID]int // how often the roll was
	spending func()                      // called while an assertion is spent, where it is set
	proving  ed25519.PublicKey           // of every subject, where a test proves keys
}

// inBubble runs a test with a fake clock: nothing waits for time, and Wait knows
// when nothing more will come.
func inBubble(t *testing.T, f func(t *testing.T, h *house)) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, mqtt.Options{})
		defer func() { // also where it failed: nothing is left hanging
			h.store.open()
			h.close()
		}()
		f(t, h)
	})
}

func newHouse(t testing.TB, o mqtt.Options, limits ...bus.Options) *house {
	h := &house{t: t, roll: map[watchword.SubjectID]*watchword.Subject{}, tokens: map[string]session.Papers{}, twins: &fakeTwins{states: map[watchword.SubjectID][]byte{}}}
	if len(limits) > 0 {
		h.limits = limits[0]
	}
	h.store = newMemory()
	h.start(o)
	h.policy(`publish = ["#"]`, `subscribe = ["#"]`)
	return h
}

// start begins a life of the engine on what the store has.
func (h *house) start(o mqtt.Options) {
	h.t.Helper()
	h.guard = session.NewGuard(h, session.GuardOptions{})
	o.Log = slog.New(slog.DiscardHandler)
	o.KeepAlive = 18 * time.Hour // so that clients may be silent while the clock runs
	h.bus = bus.New(h.limits)
	h.broker = mqtt.New(mqtt.Dependencies{Office: h, Guard: h.guard, Bus: h.bus, Desk: h.desk, Twins: twin.NewKeeper(h.twins, openSafe{}), Store: h.store}, o)
	if err := h.broker.Load(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}

// publish publishes what does not come over MQTT.
func (h *house) publish(d *bus.Document) error {
	return h.bus.Tenant(watchword.DefaultTenant).PublishDocument(d, nil)
}

// reader reads events as one who may read all of them.
func (h *house) reader(filter string) *bus.Reader {
	h.t.Helper()
	r, err := h.bus.Tenant(watchword.DefaultTenant).Read(h.t.Context(), anything{}, quota.Key{Tenant: watchword.DefaultTenant, Subject: "reader"}, filter, "")
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// anything is the authority of one who may read everything.
type anything struct{}

func (anything) Subscribe(string) policy.Decision { return policy.Decision{Allowed: true} }

// crash ends the engine as kill -9 does: what is not in the store is gone, and nothing
// that it does any more gets there. It starts again on the rest.
func (h *house) crash(o mqtt.Options) {
	h.t.Helper()
	old := h.store
	h.store = old.cut()
	h.guard.Close(watchword.Refuse(watchword.Unavailable, "killed")) // nobody hears anything any more
	synctest.Wait()
	old.fail(true)
	h.close()
	h.start(o)
}

func (h *house) close() {
	h.guard.Close(watchword.Refuse(watchword.Unavailable, "going down"))
	if err := h.broker.Close(context.Background()); err != nil {
		h.t.Error(err)
	}
}

// policy puts one document for everybody in force, with an allow rule for each
// line; a line that begins with "deny " makes a deny rule.
func (h *house) policy(lines ...string) {
	h.t.Helper()
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
		h.t.Fatal(err)
	}
	h.mu.Lock()
	h.set = policy.NewSet(d)
	h.mu.Unlock()
	h.guard.PolicyChanged(context.Background(), watchword.DefaultTenant, d)
}

func (h *house) state(id watchword.SubjectID, st watchword.State) {
	h.mu.Lock()
	h.roll[id].State = st
	h.mu.Unlock()
	h.guard.SubjectChanged(context.Background(), watchword.DefaultTenant, id)
}

// token makes a token for a subject, which is added if there is none yet.
func (h *house) token(id watchword.SubjectID, life time.Duration, perm ...watchword.Permission) string {
	h.t.Helper()
	if perm == nil {
		perm = []watchword.Permission{{Resource: "topic:#", Actions: []string{"pub", "sub"}}}
	}
	g, err := policy.FromPermissions(perm, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.roll[id] == nil {
		h.roll[id] = &watchword.Subject{
			Tenant: watchword.DefaultTenant, ID: id, Kind: watchword.Device, State: watchword.Active, Incarnation: 1,
			Keys: []watchword.Key{{ID: "k1", Purpose: watchword.Sign, State: watchword.KeyActive}},
		}
	}
	h.serial++
	raw := fmt.Sprintf("token-%d", h.serial)
	now := time.Now()
	h.tokens[raw] = session.Papers{
		Tenant: watchword.DefaultTenant, Subject: id, Incarnation: 1, Key: "k1", JTI: raw, Issued: now, Expires: now.Add(life), Permissions: g,
	}
	return raw
}

func (h *house) Renew(context.Context, watchword.TenantID, watchword.SubjectID, string, watchword.KeyID) error {
	return nil
}

func (h *house) Principal(_ context.Context, _ watchword.TenantID, id watchword.SubjectID) (*session.Principal, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.asked == nil {
		h.asked = map[watchword.SubjectID]int{}
	}
	h.asked[id]++
	s := h.roll[id]
	if s == nil {
		return nil, watchword.Refuse(watchword.NotFound, "nobody")
	}
	c := *s
	return session.NewPrincipal(&c, h.set), nil
}

func (h *house) Admit(_ context.Context, _ watchword.TenantID, raw string, now time.Time) (session.Papers, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p, ok := h.tokens[raw]
	switch {
	case !ok:
		return p, watchword.Refuse(watchword.TokenUnrecorded, "not on record")
	case !now.Before(p.Expires):
		return p, watchword.Refuse(watchword.TokenExpired, "over")
	}
	return p, nil
}

func (h *house) AdmitToProve(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (session.Papers, error) {
	return h.Admit(ctx, t, raw, now)
}

func (h *house) Login(ctx context.Context, t watchword.TenantID, raw string, may func(session.Papers) error, _ string, now time.Time) (session.Papers, error) {
	p, err := h.Admit(ctx, t, raw, now)
	if err == nil {
		err = may(p)
	}
	if err == nil && h.spending != nil {
		h.spending()
	}
	return p, err
}

func (h *house) Proves(_ context.Context, _ session.Papers, message, sig []byte) error {
	if !ed25519.Verify(h.proving, message, sig) {
		return watchword.Refuse(watchword.SignatureInvalid, "not the key's")
	}
	return nil
}

// client is the other side of one connection.
type client struct {
	t    testing.TB
	v    packet.Version
	nc   net.Conn
	got  chan packet.Packet // closed at the end of the connection
	ack  *packet.Connack
	next uint16

	ahead []packet.Packet // came, and was not asked for yet
	last  packet.Packet
}

// raw opens a connection and says nothing on it.
func (h *house) raw(v packet.Version) *client {
	mine, theirs := net.Pipe()
	h.broker.Handle(theirs)
	return h.over(mine, v)
}

// over speaks over a connection that is the broker's already.
func (h *house) over(nc net.Conn, v packet.Version) *client {
	c := &client{t: h.t, v: v, nc: nc, got: make(chan packet.Packet, 4096)}
	go c.read()
	return c
}

// listen takes real connections, and returns where.
func (h *house) listen() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	go func() { _ = h.broker.Serve(l) }()
	h.t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// dial opens a real connection and says nothing on it.
func (h *house) dial(address string) *client {
	h.t.Helper()
	nc, err := net.Dial("tcp", address)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.over(nc, packet.V5)
}

func (c *client) read() {
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

func (c *client) send(ps ...packet.Packet) {
	var b []byte
	for _, p := range ps {
		b = packet.Append(b, p, c.v)
	}
	_, _ = c.nc.Write(b) // the server may have gone: the test sees it by what comes
}

// hello is a CONNECT that is good.
func hello(v packet.Version, id, token string) *packet.Connect {
	return &packet.Connect{Version: v, CleanStart: true, ClientID: id, Username: "jwt", HasUser: true, HasPass: true, Password: []byte(token)}
}

// connect opens a connection of a subject that must succeed. edit may change CONNECT.
func (h *house) connect(v packet.Version, id, token string, edit ...func(*packet.Connect)) *client {
	h.t.Helper()
	c := h.raw(v)
	p := hello(v, id, token)
	for _, e := range edit {
		e(p)
	}
	c.send(p)
	if c.ack = want[*packet.Connack](c); c.ack.Code != packet.Success {
		h.t.Fatalf("CONNACK %#x %v", c.ack.Code, c.ack.Properties)
	}
	return c
}

// device connects a device of this name under a fresh token, over version 5.
func (h *house) device(id watchword.SubjectID, edit ...func(*packet.Connect)) *client {
	h.t.Helper()
	return h.connect(packet.V5, string(id), h.token(id, time.Hour), edit...)
}

// want returns the next packet, which must be a P.
func want[P packet.Packet](c *client) P {
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
func next(c *client) packet.Packet {
	c.t.Helper()
	p, ok := <-c.got
	if !ok {
		c.t.Fatal("the connection ended")
	}
	c.last = p
	return p
}

// silent fails where anything came, or the connection ended. Only in a bubble.
func (c *client) silent() {
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

// ended takes DISCONNECT with this reason and the end; for 3.1.1 the end alone.
func (c *client) ended(r packet.Reason) {
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

func (c *client) id() uint16 {
	if c.next++; c.next == 0 {
		c.next = 1
	}
	return c.next
}

// subscribe asks for filters at one QoS and returns the codes. Messages of the subscription
// may come before its SUBACK (MQTT 5.0 §3.8.4): they are kept for the next calls.
func (c *client) subscribe(qos byte, filters ...string) []packet.Reason {
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
func (c *client) publish(qos byte, topic, payload string) packet.Reason {
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

// message takes the next publish, and acknowledges it.
func (c *client) message() *packet.Publish {
	c.t.Helper()
	p := want[*packet.Publish](c)
	if p.QoS > 0 {
		c.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
	}
	return p
}

func (c *client) hears(topic, payload string) {
	c.t.Helper()
	if p := c.message(); p.Topic != topic || string(p.Payload) != payload {
		c.t.Fatalf("got %q on %s, want %q on %s", p.Payload, p.Topic, payload, topic)
	}
}

// vanish breaks the connection off.
func (c *client) vanish() { _ = c.nc.Close() }

// net2 is the two ends of a connection.
func net2() (net.Conn, net.Conn) { return net.Pipe() }
