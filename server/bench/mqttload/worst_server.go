package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// attackBench is the server under attack, and what is noted.
type attackBench struct {
	dir      string
	seconds  int
	p        *benchServer
	metrics  string // address
	hc       *http.Client
	mu       sync.Mutex     // of the others' tokens
	attacker []attackResult // in all turns
}

// start builds and starts the product's program and enrolls all devices.
func (w *attackBench) start(ctx context.Context) error {
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return err
	}
	program := filepath.Join(w.dir, "watchword")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/watchword-iot/watchword/cmd/watchword").CombinedOutput(); err != nil {
		return fmt.Errorf("the program does not build: %w: %s", err, out)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	w.metrics = free.Addr().String()
	if err := free.Close(); err != nil {
		return err
	}
	config := filepath.Join(w.dir, "watchword.toml")
	text := "[server]\nhttps = \"localhost:0\"\nmqtts = \"localhost:0\"\n[metrics]\nlisten = \"" + w.metrics + "\"\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	w.p = &benchServer{name: "Watchword", process: exec.Command(program, "serve", "--config", config, "--data", filepath.Join(w.dir, "data"))}
	path := os.Getenv("LOAD_LOG")
	if path == "" {
		path = filepath.Join(w.dir, "log")
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the server has its own
	w.p.process.Stderr = log
	if err := w.p.process.Start(); err != nil {
		return err
	}
	if err := w.ready(ctx); err != nil {
		return errors.Join(err, w.p.stop())
	}
	if err := w.p.attach(w.dir); err != nil {
		return errors.Join(err, w.p.stop())
	}
	w.hc = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: w.p.watchword.tls, MaxIdleConnsPerHost: 64}}
	if err := w.p.watchword.enroll(ctx, worstOthers); err != nil {
		return errors.Join(err, w.p.stop())
	}
	return nil
}

func (w *attackBench) ready(ctx context.Context) error {
	var last error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var b []byte
		if b, last = get(ctx, http.DefaultClient, "http://"+w.metrics+"/readyz", ""); last == nil && len(b) == 0 {
			return nil
		}
	}
	return fmt.Errorf("the server is not ready: %w", last)
}

// deleteAttacker deletes the device that was enrolled last.
func (w *attackBench) deleteAttacker(ctx context.Context) error {
	srv := w.p.watchword
	id := srv.devices[len(srv.devices)-1].id
	if _, err := srv.admin.Revoke(ctx, id, "compromised"); err != nil {
		return err
	}
	return srv.admin.DeleteDevice(ctx, id)
}

// metric is one number that /metrics gives.
func (w *attackBench) metric(ctx context.Context, name string) (float64, error) {
	b, err := get(ctx, http.DefaultClient, "http://"+w.metrics+"/metrics", "")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(rest), 64)
		}
	}
	return 0, fmt.Errorf("/metrics has no %s", name)
}

// liveHeap is what the server's heap holds after a collection. A server that rests collects once in
// two minutes; asking it for its metrics makes enough garbage to have it collect earlier.
func (w *attackBench) liveHeap(ctx context.Context) (float64, error) {
	time.Sleep(3 * time.Second) // what is closed and deleted is put away
	collections := func() (float64, error) { return w.metric(ctx, "go_gc_duration_seconds_count") }
	first, err := collections()
	if err != nil {
		return 0, err
	}
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); { // two, since finalizers and pools hold things through the first
		n, err := collections()
		if err != nil {
			return 0, err
		}
		if n < first+2 {
			continue
		}
		time.Sleep(100 * time.Millisecond) // it is swept
		return w.metric(ctx, "go_memstats_heap_alloc_bytes")
	}
	return 0, errors.New("the server did not collect its garbage in five minutes")
}

// get returns the body of an answer of status 200.
func get(ctx context.Context, hc *http.Client, to, bearer string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to, http.NoBody)
	if err != nil {
		return nil, err
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	return answer(hc, req)
}

func answer(hc *http.Client, req *http.Request) ([]byte, error) {
	res, err := hc.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: status %d: %s", req.Method, req.URL.Path, res.StatusCode, b)
	}
	return b, err
}
