// Package clockjump reports jumps of the wall clock against the monotonic clock: ahead after a machine was suspended or a
// virtual machine paused, and after the clock was set forward; back after it was set back. Timers use monotonic time, which
// does not advance meanwhile; what expires at a time of day must not expire that much later.
package clockjump

import (
	"sync"
	"time"
)

const (
	step  = 250 * time.Millisecond // interval of the checks, in monotonic time
	slack = 250 * time.Millisecond // smaller differences come from reading two clocks, and from slewing
)

// Late is the longest time, in monotonic time, from the end of a jump until a watch reports it.
const Late = step + slack

// Watch checks the clocks until Stop.
type Watch struct {
	now         func() time.Time
	ahead, back func() // nil: not called

	mu      sync.Mutex
	stopped bool
	timer   *time.Timer
	wall    time.Time // without monotonic reading
	mono    time.Time
}

// Start starts a watch that calls ahead within [Late] after now has jumped ahead of the monotonic
// clock, and back after it has jumped back. Either may be nil. Calls run in their own goroutine, one at
// a time.
func Start(now func() time.Time, ahead, back func()) *Watch {
	w := &Watch{now: now, ahead: ahead, back: back, wall: now().Round(0), mono: time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(step, w.look)
	return w
}

func (w *Watch) look() {
	wall, mono := w.now().Round(0), time.Now()
	apart := wall.Sub(w.wall) - mono.Sub(w.mono)
	if apart.Abs() > slack {
		w.wall, w.mono = wall, mono
	}
	switch {
	case apart > slack && w.ahead != nil:
		w.ahead()
	case apart < -slack && w.back != nil:
		w.back()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stopped {
		w.timer.Reset(step)
	}
}

// Stop ends the watch. It does not wait for a running call.
func (w *Watch) Stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.timer.Stop()
}
