package mqtt

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/command"
	"github.com/watchword-iot/watchword/event"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/rates"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/session"
	"github.com/watchword-iot/watchword/twin"
)

// Office checks papers: access tokens, client assertions and proofs of keys. It
// is an [office.Office].
type Office interface {
	Admit(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (session.Papers, error)
	AdmitToProve(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (session.Papers, error)
	Login(ctx context.Context, t watchword.TenantID, raw, trace string, now time.Time) (session.Papers, error)
	Proves(ctx context.Context, p session.Papers, message, sig []byte) error
}

// Recorder takes the entries of refused acts, and never blocks.
type Recorder interface{ Refused(e audit.Entry) }

// Parts is the rooms behind the door.
type Parts struct {
	Office   Office
	Guard    *session.Guard
	Hub      *event.Hub
	Desk     *command.Desk // nil: nobody is handed commands
	Twins    *twin.Keeper  // nil: nobody reports state or gets configuration
	Recorder Recorder

	Options
}

// Options is what the door needs to know beside the rooms. The zero value is
// ready to use.
type Options struct {
	PacketBytes   int              // the longest packet; 0 means 64 KiB
	QueueMessages int              // messages that wait for one client; 0 means 10,000
	QueueBytes    int              // bytes that they may take; 0 means 1 MiB
	PublishRate   float64          // publishes a second of one session; 0 means no bound
	ConnectRate   float64          // CONNECTs a second from one address; 0 means no bound
	Spread        time.Duration    // over which requests to refresh after an edit are spread; 0 means 5 s
	Now           func() time.Time // nil means time.Now
	Log           *slog.Logger     // nil means slog.Default
}

// Broker is the engine. It is safe for concurrent use.
//
// Order of locks: session, then conn.out, then the tree or the desk.
type Broker struct {
	Parts
	o        Options
	stats    stats
	rates    *rates.Map[netip.Prefix]
	ctx      context.Context // of all work that the doors begin; ends with stop
	stop     context.CancelFunc
	mu       sync.Mutex
	worlds   map[watchword.TenantID]*world
	closing  bool
	serving  sync.WaitGroup
	looking  sync.Once
	upkeep   sync.WaitGroup
	sequence atomic.Uint64 // of connections
}

// world is what one tenant's clients share.
type world struct {
	tenant watchword.TenantID
	tree   tree[*subscription]

	mu      sync.Mutex
	clients map[string]*conn // by client id
}

// New builds the engine from its rooms.
func New(p Parts) *Broker {
	o := p.Options
	for _, d := range []struct {
		at   *int
		zero int
	}{{&o.PacketBytes, 64 << 10}, {&o.QueueMessages, 10_000}, {&o.QueueBytes, 1 << 20}} {
		if *d.at == 0 {
			*d.at = d.zero
		}
	}
	if o.Spread == 0 {
		o.Spread = 5 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	b := &Broker{Parts: p, o: o, worlds: map[watchword.TenantID]*world{}, rates: rates.New[netip.Prefix](o.ConnectRate, "too many connections from this address")}
	b.ctx, b.stop = context.WithCancel(context.Background())
	return b
}

// world returns the world of a tenant.
func (b *Broker) world(t watchword.TenantID) *world {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.worlds[t]
	if w == nil {
		w = &world{tenant: t, clients: map[string]*conn{}}
		b.worlds[t] = w
	}
	return w
}

// Serve takes connections from l until it is closed. Where l's connections are
// TLS ones, the handshake is part of the time that a client has for CONNECT.
func (b *Broker) Serve(l net.Listener) error {
	for pause := time.Duration(0); ; {
		nc, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil: // out of file descriptors, as a rule: it passes
			if pause = min(max(2*pause, 5*time.Millisecond), time.Second); !b.sleep(pause) {
				return nil
			}
			continue
		}
		pause = 0
		b.Handle(nc)
	}
}

func (b *Broker) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-b.ctx.Done():
		return false
	}
}

// Handle serves one connection in the background, and owns it from here on.
func (b *Broker) Handle(nc net.Conn) {
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		_ = nc.Close() // refused: nothing was read or written
		return
	}
	b.serving.Add(1)
	b.mu.Unlock()
	c := &conn{broker: b, nc: nc, remote: nc.RemoteAddr().String(), number: b.sequence.Add(1), trace: watchword.NewID("", b.o.Now())}
	c.moved.L = &c.mu
	c.window = maxFlights
	if _, secret := nc.(*tls.Conn); !secret {
		if c.raw = rawOf(nc); c.raw != nil {
			b.looking.Do(func() { b.upkeep.Go(b.lookTwice) })
		}
	}
	c.flow = bucket{rate: b.o.PublishRate}
	_ = nc.SetDeadline(time.Now().Add(firstPacket)) // the error is that of a closed connection, which the first read reports
	b.stats.connections.Add(1)
	go func() {
		defer b.serving.Done()
		defer b.stats.connections.Add(-1)
		c.serve(fair.With(b.ctx, network(c.remote)))
	}()
}

