package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/bus"
	"github.com/watchword-iot/watchword/command"
	"github.com/watchword-iot/watchword/enroll"
	"github.com/watchword-iot/watchword/httpapi"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/logbudget"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/internal/rates"
	"github.com/watchword-iot/watchword/internal/wall"
	"github.com/watchword-iot/watchword/keyring"
	"github.com/watchword-iot/watchword/mqtt"
	"github.com/watchword-iot/watchword/office"
	"github.com/watchword-iot/watchword/registry"
	"github.com/watchword-iot/watchword/session"
	"github.com/watchword-iot/watchword/sqlite"
	"github.com/watchword-iot/watchword/token"
	"github.com/watchword-iot/watchword/twin"
)

// Options is what a server takes beside its configuration. The zero value is
// ready to use.
type Options struct {
	Log     *slog.Logger     // nil means slog.Default; what others can cause is bounded, see internal/logbudget
	Version string           // of the program
	Now     func() time.Time // nil means time.Now
	// Unlogged leaves the audit log out, to measure what it costs. No configuration sets it.
	Unlogged bool

	budget *logbudget.Handler // Log's
	clock  func() time.Time   // Now as it was given
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
	now := o.Now // as it is kept and shown: in milliseconds
	o.Now = func() time.Time { return now().Truncate(time.Millisecond) }
	return o
}

// brokerClock is Now for the broker, which reads the system's clock by itself: once for each packet.
func (o Options) brokerClock() func() time.Time {
	if o.clock == nil {
		return nil
	}
	return o.Now
}

// Info says where a server is to be found.
type Info struct {
	URL   string // public, no trailing slash
	HTTPS string // the address it listens on
	MQTTS string // likewise, MQTT over TLS; empty where there is none
	MQTT  string // likewise, plain
	// Metrics is where operations look; empty where nobody may.
	Metrics string
	CAFile  string // of the own authority; empty with a bought certificate
	Issuer  string
	Data    string
	First   bool // this start founded the house
}

// Server is one house, assembled. Make one with [New] and call Run once.
type Server struct {
	cfg      Config
	o        Options
	info     Info
	lock     *os.File
	store    *sqlite.Store
	ring     *keyring.Ring
	guard    *session.Guard
	desk     *command.Desk
	recorder *audit.Recorder
	log      *audit.Keeper
	beside   []func(context.Context) error // further parts that run until their context ends; a test's

	witnesses []*audit.Witness
	keeper    *keyring.Keeper
	https     net.Listener
	mqtts     net.Listener // nil where there is none, as the next
	mqtt      net.Listener
	metrics   net.Listener
	broker    *mqtt.Broker
	ops       *http.Server

	handshakes *handshakes
	http       *http.Server
	ready      chan struct{}
}

// New opens the data folder, founds the house if there is none, and listens, but
// does not serve yet. Codes: config_invalid, folder_in_use, key_exposed, file_untrusted,
// key_unwrap, unavailable.
func New(ctx context.Context, cfg Config, o Options) (_ *Server, err error) {
	s := &Server{cfg: cfg, o: o.filled(), ready: make(chan struct{})}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.lock, err = openData(cfg.Data); err != nil {
		return nil, err
	}
	if err = s.listen(); err != nil {
		return nil, err
	}
	if s.store, err = sqlite.Open(ctx, filepath.Join(cfg.Data, databaseFile), sqlite.Options{Unlogged: o.Unlogged}); err != nil {
		return nil, err
	}
	if err = s.found(ctx); err != nil {
		return nil, err
	}
	return s, s.assemble(ctx)
}

func (s *Server) found(ctx context.Context) (err error) {
	if s.info.First, err = foundIfNew(ctx, s.cfg, s.store, s.o.Now()); err != nil {
		return err
	}
	if err = s.openRing(ctx); err != nil {
		return err
	}
	s.info.Issuer = s.ring.Issuer()
	if s.cfg.Server.PublicURL != "" && s.cfg.PublicURL() != s.ring.Issuer() {
		return watchword.Refuse(watchword.ConfigInvalid, "server.public_url is %s, but this house was founded as %s: the issuer stands in every token and is fixed at first start", s.cfg.PublicURL(), s.ring.Issuer())
	}
	if s.info.URL != s.ring.Issuer() {
		s.o.Log.WarnContext(ctx, "the address changed since first start; devices look for the old one", slog.String("issuer", s.ring.Issuer()), slog.String("url", s.info.URL))
	}
	return nil
}

