package clockjump_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword/internal/clockjump"
)

func TestClockJumpIsReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var off atomic.Int64 // of the wall clock
		var told, back atomic.Int64
		w := clockjump.Start(func() time.Time { return time.Now().Add(time.Duration(off.Load())) }, func() { told.Add(1) }, func() { back.Add(1) })
		after := func(what string, jump time.Duration, want int64) {
			t.Helper()
			off.Add(int64(jump))
			time.Sleep(clockjump.Late)
			synctest.Wait()
			if got := told.Swap(0); got != want {
				t.Errorf("%s: told %d times, want %d", what, got, want)
			}
		}
		time.Sleep(time.Hour)
		after("an hour like any other", 0, 0)
		after("three hours ahead", 3*time.Hour, 1)
		after("then nothing", 0, 0)
		after("an hour back", -time.Hour, 0)
		if got := back.Swap(0); got != 1 {
			t.Errorf("an hour back: told %d times, want once", got)
		}
		after("then two seconds ahead", 2*time.Second, 1)
		after("a little", 150*time.Millisecond, 0)
		after("and a little more: both together are a jump", 150*time.Millisecond, 1)
		w.Stop()
		after("after its end", time.Hour, 0)
		after("back after its end", -time.Hour, 0)
		if got := back.Load(); got != 0 {
			t.Errorf("jumps ahead were reported as jumps back, or one after the end: %d", got)
		}
	})
}

// A test's clock does not advance unless the test advances it.
func TestStoppedClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Int64
		var told atomic.Int64
		w := clockjump.Start(func() time.Time { return time.Unix(now.Load(), 0) }, func() { told.Add(1) }, nil)
		defer w.Stop()
		time.Sleep(time.Hour)
		now.Add(1)
		time.Sleep(clockjump.Late)
		synctest.Wait()
		if got := told.Load(); got != 1 {
			t.Errorf("told %d times, want once", got)
		}
	})
}
