package clock

import "time"

// Limits of the rules of [State.Next].
const (
	// MaxStep is how far the wall clock may step ahead of the boot clock while the server runs.
	MaxStep = time.Hour
	// MaxAheadAtStart is how far the wall clock may be ahead of the newest accepted time when the server starts.
	MaxAheadAtStart = 30 * 24 * time.Hour
	// Skew is how far the wall clock may be behind the mark.
	Skew = time.Minute
	// ConfirmAfter is how long, by the boot clock, the wall clock must run without a step before the mark follows it.
	ConfirmAfter = 24 * time.Hour
	// MarkEvery is how often the mark advances and is written.
	MarkEvery = time.Minute

	step = time.Second // smaller differences between wall and boot clock come from slewing
)

// Reason says why the wall clock is not trusted. The zero value means that it is.
type Reason string

// The reasons.
const (
	BeforeBuild  Reason = "before_build"   // before the build date of this program
	BehindMark   Reason = "behind_mark"    // behind the mark by more than [Skew]
	SteppedAhead Reason = "stepped_ahead"  // ahead of the boot clock by more than [MaxStep], while the server ran
	AheadAtStart Reason = "ahead_at_start" // ahead of the newest accepted time by more than [MaxAheadAtStart], when the server started
)

// Reading is the clocks of a machine at one moment.
type Reading struct {
	Wall time.Time     // the wall clock, without monotonic reading
	Boot time.Duration // since the machine booted, also while it was suspended
	// Synchronized reports whether a time service disciplines the wall clock. It is called where the answer matters.
	Synchronized func() bool
}

// Mark is what a server keeps of the time from one start to the next. The zero value is that of a new server.
type Mark struct {
	// Certain is a time that has certainly passed: the wall clock is not trusted before it. It grows with the boot clock. It follows
	// the wall clock where a time service disciplines it, or after [ConfirmAfter] without a step, or where an operator accepts it.
	Certain time.Time
	// Newest is the wall clock's time when it was trusted last. It may go back, but not before Certain.
	Newest time.Time
}

// State is what a [Clock] knows. It is a value: the rules change a copy. The zero value with a Mark is that of a start.
type State struct {
	Mark
	Reason Reason

	running  bool // the wall clock was trusted since the start
	started  bool // base is set
	base     time.Time
	baseBoot time.Duration // base is the time at this reading of the boot clock
	steady   time.Duration // reading of the boot clock at the last step
	markedAt time.Duration // reading of the boot clock when the mark advanced last
}

// At returns the time at a reading of the boot clock, counted by it from the last trusted reading of the wall clock; at a start
// whose wall clock is not trusted, from the newest time of the run before.
func (s State) At(boot time.Duration) time.Time { return s.base.Add(boot - s.baseBoot) }

// Next returns the state after a reading. built is the build date of the program; zero: not known, and not checked.
func (s State) Next(r Reading, built time.Time) State {
	if !s.started {
		s.started, s.base, s.baseBoot, s.steady, s.markedAt = true, s.Newest, r.Boot, r.Boot, r.Boot
		if s.base.IsZero() {
			s.base = r.Wall
		}
	}
	s.Reason = s.check(r, built)
	if s.Reason != "" {
		return s
	}
	if moved := r.Wall.Sub(s.At(r.Boot)); !s.running || moved.Abs() > step {
		s.steady = r.Boot
	}
	s.running, s.base, s.baseBoot, s.Newest = true, r.Wall, r.Boot, r.Wall
	if r.Boot-s.markedAt >= MarkEvery {
		s.advance(r)
	}
	return s
}

func (s State) check(r Reading, built time.Time) Reason {
	ahead, limit, reason := r.Wall.Sub(s.At(r.Boot)), MaxAheadAtStart, AheadAtStart
	if s.running {
		limit, reason = MaxStep, SteppedAhead
	}
	switch {
	case r.Wall.Before(built.Add(-Skew)):
		return BeforeBuild
	case r.Wall.Before(s.Certain.Add(-Skew)):
		return BehindMark
	case (s.running || !s.Newest.IsZero()) && ahead > limit && !r.Synchronized(): // a first start has nothing to be ahead of
		return reason
	}
	return ""
}

// advance moves the mark. While the wall clock is not trusted the mark stands: a wall clock that was set back by little is trusted
// again once it reaches the mark.
func (s *State) advance(r Reading) {
	certain := s.Certain
	switch {
	case r.Boot-s.steady >= ConfirmAfter || r.Synchronized():
		certain = r.Wall
	case !certain.IsZero(): // before the first confirmation nothing is certain
		certain = certain.Add(r.Boot - s.markedAt)
		if certain.After(r.Wall) {
			certain = r.Wall
		}
	}
	if certain.After(s.Certain) {
		s.Certain = certain
	}
	s.markedAt = r.Boot
}

// Accept returns the state after an operator vouched for the wall clock. The mark becomes its time, also where that is earlier. It
// changes nothing where the wall clock is before the build date.
func (s State) Accept(r Reading, built time.Time) State {
	if r.Wall.Before(built.Add(-Skew)) {
		return s.Next(r, built)
	}
	return State{
		Mark: Mark{Certain: r.Wall, Newest: r.Wall}, running: true, started: true,
		base: r.Wall, baseBoot: r.Boot, steady: r.Boot, markedAt: r.Boot,
	}
}
