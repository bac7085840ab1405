// Command load measures a whole server on loopback: the token endpoint with everything durable,
// beside the cryptography that it cannot avoid, and commands from the API to the verified receipt.
// It prints Markdown.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

func main() {
	tokens := flag.Int("tokens", 8000, "token requests")
	clients := flag.Int("clients", 64, "token requests at once")
	devices := flag.Int("devices", 50, "devices that obey")
	rate := flag.Int("rate", 300, "commands a second")
	seconds := flag.Int("seconds", 10, "of commands")
	stored := flag.Int("store", 100_000, "devices in the store, beside a run with few")
	against := flag.String("against", "", "another build of this program, whose server is measured beside this one's")
	rounds := flag.Int("rounds", 5, "with -against: how often each is measured")
	turns := flag.Int("log", 0, "only what the log costs: so many turns with and without")
	unlogged := flag.Bool("unlogged", false, "with -serve: without the log")
	data := flag.String("serve", "", "be the server on this folder (the program starts itself so)")
	flag.Parse()
	if *data != "" {
		if err := serve(*data, *unlogged); err != nil {
			fmt.Fprintln(os.Stderr, "load:", err)
			os.Exit(1)
		}
		return
	}
	if *against != "" {
		if err := compare(context.Background(), *against, *rounds, *tokens, *clients, *devices, *rate, *seconds); err != nil {
			fmt.Fprintln(os.Stderr, "load:", err)
			os.Exit(1)
		}
		return
	}
	if *turns > 0 {
		if err := logTurns(context.Background(), *turns, *tokens, *clients, *devices, *rate, *seconds); err != nil {
			fmt.Fprintln(os.Stderr, "load:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(context.Background(), *tokens, *clients, *devices, *rate, *seconds, *stored); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

type bench struct {
	dir    string
	admin  *admin.Client
	server *exec.Cmd

	program         string // of the server; "" for this one
	unlogged, quiet bool

	perCore, bound float64 // tokens in a second of the server's CPU, and what the cryptography alone would allow
	perCommand     time.Duration
}

// serve runs the server in a process of its own, so that its CPU time can be measured. It closes
// standard output when it is ready.
func serve(data string, unlogged bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg := server.Defaults()
	cfg.Data, cfg.Server.HTTPS, cfg.Server.MQTTS = data, "localhost:0", "localhost:0"
	cfg.Metrics.Listen = "127.0.0.1:0"
	cfg.Limits.TokenRate, cfg.Limits.RequestRate, cfg.Limits.IssueRate = 1<<20, 1<<20, 1<<20
	s, err := server.New(ctx, cfg, server.Options{Log: slog.New(slog.DiscardHandler), Version: "load", WithoutAuditLog: unlogged})
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
	if err := os.Stdout.Close(); err != nil {
		return err
	}
	err = s.Run(ctx)
	if path := os.Getenv("LOAD_MEMPROFILE"); path != "" && err == nil {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return pprof.Lookup("allocs").WriteTo(f, 0)
	}
	return err
}

func run(ctx context.Context, tokens, clients, devices, rate, seconds, stored int) error {
	fmt.Printf("%s, %s/%s, %d cores, %s\n\n", time.Now().UTC().Format("2006-01-02"), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version())
	if tokens > 0 {
		fmt.Printf("## Token endpoint\n\n%d requests of %d devices (of as many as requests, where they never asked before), %d connections kept, TLS 1.3; assertion checked, `jti`, record and audit entry durable. Clients in another process, on the same cores.\n\n", tokens, active, clients)
		fmt.Printf("| devices in the store | tokens a second, all cores | of the server's CPU | one ES256 check and one signature, a second of CPU, in the same run | ratio | p50 | p99 |\n|---|---|---|---|---|---|---|\n")
		for _, r := range []struct {
			stored int
			ask    int // devices that request tokens
			warm   bool
		}{{active, active, true}, {stored, active, true}, {stored, tokens, false}} {
			err := withServer(ctx, r.stored, r.ask, func(b *bench, signers map[watchword.SubjectID]*jose.Signer) error {
				return b.tokenEndpoint(ctx, signers, r.stored, tokens, clients, r.warm)
			})
			if err != nil {
				return err
			}
		}
		fmt.Println()
	}
	if rate == 0 {
		return nil
	}
	return withServer(ctx, 0, 0, func(b *bench, _ map[watchword.SubjectID]*jose.Signer) error {
		return b.commands(ctx, "bench-", devices, rate, seconds)
	})
}

// withServer starts a server on a new folder, with that many devices in its store, and that many of
// them requesting tokens.
func withServer(ctx context.Context, stored, ask int, f func(*bench, map[watchword.SubjectID]*jose.Signer) error) error {
	return withThisServer(ctx, &bench{}, stored, ask, f)
}

func withThisServer(ctx context.Context, b *bench, stored, ask int, f func(*bench, map[watchword.SubjectID]*jose.Signer) error) (err error) {
	dir, err := os.MkdirTemp("", "watchword-load-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b.dir = dir
	var signers map[watchword.SubjectID]*jose.Signer
	if stored > 0 {
		if err := b.start(); err != nil { // the first start initializes the folder
			return err
		}
		if err := b.end(); err != nil {
			return err
		}
		if signers, err = fill(ctx, filepath.Join(dir, "data"), stored, ask); err != nil {
			return err
		}
	}
	if err := b.start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.end()) }()
	return f(b, signers)
}

func (b *bench) start() error {
	program := b.program
	if program == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		program = self
	}
	b.server = exec.Command(program, fmt.Sprintf("-unlogged=%v", b.unlogged), "-serve", filepath.Join(b.dir, "data"))
	b.server.Stderr = os.Stderr
	ready, err := b.server.StdoutPipe()
	if err != nil {
		return err
	}
	if err := b.server.Start(); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, ready); err != nil {
		return err
	}
	b.admin, err = admin.Local(filepath.Join(b.dir, "data"))
	return err
}

func (b *bench) end() error {
	return errors.Join(b.server.Process.Signal(syscall.SIGTERM), b.server.Wait())
}

// cpu returns the server's CPU time, user and system, in the hundredths of a second of proc(5).
func (b *bench) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.server.Process.Pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var user, system int64
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		return 0, err
	}
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}

