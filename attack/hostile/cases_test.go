package hostile_test

import (
	"bytes"
	"io"
	"log"
	"log/slog"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword/attack/hostile"
	"github.com/watchword-iot/watchword/attack/hostile/devices"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // net/http's client tells there what a server sends that is no HTTP
	os.Exit(m.Run())
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// logs is the log of one device, shown where its test fails.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() < 64<<10 {
		l.b.Write(b)
	}
	return len(b), nil
}

// meet lets a device of this process meet one case in virtual time.
func meet(t *testing.T, c hostile.Case) {
	synctest.Test(t, func(t *testing.T) {
		var network hostile.Network
		s, err := hostile.New(network.Listen(), network.Listen())
		check(t, err)
		t.Cleanup(func() { check(t, s.Close()) })
		l := &logs{}
		d, err := devices.OpenInProcess(t.TempDir(), network.Dial, slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})))
		check(t, err)
		t.Cleanup(func() {
			check(t, d.Close())
			if t.Failed() || os.Getenv("HOSTILE_LOG") != "" {
				t.Log(l.b.String())
			}
		})
		check(t, d.Enroll(t.Context(), s.Link()))
		check(t, d.Start())
		out, err := c.Run(t.Context(), s, d, hostile.Standard)
		if err != nil {
			t.Error(err)
		}
		if err := d.Stop(); err != nil {
			t.Errorf("at its end: %v", err)
		}
		t.Logf("%+v", out)
	})
}

func TestTheGoodServerIsGood(t *testing.T) {
	meet(t, hostile.Case{Name: "good", Lasts: 30 * time.Minute})
}

func TestADeviceInThisProcessHoldsEveryCase(t *testing.T) {
	names := map[string]bool{}
	for _, c := range hostile.Cases() {
		if names[c.Name] {
			t.Errorf("two cases are called %q", c.Name)
		}
		names[c.Name] = true
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			meet(t, c)
		})
	}
}
