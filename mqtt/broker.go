package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/command"
	"github.com/watchword-iot/watchword/internal/clockjump"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/internal/rates"
	"github.com/watchword-iot/watchword/session"
	"github.com/watchword-iot/watchword/twin"
)

// Authenticator checks papers: access tokens, client assertions and proofs of keys. It
// is an [authn.Service].
type Authenticator interface {
	VerifyBearer(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (session.Credentials, error)
	VerifyPoP(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (session.Credentials, error)
	// AuthenticateAssertion checks a client assertion and issues an access token for the connection. may is asked before the
	// assertion is spent; its error is returned as it is.
	AuthenticateAssertion(ctx context.Context, t watchword.TenantID, raw string, may func(session.Credentials) error, trace string, now time.Time) (session.Credentials, error)
	VerifyPossession(ctx context.Context, p session.Credentials, message, sig []byte) error
}

// Recorder takes the entries of refused acts, and never blocks.
type Recorder interface{ Refused(e audit.Entry) }

// Dependencies is what the broker is built from. Office, Guard and Bus are required.
type Dependencies struct {
	Auth     Authenticator
	Guard    *session.Guard
	Bus      *bus.Bus
	Commands *command.Service // nil: no commands are delivered
	Twins    *twin.Service    // nil: no state is stored and no configuration is delivered
	Recorder Recorder         // nil: refusals are not recorded
	Store    Store            // nil: nothing is persistent, and no session outlives its connection
	// PublishRates is the rate of a subject's publishes, shared with other transports; nil: the broker
	// counts by itself, with Options.PublishRate.
	PublishRates *rates.Shared[quota.Key]
	// ControlRates is the rate of a subject's other requests, shared with other transports; nil: the broker
	// counts by itself, with Options.ControlRate.
	ControlRates *rates.Shared[quota.Key]
}

// Broker is the MQTT server of all tenants. It is safe for concurrent use. locks.go states the order of
// its locks.
type Broker struct {
	deps            Dependencies
	options         Options
	system          bool // o.Now is the system's clock
	stats           stats
	connectRates    *rates.Map[netip.Prefix] // of CONNECTs
	unknownHosts    *rates.Map[struct{}]     // of CONNECTs to hosts that are of no tenant, all together
	floodRates      *rates.Map[netip.Prefix] // of connections, before anything is spent on them
	lingerQuota     *quota.Ledger[netip.Prefix]
	publishRates    *rates.Shared[quota.Key] // by subject
	controlRates    *rates.Shared[quota.Key] // likewise
	ctx             context.Context          // of all work that the doors begin; ends with stop
	stop            context.CancelFunc
	mu              lockrank.Mutex[brokerLock]
	tenants         map[watchword.TenantID]*tenant
	closing         bool
	clockWatch      *clockjump.Watch
	unauthenticated map[*conn]struct{} // connections without a client
	draining        atomic.Bool        // nothing new is taken in
	serving         sync.WaitGroup
	halfClosedOnce  sync.Once
	background      sync.WaitGroup
	clientSequence  atomic.Int64 // of clients
	persistentCount atomic.Int64 // clients whose state outlives their connection
	journal         *committer
	wills           willStore
	retainedPurge   retainedPurge

	queueQuota      *quota.Ledger[quota.Key] // of what waits for connected clients, in bytes
	offlineQuota    *quota.Ledger[quota.Key] // of what waits for lasting sessions, in bytes
	connectionQuota *quota.Ledger[quota.Key] // of topic aliases and identifiers, in bytes
}

// New returns a broker that serves no connection yet; see [Broker.Restore] and [Broker.Serve].
func New(d Dependencies, options Options) *Broker {
	o := options.withDefaults()
	b := &Broker{deps: d, options: o, system: options.Now == nil, tenants: map[watchword.TenantID]*tenant{}, unauthenticated: map[*conn]struct{}{}, connectRates: rates.New[netip.Prefix](o.ConnectRate, "too many connections from this address"), unknownHosts: rates.New[struct{}](o.ConnectRate, "too many connections for hosts that are of no tenant")}
	b.floodRates = rates.New[netip.Prefix](floodFactor*o.ConnectRate, "")
	b.lingerQuota = newLingerQuota()
	if b.publishRates = d.PublishRates; b.publishRates == nil {
		b.publishRates = rates.NewShared[quota.Key](o.PublishRate, "")
	}
	if b.controlRates = d.ControlRates; b.controlRates == nil {
		b.controlRates = rates.NewShared[quota.Key](o.ControlRate, "")
	}
	b.ctx, b.stop = context.WithCancel(context.Background())
	b.retainedPurge.wake = make(chan struct{}, 1)
	b.queueQuota, b.offlineQuota, b.connectionQuota = newQueueQuota(&b.options), newOfflineQuota(&b.options), newConnectionQuota(&b.options)
	b.journal = newJournal(&b.options, d.Store)
	b.wills.init(b)
	if d.Store != nil {
		b.background.Go(func() { b.journal.run(b.ctx) })
	}
	b.background.Go(b.sweepRetained)
	b.background.Go(b.purgeRetained)
	b.clockWatch = clockjump.Start(o.Now, b.clockAdvanced)
	return b
}

// times is the time by the broker's clock, and the same by the clock of timers, which nobody
// sets. Where both are the system's it is read once.
func (b *Broker) times() (now, monotonic time.Time) {
	monotonic = time.Now()
	if b.system {
		return monotonic.Truncate(time.Millisecond), monotonic
	}
	return b.options.Now(), monotonic
}

// clockAdvanced starts the clocks of the clients that are away anew: those count
// monotonic time, and their wills and ends are due at a time of day.
func (b *Broker) clockAdvanced() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return
	}
	now := b.options.Now()
	b.wills.clockAdvanced(now)
	for _, tn := range b.tenants {
		tn.mu.Lock()
		for _, st := range tn.clients {
			st.mu.Lock()
			if !st.removed && st.persistent != nil && st.offline() {
				st.startTimers(now)
			}
			st.mu.Unlock()
		}
		tn.mu.Unlock()
	}
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
	if b.floodRates.Take(addressPrefix(remote), b.options.Now()) != nil {
		b.stats.floodClosed.Add(1)
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
	b.unauthenticated[c] = struct{}{}
	b.mu.Unlock()
	c.session = &sessionState{broker: b, number: b.clientSequence.Add(1), conn: c}
	c.out.moved.L = &c.session.mu
	c.out.receiveMaximum = maxInflight
	if _, secret := nc.(*tls.Conn); !secret {
		if c.rawConn = rawConnOf(nc); c.rawConn != nil {
			b.halfClosedOnce.Do(func() { b.background.Go(b.wakeHalfClosed) })
		}
	}
	_ = nc.SetDeadline(time.Now().Add(connectTimeout)) // the error is that of a closed connection, which the first read reports
	b.stats.connections.Add(1)
	go func() {
		defer b.serving.Done()
		defer b.stats.connections.Add(-1)
		c.serve(fair.WithNetwork(b.ctx, addressPrefix(c.remote)))
	}()
}

// authenticated is told of a connection that has a client, or is over.
func (b *Broker) authenticated(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.unauthenticated, c)
}