// Close tells every client that the server goes, and waits until all have gone
// or ctx ends. Sessions are the guard's to close: it closes theirs first.
func (b *Broker) Close(ctx context.Context) error {
	b.mu.Lock()
	b.closing = true
	b.mu.Unlock()
	for _, c := range b.connected(func(*conn) bool { return true }) {
		c.end(watchword.Refuse(watchword.Unavailable, "the server is going down"))
	}
	gone := make(chan struct{})
	go func() {
		b.serving.Wait()
		close(gone)
	}()
	defer b.upkeep.Wait()
	defer b.stop()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// connected returns those clients of all worlds of whom is says so.
func (b *Broker) connected(is func(*conn) bool) (all []*conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, w := range b.worlds {
		w.mu.Lock()
		for _, c := range w.clients {
			if is(c) {
				all = append(all, c)
			}
		}
		w.mu.Unlock()
	}
	return all
}

// enter makes c the client of its id. It returns the one that was, which must end.
func (w *world) enter(c *conn) (old *conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old = w.clients[c.clientID]
	w.clients[c.clientID] = c
	return old
}

func (w *world) forget(c *conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.clients[c.clientID] == c {
		delete(w.clients, c.clientID)
	}
}

// route offers m to everybody who may hear it, once to each client, and returns
// how many subscriptions there were. Who must be flushed is put into b.
func (w *world) route(m *message, b *batch) (n int) {
	filters := 0
	w.tree.match(m.topic, func(l []*subscription) {
		filters++
		b.hear = append(b.hear, l...)
	})
	if filters > 1 { // some may be under several: theirs come together
		slices.SortFunc(b.hear, func(x, y *subscription) int { return cmp.Compare(x.c.number, y.c.number) })
	}
	n = len(b.hear)
	for i, j := 0, 0; i < n; i = j {
		c := b.hear[i].c
		for j = i + 1; j < n && b.hear[j].c == c; {
			j++
		}
		if c.offer(m, b.hear[i:j]...) {
			b.touched = append(b.touched, c)
		}
	}
	clear(b.hear)
	b.hear = b.hear[:0]
	b.hits += n
	return n
}

// Carry hands on what did not come over MQTT: an event or a state over HTTP, a
// configuration that an operator set.
func (b *Broker) Carry(t watchword.TenantID, topic, contentType string, payload []byte) {
	m := &message{topic: topic, payload: payload, qos: 1}
	if contentType != "" {
		m.props = &packet.Properties{}
		m.props.SetText(packet.ContentType, contentType)
	}
	w := batchesOfWork.Get().(*batch)
	defer batchesOfWork.Put(w)
	b.world(t).route(m, w)
	w.flush()
}

// refused counts, logs and records what was refused to c.
func (b *Broker) refused(c *conn, what, object string, err error) {
	b.stats.refusal(err)
	code := codeOf(err)
	level := slog.LevelInfo
	switch {
	case code == "" || err == errTaken:
		level = slog.LevelDebug
	case code == watchword.Internal:
		level = slog.LevelError
	}
	var who audit.Actor
	attrs := []slog.Attr{slog.String("code", string(code)), slog.String("client", c.clientID), slog.String("remote", c.remote)}
	if s := c.live(); s != nil {
		a := s.Authority()
		who = audit.Actor{Tenant: a.Tenant(), Subject: a.Subject(), Key: a.Key(), Trace: string(s.ID())}
		attrs = append(attrs, slog.String("subject", string(a.Subject())), slog.String("trace", string(s.ID())))
	} else {
		who = audit.Actor{Tenant: watchword.DefaultTenant, Trace: c.trace}
		attrs = append(attrs, slog.String("trace", c.trace))
	}
	if object != "" {
		attrs = append(attrs, slog.String("topic", object))
	}
	rule := ""
	if e, ok := errors.AsType[*watchword.Error](err); ok && e.Rule != "" {
		rule = e.Rule
		attrs = append(attrs, slog.String("rule", rule))
	}
	b.o.Log.LogAttrs(b.ctx, level, what, append(attrs, slog.Any("err", err))...)
	if b.Recorder != nil && worthAnEntry(code) {
		if object == "" {
			object = c.clientID
		}
		b.Recorder.Refused(who.Failed(audit.RequestRefuse, what+" "+clip(object), b.o.Now(), err, map[string]string{"remote": c.remote, "rule": rule}))
	}
}

// clip bounds what a stranger can write into the log.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
