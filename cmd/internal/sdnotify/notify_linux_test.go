package sdnotify_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/watchword-iot/watchword/cmd/internal/sdnotify"
)

// receive listens on a datagram socket as systemd does, and returns a function that returns the next datagram.
func receive(t *testing.T, socket string) func() string {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return func() string {
		t.Helper()
		b := make([]byte, 4096)
		if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("no datagram: %v", err)
		}
		return string(b[:n])
	}
}

func TestStateIsSentToPathAndAbstractSockets(t *testing.T) {
	for _, socket := range []string{filepath.Join(t.TempDir(), "notify"), "@watchword-test-" + strconv.Itoa(os.Getpid())} {
		next := receive(t, socket)
		t.Setenv("NOTIFY_SOCKET", socket)
		n, err := sdnotify.Open()
		if err != nil {
			t.Fatal(err)
		}
		if v, set := os.LookupEnv("NOTIFY_SOCKET"); set {
			t.Errorf("programs that are started inherit NOTIFY_SOCKET=%s", v)
		}
		for _, c := range []struct {
			send func() error
			want string
		}{
			{func() error { return n.Ready("serves\nREADY=0") }, "READY=1\nSTATUS=serves READY=0"},
			{func() error { return n.Status("12 sessions") }, "STATUS=12 sessions"},
			{n.Alive, "WATCHDOG=1"},
			{n.Stopping, "STOPPING=1\nSTATUS=stops"},
		} {
			if err := c.send(); err != nil {
				t.Fatal(err)
			}
			if got := next(); got != c.want {
				t.Errorf("%s: %q, want %q", socket, got, c.want)
			}
		}
		before := monotonic(t)
		if err := n.Reloading(); err != nil {
			t.Fatal(err)
		}
		usec, ok := strings.CutPrefix(next(), "RELOADING=1\nMONOTONIC_USEC=")
		at, err := strconv.ParseInt(usec, 10, 64)
		if after := monotonic(t); !ok || err != nil || at < before || at > after {
			t.Errorf("the time of the reload is %q, want one from %d to %d", usec, before, after)
		}
	}
}

// monotonic is CLOCK_MONOTONIC in microseconds.
func monotonic(t *testing.T) int64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return ts.Nano() / 1000
}

func TestVariablesOfTheServiceManager(t *testing.T) {
	me := strconv.Itoa(os.Getpid())
	for _, c := range []struct {
		name, socket, usec, pid string
		sends                   bool
		watchdog                time.Duration
		fails                   bool
	}{
		{"without a socket nothing is sent", "", "2000000", me, false, 0, false},
		{"a watchdog of this process counts", "/run/x", "2000000", me, true, 2 * time.Second, false},
		{"a watchdog without a process counts", "/run/x", "1", "", true, time.Microsecond, false},
		{"a watchdog of another process does not count", "/run/x", "2000000", "1", true, 0, false},
		{"a watchdog that is no number is an error", "/run/x", "soon", me, true, 0, true},
		{"a watchdog of 0 is an error", "/run/x", "0", me, true, 0, true},
		{"a watchdog that overflows is an error", "/run/x", "9223372036854775807", me, true, 0, true},
		{"a socket of another kind is an error", "vsock:2:1", "", "", false, 0, true},
	} {
		t.Setenv("NOTIFY_SOCKET", c.socket)
		t.Setenv("WATCHDOG_USEC", c.usec)
		t.Setenv("WATCHDOG_PID", c.pid)
		n, err := sdnotify.Open()
		if n != nil != c.sends || n.Watchdog() != c.watchdog || err != nil != c.fails {
			t.Errorf("%s: sends %v, watchdog %v, error %v", c.name, n != nil, n.Watchdog(), err)
		}
	}
	var none *sdnotify.Notifier
	if err := none.Ready(""); err != nil {
		t.Error(err)
	}
}

// A service manager that does not read cannot hold the process up.
func TestAFullQueueIsAnError(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	receive(t, socket)
	t.Setenv("NOTIFY_SOCKET", socket)
	n, err := sdnotify.Open()
	if err != nil {
		t.Fatal(err)
	}
	for range 100_000 {
		if err := n.Alive(); err != nil {
			return
		}
	}
	t.Error("100,000 datagrams were accepted by a socket that is not read")
}
