// Command mqttload measures the MQTT engine beside mosquitto, both started by it,
// on loopback, with the same clients: the CPU time of the server for each message,
// and what connections cost. It prints Markdown.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/token"
)

// unbounded is more than any load needs, within the bounds of the configuration and of an int.
const unbounded = min(1<<40, math.MaxInt)

func main() {
	data := flag.String("serve", "", "be the server on this folder (the program starts itself so)")
	only := flag.String("only", "", "run what has this in its name alone")
	scale := flag.Float64("scale", 1, "how much of the full load")
	against := flag.String("against", "", "another build of this program, whose server is measured in mosquitto's place")
	attacker := flag.String("attack", "", "be the attacker that this file describes, for one turn (the program starts itself so)")
	flag.IntVar(&rounds, "rounds", rounds, "how often each is measured, in turn, where the median counts")
	flag.Parse()
	if *data != "" {
		if err := serve(*data); err != nil {
			fmt.Fprintln(os.Stderr, "mqttload:", err)
			os.Exit(1)
		}
		return
	}
	if *attacker != "" {
		if err := attackMain(context.Background(), *attacker); err != nil {
			fmt.Fprintln(os.Stderr, "mqttload: the attacker:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(context.Background(), *only, *against, *scale); err != nil {
		fmt.Fprintln(os.Stderr, "mqttload:", err)
		os.Exit(1)
	}
}

// serve is the product's server, in a separate process so that its CPU time can be measured.
func serve(data string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg := server.Defaults()
	cfg.Data, cfg.Server.HTTPS, cfg.Server.MQTTS, cfg.Server.MQTT = data, "localhost:0", "localhost:0", "127.0.0.1:0"
	cfg.Limits.TokenRate, cfg.Limits.PublishRate, cfg.Limits.Connections, cfg.Limits.PerAddress = 1<<20, 1<<20, 20_000, 20_000
	cfg.Limits.RequestRate, cfg.Limits.IssueRate = 1<<20, 1<<20
	cfg.Limits.SubjectRetainedMessages, cfg.Limits.SubjectRetainedBytes = 1<<20, 1<<28 // one operator sets all of them
	cfg.Limits.ControlRate, cfg.Limits.SubjectQueueBytes, cfg.Limits.QueuedBytes = 1<<20, unbounded, unbounded
	cfg.Limits.QueueMessages, cfg.Limits.QueueBytes, cfg.Limits.SubjectOfflineBytes = 1<<20, 1<<28, unbounded // mosquitto's queues have no bound here either
	cfg.Token.Lifetime.Duration, cfg.Metrics.Listen = time.Hour, ""
	log := slog.DiscardHandler
	if path := os.Getenv("LOAD_LOG"); path != "" {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		log = slog.NewTextHandler(f, nil)
	}
	s, err := server.New(ctx, cfg, server.Options{Log: slog.New(log), Version: "load"})
	if err != nil {
		return err
	}
	if path := os.Getenv("LOAD_CPUPROFILE"); path != "" { // of the server alone
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if path := os.Getenv(usageFile); path != "" {
		go writeUsage(ctx, path)
	}
	if err := os.Stdout.Close(); err != nil {
		return err
	}
	return s.Run(ctx)
}

// benchServer is one server under load.
type benchServer struct {
	name      string
	process   *exec.Cmd
	address   string           // plain
	watchword *watchwordServer // nil for mosquitto
}

// cpu returns the CPU time of the server, in the hundredths of a second that Linux reports (proc(5)).
func (p *benchServer) cpu() time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.process.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	var user, system int64
	_, _ = fmt.Sscan(f[11], &user)
	_, _ = fmt.Sscan(f[12], &system)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// rss is the server's memory, in kB.
func (p *benchServer) rss() int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.process.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	n := 0
	_, _ = fmt.Sscan(rest, &n)
	return n
}

func (p *benchServer) stop() error {
	return errors.Join(p.process.Process.Signal(syscall.SIGTERM), ignoreExit(p.process.Wait()))
}

func ignoreExit(err error) error {
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil
	}
	return err
}

// watchwordServer is our server, with what its clients need.
type watchwordServer struct {
	admin      *admin.Client
	dir        string
	serverFile server.ServerFile
	tls        *tls.Config
	operator   *jose.Signer
	devices    []simulated
}

// startWatchword starts our server, of this build or of another one.
func startWatchword(dir, program string) (*benchServer, error) {
	if program == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		program = self
	}
	p := &benchServer{name: "Watchword", process: exec.Command(program, "-serve", filepath.Join(dir, "data"))}
	p.process.Stderr = os.Stderr
	ready, err := p.process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.process.Start(); err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, ready); err != nil {
		return nil, err
	}
	if err := p.attach(dir); err != nil {
		return nil, err
	}
	_, err = p.watchword.admin.ApplyPolicy(context.Background(), "load", []byte(`for = { kind = "load" }
[[allow]]
publish   = ["up/${id}", "take/x"]
subscribe = ["fan/#", "down/${id}", "take/#"]
`), 0)
	if watchword.CodeOf(err) == watchword.PreconditionFailed {
		err = nil // it is there since the first start
	}
	return p, err
}