// Close tells every client that the server goes, and waits until all have gone
// or ctx ends. Sessions are the guard's to close: it closes theirs first.
func (b *Broker) Close(ctx context.Context) error {
	b.mu.Lock()
	b.closing = true
	b.mu.Unlock()
	b.clockWatch.Stop()
	b.closeUnauthenticated()
	for _, c := range b.connections(func(*conn) bool { return true }) {
		c.close(errShuttingDown)
	}
	gone := make(chan struct{})
	go func() {
		b.serving.Wait()
		close(gone)
	}()
	defer b.background.Wait()
	defer b.stop()
	defer b.stopTimers()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// connections returns those clients of all worlds of whom is says so.
func (b *Broker) connections(is func(*conn) bool) (all []*conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, tn := range b.tenants {
		tn.mu.Lock()
		for _, st := range tn.clients {
			st.mu.Lock()
			c := st.conn
			st.mu.Unlock()
			if c != nil && is(c) {
				all = append(all, c)
			}
		}
		tn.mu.Unlock()
	}
	return all
}

// stopTimers stops the clocks of those who are away: they go on at the next start.
func (b *Broker) stopTimers() {
	b.wills.stopTimers()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, tn := range b.tenants {
		tn.mu.Lock()
		for _, st := range tn.clients {
			st.mu.Lock()
			if per := st.persistent; per != nil {
				per.stopTimers()
			}
			st.mu.Unlock()
		}
		tn.mu.Unlock()
	}
}

// commitOutcome has written what became of a message, with st where it is written too, whose mu
// is held then, and what is retained for its topic. It returns with what, nil for nothing.
func (b *Broker) commitOutcome(o *bus.Result, st *sessionState, r *retainedKey) *commit {
	k, _ := o.Stored.(*storedMessage)
	a := change{message: k, retained: r}
	if st != nil && st.persistent != nil {
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
