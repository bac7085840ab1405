// Command cut measures how long after the answer to a suspension a client that reads as fast as it
// can still gets bytes of a long HTTP answer: the server writes nothing any more by then, so these
// are bytes in buffers of kernels and connection. It prints Markdown, and exits with status 1 if
// the limit of 50 ms is exceeded.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/server"
)

// maxCutTime limits the time from the answer to the last byte (p99).
const maxCutTime = 50 * time.Millisecond

const auditor = `for = { reads = "log" }
[[allow]]
get = ["/v1/audit/#", "/v1/audit"]
`

func main() {
	rounds := flag.Int("rounds", 100, "suspensions, for each kind of answer")
	entries := flag.Int("entries", 400, "entries of the log, of 60 kB each")
	flag.Parse()
	if err := run(context.Background(), *rounds, *entries); err != nil {
		fmt.Fprintln(os.Stderr, "cut:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rounds, entries int) (err error) {
	tmp, err := os.MkdirTemp("", "watchword-cut-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	cfg := server.Defaults()
	cfg.Data, cfg.Server.HTTPS, cfg.Server.MQTTS, cfg.Metrics.Listen = filepath.Join(tmp, "data"), "localhost:0", "", ""
	s, err := server.New(ctx, cfg, server.Options{Log: slog.New(slog.DiscardHandler), Version: "cut"})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.Run(running) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()
	select {
	case <-s.Ready():
	case err := <-ended:
		ended <- nil // for the function above
		return errors.Join(errors.New("the server ended before it was ready"), err)
	case <-time.After(time.Minute):
		return errors.New("the server was not ready within a minute")
	}
	c, err := admin.Local(cfg.Data)
	if err != nil {
		return err
	}
	reader, err := newReader(ctx, c, tmp, cfg.Data, s.Info().URL, entries)
	if err != nil {
		return err
	}
	fmt.Printf("%s, %s/%s, %d cores, %s; %d suspensions each, while %d MB are read\n\n| answer | the last byte after the API's answer: p50 | p99 | most | bytes after it, most |\n|---|---|---|---|---|\n",
		time.Now().UTC().Format("2006-01-02"), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version(), rounds, entries*60/1000)
	for _, kind := range []struct{ name, path, accept, proto string }{
		{"export, HTTP/1.1", "/v1/audit/export", "*/*", "http/1.1"},
		{"export, HTTP/2", "/v1/audit/export", "*/*", "h2"},
		{"stream of the log, HTTP/1.1", "/v1/audit?after=0", "text/event-stream", "http/1.1"},
		{"stream of the log, HTTP/2", "/v1/audit?after=0", "text/event-stream", "h2"},
	} {
		var late []time.Duration
		limit := int64(0)
		for range rounds {
			after, n, err := reader.round(ctx, c, kind.path, kind.accept, kind.proto)
			if err != nil {
				return fmt.Errorf("%s: %w", kind.name, err)
			}
			late, limit = append(late, after), max(limit, n)
		}
		slices.Sort(late)
		p99 := late[len(late)*99/100]
		fmt.Printf("| %s | %s | %s | %s | %d |\n", kind.name, late[len(late)/2].Round(10*time.Microsecond), p99.Round(10*time.Microsecond), late[len(late)-1].Round(10*time.Microsecond), limit)
		if p99 > maxCutTime {
			err = errors.Join(err, fmt.Errorf("%s: p99 %s, promised are %s", kind.name, p99, maxCutTime))
		}
	}
	return err
}

// reader is a device with permission to read the log.
type reader struct {
	url   string
	pool  *x509.CertPool
	id    watchword.SubjectID
	token string
}

func newReader(ctx context.Context, c *admin.Client, tmp, data, url string, entries int) (_ *reader, err error) {
	if _, err := c.ApplyPolicy(ctx, "auditor", []byte(auditor), -1); err != nil {
		return nil, err
	}
	r := &reader{url: url, id: "reader", pool: x509.NewCertPool()}
	made, err := c.CreateDevice(ctx, r.id, watchword.Labels{"reads": "log"}, 0)
	if err != nil {
		return nil, err
	}
	d, err := device.OpenWith(filepath.Join(tmp, "reader"), device.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := d.Enroll(ctx, made.Enrollment.Link); err != nil {
		return nil, err
	}
	if r.token, err = d.NewToken(ctx); err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(filepath.Join(data, "tls", "ca.pem"))
	if err != nil {
		return nil, err
	}
	r.pool.AppendCertsFromPEM(pem)
	text := strings.Repeat("x", 60_000)
	for i := range entries {
		if _, err := c.ApplyPolicy(ctx, "filler", fmt.Appendf(nil, "subjects = [\"nobody\"]\n# %d %s\n[[allow]]\npublish = [\"a\"]\n", i, text), -1); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// round reads an answer as fast as possible, suspends its reader in the middle, and returns when
// the last byte came, and how many bytes came after the suspension was answered.
func (r *reader) round(ctx context.Context, c *admin.Client, path, accept, proto string) (after time.Duration, n int64, err error) {
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.pool, NextProtos: []string{proto}, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: proto == "h2"}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+path, http.NoBody)
	if err != nil {
		return 0, 0, err
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	req.Header.Set("Accept", accept)
	res, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return 0, 0, fmt.Errorf("status %d", res.StatusCode)
	}
	type read struct {
		at time.Time
		n  int
	}
	reads := make(chan []read, 1)
	begun := make(chan struct{})
	go func() {
		var all []read
		b := make([]byte, 64<<10)
		for {
			n, err := res.Body.Read(b)
			if n > 0 && !bytes.HasPrefix(b[:n], []byte("event: end")) { // a stream's end event is not counted
				all = append(all, read{time.Now(), n})
				if len(all) == 1 {
					close(begun)
				}
			}
			if err != nil {
				reads <- all
				return
			}
		}
	}()
	select {
	case <-begun:
	case all := <-reads:
		return 0, 0, fmt.Errorf("the answer ended after %d reads", len(all))
	}
	if _, err := c.Suspend(ctx, r.id, "bench"); err != nil {
		return 0, 0, err
	}
	answered := time.Now()
	all := <-reads
	_, err = c.Resume(ctx, r.id)
	for _, x := range all {
		if x.at.After(answered) {
			after, n = x.at.Sub(answered), n+int64(x.n)
		}
	}
	return after, n, err
}
