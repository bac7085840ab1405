package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/clockjump"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/logbudget"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/acme"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/authn"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/server/httpapi"
	"github.com/watchword-iot/watchword/server/internal/clock"
	"github.com/watchword-iot/watchword/server/internal/localsocket"
	"github.com/watchword-iot/watchword/server/internal/ratelimit"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/mqtt"
	"github.com/watchword-iot/watchword/server/registry"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/server/sqlite"
	"github.com/watchword-iot/watchword/server/twin"
	"github.com/watchword-iot/watchword/token"
)

// Options holds what a server needs beside its configuration. The zero value is ready to use.
type Options struct {
	Log     *slog.Logger     // nil means slog.Default; lines that clients cause are limited, see internal/logbudget
	Version string           // version of the program
	Now     func() time.Time // wall clock; nil means time.Now
	// Boot reads the clock that counts from boot, and Synchronized whether a time service disciplines the wall clock. Where Now is
	// nil they are the machine's. Where Now is given without Boot, the wall clock is its own measure: it may step.
	Boot         func() time.Duration
	Synchronized func() bool
	Built        time.Time // build date of the program; zero means that of the commit it was built from
	// WithoutAuditLog writes no audit log, to measure its cost. No configuration sets it.
	WithoutAuditLog bool

	// Tenants are the tenants beside the default one, with the host names that are theirs alone, in lower case. No configuration
	// sets it: there is no API that makes a tenant.
	Tenants map[watchword.TenantID][]string

	budget *logbudget.Handler // handler of Log
	clock  func() time.Time   // Now as given
}

func (o Options) filled() Options {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.clock = o.Now; o.Now == nil {
		o.Now = time.Now
	}
	h, bounded := o.Log.Handler().(*logbudget.Handler)
	if !bounded {
		h = logbudget.New(o.Log.Handler())
		o.Log = slog.New(h)
	}
	o.budget = h
	if o.Built.IsZero() {
		o.Built = buildDate()
	}
	now := o.Now // times are stored and shown in milliseconds
	o.Now = func() time.Time { return now().Truncate(time.Millisecond) }
	return o
}

// Info holds the addresses of a running server.
type Info struct {
	URL   string // public URL, no trailing slash
	HTTPS string // listening address
	MQTTS string // listening address of MQTT over TLS; empty: none
	MQTT  string // listening address of MQTT without TLS; empty: none
	// Metrics is the listening address of the metrics; empty: none.
	Metrics     string
	CAFile      string // CA certificate of the server; empty with server.tls_cert
	ACMEHTTP    string // listening address for validations by HTTP-01; empty: none
	Issuer      string
	Data        string
	Initialized bool // this start initialized the data folder
}

// Server is one assembled server. Make one with [New] and call Run once.
type Server struct {
	cfg         Config
	o           Options
	info        Info
	lock        *os.File
	store       *sqlite.Store
	clock       *clock.Clock
	markMu      sync.Mutex // held while the mark of the clock is written
	markWritten clock.Mark
	maintainNow chan struct{} // one token: maintenance is due at once
	keys        *keyring.Ring
	guard       *session.Guard
	live        *session.Live
	registry    *registry.Registry
	lastSeen    *registry.LastSeen
	enrollment  *enroll.Service
	certFiles   *certFiles    // nil without server.tls_cert
	acme        *acme.Manager // nil without server.acme_domain
	endings     endings
	measured    *measured
	certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error) // the one that clients get
	commands    *command.Service
	recorder    *audit.Recorder
	checkpoints *audit.CheckpointSigner
	background  []func(context.Context) error // further parts that tests run until their context ends

	witnesses      []*audit.Witness
	rotator        *keyring.Rotator
	https          net.Listener
	mqtts          net.Listener // nil: not configured; mqtt and metrics likewise
	mqtt           net.Listener
	metrics        net.Listener
	acmeHTTP       net.Listener // nil: not configured
	broker         *mqtt.Broker
	operationsHTTP *http.Server
	acmeServer     *http.Server // answers validations on acmeHTTP
	control        net.Listener // the socket in the data folder; nil where there can be none
	controlHTTP    *http.Server
	backups        backups
	journal        journalState
	running        bool // the data folder is marked as open
	walMissing     bool // the write-ahead log was missing at the start

	addressWarned map[watchword.Issuers]time.Time // when maintenance last warned of an issuer's end
	addressEnded  map[watchword.Issuers]bool      // it said that the issuer has ended

	hosts      map[string]watchword.TenantID // [Options.Tenants] by host
	handshakes *handshakes
	http       *http.Server
	ready      chan struct{}
}

