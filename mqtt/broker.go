package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/command"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/internal/rates"
	"github.com/watchword-iot/watchword/internal/wall"
	"github.com/watchword-iot/watchword/session"
	"github.com/watchword-iot/watchword/twin"
)

// Office checks papers: access tokens, client assertions and proofs of keys. It
// is an [office.Office].
type Office interface {
	Admit(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (session.Papers, error)
	AdmitToProve(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (session.Papers, error)
	// Login checks a client assertion and issues an access token for the connection. may is asked before the
	// assertion is spent; its error is returned as it is.
	Login(ctx context.Context, t watchword.TenantID, raw string, may func(session.Papers) error, trace string, now time.Time) (session.Papers, error)
	Proves(ctx context.Context, p session.Papers, message, sig []byte) error
}

// Recorder takes the entries of refused acts, and never blocks.
type Recorder interface{ Refused(e audit.Entry) }

// Dependencies is what the broker is built from. Office, Guard and Bus are required.
type Dependencies struct {
	Office   Office
	Guard    *session.Guard
	Bus      *bus.Bus
	Desk     *command.Desk // nil: no commands are delivered
	Twins    *twin.Keeper  // nil: no state is stored and no configuration is delivered
	Recorder Recorder      // nil: refusals are not recorded
	Store    Store         // nil: nothing is persistent, and no session outlives its connection
	// Publishes is the rate of a subject's publishes, shared with other transports; nil: the broker
	// counts by itself, with Options.PublishRate.
	Publishes *rates.Shared[quota.Key]
	// Controls is the rate of a subject's other requests, shared with other transports; nil: the broker
	// counts by itself, with Options.ControlRate.
	Controls *rates.Shared[quota.Key]
}

// Broker is the MQTT server of all tenants. It is safe for concurrent use. locks.go states the order of
// its locks.
type Broker struct {
	deps      Dependencies
	options   Options
	system    bool // o.Now is the system's clock
	stats     stats
	rates     *rates.Map[netip.Prefix] // of CONNECTs
	floods    *rates.Map[netip.Prefix] // of connections, before anything is spent on them
	lingers   *quota.Ledger[netip.Prefix]
	publishes *rates.Shared[quota.Key] // by subject
	controls  *rates.Shared[quota.Key] // likewise
	ctx       context.Context          // of all work that the doors begin; ends with stop
	stop      context.CancelFunc
	mu        lockrank.Mutex[brokerLock]
	worlds    map[watchword.TenantID]*world
	closing   bool
	ahead     *wall.Watch
	strangers map[*conn]struct{} // connections without a client
	draining  atomic.Bool        // nothing new is taken in
	serving   sync.WaitGroup
	looking   sync.Once
	upkeep    sync.WaitGroup
	sequence  atomic.Int64 // of clients
	lasting   atomic.Int64 // clients whose state outlives their connection
	journal   *journal
	wills     wills
	retain    *retainQuota
	purge     purge

	queued    *quota.Ledger[quota.Key] // of what waits for connected clients, in bytes
	kept      *quota.Ledger[quota.Key] // of what waits for lasting sessions, in bytes
	remembers *quota.Ledger[quota.Key] // of topic aliases and identifiers, in bytes
}

// world is what one tenant's clients share.
type world struct {
	tenant   watchword.TenantID
	bus      *bus.Tenant
	groups   groups
	retained retained

	mu      lockrank.Mutex[tenantLock]
	clients map[string]*sessionState // by client identifier
	lasting map[watchword.SubjectID]int
}

// New returns a broker that serves no connection yet; see [Broker.Load] and [Broker.Serve].
func New(d Dependencies, options Options) *Broker {
	o := options.withDefaults()
	b := &Broker{deps: d, options: o, system: options.Now == nil, worlds: map[watchword.TenantID]*world{}, strangers: map[*conn]struct{}{}, rates: rates.New[netip.Prefix](o.ConnectRate, "too many connections from this address")}
	b.floods = rates.New[netip.Prefix](floodFactor*o.ConnectRate, "")
	b.lingers = newLingerQuota()
	if b.publishes = d.Publishes; b.publishes == nil {
		b.publishes = rates.NewShared[quota.Key](o.PublishRate, "")
	}
	if b.controls = d.Controls; b.controls == nil {
		b.controls = rates.NewShared[quota.Key](o.ControlRate, "")
	}
	b.ctx, b.stop = context.WithCancel(context.Background())
	b.retain, b.purge.wake = newRetainQuota(&b.options), make(chan struct{}, 1)
	b.queued, b.kept, b.remembers = newQueueQuota(&b.options), newKeptQuota(&b.options), newMemoryQuota(&b.options)
	b.journal = newJournal(&b.options, d.Store, b.retain)
	b.wills.init(b)
	b.deps.Guard.Watch(b.authorityChanged)
	if d.Store != nil {
		b.upkeep.Go(func() { b.journal.run(b.ctx) })
	}
	b.upkeep.Go(b.sweep)
	b.upkeep.Go(b.purgeRetained)
	b.ahead = wall.Start(o.Now, b.timePassed)
	return b
}

// moment is the time by the broker's clock, and the same by the clock of timers, which nobody
// sets. Where both are the system's it is read once.
func (b *Broker) moment() (now, tick time.Time) {
	tick = time.Now()
	if b.system {
		return tick.Truncate(time.Millisecond), tick
	}
	return b.options.Now(), tick
}

// timePassed starts the clocks of the clients that are away anew: those count
// monotonic time, and their wills and ends are due at a time of day.
func (b *Broker) timePassed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return
	}
	now := b.options.Now()
	b.wills.timePassed(now)
	for _, w := range b.worlds {
		w.mu.Lock()
		for _, st := range w.clients {
			st.mu.Lock()
			if !st.over && st.lasting != nil && st.away() {
				st.arm(now)
			}
			st.mu.Unlock()
		}
		w.mu.Unlock()
	}
}

