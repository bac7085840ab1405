// Command load measures what needs a whole server, on loopback: the token
// endpoint with everything durable beside the crypto that it cannot do without,
// and commands from the API to the verified receipt. It prints Markdown.
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/token"
)

func main() {
	tokens := flag.Int("tokens", 8000, "token requests")
	clients := flag.Int("clients", 64, "token requests at once")
	devices := flag.Int("devices", 50, "devices that obey")
	rate := flag.Int("rate", 300, "commands a second")
	seconds := flag.Int("seconds", 10, "of commands")
	data := flag.String("serve", "", "be the server on this folder (the program starts itself so)")
	flag.Parse()
	if *data != "" {
		if err := serve(*data); err != nil {
			fmt.Fprintln(os.Stderr, "load:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(context.Background(), *tokens, *clients, *devices, *rate, *seconds); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

type bench struct {
	dir    string
	admin  *admin.Client
	server *exec.Cmd
}

// serve is the server, in a process of its own so that its CPU can be told from
// its clients'. It says that it is ready by closing standard output.
func serve(data string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg := server.Defaults()
	cfg.Data, cfg.Server.HTTPS, cfg.Server.MQTTS = data, "localhost:0", "localhost:0"
	cfg.Metrics.Listen = "127.0.0.1:0"
	cfg.Limits.TokenRate = 1 << 20
	s, err := server.New(ctx, cfg, server.Options{Log: slog.New(slog.DiscardHandler), Version: "load"})
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
	return s.Run(ctx)
}

func run(ctx context.Context, tokens, clients, devices, rate, seconds int) (err error) {
	dir, err := os.MkdirTemp("", "watchword-load-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b := &bench{dir: dir, server: exec.Command(self, "-serve", filepath.Join(dir, "data"))}
	b.server.Stderr = os.Stderr
	ready, err := b.server.StdoutPipe()
	if err != nil {
		return err
	}
	if err := b.server.Start(); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, b.server.Process.Signal(syscall.SIGTERM), b.server.Wait())
	}()
	if _, err := io.Copy(io.Discard, ready); err != nil {
		return err
	}
	if b.admin, err = admin.Local(filepath.Join(dir, "data")); err != nil {
		return err
	}
	fmt.Printf("%s, %s/%s, %d cores, %s\n\n", time.Now().UTC().Format("2006-01-02"), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version())
	if err := b.tokenEndpoint(ctx, tokens, clients); err != nil {
		return err
	}
	return b.commands(ctx, devices, rate, seconds)
}

// cpu is the time that the server has spent, in user and system mode, in the
// hundredths of a second that Linux tells (proc(5)).
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

// cryptoBound is how many pairs of one ES256 check and one signature a core does
// in a second while all cores are at it, as they are under load.
func cryptoBound() (float64, error) {
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		return 0, err
	}
	priv := k.Crypto().(*ecdsa.PrivateKey)
	sum := sha256.Sum256([]byte("watchword"))
	const n = 5000
	cores := runtime.GOMAXPROCS(0)
	errs := make(chan error, cores)
	start := time.Now()
	for range cores {
		go func() {
			errs <- func() error {
				for range n {
					sig, err := ecdsa.SignASN1(rand.Reader, priv, sum[:])
					if err != nil {
						return err
					}
					if !ecdsa.VerifyASN1(&priv.PublicKey, sum[:], sig) {
						return errors.New("a signature does not verify")
					}
				}
				return nil
			}()
		}()
	}
	for range cores {
		err = errors.Join(err, <-errs)
	}
	return n / time.Since(start).Seconds(), err
}

// tokenEndpoint exchanges assertions, signed beforehand, over TLS connections that are kept.
func (b *bench) tokenEndpoint(ctx context.Context, total, clients int) error {
	d, err := b.enroll(ctx, "bench-tokens", device.Options{})
	if err != nil {
		return err
	}
	defer d.Close()
	forms := make([]string, total)
	for i := range forms {
		a, err := d.Assertion(token.AssertionLife)
		if err != nil {
			return err
		}
		forms[i] = url.Values{
			"grant_type": {"client_credentials"}, "client_assertion": {a},
			"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		}.Encode()
	}
	pem, err := os.ReadFile(d.CAFile())
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	before, err := cryptoBound()
	if err != nil {
		return err
	}
	var next atomic.Int64
	took := make([]time.Duration, total)
	errs := make(chan error, clients)
	start := time.Now()
	from, err := b.cpu()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
			defer hc.CloseIdleConnections()
			for {
				i := int(next.Add(1)) - 1
				if i >= total {
					return
				}
				began := time.Now()
				if err := post(ctx, hc, d.Server()+"/oauth/token", forms[i]); err != nil {
					errs <- err
					return
				}
				took[i] = time.Since(began)
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	to, err := b.cpu()
	if err != nil {
		return err
	}
	select {
	case err := <-errs:
		return err
	default:
	}
	after, err := cryptoBound()
	if err != nil {
		return err
	}
	bound := (before + after) / 2
	perSecond := float64(total) / elapsed.Seconds()
	perCore := float64(total) / (to - from).Seconds()
	fmt.Printf("## Token endpoint\n\n%d requests, %d connections kept, TLS 1.3; assertion checked, `jti`, record and audit entry durable. Clients in another process, on the same cores.\n\n", total, clients)
	fmt.Printf("| | |\n|---|---|\n| tokens a second, all cores | %.0f |\n| tokens a second of the server's CPU | %.0f |\n| one ES256 check and one signature, a second and core, all cores busy, in the same run | %.0f |\n| ratio | %.2f |\n| latency p50, p99 | %s, %s |\n\n",
		perSecond, perCore, bound, perCore/bound, quantile(took, 0.5), quantile(took, 0.99))
	return nil
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

// commands orders at a rate and waits for each verified receipt, with the devices' SDK and its synced journals.
func (b *bench) commands(ctx context.Context, devices, rate, seconds int) error {
	run, stop := context.WithCancel(ctx)
	defer stop()
	var running sync.WaitGroup
	var open []*device.Device
	defer func() {
		stop()
		running.Wait()
		for _, d := range open {
			_ = d.Close() // the folder goes anyway
		}
	}()
	ids := make([]watchword.SubjectID, devices)
	for i := range devices {
		ids[i] = watchword.SubjectID(fmt.Sprintf("bench-%d", i))
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
	fmt.Printf("## Commands\n\n%d devices (SDK, journals synced to disk, HTTP long poll), %d commands at %d/s, each signed by the orderer, stored, signed, sealed, obeyed, its receipt signed and verified. Server, devices and orderer on the same cores.\n\n", devices, total, rate)
	fmt.Printf("| | |\n|---|---|\n| done, a second | %.0f |\n| from the API call to the verified receipt: p50, p99, most | %s, %s, %s |\n| the server's CPU per command | %s |\n",
		float64(total)/elapsed.Seconds(), quantile(took, 0.5), quantile(took, 0.99), quantile(took, 1), ((to - from) / time.Duration(total)).Round(time.Microsecond))
	return nil
}

func (b *bench) once(ctx context.Context, id watchword.SubjectID) error {
	c, err := b.admin.Send(ctx, admin.Order{Device: id, Function: "set", Args: json.RawMessage(`{"level":40}`), Wait: 30 * time.Second})
	if err == nil && c.State != watchword.Done {
		err = fmt.Errorf("%s is %s", c.ID, c.State)
	}
	return err
}
