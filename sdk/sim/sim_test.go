package sim

import (
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
)

func TestLatencies(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var c histogram
	var all []float64
	for range 10_000 {
		d := time.Duration(r.ExpFloat64() * float64(50*time.Millisecond))
		c.add(d)
		all = append(all, float64(d.Microseconds())/1000)
	}
	slices.Sort(all)
	got := c.latency()
	for _, x := range []struct {
		name      string
		got, want float64
	}{{"p50", got.P50, all[4999]}, {"p99", got.P99, all[9899]}} {
		if x.got < x.want || x.got > x.want*1.04 {
			t.Errorf("%s %v, want %v", x.name, x.got, x.want)
		}
	}
	if got.Max != all[9999] || got.Count != 10_000 {
		t.Errorf("%+v, want most %v", got, all[9999])
	}
	for _, us := range []uint64{0, 1, 31, 32, 63, 64, 65, 1000, 1 << 40, 1<<63 - 1} {
		if n := bucketOf(us); bucketMax(n) < us || n > 0 && bucketMax(n-1) >= us || n >= len(c.counts) {
			t.Errorf("%d is in step %d, up to %d", us, n, bucketMax(n))
		}
	}
}

func TestPlanCheck(t *testing.T) {
	for _, p := range []Plan{{Devices: 1, EventRate: math.NaN()}, {Devices: 20_000, EventRate: 1e-6}, {Devices: 1, CommandRate: math.NaN()}, {Devices: 1, CommandRate: 1e-10}, {Devices: 1, Lossy: math.NaN()}} {
		if watchword.CodeOf(p.Check()) != watchword.BadRequest {
			t.Errorf("%+v passes", p)
		}
	}
	for field, p := range map[string]Plan{
		"devices": {}, "rate": {Devices: 1, EventRate: -1}, "size": {Devices: 1, EventBytes: MaxEvent + 1}, "lossy": {Devices: 1, Lossy: 1.1},
		"storm": {Devices: 1, StormEvery: time.Millisecond}, "line": {Devices: 1, ConnLifetime: 1}, "ramp": {Devices: 1, Ramp: -1}, "commands": {Devices: 1, CommandRate: 1},
	} {
		_, err := Run(t.Context(), p, Hooks{})
		if e, ok := errors.AsType[*watchword.Error](err); !ok || e.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// badLine is a line over a pipe, as the fates of bad ones have it.
func badLine(t *testing.T) (l *conn, other net.Conn) {
	mine, other := net.Pipe()
	f := &fleet{plan: Plan{ConnLifetime: time.Second}, random: rand.New(rand.NewPCG(1, 1)), returnedSignal: make(chan struct{}, 1)}
	f.breaking.Store(true)
	th := &simDevice{fleet: f}
	l = &conn{Conn: mine, dev: th, mqtt: true, closed: make(chan struct{})}
	th.connOpened(l)
	t.Cleanup(func() { _, _ = l.Close(), other.Close() })
	return l, other
}

func TestLossyConnectionsBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, other := badLine(t)
		l.stalled.Store(true)
		if n, err := l.Write([]byte("into the dark")); n != 13 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		read := make(chan error, 1)
		go func() {
			_, err := l.Read(make([]byte, 16))
			read <- err
		}()
		if _, err := other.Write([]byte("out of it")); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		select {
		case err := <-read:
			t.Errorf("something came over a dead line: %v", err)
		default:
		}
		l.breakConn()
		if err := <-read; err == nil {
			t.Error("a cut line goes on")
		}
		if l.dev.fleet.broken.Load() != 1 || l.dev.offlineSince.IsZero() {
			t.Error("it was not noticed")
		}

		l, other = badLine(t)
		l.slow = true
		go func() { _, _ = l.Write(make([]byte, 3*slowBytes)) }()
		from := time.Now()
		if _, err := io.ReadFull(other, make([]byte, 3*slowBytes)); err != nil || time.Since(from) < 2*slowPause {
			t.Errorf("%v after %v", err, time.Since(from))
		}
	})
}

func TestEveryFailureOccurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var silent, slow, cut int64
		for seed := range uint64(100) {
			l, _ := badLine(t)
			f := l.dev.fleet
			f.random = rand.New(rand.NewPCG(seed, 1))
			l.scheduleFailure(l.dev.random)
			<-l.closed
			silent, slow, cut = silent+f.stalled.Load(), slow+f.slow.Load(), cut+f.broken.Load()
		}
		if silent < 15 || slow < 8 || cut != 100 {
			t.Errorf("%d silent, %d slow, %d cut", silent, slow, cut)
		}
	})
}

func TestARunThatCannotEnrollSaysWhy(t *testing.T) {
	_, err := Run(t.Context(), Plan{Devices: 3}, Hooks{Dir: t.TempDir(), Link: func(context.Context, int) (string, error) {
		return "", watchword.Refuse(watchword.Denied, "not you")
	}})
	if watchword.CodeOf(err) != watchword.Denied {
		t.Errorf("%v", err)
	}
}

// An interrupt is also handled when the duration has passed and devices are awaited.
func TestInterruptDuringTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, interrupt := context.WithCancel(t.Context())
		from := time.Now()
		time.AfterFunc(2*time.Second, interrupt)
		_, err := Run(ctx, Plan{Devices: 1, Duration: time.Second}, Hooks{Dir: t.TempDir(), Link: func(ctx context.Context, _ int) (string, error) {
			<-ctx.Done()
			return "", ctx.Err()
		}})
		if d := time.Since(from); err != nil || d != 2*time.Second {
			t.Errorf("%v after %v", err, d)
		}
	})
}

// A connection that is or becomes stalled at the end is broken: its device is not counted as connected.
func TestStalledConnectionsAreNotCountedConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(50) {
			l, _ := badLine(t)
			f := l.dev.fleet
			f.random = rand.New(rand.NewPCG(seed, 1))
			l.dev.connected("mqtt")
			f.breaking.Store(false)
			l.scheduleFailure(l.dev.random)
			time.Sleep(time.Minute)
			if l.stalled.Load() && l.dev.currentTransport() != "" {
				t.Fatalf("seed %d: dead, and there", seed)
			}
			if f.stalled.Load() > f.broken.Load() {
				t.Errorf("%d silent of %d broken", f.stalled.Load(), f.broken.Load())
			}
			_ = l.Close()
		}
	})
}

func TestAConnectionBreaksOnce(t *testing.T) {
	l, _ := badLine(t)
	l.breakConn()
	l.breakConn()
	if n := l.dev.fleet.broken.Load(); n != 1 {
		t.Errorf("%d", n)
	}
}
