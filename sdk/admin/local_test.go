package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
)

// closedPort returns an address on which nothing listens any more.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// writePlace writes server.json with the address of a server.
func writePlace(t *testing.T, dir, address string) {
	t.Helper()
	b, err := json.Marshal(serverFile{HTTPS: address})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "server.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// While a server starts, its last address refuses connections; then server.json has the new one.
func TestAConnectionWaitsForAServerThatStarts(t *testing.T) {
	dir, old := t.TempDir(), closedPort(t)
	writePlace(t, dir, old)
	l := &localDialer{folder: dir, address: old}
	dialed := make(chan error, 1)
	go func() {
		c, err := l.dial(t.Context(), "tcp", "")
		if err == nil {
			err = c.Close()
		}
		dialed <- err
	}()
	for wait := testwait.Within(); ; {
		l.mu.Lock()
		refused := !l.until.IsZero()
		l.mu.Unlock()
		if refused {
			break
		}
		wait.Check(t, "the first refusal")
	}
	started, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer started.Close()
	writePlace(t, dir, started.Addr().String())
	if err := testwait.For(t, "the connection", dialed); err != nil {
		t.Error(err)
	}
}

// The wait is once for a client, and only for a server on this machine.
func TestAConnectionDoesNotWaitForAServerThatDoesNotStart(t *testing.T) {
	dir, old := t.TempDir(), closedPort(t)
	writePlace(t, dir, old)
	over := &localDialer{folder: dir, address: old, until: time.Now().Add(-time.Second)}
	for name, l := range map[string]*localDialer{"after the wait": over, "another machine's": {address: old}} {
		if _, err := l.dial(t.Context(), "tcp", ""); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v", name, err)
		}
		if time.Now().Before(l.until) {
			t.Errorf("%s: it waited", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l := &localDialer{folder: dir, address: old}
	if _, err := l.dial(ctx, "tcp", ""); err == nil {
		t.Error("a connection was made")
	}
	if _, err := LocalOptions(t.TempDir()); watchword.CodeOf(err) != watchword.NotFound {
		t.Errorf("an empty folder: %v", err)
	}
}
