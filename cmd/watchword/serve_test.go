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