func (s *Server) openRing(ctx context.Context) error {
	kek, err := keyring.OpenKEK(kekPath(s.cfg), false)
	if err == nil {
		s.ring, err = keyring.Open(ctx, s.store, kek)
	}
	return err
}

// assemble builds the rooms from the bottom up and names every part.
func (s *Server) assemble(ctx context.Context) error {
	if err := s.keepLog(ctx); err != nil {
		return err
	}
	s.recorder = audit.NewRecorder(s.store)
	directory := registry.NewDirectory(s.store)
	if _, err := directory.Policies(ctx, watchword.DefaultTenant); err != nil { // what cannot be read stops the start, not a request
		return err
	}
	s.guard = session.NewGuard(directory, session.GuardOptions{
		Now: s.o.Now, Total: s.cfg.Limits.Connections, Revoked: s.ring.RevokedIssuer, Opened: s.sessionOpened, Ended: s.sessionEnded,
	})
	reg := registry.New(s.store, directory, s.guard, s.ring.Issuer())
	room := fair.NewRoom()
	gate := enroll.NewGate(s.store, enroll.Options{
		PublicURL: s.info.URL, Issuer: s.ring.Issuer(), Pin: func() string { return token.Pin(s.ring.Root()) },
		Fits: reg.Fits, Changed: reg.Changed, PairingLife: s.cfg.Pairing.Lifetime.Duration, PairingInterval: s.cfg.Pairing.Interval.Duration, Room: room,
	})
	papers, err := office.New(s.ring.Issuer(), s.ring, directory, s.store,
		office.Options{Lifetime: s.cfg.Token.Lifetime.Duration, Origins: s.origins(), Room: room, IssueRate: float64(s.cfg.Limits.IssueRate)})
	if err != nil {
		return err
	}
	s.desk = command.NewDesk(s.store, directory, s.ring, s.ring, command.DeskOptions{
		Issuer: s.ring.Issuer(), Epoch: s.ring.Epoch(), TTL: s.cfg.Command.TTL.Duration, MaxArgs: s.cfg.Command.MaxBytes, Log: s.log, Now: s.o.Now,
		Bounds: command.Bounds{PerOrderer: int64(s.cfg.Limits.SubjectCommands), Total: int64(s.cfg.Limits.Commands)},
	})
	controls := rates.NewShared[quota.Key](float64(s.cfg.Limits.ControlRate), "this subject connects, reports its state or hands in receipts too often (limits.control_rate)")
	publishes := rates.NewShared[quota.Key](float64(s.cfg.Limits.PublishRate), "too many events from this device")
	options := httpapi.Options{
		Version: s.o.Version, PublicURL: s.info.URL, JWKS: s.ring.JWKS, Bundle: s.ring.Bundle,
		Time: func(nonce string, now time.Time) (string, error) {
			return token.SignTime(s.ring.Signer(keyring.Time), s.ring.Issuer(), nonce, now)
		},
		TokenRate: float64(s.cfg.Limits.TokenRate), Publishes: publishes, Controls: controls,
		BodyBytes: int64(s.cfg.Limits.BodyBytes), SubjectBodyBytes: int64(s.cfg.Limits.SubjectBodyBytes),
		RequestRate: float64(s.cfg.Limits.RequestRate), Requests: s.cfg.Limits.Connections, PerAddress: s.cfg.Limits.PerAddress, Now: s.o.Now, Log: s.o.Log,
	}
	tlsConfig, err := s.tls()
	if err != nil {
		return err
	}
	tlsConfig = inTurn(tlsConfig)
	if s.cfg.Server.TLSCert == "" {
		options.CAPEM = s.ring.CAPEM
	}
	s.handshakes = newHandshakes(s.o.Log, s.o.Now)
	messages, twins := bus.New(bus.Options{
		SubscriptionBytes: int64(s.cfg.Limits.SubscriptionBytes), SubjectSubscriptionBytes: int64(s.cfg.Limits.SubjectSubscriptionBytes),
	}), twin.NewKeeper(s.store, s.ring)
	reg.WhenDeleted(messages.ForgetEvents)
	s.broker = mqtt.New(mqtt.Dependencies{
		Office: papers, Guard: s.guard, Bus: messages, Desk: s.desk, Twins: twins, Recorder: s.recorder, Store: s.store, Publishes: publishes, Controls: controls,
	}, mqtt.Options{
		PacketBytes: s.cfg.Limits.PacketBytes, QueueMessages: s.cfg.Limits.QueueMessages, QueueBytes: s.cfg.Limits.QueueBytes,
		Sessions: s.cfg.Limits.Sessions, SessionExpiry: s.cfg.Limits.SessionExpiry.Duration, KeptBytes: int64(s.cfg.Limits.KeptBytes), SubjectKeptBytes: int64(s.cfg.Limits.SubjectKeptBytes),
		RetainedMessages: s.cfg.Limits.RetainedMessages, RetainedBytes: s.cfg.Limits.RetainedBytes,
		QueuedBytes: int64(s.cfg.Limits.QueuedBytes), SubjectQueueBytes: int64(s.cfg.Limits.SubjectQueueBytes),
		ConnectionBytes: int64(s.cfg.Limits.ConnectionBytes), SubjectConnectionBytes: int64(s.cfg.Limits.SubjectConnectionBytes),
		WillBytes: int64(s.cfg.Limits.WillBytes), SubjectWillBytes: int64(s.cfg.Limits.SubjectWillBytes),
		SubjectRetainedMessages: s.cfg.Limits.SubjectRetainedMessages, SubjectRetainedBytes: s.cfg.Limits.SubjectRetainedBytes, KeepAlive: s.cfg.Limits.KeepAlive.Duration,
		ControlRate: float64(s.cfg.Limits.ControlRate), ConnectRate: float64(s.cfg.Limits.TokenRate), HandshakeFailed: s.handshakes.mqtts, Now: s.o.brokerClock(), Log: s.o.Log,
		ControlCharacters: s.cfg.Server.MQTTControlCharacters,
	})
	if err := s.broker.Load(ctx); err != nil {
		return err
	}
	if err := s.keepKeys(ctx); err != nil {
		return err
	}
	options.MQTTS = s.publicMQTTS()
	api := httpapi.New(httpapi.Parts{
		Registry: reg, Gate: gate, Office: papers, Guard: s.guard, Desk: s.desk, Bus: messages, Recorder: s.recorder,
		Twins: twins, Entries: s.store, Audit: s.log, Keys: s.keeper, Wire: s.broker, Room: room, Options: options,
	})
	if s.mqtts != nil {
		s.mqtts = tls.NewListener(turnListener{s.mqtts, room}, forMQTT(tlsConfig))
	}
	s.https = turnListener{s.https, room}
	s.http = newHTTPServer(s.paths(api))
	s.http.TLSConfig = tlsConfig
	s.http.ReadHeaderTimeout, s.http.ReadTimeout, s.http.IdleTimeout, s.http.MaxHeaderBytes = 10*time.Second, 60*time.Second, 2*time.Minute, 16<<10
	s.http.ConnContext = httpapi.ConnContext
	s.http.ErrorLog = s.handshakes.errorLog()
	s.ops = s.operations()
	return s.announce(ctx)
}