// world returns the world of a tenant.
func (b *Broker) world(t watchword.TenantID) *world {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.worlds[t]
	if w == nil {
		w = &world{tenant: t, bus: b.deps.Bus.Tenant(t), retained: retained{tenant: t, quota: b.retain}, clients: map[string]*sessionState{}, lasting: map[watchword.SubjectID]int{}}
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

// floodFactor is how many times the rate of CONNECTs connections may come from one
// address before they are closed unheard, and before a TLS handshake is paid for them:
// up to there each is told 0x9F.
const floodFactor = 1.25

// Handle serves one connection in the background, and owns it from here on.
func (b *Broker) Handle(nc net.Conn) {
	remote := nc.RemoteAddr().String()
	if b.floods.Take(network(remote), b.options.Now()) != nil {
		b.stats.shed.Add(1)
		_ = nc.Close() // refused: nothing was read or written
		return
	}
	c := &conn{broker: b, nc: nc, remote: remote, trace: watchword.NewID("", b.options.Now())}
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		_ = nc.Close() // refused: nothing was read or written
		return
	}
	b.serving.Add(1)
	b.strangers[c] = struct{}{}
	b.mu.Unlock()
	c.session = &sessionState{broker: b, number: b.sequence.Add(1), conn: c}
	c.out.moved.L = &c.session.mu
	c.out.window = maxFlights
	if _, secret := nc.(*tls.Conn); !secret {
		if c.raw = rawOf(nc); c.raw != nil {
			b.looking.Do(func() { b.upkeep.Go(b.lookTwice) })
		}
	}
	_ = nc.SetDeadline(time.Now().Add(firstPacket)) // the error is that of a closed connection, which the first read reports
	b.stats.connections.Add(1)
	go func() {
		defer b.serving.Done()
		defer b.stats.connections.Add(-1)
		c.serve(fair.With(b.ctx, network(c.remote)))
	}()
}

// known is told of a connection that has a client, or is over.
func (b *Broker) known(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.strangers, c)
}

// Close tells every client that the server goes, and waits until all have gone
// or ctx ends. Sessions are the guard's to close: it closes theirs first.
func (b *Broker) Close(ctx context.Context) error {
	b.mu.Lock()
	b.closing = true
	b.mu.Unlock()
	b.ahead.Stop()
	b.hangUp()
	for _, c := range b.connected(func(*conn) bool { return true }) {
		c.end(errGoing)
	}
	gone := make(chan struct{})
	go func() {
		b.serving.Wait()
		close(gone)
	}()
	defer b.upkeep.Wait()
	defer b.stop()
	defer b.rest()
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
		for _, st := range w.clients {
			st.mu.Lock()
			c := st.conn
			st.mu.Unlock()
			if c != nil && is(c) {
				all = append(all, c)
			}
		}
		w.mu.Unlock()
	}
	return all
}

// rest stops the clocks of those who are away: they go on at the next start.
func (b *Broker) rest() {
	b.wills.rest()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, w := range b.worlds {
		w.mu.Lock()
		for _, st := range w.clients {
			st.mu.Lock()
			if l := st.lasting; l != nil {
				l.stop()
			}
			st.mu.Unlock()
		}
		w.mu.Unlock()
	}
}

// settle has written what became of a message, with st where it is written too, whose mu
// is held then, and what is retained for its topic. It returns with what, nil for nothing.
func (b *Broker) settle(o *bus.Result, st *sessionState, r *retainKey) *commit {
	k, _ := o.Stored.(*kept)
	a := adding{message: k, retained: r}
	if st != nil && st.lasting != nil {
		a.client = st
	}
	if a.message == nil && a.client == nil && a.retained == nil {
		return nil
	}
	at := b.journal.add(a)
	if k != nil {
		b.journal.release(k) // who published it had it too
		o.Stored = nil
	}
	return at
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
	attrs := []slog.Attr{slog.String("code", string(code)), slog.String("client", c.session.id), slog.String("remote", c.remote)}
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
	b.options.Log.LogAttrs(b.ctx, level, what, append(attrs, slog.Any("err", err))...)
	if b.deps.Recorder != nil && code != "" {
		if object == "" {
			object = c.session.id
		}
		e := who.Failed(audit.RequestRefuse, what+" "+clip(object), b.options.Now(), err, map[string]string{"remote": c.remote, "rule": rule})
		e.Code = code // that of a protocol error too
		b.deps.Recorder.Refused(e)
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