// New opens the data folder, initializes it if it is empty, and listens, but does not serve yet.
// Codes: config_invalid, folder_in_use, folder_newer, key_exposed, file_untrusted, key_unwrap, unavailable; clock_untrusted where the folder is
// empty and the clock says a time before the program was built.
func New(ctx context.Context, cfg Config, o Options) (_ *Server, err error) {
	s := forFolder(cfg, o)
	s.hosts, s.ready, s.maintainNow = o.tenantHosts(), make(chan struct{}), make(chan struct{}, 1)
	s.addressWarned, s.addressEnded = map[watchword.Issuers]time.Time{}, map[watchword.Issuers]bool{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err = s.o.checkTenants(cfg.Server.names()); err != nil {
		return nil, err
	}
	if s.lock, err = openData(cfg.Data); err != nil {
		return nil, err
	}
	if err = s.listen(); err != nil {
		return nil, err
	}
	if err = s.openStore(ctx); err != nil {
		return nil, err
	}
	if err = s.initialize(ctx); err != nil {
		return nil, err
	}
	if err = s.reportMissing(ctx); err != nil {
		return nil, err
	}
	if s.control, err = localsocket.Listen(cfg.Data, s.o.Log); err != nil {
		s.control = nil // a file system without sockets: the commands that need it say so
		s.o.Log.WarnContext(ctx, "no local socket: commands on this machine do not reach the running server", slog.Any("err", err))
	}
	return s, s.assemble(ctx)
}

func (s *Server) initialize(ctx context.Context) (err error) {
	if s.info.Initialized, err = initializeIfNew(ctx, s.cfg, s.store, s.clock, s.o.Now()); err != nil {
		return err
	}
	if err = s.openRing(ctx); err != nil {
		return err
	}
	s.info.Issuer = s.keys.Issuer()
	if s.info.URL, err = publicURL(s.cfg, s.keys.Issuers(), s.o.Log); err != nil {
		return err
	}
	if s.info.URL != s.keys.Issuer() {
		s.o.Log.WarnContext(ctx, "the address changed since first start; devices look for the old one", slog.String("issuer", s.keys.Issuer()), slog.String("url", s.info.URL))
	}
	return nil
}

func (s *Server) openRing(ctx context.Context) error {
	kek, err := keyring.OpenKEK(kekPath(s.cfg), false)
	if err == nil {
		s.keys, err = keyring.Open(ctx, s.store, kek, s.clock)
	}
	return err
}

// assemble builds all parts, in the order of their imports.
func (s *Server) assemble(ctx context.Context) error {
	s.openBackupRecords(ctx)
	if err := s.checkBackupRecords(ctx); err != nil {
		return err
	}
	if err := s.startLogSigning(ctx); err != nil {
		return err
	}
	s.recorder = audit.NewRecorder(s.store)
	directory := registry.NewDirectory(s.store)
	for _, t := range s.o.tenants() {
		if _, err := directory.Policies(ctx, t); err != nil { // an unreadable policy must stop the start, not a later request
			return err
		}
	}
	s.lastSeen = registry.NewLastSeen(s.store)
	s.guard = session.NewGuard(directory, session.GuardOptions{
		Now: s.o.Now, Total: s.cfg.Limits.Connections, Revoked: s.keys.IssuerKeyRevoked, Opened: s.auditSessionOpened, Ended: s.auditSessionEnded,
	})
	directory.SizeBySessions(s.guard.Held)
	s.live = session.NewLive()
	reg := registry.New(s.store, directory, s.live, s.keys.Issuers)
	s.registry = reg
	semaphore := fair.NewSemaphore()
	s.enrollment = enroll.New(s.store, enroll.Options{
		PublicURL: s.info.URL, Issuers: s.keys.Issuers, TrustPin: func() string { return token.TrustPin(s.keys.Root()) }, TrustPins: s.trustPins,
		CheckGiven: reg.CheckGiven, CheckActOn: reg.CheckActOn, RunFor: s.guard.RunFor, Live: s.live, PairingLifetime: s.cfg.Pairing.Lifetime.Duration, PairingInterval: s.cfg.Pairing.Interval.Duration, Semaphore: semaphore,
	})
	credentials, err := authn.New(s.keys.Issuer(), s.keys, directory, s.store, s.live,
		authn.Options{Issuers: s.keys.Issuers, Lifetime: s.cfg.Token.Lifetime.Duration, Origins: s.origins(), Semaphore: semaphore, IssueRate: float64(s.cfg.Limits.IssueRate), Observe: s.measured.token})
	if err != nil {
		return err
	}
	s.commands = command.New(s.store, directory, s.keys, s.keys, command.Options{
		Issuers: s.keys.Issuers, Epoch: s.keys.Epoch(), TTL: s.cfg.Command.TTL.Duration, MaxArgs: s.cfg.Command.MaxBytes, Retain: s.cfg.Command.Retain.Duration, Log: s.checkpoints, Now: s.o.Now, Observe: s.measured.command,
		Bounds: command.Bounds{PerOrderer: int64(s.cfg.Limits.SubjectCommands), Total: int64(s.cfg.Limits.Commands)},
	})
	controls := ratelimit.NewShared[quota.Key](float64(s.cfg.Limits.ControlRate), "too many connections, state reports or receipts of this subject (limits.control_rate)")
	publishes := ratelimit.NewShared[quota.Key](float64(s.cfg.Limits.PublishRate), "too many events of this device (limits.publish_rate)")
	options := httpapi.Options{
		Tenant: s.tenantOf, Endings: s.endingOf,
		Version: s.o.Version, PublicURL: s.info.URL, JWKS: s.keys.JWKS, TrustBundle: func(t watchword.TenantID) (string, error) { return s.keys.TenantBundle(t, s.o.Now()) },
		Time: func(t watchword.TenantID, nonce string, now time.Time) (string, error) {
			return token.SignTime(s.keys.Signer(keyring.Time), s.keys.Issuers().Known(t, now), nonce, now)
		},
		TokenRate: float64(s.cfg.Limits.TokenRate), PublishRates: publishes, ControlRates: controls,
		BodyBytes: int64(s.cfg.Limits.BodyBytes), SubjectBodyBytes: int64(s.cfg.Limits.SubjectBodyBytes),
		MQTTS: func() string { return s.publicMQTTS(s.url()) }, CheckAddress: s.checkAddress, IssuerUse: s.store.IssuerUse,
		RequestRate: float64(s.cfg.Limits.RequestRate), Requests: s.cfg.Limits.Connections, PerAddress: s.cfg.Limits.PerAddress, Observe: s.measured.request, Now: s.o.Now, Log: s.o.Log,
	}
	tlsConfig, err := s.tls()
	if err != nil {
		return err
	}
	s.certificate = tlsConfig.GetCertificate
	tlsConfig = limitHandshakes(tlsConfig)
	if s.cfg.Server.TLSCert == "" && !s.cfg.Server.ProxyCertificate {
		options.CAPEM = s.keys.CAPEM
	}
	s.handshakes = newHandshakes(s.o.Log, s.o.Now)
	messages, twins := bus.New(bus.Options{
		SubscriptionBytes: int64(s.cfg.Limits.SubscriptionBytes), SubjectSubscriptionBytes: int64(s.cfg.Limits.SubjectSubscriptionBytes),
		RetainedMessages: s.cfg.Limits.RetainedMessages, RetainedBytes: s.cfg.Limits.RetainedBytes,
		SubjectRetainedMessages: s.cfg.Limits.SubjectRetainedMessages, SubjectRetainedBytes: s.cfg.Limits.SubjectRetainedBytes,
	}), twin.New(s.store, s.keys)
	s.broker = mqtt.New(mqtt.Dependencies{
		Auth: credentials, Guard: s.guard, Bus: messages, Commands: s.commands, Twins: twins, Recorder: s.recorder, Store: s.store, PublishRates: publishes, ControlRates: controls,
	}, mqtt.Options{
		Tenant: s.tenantOf, Issuers: s.tokenIssuers(),
		PacketBytes: s.cfg.Limits.PacketBytes, QueueMessages: s.cfg.Limits.QueueMessages, QueueBytes: s.cfg.Limits.QueueBytes,
		PersistentSessions: s.cfg.Limits.Sessions, SessionExpiry: s.cfg.Limits.SessionExpiry.Duration, OfflineBytes: int64(s.cfg.Limits.OfflineBytes), SubjectOfflineBytes: int64(s.cfg.Limits.SubjectOfflineBytes),
		QueuedBytes: int64(s.cfg.Limits.QueuedBytes), SubjectQueueBytes: int64(s.cfg.Limits.SubjectQueueBytes),
		ConnectionBytes: int64(s.cfg.Limits.ConnectionBytes), SubjectConnectionBytes: int64(s.cfg.Limits.SubjectConnectionBytes),
		WillBytes: int64(s.cfg.Limits.WillBytes), SubjectWillBytes: int64(s.cfg.Limits.SubjectWillBytes),
		KeepAlive:   s.cfg.Limits.KeepAlive.Duration,
		ControlRate: float64(s.cfg.Limits.ControlRate), ConnectRate: float64(s.cfg.Limits.TokenRate), HandshakeFailed: s.handshakes.mqtts, Now: s.o.Now, Log: s.o.Log,
		ControlCharacters: s.cfg.Server.MQTTControlCharacters,
	})
	if err := s.broker.Restore(ctx); err != nil {
		return err
	}
	// In this order: a receiver that others query precedes them, and the retained messages precede the sessions to which
	// they would be delivered.
	s.live.Register(s.keys, directory, credentials, s.broker, s.guard, messages, s.commands, &trust{s: s, url: s.url()})
	if err := s.startKeyRotation(ctx); err != nil {
		return err
	}
	api := httpapi.New(httpapi.Dependencies{
		Registry: reg, Enrollment: s.enrollment, Auth: credentials, Guard: s.guard, Commands: s.commands, Bus: messages, Recorder: s.recorder,
		Twins: twins, Entries: s.store, Audit: s.checkpoints, Keys: s.rotator, Broker: s.broker, SchemaSlots: semaphore, Options: options,
	})
	if s.mqtts != nil {
		s.mqtts = tls.NewListener(handshakeListener{s.mqtts, semaphore}, withMQTTALPN(tlsConfig))
	}
	if s.metrics != nil && !s.metricsOnLoopback() {
		c := tlsConfig.Clone()
		c.NextProtos = []string{"http/1.1"}
		s.metrics = tls.NewListener(handshakeListener{s.metrics, semaphore}, c)
	}
	s.https = handshakeListener{s.https, semaphore}
	s.http = newHTTPServer(s.behindProxies(s.routes(api), api))
	s.http.TLSConfig = tlsConfig
	s.http.ReadHeaderTimeout, s.http.ReadTimeout, s.http.IdleTimeout, s.http.MaxHeaderBytes = 10*time.Second, 60*time.Second, 2*time.Minute, 16<<10
	s.http.ConnContext = httpapi.ConnContext
	s.http.ErrorLog = s.handshakes.errorLog("https")
	s.operationsHTTP, s.controlHTTP, s.acmeServer = s.operationsServer(), s.controlServer(), newACMEServer(s.acme)
	if err := errors.Join(s.warnNotices(ctx), s.warnEndings(ctx, s.o.Now())); err != nil {
		return err
	}
	return s.writeServerFile(ctx)
}

func (s *Server) writeServerFile(ctx context.Context) error {
	config, err := s.cfg.Print() // secrets are masked
	if err != nil {
		return err
	}
	data := map[string]string{
		"version": s.o.Version, "https": s.info.HTTPS, "mqtts": s.info.MQTTS, "mqtt": s.info.MQTT, "pid": strconv.Itoa(os.Getpid()),
		"config": string(config),
	}
	if u := s.store.Upgrade(); u != nil { // at this start
		data["from_schema"], data["schema"], data["copy"] = strconv.FormatInt(u.From, 10), strconv.FormatInt(u.To, 10), u.Copy
		if b, ok := s.backupBefore(ctx, u.From); ok {
			data["backup"] = b.File
		}
	}
	e := audit.Actor{Tenant: watchword.DefaultTenant}.DoneEntry(audit.ServerStart, s.info.URL, s.o.Now(), data)
	if err := s.store.AddEntry(ctx, e); err != nil {
		return err
	}
	return s.writePlace(s.url())
}

// writePlace writes server.json with the public URL.
func (s *Server) writePlace(url string) error {
	return writeServerFile(s.cfg.Data, ServerFile{
		URL: url, HTTPS: s.info.HTTPS, MQTTS: s.info.MQTTS, MQTT: s.info.MQTT, Issuer: s.keys.Issuer(), CA: s.info.CAFile, PID: os.Getpid(), Operator: FirstOperator, Version: s.o.Version,
	})
}

// Info says where the server is to be found.
func (s *Server) Info() Info { return s.info }

// trustPins returns the pins of all roots that the trust bundle names.
func (s *Server) trustPins() (pins []string) {
	for _, root := range s.keys.Public(keyring.Root) {
		pins = append(pins, token.TrustPin(root))
	}
	return pins
}

// Ready returns a channel that is closed once the server answers.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// drainTime is how long requests in progress may take to finish.
const drainTime = 10 * time.Second

// Run serves until ctx ends, then shuts down: it accepts no new connections, asks clients to
// disconnect, finishes requests in progress, commits all writes and signs the log. It returns nil
// after a clean shutdown, and closes in any case what New opened.
func (s *Server) Run(ctx context.Context) error {
	defer s.close()
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(inner)
	// Goroutines that write audit entries run in g. The signer of the log runs outside g and ends
	// after it, so that its last checkpoint covers the last entries.
	logged, unlog := context.WithCancel(context.WithoutCancel(ctx))
	defer unlog()
	signed := make(chan error, 1)
	go func() { signed <- s.checkpoints.Run(logged) }()
	for _, part := range append([]func(context.Context) error{s.commands.Run, s.commands.RunRetention, s.lastSeen.Run, s.recorder.Run, s.o.budget.Run, s.maintain, s.watchClock, s.scheduleBackups, s.keepJournal}, s.background...) {
		g.Go(func() error { return part(gctx) })
	}
	g.Go(func() error {
		err := s.http.ServeTLS(s.https, "", "")
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return err
	})
	for _, l := range []net.Listener{s.mqtts, s.mqtt} {
		if l != nil {
			g.Go(func() error { return s.broker.Serve(l) })
		}
	}
	if s.metrics != nil {
		g.Go(func() error { return s.serveOperations(s.metrics) })
	}
	if s.acme != nil {
		g.Go(func() error { return s.acme.Run(gctx) })
	}
	if s.acmeHTTP != nil {
		g.Go(func() error { return s.serveACME(s.acmeHTTP) })
	}
	if s.control != nil {
		g.Go(func() error { return s.serveControl(s.control) })
	}
	close(s.ready)
	select {
	case <-ctx.Done():
	case <-gctx.Done(): // one part failed; the others end too
	}
	drain, cancel := context.WithTimeout(inner, drainTime)
	defer cancel()
	for _, l := range []net.Listener{s.mqtts, s.mqtt} {
		if l != nil {
			_ = l.Close() // closing a listener loses nothing
		}
	}
	pass, passed := context.WithTimeout(drain, drainTime/2)
	s.broker.Drain(pass)
	passed()
	s.guard.Close(watchword.Refuse(watchword.Unavailable, "the server is shutting down"))
	berr := s.broker.Close(drain)
	derr := errors.Join(berr, s.http.Shutdown(drain))
	if derr != nil {
		derr = errors.Join(derr, s.http.Close())
	}
	derr = errors.Join(derr, s.operationsHTTP.Close(), s.controlHTTP.Close(), s.acmeServer.Close())
	s.backups.wait()
	stop()
	err := g.Wait()
	unlog()
	return errors.Join(err, <-signed, derr) // bounded by audit.LastStep
}

// maintain deletes expired rows and rotates keys that are due.
func (s *Server) maintain(ctx context.Context) error {
	const every, batch = time.Minute, 500
	tick := time.NewTicker(every)
	defer tick.Stop()
	soon := func() { tick.Reset(time.Nanosecond) }
	jumps := clockjump.Start(s.o.Now, soon, soon) // rotations are due at a time of day, and tick uses monotonic time
	defer jumps.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.maintainNow:
		case <-ctx.Done():
			return nil
		}
		tick.Reset(every)
		var err error
		for n := batch; n >= batch && err == nil; {
			began := time.Now()
			if n, err = s.store.DeleteExpired(ctx, s.o.Now().Add(-token.Skew), batch); n >= batch {
				pauseAfter(ctx, time.Since(began))
			}
		}
		for n := 1; n > 0 && err == nil; {
			n, err = s.registry.RetireEndedKeys(ctx, s.o.Now())
		}
		turned := s.rotator.Step(ctx, s.o.Now())
		if watchword.CodeOf(turned) == watchword.ClockUntrusted {
			turned = nil // watchClock says so
		}
		err = errors.Join(err, turned, s.pruneLog(ctx), s.warnEndings(ctx, s.o.Now()), s.watchAddress(ctx, s.o.Now()))
		if err != nil && ctx.Err() == nil {
			s.o.Log.ErrorContext(ctx, "housekeeping", slog.Any("err", err))
		}
	}
}

// pauseAfter waits as long as a step of housekeeping took, at most 100 ms, so that other writes get at least half of the time.
func pauseAfter(ctx context.Context, step time.Duration) {
	select {
	case <-time.After(min(step, 100*time.Millisecond)):
	case <-ctx.Done():
	}
}

// close releases what New opened. It may be called twice.
func (s *Server) close() {
	for _, l := range []net.Listener{s.https, s.mqtts, s.mqtt, s.metrics, s.acmeHTTP, s.control} {
		if l != nil {
			_ = l.Close() // already closed after Run
		}
	}
	if s.store != nil {
		if err := s.store.Close(); err != nil {
			s.o.Log.Error("store not closed", slog.Any("err", err))
		} else {
			s.unmarkRunning()
		}
		s.store = nil
	}
	if s.lock != nil {
		_ = s.lock.Close() // the lock is released at the latest when the process ends
		s.lock = nil
	}
}
