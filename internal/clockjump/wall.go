// Package clockjump tells when the wall clock has run ahead of the timers: after a
// suspended machine or a paused virtual machine goes on, and where the clock was set
// forward. Timers count monotonic time, which stands still meanwhile; what ends at a
// time of day must not end that much later.
package clockjump

import (
	"sync"
	"time"
)

const (
	step  = 250 * time.Millisecond // between two looks, in monotonic time
	slack = 250 * time.Millisecond // apart by less is the reading of two clocks, and slewing
)

// Late bounds how long after the end of a jump, in monotonic time, a watch tells of it.
const Late = step + slack

// Watch is one who is told. Stop it.
type Watch struct {
	now   func() time.Time
	ahead func()

	mu      sync.Mutex
	stopped bool
	timer   *time.Timer
	wall    time.Time // without a monotonic reading
	mono    time.Time
}

// Start calls ahead within [Late] after now has run ahead of the monotonic clock, each
// time that it does. ahead runs in a goroutine of its own, never twice at once.
func Start(now func() time.Time, ahead func()) *Watch {
	w := &Watch{now: now, ahead: ahead, wall: now().Round(0), mono: time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(step, w.look)
	return w
}

func (w *Watch) look() {
	wall, mono := w.now().Round(0), time.Now()
	apart := wall.Sub(w.wall) - mono.Sub(w.mono)
	if apart.Abs() > slack {
		// A clock that was set back delays nothing: timers that fire too early look again.
		w.wall, w.mono = wall, mono
	}
	if apart > slack {
		w.ahead()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stopped {
		w.timer.Reset(step)
	}
}

// Stop ends the watch. ahead may be running, and is not waited for.
func (w *Watch) Stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.timer.Stop()
}
