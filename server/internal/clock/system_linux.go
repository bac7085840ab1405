package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootTime returns CLOCK_BOOTTIME: the time since boot, also while the machine was suspended.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil { // the kernel has it since 2.6.39
		return monotonic()
	}
	return time.Duration(ts.Nano())
}

// timeError is the state of an unsynchronized clock (adjtimex(2), TIME_ERROR).
const timeError = 5

// synchronized reports whether the kernel says that a time service disciplines the wall clock. The kernel clears it when the
// clock is set.
func synchronized() bool {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return err == nil && state != timeError && t.Status&unix.STA_UNSYNC == 0
}
