// Package clock decides whether the wall clock of the server's machine may be used for what is signed. It compares the wall clock
// with the boot clock, the build date of the program and a mark that is kept from one start to the next ([State.Next] has the
// rules), and returns the time: that of the wall clock while it is trusted, and else that of the boot clock from the last trusted
// reading on. It refuses, with clock_untrusted, to vouch for a wall clock that fails a rule.
package clock

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
)

// Source reads the clocks of a machine. Wall is required. Without Boot the wall clock is its own measure: no step is seen, and it
// counts as synchronized.
type Source struct {
	Wall         func() time.Time
	Boot         func() time.Duration
	Synchronized func() bool // nil: never, or always where Boot is nil
}

// Options is what a [Clock] needs. The zero value reads the clocks of this machine, and knows no build date and no mark.
type Options struct {
	Source Source    // the zero value is the clocks of this machine
	Built  time.Time // build date of the program; zero: not checked
	Mark   Mark      // of the run before
}

// Clock is the clock of a server. It is safe for concurrent use.
type Clock struct {
	source Source
	built  time.Time
	system bool // source is the clocks of this machine

	mu    sync.Mutex
	state State
	quick atomic.Pointer[time.Time] // a trusted reading of the system's clocks, with the monotonic one; nil: not trusted
}

// New returns a clock, and reads it once.
func New(o Options) *Clock {
	c := &Clock{source: o.Source, built: o.Built, state: State{Mark: o.Mark}}
	if c.source.Wall == nil {
		c.source, c.system = Source{Wall: time.Now, Boot: bootTime, Synchronized: synchronized}, true
	}
	if c.source.Boot == nil {
		wall := c.source.Wall
		c.source.Boot = func() time.Duration { return time.Duration(wall().UnixNano()) }
		if c.source.Synchronized == nil {
			c.source.Synchronized = func() bool { return true }
		}
	}
	if c.source.Synchronized == nil {
		c.source.Synchronized = func() bool { return false }
	}
	c.Read()
	return c
}

// Limits within which [Clock.Now] compares the wall clock with the monotonic clock, which is cheaper to read than the boot clock.
const (
	quickAge  = time.Minute
	quickStep = 500 * time.Millisecond
)

// Now returns the time: the wall clock's while it is trusted, and else that of the last trusted reading plus what has passed by the
// boot clock. A step of the wall clock is seen in the call that first reads it.
func (c *Clock) Now() time.Time {
	if last := c.quick.Load(); last != nil {
		now := time.Now()
		age := now.Sub(*last) // by the monotonic clock
		if moved := now.Round(0).Sub(last.Round(0)) - age; age < quickAge && moved.Abs() < quickStep {
			return now
		}
	}
	return c.Read().Time
}

// Status is what [Clock.Read] found.
type Status struct {
	Time   time.Time // as of [Clock.Now]
	Wall   time.Time // what the wall clock says
	Reason Reason    // empty: it is trusted
	Mark   Mark
}

// Read reads the clocks and applies the rules.
func (c *Clock) Read() Status { return c.read(State.Next) }

// Accept makes the clock trust the wall clock as it is now. See [State.Accept].
func (c *Clock) Accept() Status { return c.read(State.Accept) }

func (c *Clock) read(rule func(State, Reading, time.Time) State) Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	var now time.Time
	if c.system {
		now = time.Now()
	}
	r := Reading{Wall: c.source.Wall().Round(0), Boot: c.source.Boot(), Synchronized: c.source.Synchronized}
	c.state = rule(c.state, r, c.built)
	st := Status{Time: r.Wall, Wall: r.Wall, Reason: c.state.Reason, Mark: c.state.Mark}
	if st.Reason != "" {
		st.Time = c.state.At(r.Boot)
	}
	switch {
	case !c.system:
	case st.Reason != "":
		c.quick.Store(nil)
	default:
		c.quick.Store(&now)
	}
	return st
}

// Check returns nil while the wall clock is trusted. It reads the clocks in each call. Code: clock_untrusted.
func (c *Clock) Check() error { return c.Read().Err() }

// Err returns nil where the wall clock is trusted. Code: clock_untrusted.
func (s Status) Err() error {
	if s.Reason == "" {
		return nil
	}
	return &watchword.Error{
		Code:       watchword.ClockUntrusted,
		Detail:     "the clock of the server's machine is not trusted (" + s.Explain() + "): trust bundles, certificates and signed time are not issued until the clock is set right, or accepted with watchword clock accept",
		RetryAfter: 10 * time.Second,
	}
}

// Explain says in words why the wall clock is not trusted; empty where it is.
func (s Status) Explain() string {
	at := s.Wall.UTC().Format(time.RFC3339)
	switch s.Reason {
	case BeforeBuild:
		return "it says " + at + ", which is before this program was built"
	case BehindMark:
		return "it says " + at + ", which is before " + s.Mark.Certain.UTC().Format(time.RFC3339) + ", a time that has passed already"
	case SteppedAhead:
		return "it was set ahead to " + at + "; by the time since boot it is " + s.Time.UTC().Format(time.RFC3339)
	case AheadAtStart:
		return "it says " + at + ", more than 30 days after the server ran last, and the kernel does not say that it is synchronized"
	}
	return ""
}
