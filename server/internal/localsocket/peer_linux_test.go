package localsocket_test

import (
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/watchword-iot/watchword/server/internal/localsocket"
)

const dialAs = "LOCALSOCKET_TEST_DIAL"

// TestMain connects to the socket and prints what comes, where the test runs itself as another user.
func TestMain(m *testing.M) {
	path := os.Getenv(dialAs)
	if path == "" {
		os.Exit(m.Run())
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		os.Stdout.WriteString("dial: " + err.Error())
		os.Exit(0)
	}
	b, _ := io.ReadAll(c) // a connection that is closed at once says nothing
	os.Stdout.WriteString("read: " + string(b))
	os.Exit(0)
}

// A process of another user gets nothing, even where the modes of folder and socket let it in.
func TestAnotherUserIsClosed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can run a process as another user")
	}
	dir, err := os.MkdirTemp("/tmp", "socket")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // left behind in /tmp
	must(t, os.Chmod(dir, 0o755))
	var log lockedLog
	l, err := localsocket.Listen(dir, slog.New(slog.NewTextHandler(&log, nil)))
	must(t, err)
	defer l.Close()
	path := filepath.Join(dir, localsocket.Name)
	must(t, os.Chmod(path, 0o666))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "accepted") // the peer says what came
			_ = c.Close()
		}
	}()
	self, err := os.Executable()
	must(t, err)
	program := filepath.Join(dir, "dial") // the test's own folder is root's alone
	b, err := os.ReadFile(self)
	must(t, err)
	must(t, os.WriteFile(program, b, 0o755))
	for _, c := range []struct {
		uid  uint32
		want string
	}{{0, "read: accepted"}, {65534, "read: "}} {
		cmd := exec.CommandContext(t.Context(), program)
		cmd.Env = []string{dialAs + "=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.uid}}
		out, err := cmd.Output()
		must(t, err)
		if string(out) != c.want {
			t.Errorf("user %d: %q, want %q", c.uid, out, c.want)
		}
	}
	if !strings.Contains(log.String(), "another user was closed") {
		t.Errorf("the log has %q", log.String())
	}
}

type lockedLog struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