// attach reads what clients need of our server, which runs on the data folder in dir.
func (p *benchServer) attach(dir string) (err error) {
	srv := &watchwordServer{dir: dir}
	p.watchword = srv
	if srv.admin, err = admin.Local(filepath.Join(dir, "data")); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(dir, "data", "server.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &srv.serverFile); err != nil {
		return err
	}
	p.address = srv.serverFile.MQTT
	pem, err := os.ReadFile(srv.serverFile.CA)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	srv.tls = &tls.Config{RootCAs: pool, ServerName: "localhost"}
	raw, err := os.ReadFile(filepath.Join(dir, "data", "operator.jwk"))
	if err != nil {
		return err
	}
	k, err := jose.ParsePrivateJWK(raw, jose.ForSigning)
	if err != nil {
		return err
	}
	srv.operator, err = k.Signer()
	return err
}

// enroll adds devices until there are n, each with a token.
func (srv *watchwordServer) enroll(ctx context.Context, n int) error {
	first := len(srv.devices)
	if n <= first {
		return nil
	}
	srv.devices = append(srv.devices, make([]simulated, n-first)...)
	var g errgroup.Group
	g.SetLimit(16)
	for i := first; i < n; i++ {
		g.Go(func() error {
			id := watchword.SubjectID(fmt.Sprintf("dev-%d", i))
			made, err := srv.admin.CreateDevice(ctx, id, watchword.Labels{"kind": "load"}, 0)
			if err != nil {
				return err
			}
			d, err := device.OpenWith(filepath.Join(srv.dir, "devices", string(id)), device.Options{Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				return err
			}
			if err := d.Enroll(ctx, made.Enrollment.Link); err != nil {
				return err
			}
			srv.devices[i], err = simulate(ctx, d, filepath.Join(srv.dir, "devices", string(id)))
			return errors.Join(err, d.Close()) // its open files are wanted for connections
		})
	}
	return g.Wait()
}

// assertion is the operator's password.
func (srv *watchwordServer) assertion() (string, error) {
	return token.SignAssertion(srv.operator, srv.serverFile.Operator, srv.serverFile.Issuer, time.Now(), token.AssertionLifetime)
}

// device connects the i-th device, as its n-th connection.
func (p *benchServer) device(ctx context.Context, i, n int, secret bool, on func(id int) func(*message), edit ...func(*packet.Connect)) (*client, error) {
	id, password, address := fmt.Sprintf("dev-%d", i), "", p.address
	if p.watchword != nil {
		password = p.watchword.devices[i].token
	}
	if n > 0 {
		id = fmt.Sprintf("%s/%d", id, n)
	}
	var t *tls.Config
	if secret {
		t, address = p.watchword.tls, p.watchword.serverFile.MQTTS
	}
	var f func(*message)
	if on != nil {
		f = on(i)
	}
	return dial(ctx, address, t, id, password, f, edit...)
}

// operator connects the application's side.
func (p *benchServer) operator(ctx context.Context, suffix string, on func(*message)) (*client, error) {
	password := ""
	if p.watchword != nil {
		var err error
		if password, err = p.watchword.assertion(); err != nil {
			return nil, err
		}
	}
	return dial(ctx, p.address, nil, "operator/"+suffix, password, on)
}

func startMosquitto(dir string) (*benchServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(address)
	conf := filepath.Join(dir, "mosquitto.conf")
	text := "listener " + port + " 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 1000\nset_tcp_nodelay true\nlog_type error\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto"
	}
	p := &benchServer{name: "mosquitto", process: exec.Command(path, "-c", conf), address: address}
	p.process.Stderr = os.Stderr
	if err := p.process.Start(); err != nil {
		return nil, err
	}
	for range 1000 {
		c, err := net.Dial("tcp", address)
		if err == nil {
			return p, c.Close()
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, errors.New("mosquitto does not listen")
}

func run(ctx context.Context, only, against string, scale float64) (err error) {
	dir, err := os.MkdirTemp("", "watchword-mqttload-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	raiseFileLimit()
	fmt.Printf("%s, %s/%s, %d cores, %s\n\n", time.Now().UTC().Format("2006-01-02"), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version())
	l := &benchRun{dir: dir, scale: scale, against: against}
	defer func() { err = errors.Join(err, l.stop()) }() // also where a load failed
	for _, w := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"ingest", l.ingest},
		{"fanout", l.fanOut},
		{"roundtrip", l.roundTrips},
		{"connect", l.connects},
		{"commands", l.commands},
		{"revoke", l.revocation},
		{"absent", l.offlineQoS1},
		{"twice", l.qos2Ingest},
		{"retained", l.retained},
		{"storm", l.reconnectStorm},
		{"idle", l.idle},
		{"soak", l.soak},   // ten minutes: only where it is asked for
		{"worst", l.worst}, // two minutes; likewise, since it fails where a message is lost
	} {
		if strings.Contains(w.name, only) && (w.name != "soak" && w.name != "worst" || only != "") {
			if err := w.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
		}
	}
	return nil
}

func raiseFileLimit() {
	var r syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) == nil {
		r.Cur = r.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &r) // what is too few shows when it is
	}
}