func (s *Server) announce(ctx context.Context) error {
	config, err := s.cfg.Print() // its secrets masked
	if err != nil {
		return err
	}
	e := audit.Actor{Tenant: watchword.DefaultTenant}.Did(audit.ServerStart, s.info.URL, s.o.Now(), map[string]string{
		"version": s.o.Version, "https": s.info.HTTPS, "mqtts": s.info.MQTTS, "mqtt": s.info.MQTT, "pid": strconv.Itoa(os.Getpid()),
		"config": string(config),
	})
	if err := s.store.AddEntry(ctx, e); err != nil {
		return err
	}
	return writePlace(s.cfg.Data, Place{
		URL: s.info.URL, HTTPS: s.info.HTTPS, MQTTS: s.info.MQTTS, MQTT: s.info.MQTT, Issuer: s.info.Issuer, CA: s.info.CAFile, PID: os.Getpid(), Operator: FirstOperator, Version: s.o.Version,
	})
}

// Info says where the server is to be found.
func (s *Server) Info() Info { return s.info }

// Ready is closed once the server answers.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// drainTime is how long requests under way may take to end.
const drainTime = 10 * time.Second

// Run serves until ctx ends, then drains: no new connections, live sessions told
// to go, requests under way finished, everything written and the log signed. It
// returns nil after a clean end, and closes what New opened in any case.
func (s *Server) Run(ctx context.Context) error {
	defer s.close()
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(inner)
	// What writes entries is in g, and the log's keeper is not: it ends once all of g has, so that its last checkpoint has
	// what was written last.
	logged, unlog := context.WithCancel(context.WithoutCancel(ctx))
	defer unlog()
	signed := make(chan error, 1)
	go func() { signed <- s.log.Run(logged) }()
	for _, part := range append([]func(context.Context) error{s.desk.Run, s.recorder.Run, s.o.budget.Run, s.keepHouse}, s.beside...) {
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
	close(s.ready)
	select {
	case <-ctx.Done():
	case <-gctx.Done(): // a part failed: the others end too
	}
	drain, cancel := context.WithTimeout(inner, drainTime)
	defer cancel()
	for _, l := range []net.Listener{s.mqtts, s.mqtt} {
		if l != nil {
			_ = l.Close() // nothing is lost with a listener
		}
	}
	pass, passed := context.WithTimeout(drain, drainTime/2)
	s.broker.Drain(pass)
	passed()
	s.guard.Close(watchword.Refuse(watchword.Unavailable, "the server is going down"))
	berr := s.broker.Close(drain)
	derr := errors.Join(berr, s.http.Shutdown(drain))
	if derr != nil {
		derr = errors.Join(derr, s.http.Close())
	}
	derr = errors.Join(derr, s.ops.Close())
	stop()
	err := g.Wait()
	unlog()
	return errors.Join(err, <-signed, derr) // bounded by audit.LastStep
}

// keepHouse forgets what is over, and turns the keys whose time has come.
func (s *Server) keepHouse(ctx context.Context) error {
	const every, batch = time.Minute, 5000
	tick := time.NewTicker(every)
	defer tick.Stop()
	ahead := wall.Start(s.o.Now, func() { tick.Reset(time.Nanosecond) }) // keys turn at a time of day, and tick counts monotonic time
	defer ahead.Stop()
	for {
		var err error
		select {
		case <-tick.C:
			tick.Reset(every)
			for n := batch; n >= batch && err == nil; {
				n, err = s.store.Prune(ctx, s.o.Now().Add(-token.Skew), batch)
			}
			err = errors.Join(err, s.keeper.Step(ctx, s.o.Now()), s.pruneLog(ctx))
		case <-ctx.Done():
			return nil
		}
		if err != nil && ctx.Err() == nil {
			s.o.Log.ErrorContext(ctx, "housekeeping", slog.Any("err", err))
		}
	}
}

// close gives up what New took. It is safe to call twice.
func (s *Server) close() {
	for _, l := range []net.Listener{s.https, s.mqtts, s.mqtt, s.metrics} {
		if l != nil {
			_ = l.Close() // closed already after a served Run
		}
	}
	if s.store != nil {
		if err := s.store.Close(); err != nil {
			s.o.Log.Error("store not closed", slog.Any("err", err))
		}
		s.store = nil
	}
	if s.lock != nil {
		_ = s.lock.Close() // the lock ends with the process at the latest
		s.lock = nil
	}
}
