package hostile_test

import (
	"bytes"
	"io"
	"log"
	"log/slog"
	"os"
	"runtime/metrics"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword/server/attack/hostile"
	"github.com/watchword-iot/watchword/server/attack/hostile/devices"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // net/http's client logs invalid HTTP answers there
	var err error
	if temporary, err = os.MkdirTemp("", "watchword-hostile-"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(temporary) // a temporary folder
	os.Exit(code)
}

// temporary is a folder for the tests of this package.
var temporary string

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

// enrolled returns a server in memory, and a device of this process that runs against it.
func enrolled(t *testing.T) (*hostile.Server, *devices.InProcess) {
	t.Helper()
	var network hostile.Network
	s, err := hostile.New(network.Listen(), network.Listen())
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	l := &logs{}
	d, err := devices.OpenInProcess(t.TempDir(), network.Dial, slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})))
	check(t, err)
	t.Cleanup(func() {
		check(t, d.Close())
		if t.Failed() {
			t.Log(l.b.String())
		}
	})
	check(t, d.Enroll(t.Context(), s.Link()))
	check(t, d.Start())
	return s, d
}

// runCase lets a device of this process meet one case in virtual time.
func runCase(t *testing.T, c hostile.Case) {
	synctest.Test(t, func(t *testing.T) {
		s, d := enrolled(t)
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

func TestHonestServerPasses(t *testing.T) {
	runCase(t, hostile.Case{Name: "good", Duration: 30 * time.Minute})
}

// heapCeiling is what the heap may have in use while two devices and their servers meet cases, in bytes.
const heapCeiling = 512 << 20

// watchHeap fails a test, at its end, during which the heap was above the ceiling.
func watchHeap(t *testing.T) {
	end, limit := make(chan struct{}), make(chan uint64)
	go func() {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		var highest uint64
		for {
			metrics.Read(sample)
			highest = max(highest, sample[0].Value.Uint64())
			select {
			case <-tick.C:
			case <-end:
				limit <- highest
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(end)
		n := <-limit
		if t.Logf("a heap of %d MB at most", n>>20); n > heapCeiling {
			t.Errorf("the heap had %d MB", n>>20)
		}
	})
}

func TestInProcessDevicePassesEveryCase(t *testing.T) {
	watchHeap(t)
	names := map[string]bool{}
	for _, c := range hostile.Cases() {
		if names[c.Name] {
			t.Errorf("two cases are called %q", c.Name)
		}
		names[c.Name] = true
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			runCase(t, c)
		})
	}
}

// A device that meets one case after the other for ten minutes, of virtual time, obeys within a pause
// of the good server's return each time, every command once. The program in soak does so in real time.
func TestDevicePassesCasesInSequence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, d := enrolled(t)
		limits := hostile.Standard
		limits.PerMinute *= 2 // cases are shorter than a device's pauses here: each begins with quick attempts
		seen, err := hostile.Soak(t.Context(), s, d, hostile.Plan{Seed: 1, Devices: 5, For: 10 * time.Minute, MaxCase: 30 * time.Second, Limits: limits})
		if err != nil {
			t.Error(err)
		}
		if err := d.Stop(); err != nil {
			t.Errorf("at its end: %v", err)
		}
		if seen.Cases < 10 || seen.Orders < 2*seen.Cases {
			t.Errorf("%d cases, %d commands", seen.Cases, seen.Orders)
		}
		t.Logf("%d cases, %d commands, %+v", seen.Cases, seen.Orders, seen.Worst)
	})
}
