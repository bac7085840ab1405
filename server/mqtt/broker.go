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
	"github.com/watchword-iot/watchword/internal/clockjump"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/lockrank"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/internal/ratelimit"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/server/twin"
)

// Authenticator verifies credentials: access tokens, client assertions and proofs of keys.
// [authn.Service] implements it.
type Authenticator interface {
	VerifyBearer(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (session.Credentials, error)
	VerifyPoP(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (session.Credentials, error)
	// AuthenticateAssertion verifies a client assertion and issues an access token for the
	// connection. It calls may before it consumes the assertion, and returns the error of may
	// unchanged.
	AuthenticateAssertion(ctx context.Context, t watchword.TenantID, raw string, may func(session.Credentials) error, trace string, now time.Time) (session.Credentials, error)
	VerifyPossession(ctx context.Context, p session.Credentials, message, sig []byte, now time.Time) error
}

// Recorder writes audit entries of refused requests; it never blocks.
type Recorder interface{ Refused(e audit.Entry) }

// Dependencies is what the broker is built from. Auth, Guard and Bus are required.
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
	PublishRates *ratelimit.Shared[quota.Key]
	// ControlRates is the rate of a subject's other requests, shared with other transports; nil: the broker
	// counts by itself, with Options.ControlRate.
	ControlRates *ratelimit.Shared[quota.Key]
}

// Broker is the MQTT server of all tenants. It is safe for concurrent use. locks.go states the order of
// its locks.
type Broker struct {
	deps            Dependencies
	options         Options
	system          bool // Options.Now is the system's clock
	stats           stats
	connectRates    *ratelimit.Map[netip.Prefix] // rate of CONNECTs by address
	unknownHosts    *ratelimit.Map[struct{}]     // of CONNECTs to hosts that are of no tenant, all together
	floodRates      *ratelimit.Map[netip.Prefix] // rate of connections by address, checked before anything else
	lingerQuota     *quota.Ledger[netip.Prefix]
	publishRates    *ratelimit.Shared[quota.Key] // by subject
	controlRates    *ratelimit.Shared[quota.Key] // the same, by subject
	ctx             context.Context              // context of all work of connections; cancelled by stop
	stop            context.CancelFunc
	mu              lockrank.Mutex[brokerLock]
	tenants         map[watchword.TenantID]*tenant
	closing         bool
	clockWatch      *clockjump.Watch
	unauthenticated map[*conn]struct{} // connections before CONNECT is accepted
	draining        atomic.Bool        // no new connections
	serving         sync.WaitGroup
	halfClosedOnce  sync.Once
	background      sync.WaitGroup
	clientSequence  atomic.Int64 // numbers of clients
	persistentCount atomic.Int64 // number of persistent sessions
	committer       *committer
	wills           willStore
	retainedPurge   retainedPurge

	queueQuota      *quota.Ledger[quota.Key] // messages queued for connected clients, in bytes
	offlineQuota    *quota.Ledger[quota.Key] // messages stored for persistent sessions, in bytes
	connectionQuota *quota.Ledger[quota.Key] // topic aliases and packet identifiers, in bytes
}

// New returns a broker that serves no connection yet; see [Broker.Restore] and [Broker.Serve].
func New(d Dependencies, options Options) *Broker {
	o := options.withDefaults()
	b := &Broker{deps: d, options: o, system: options.Now == nil, tenants: map[watchword.TenantID]*tenant{}, unauthenticated: map[*conn]struct{}{}, connectRates: ratelimit.New[netip.Prefix](o.ConnectRate, "too many connections from this address"), unknownHosts: ratelimit.New[struct{}](o.ConnectRate, "too many connections for host names that no tenant has")}
	b.floodRates = ratelimit.New[netip.Prefix](floodFactor*o.ConnectRate, "")
	b.lingerQuota = newLingerQuota()
	if b.publishRates = d.PublishRates; b.publishRates == nil {
		b.publishRates = ratelimit.NewShared[quota.Key](o.PublishRate, "")
	}
	if b.controlRates = d.ControlRates; b.controlRates == nil {
		b.controlRates = ratelimit.NewShared[quota.Key](o.ControlRate, "")
	}
	b.ctx, b.stop = context.WithCancel(context.Background())
	b.retainedPurge.wake = make(chan struct{}, 1)
	b.queueQuota, b.offlineQuota, b.connectionQuota = newQueueQuota(&b.options), newOfflineQuota(&b.options), newConnectionQuota(&b.options)
	b.committer = newCommitter(&b.options, d.Store)
	b.wills.init(b)
	if d.Store != nil {
		b.background.Go(func() { b.committer.run(b.ctx) })
	}
	b.background.Go(b.sweepRetained)
	b.background.Go(b.purgeRetained)
	b.clockWatch = clockjump.Start(o.Now, b.clockAdvanced, nil) // a timer that fires too early checks the time again
	return b
}

// times returns the time by the broker's clock, and by the monotonic clock of timers. It reads the
// clock once if both are the system's.
func (b *Broker) times() (now, monotonic time.Time) {
	monotonic = time.Now()
	if b.system {
		return monotonic.Truncate(time.Millisecond), monotonic
	}
	return b.options.Now(), monotonic
}

// clockAdvanced restarts the timers of offline sessions and wills: timers use monotonic time, and
// these are due at a time of day.
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

// Serve accepts connections from l until l is closed. With TLS, the handshake counts toward the
// time that a client has for CONNECT.
func (b *Broker) Serve(l net.Listener) error {
	for pause := time.Duration(0); ; {
		nc, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil: // usually out of file descriptors, which is temporary
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

// floodFactor times the CONNECT rate of one address is the rate above which its connections are
// closed before the TLS handshake; below it each refused CONNECT is answered with 0x9F.
const floodFactor = 1.25

// Handle serves one connection in the background and takes ownership of it.
func (b *Broker) Handle(nc net.Conn) {
	remote := nc.RemoteAddr().String()
	if b.floodRates.Take(addressPrefix(remote), b.options.Now()) != nil {
		b.stats.floodClosed.Add(1)
		_ = nc.Close() // nothing was read or written on it
		return
	}
	c := &conn{broker: b, nc: nc, remote: remote, trace: watchword.NewID("", b.options.Now())}
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		_ = nc.Close() // nothing was read or written on it
		return
	}
	b.serving.Add(1)
	b.unauthenticated[c] = struct{}{}
	b.mu.Unlock()
	c.session = &sessionState{broker: b, number: b.clientSequence.Add(1), conn: c}
	c.out.changed.L = &c.session.mu
	c.out.receiveMaximum = maxInflight
	if _, secret := nc.(*tls.Conn); !secret {
		if c.rawConn = rawConnOf(nc); c.rawConn != nil {
			b.halfClosedOnce.Do(func() { b.background.Go(b.wakeHalfClosed) })
		}
	}
	_ = nc.SetDeadline(time.Now().Add(connectTimeout)) // fails on a closed connection only, which the first read reports
	b.stats.connections.Add(1)
	go func() {
		defer b.serving.Done()
		defer b.stats.connections.Add(-1)
		c.serve(fair.WithNetwork(b.ctx, addressPrefix(c.remote)))
	}()
}

// markAuthenticated is called when the connection's CONNECT was accepted, or the connection has ended.
func (b *Broker) markAuthenticated(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.unauthenticated, c)
}

// Close disconnects all clients and waits until all connections have ended or ctx ends. The guard
// closes its sessions before.
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

// connections returns the connections of all tenants for which is returns true.
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

// stopTimers stops the timers of offline sessions: they continue at the next start.
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

// commitOutcome adds the stored copies of a message, the session st if it changed (its mu is held),
// and the retained message to the next commit, and returns the commit; nil if nothing is to be
// written.
func (b *Broker) commitOutcome(o *bus.Result, st *sessionState, r *retainedKey) *commit {
	k := storedIn(o)
	a := change{message: k, retained: r}
	if st != nil && st.persistent != nil {
		a.client = st
	}
	if a.message == nil && a.client == nil && a.retained == nil {
		return nil
	}
	at := b.committer.add(a)
	if k != nil {
		b.committer.release(k) // its publisher had a reference too
		o.Stored = nil
	}
	return at
}