func (b *bench) enroll(ctx context.Context, id watchword.SubjectID, o device.Options) (*device.Device, error) {
	made, err := b.admin.CreateDevice(ctx, id, nil, 0)
	if err != nil {
		return nil, err
	}
	o.Log = slog.New(slog.DiscardHandler)
	d, err := device.OpenWith(filepath.Join(b.dir, string(id)), o)
	if err != nil {
		return nil, err
	}
	return d, d.Enroll(ctx, made.Enrollment.Link)
}

func post(ctx context.Context, hc *http.Client, to, form string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, strings.NewReader(form))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := hc.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode != http.StatusOK || !bytes.Contains(b, []byte(`"access_token"`))) {
		err = fmt.Errorf("status %d: %s", res.StatusCode, b)
	}
	return err
}

func quantile(ds []time.Duration, q float64) time.Duration {
	s := slices.Sorted(slices.Values(ds))
	return s[min(int(float64(len(s))*q), len(s)-1)].Round(10 * time.Microsecond)
}

// commands sends commands at a rate and waits for each verified receipt, with the device SDK and
// its synced journals. The devices get ids with this prefix, which must not exist.
func (b *bench) commands(ctx context.Context, prefix string, devices, rate, seconds int) error {
	run, stop := context.WithCancel(ctx)
	defer stop()
	var running sync.WaitGroup
	var open []*device.Device
	defer func() {
		stop()
		running.Wait()
		for _, d := range open {
			_ = d.Close() // the folder is deleted anyway
		}
	}()
	ids := make([]watchword.SubjectID, devices)
	for i := range devices {
		ids[i] = watchword.SubjectID(fmt.Sprintf("%s%d", prefix, i))
		d, err := b.enroll(ctx, ids[i], device.Options{})
		if err != nil {
			return err
		}
		open = append(open, d)
		d.Handle("set", func(context.Context, *device.Command) (any, error) { return nil, nil })
		running.Go(func() { _ = d.Run(run) }) // its end is ours
	}
	for _, id := range ids { // each is connected once it has answered
		if err := b.once(ctx, id); err != nil {
			return err
		}
	}
	total := rate * seconds
	took := make([]time.Duration, total)
	errs := make(chan error, total)
	from, err := b.cpu()
	if err != nil {
		return err
	}
	start := time.Now()
	var wg sync.WaitGroup
	for i := range total {
		if wait := time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(rate))); wait > 0 {
			time.Sleep(wait)
		}
		wg.Go(func() {
			began := time.Now()
			if err := b.once(ctx, ids[i%devices]); err != nil {
				errs <- err
			}
			took[i] = time.Since(began)
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	if len(errs) > 0 {
		return fmt.Errorf("%d of %d commands: %w", len(errs), total, <-errs)
	}
	to, err := b.cpu()
	if err != nil {
		return err
	}
	b.perCommand = (to - from) / time.Duration(total)
	if b.quiet {
		return nil
	}
	fmt.Printf("## Commands\n\n%d devices (SDK, journals synced to disk, HTTP long poll), %d commands at %d/s, each signed by the orderer, stored, signed, sealed, obeyed, its receipt signed and verified. Server, devices and orderer on the same cores.\n\n", devices, total, rate)
	fmt.Printf("| | |\n|---|---|\n| done, a second | %.0f |\n| from the API call to the verified receipt: p50, p99, most | %s, %s, %s |\n| the server's CPU per command | %s |\n",
		float64(total)/elapsed.Seconds(), quantile(took, 0.5), quantile(took, 0.99), quantile(took, 1), ((to - from) / time.Duration(total)).Round(time.Microsecond))
	return nil
}

func (b *bench) once(ctx context.Context, id watchword.SubjectID) error {
	c, err := b.admin.Send(ctx, admin.CommandOrder{Device: id, Function: "set", Args: json.RawMessage(`{"level":40}`), WaitReceipt: 30 * time.Second})
	if err == nil && c.State != watchword.Done {
		err = fmt.Errorf("%s is %s", c.ID, c.State)
	}
	return err
}
