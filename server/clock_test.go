package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/internal/clock"
)

// machine is the clocks of a server's machine, which a test sets. The boot clock runs on by itself.
type machine struct {
	mu     sync.Mutex
	off    time.Duration // of the wall clock
	synced bool
}

func (m *machine) set(off time.Duration, synced bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off, m.synced = off, synced
}

func (m *machine) wall() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Add(m.off)
}

func (m *machine) options(log io.Writer, built time.Time) server.Options {
	booted := time.Now().Add(-time.Hour)
	return server.Options{
		Log: slog.New(slog.NewTextHandler(log, nil)), Version: "test", Now: m.wall, Boot: func() time.Duration { return time.Since(booted) }, Built: built,
		Synchronized: func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.synced
		},
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// runAt starts a server and returns a function that stops it.
func runAt(t *testing.T, c server.Config, o server.Options) (server.Info, func()) {
	t.Helper()
	s, err := server.New(t.Context(), c, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return s.Info(), stop
}

// fetch returns status and body of a request.
func fetch(t *testing.T, method, url, body string) (int, string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // the answer is read, not trusted
	a, err := tr.RoundTrip(r)
	if err != nil {
		return 0, "", err
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, string(b), nil
}

// until waits until something is so.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick, limit := time.NewTicker(20*time.Millisecond), time.NewTimer(testwait.Limit)
	defer tick.Stop()
	defer limit.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// orders sends an operator's request, as the CLI on the server's machine does, with the right time.
func orders(t *testing.T, dir string) error {
	t.Helper()
	cl, err := admin.Local(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = cl.ServerKeys(ctx)
	return err
}

// The clock is set ahead by 400 days while the server runs: it signs no time and says so wherever one looks, and goes on otherwise.
func TestAClockThatIsSetWhileTheServerRuns(t *testing.T) {
	dir, m, log := filepath.Join(t.TempDir(), "data"), &machine{}, &lockedBuffer{}
	o := m.options(log, time.Time{})
	info, stop := runAt(t, config(t, dir), o)
	metrics := "http://" + info.Metrics
	signsTime := func() (int, string) {
		status, body, err := fetch(t, "POST", info.URL+"/v1/time", `{"nonce":"`+watchword.NewNonce()+`"}`)
		if err != nil {
			t.Fatal(err)
		}
		return status, body
	}
	state := func(want bool) {
		t.Helper()
		st, err := server.ReadClock(t.Context(), config(t, dir), o)
		if err != nil || st.Trusted != want || (st.Reason == "") != want || time.Since(st.Time).Abs() > time.Minute {
			t.Errorf("the clock's status: %+v, %v; want trusted %v and the right time", st, err, want)
		}
		status, body, err := fetch(t, "GET", metrics+"/readyz", "")
		if err != nil || (status == 200) != want || (status == 503 && strings.Contains(body, "clock accept")) == want {
			t.Errorf("/readyz: %d %q %v, want ready %v", status, body, err, want)
		}
		_, body, err = fetch(t, "GET", metrics+"/metrics", "")
		if err != nil || strings.Contains(body, "\nwatchword_clock_trusted 1\n") != want || strings.Contains(body, "\nwatchword_clock_offset_seconds 0\n") != want {
			t.Errorf("/metrics, want trusted %v: %v", want, err)
		}
	}
	state(true)
	if status, body := signsTime(); status != 200 {
		t.Fatalf("the time: %d %s", status, body)
	}
	m.set(400*24*time.Hour, false)
	if status, body := signsTime(); status != 503 || !strings.Contains(body, `"clock_untrusted"`) {
		t.Errorf("the time while the clock is ahead: %d %s", status, body)
	}
	state(false)
	if err := orders(t, dir); err != nil { // the CLI of a test has the right time, as the server goes by
		t.Errorf("an operator's request: %v", err)
	}
	until(t, "the line in the log", func() bool { return strings.Contains(log.String(), "reason=stepped_ahead") })
	m.set(0, false)
	if status, body := signsTime(); status != 200 {
		t.Errorf("the time once the clock is right: %d %s", status, body)
	}
	state(true)
	until(t, "the line in the log", func() bool { return strings.Contains(log.String(), "trusted again") })

	m.set(400*24*time.Hour, false)
	st, err := server.AcceptClock(t.Context(), config(t, dir), o)
	if err != nil || !st.Trusted || time.Until(st.Time) < 399*24*time.Hour {
		t.Errorf("accepted: %+v, %v", st, err)
	}
	stop()
	m.set(0, false)
	st, err = server.ReadClock(t.Context(), config(t, dir), o) // nothing runs: what a start would find
	if err != nil || st.Trusted || st.Reason != clock.BehindMark {
		t.Errorf("back after it was accepted: %+v, %v", st, err)
	}
	if st, err = server.AcceptClock(t.Context(), config(t, dir), o); err != nil || !st.Trusted {
		t.Errorf("accepted without a server: %+v, %v", st, err)
	}
	_, stop = runAt(t, config(t, dir), o)
	if err := orders(t, dir); err != nil {
		t.Errorf("after that start: %v", err)
	}
	stop()
}

// A server that starts by a clock that is far ahead makes no certificate: no client is served until the clock is right, and
// then every client is, without a restart.
func TestAStartByAWrongClock(t *testing.T) {
	for _, tc := range []struct {
		off    time.Duration
		reason clock.Reason
	}{{400 * 24 * time.Hour, clock.AheadAtStart}, {-29 * 24 * time.Hour, clock.BehindMark}} {
		t.Run(fmt.Sprint(tc.off), func(t *testing.T) {
			dir, m, log := filepath.Join(t.TempDir(), "data"), &machine{synced: true}, &lockedBuffer{}
			o := m.options(log, time.Time{})
			_, stop := runAt(t, config(t, dir), o)
			stop()
			if _, err := server.AcceptClock(t.Context(), config(t, dir), o); err != nil { // as a time service does within a minute
				t.Fatal(err)
			}
			m.set(tc.off, false)
			info, stop := runAt(t, config(t, dir), o)
			if _, body, err := fetch(t, "GET", info.URL+"/healthz", ""); err == nil {
				t.Errorf("a client is served by a certificate of a wrong clock: %s", body)
			}
			until(t, "the line in the log", func() bool { return strings.Contains(log.String(), "reason="+string(tc.reason)) })
			m.set(0, false)
			if err := orders(t, dir); err != nil {
				t.Errorf("once the clock is right: %v", err)
			}
			stop()
		})
	}
}

// A first start in 1970 makes an authority that was over in 1979. Once the clock is right, clients that trust the folder's
// authority are served at once.
func TestAFirstStartIn1970(t *testing.T) {
	dir, m := filepath.Join(t.TempDir(), "data"), &machine{}
	in1970 := time.Until(time.Unix(3600, 0))
	m.set(in1970, false)
	o := m.options(io.Discard, time.Now().Add(-time.Hour))
	if _, err := server.New(t.Context(), config(t, dir), o); watchword.CodeOf(err) != watchword.ClockUntrusted {
		t.Fatalf("before the build date: %v, want clock_untrusted", err)
	}
	o = m.options(io.Discard, time.Time{}) // a build that does not know its date
	_, stop := runAt(t, config(t, dir), o)
	m.set(0, true) // a time service
	until(t, "an authority that is valid now", func() bool { return orders(t, dir) == nil })
	stop()

	dir = filepath.Join(t.TempDir(), "data")
	m.set(in1970, false)
	_, stop = runAt(t, config(t, dir), o)
	stop()
	m.set(0, true)
	_, stop = runAt(t, config(t, dir), o)
	if err := orders(t, dir); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	stop()
}
