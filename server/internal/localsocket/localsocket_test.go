package localsocket_test

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword/server/internal/localsocket"
)

func TestTheServerOfAFolderIsReached(t *testing.T) {
	for _, name := range []string{"data", strings.Repeat("long", 40)} { // a socket address has 108 bytes
		dir := filepath.Join(t.TempDir(), name)
		must(t, os.Mkdir(dir, 0o700))
		if _, err := localsocket.Dial(t.Context(), dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("no server ever ran: %v", err)
		}
		must(t, os.WriteFile(filepath.Join(dir, localsocket.Name), nil, 0o600)) // one that a crash left behind
		l, err := localsocket.Listen(dir, slog.New(slog.DiscardHandler))
		must(t, err)
		info, err := os.Stat(filepath.Join(dir, localsocket.Name))
		must(t, err)
		if info.Mode().Perm() != 0o600 || info.Mode().Type() != fs.ModeSocket {
			t.Errorf("the socket has mode %v", info.Mode())
		}
		c, err := localsocket.Dial(t.Context(), dir)
		must(t, err)
		s, err := l.Accept()
		must(t, err)
		_, err = s.Write([]byte("x"))
		must(t, errors.Join(err, s.Close()))
		if b, err := io.ReadAll(c); err != nil || string(b) != "x" {
			t.Errorf("read %q, %v", b, err)
		}
		must(t, errors.Join(c.Close(), l.Close()))
		if _, err := localsocket.Dial(t.Context(), dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the server has ended: %v", err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
