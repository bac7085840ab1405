package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/internal/testwait"
)

// safeBuffer is a buffer that is read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A refused request has a line in the log, but not on a terminal, unless the level is configured.
func TestRequestsAreNotLoggedOnATerminal(t *testing.T) {
	t.Setenv("WATCHWORD_SERVER_HTTPS", "localhost:0")
	t.Setenv("WATCHWORD_SERVER_MQTTS", "localhost:0")
	t.Setenv("WATCHWORD_METRICS_LISTEN", "127.0.0.1:0")
	for _, c := range []struct {
		name     string
		terminal bool
		level    string
		file     bool
		want     bool
	}{
		{"on a terminal", true, "", false, false},
		{"on a terminal with a level", true, "info", false, true},
		{"elsewhere", false, "", false, true},
		{"elsewhere with a level", false, "warn", false, false},
		{"in a file", true, "", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			data, file := filepath.Join(dir, "data"), ""
			if c.file {
				file = filepath.Join(dir, "log")
			}
			t.Setenv("WATCHWORD_LOG_LEVEL", c.level)
			t.Setenv("WATCHWORD_LOG_FILE", file)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var errs safeBuffer
			ended := make(chan int, 1)
			go func() {
				ended <- run(ctx, []string{"serve", "--data", data}, terminal.New(io.Discard, false), terminal.New(&errs, c.terminal))
			}()
			for wait := testwait.Within(); !strings.Contains(errs.String(), "\nnext "); {
				wait.Check(t, "the start of the server")
			}
			b, err := os.ReadFile(filepath.Join(data, "server.json"))
			if err != nil {
				t.Fatal(err)
			}
			var place struct{ HTTPS string }
			if err := json.Unmarshal(b, &place); err != nil {
				t.Fatal(err)
			}
			h := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // the request is refused anyway
			a, err := h.Get("https://" + place.HTTPS + "/v1/devices")
			if err != nil {
				t.Fatal(err)
			}
			_ = a.Body.Close()
			h.CloseIdleConnections()
			cancel()
			if status := testwait.For(t, "the end of the server", ended); status != 0 {
				t.Errorf("exit status %d: %s", status, errs.String())
			}
			lines := errs.String()
			if c.file {
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				lines = string(b)
			}
			if got := strings.Contains(lines, "request refused"); got != c.want {
				t.Errorf("logged %v, want %v: %s", got, c.want, lines)
			}
		})
	}
}

// With log.format = "json" each line on standard error is a JSON object, also the addresses; and a refused request has the trace_id
// that its answer has.
func TestStandardErrorIsJSONAlone(t *testing.T) {
	for name, value := range map[string]string{
		"WATCHWORD_SERVER_HTTPS": "localhost:0", "WATCHWORD_SERVER_MQTTS": "localhost:0", "WATCHWORD_METRICS_LISTEN": "127.0.0.1:0", "WATCHWORD_LOG_FORMAT": "json", "WATCHWORD_LOG_LEVEL": "info",
	} {
		t.Setenv(name, value)
	}
	data := filepath.Join(t.TempDir(), "data")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var errs safeBuffer
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"serve", "--data", data}, terminal.New(io.Discard, false), terminal.New(&errs, true))
	}()
	for wait := testwait.Within(); !strings.Contains(errs.String(), `"msg":"listening"`); {
		wait.Check(t, "the line with the addresses")
	}
	var place struct{ HTTPS string }
	if b, err := os.ReadFile(filepath.Join(data, "server.json")); err != nil {
		t.Fatal(err)
	} else if err := json.Unmarshal(b, &place); err != nil {
		t.Fatal(err)
	}
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // the request is refused anyway
	a, err := h.Get("https://" + place.HTTPS + "/v1/devices")
	if err != nil {
		t.Fatal(err)
	}
	var problem struct {
		TraceID string `json:"trace_id"`
	}
	if err := json.NewDecoder(a.Body).Decode(&problem); err != nil || problem.TraceID == "" {
		t.Errorf("trace_id %q, %v", problem.TraceID, err)
	}
	_ = a.Body.Close()
	h.CloseIdleConnections()
	cancel()
	if status := testwait.For(t, "the end of the server", ended); status != 0 {
		t.Errorf("exit status %d", status)
	}
	found := false
	for line := range strings.Lines(errs.String()) {
		var l struct {
			Msg     string
			HTTPS   string
			TraceID string `json:"trace_id"`
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Errorf("no JSON: %q", line)
		}
		if l.Msg == "listening" && l.HTTPS != place.HTTPS {
			t.Errorf("listening on %q, want %q", l.HTTPS, place.HTTPS)
		}
		found = found || l.Msg == "request refused" && l.TraceID == problem.TraceID
	}
	if !found {
		t.Errorf("no line has the trace_id %s: %s", problem.TraceID, errs.String())
	}
}
