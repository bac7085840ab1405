package clock_test

import (
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/internal/clock"
)

const day = 24 * time.Hour

var start = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// machine is a machine whose clocks a test sets.
type machine struct {
	*testing.T
	true   time.Time     // the right time
	off    time.Duration // of the wall clock
	boot   time.Duration
	synced bool
	built  time.Time
	mark   clock.Mark
	clock  *clock.Clock
}

func (m *machine) source() clock.Source {
	return clock.Source{
		Wall: func() time.Time { return m.true.Add(m.off) }, Boot: func() time.Duration { return m.boot },
		Synchronized: func() bool { return m.synced },
	}
}

// start starts a server with the mark that the last one kept.
func (m *machine) start() {
	m.clock = clock.New(clock.Options{Source: m.source(), Built: m.built, Mark: m.mark})
}

// pass lets time pass, reading the clock each second as a server does for the first minutes, then each minute.
func (m *machine) pass(d time.Duration) {
	for d > 0 {
		by := min(d, time.Second)
		if d > 10*time.Minute {
			by = time.Minute
		}
		m.true, m.boot, d = m.true.Add(by), m.boot+by, d-by
		m.mark = m.clock.Read().Mark
	}
}

// down lets time pass without a server, and reboots.
func (m *machine) down(d time.Duration) {
	m.mark = m.clock.Read().Mark
	m.true, m.boot = m.true.Add(d), time.Minute
	m.start()
}

func (m *machine) wants(what string, reason clock.Reason) {
	m.Helper()
	st := m.clock.Read()
	if st.Reason != reason {
		m.Fatalf("%s: %q (the clock says %s, off by %s), want %q", what, st.Reason, st.Wall, m.off, reason)
	}
	code := watchword.ClockUntrusted
	if reason == "" {
		code = ""
	}
	if got := watchword.CodeOf(m.clock.Check()); got != code {
		m.Fatalf("%s: Check returns %q, want %q", what, got, code)
	}
	if (st.Explain() == "") != (reason == "") {
		m.Errorf("%s: explained as %q", what, st.Explain())
	}
}

// goesBy fails unless the time is off by no more than a second from the right one plus off.
func (m *machine) goesBy(what string, off time.Duration) {
	m.Helper()
	if got := m.clock.Now().Sub(m.true); (got - off).Abs() > time.Second {
		m.Fatalf("%s: the server's time is off by %s, want %s", what, got, off)
	}
}

// running returns a machine whose server has run for two days.
func running(t *testing.T, synced bool) *machine {
	m := &machine{T: t, true: start, boot: time.Hour, synced: synced, built: start.Add(-90 * day)}
	m.start()
	m.pass(2 * day)
	m.wants("after two good days", "")
	return m
}

func TestJumpsWhileTheServerRuns(t *testing.T) {
	for _, tc := range []struct {
		name   string
		off    time.Duration
		synced bool // during the jump
		want   clock.Reason
	}{
		{"an hour ahead is followed", time.Hour, false, ""},
		{"an hour and two seconds ahead is refused", time.Hour + 2*time.Second, false, clock.SteppedAhead},
		{"29 days ahead", 29 * day, false, clock.SteppedAhead},
		{"400 days ahead", 400 * day, false, clock.SteppedAhead},
		{"400 days ahead, and the kernel says synchronized", 400 * day, true, ""},
		{"59 seconds back is within the skew", -59 * time.Second, false, ""},
		{"an hour back", -time.Hour, false, clock.BehindMark},
		{"29 days back", -29 * day, false, clock.BehindMark},
		{"29 days back, and the kernel says synchronized", -29 * day, true, clock.BehindMark},
		{"400 days back", -400 * day, false, clock.BeforeBuild},
		{"1970", time.Unix(0, 0).Sub(start.Add(2 * day)), false, clock.BeforeBuild},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := running(t, false)
			m.off, m.synced = tc.off, tc.synced
			m.wants("at once", tc.want)
			m.pass(30 * time.Second)
			m.wants("after half a minute", tc.want)
			if tc.want == "" {
				m.goesBy("during the jump", tc.off)
			} else {
				m.goesBy("during the jump", 0)
			}
			m.off, m.synced = 0, false
			if !tc.synced {
				m.wants("once it is right", "")
				m.goesBy("once it is right", 0)
			}
			m.pass(time.Hour)
		})
	}
}

// A time that was trusted for a while without a confirmation is not binding: the clock may be set back to the right time.
func TestJumpsAcrossARestart(t *testing.T) {
	for _, tc := range []struct {
		name   string
		off    time.Duration
		synced bool
		want   clock.Reason
		by     time.Duration // what the server's time is off by
	}{
		{"an hour ahead", time.Hour, false, "", time.Hour},
		{"29 days ahead", 29 * day, false, "", 29 * day},
		{"31 days ahead", 31 * day, false, clock.AheadAtStart, -10 * time.Minute},
		{"400 days ahead", 400 * day, false, clock.AheadAtStart, -10 * time.Minute},
		{"400 days ahead, and synchronized", 400 * day, true, "", 400 * day},
		{"an hour back", -time.Hour, false, clock.BehindMark, -10 * time.Minute},
		{"29 days back", -29 * day, false, clock.BehindMark, -10 * time.Minute},
		{"1970", time.Unix(0, 0).Sub(start), false, clock.BeforeBuild, -10 * time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := running(t, false)
			m.off, m.synced = tc.off, tc.synced
			m.down(10 * time.Minute)
			m.wants("at the start", tc.want)
			m.goesBy("at the start", tc.by)
			m.pass(5 * time.Minute)
			m.wants("later", tc.want)
			m.goesBy("later", tc.by)
			if tc.synced {
				return // the kernel was trusted, and the mark followed
			}
			m.off = 0
			m.wants("once it is right", "")
			m.goesBy("once it is right", 0)
			m.pass(time.Minute)
			m.off = tc.off
			m.down(10 * time.Minute)
			m.off = 0
			m.down(time.Minute)
			m.wants("wrong again, and right after another restart", "")
		})
	}
}

// A first start has nothing to compare with but the build date.
func TestAFirstStart(t *testing.T) {
	m := &machine{T: t, true: start, off: time.Unix(0, 0).Sub(start), built: start.Add(-day)}
	m.start()
	m.wants("in 1970", clock.BeforeBuild)
	m.off = 0
	m.wants("then right", "")
	m.goesBy("then right", 0)

	m = &machine{T: t, true: start, off: 29 * day}
	m.start()
	m.wants("ahead, with nothing to know it by", "")
	m.pass(time.Hour)
	m.off = 0
	m.wants("then right", "")
	m.goesBy("then right", 0)

	m = &machine{T: t, true: start, off: time.Unix(0, 0).Sub(start)} // no build date
	m.start()
	m.wants("in 1970, and nothing says otherwise", "")
	m.off, m.synced = 0, true
	m.wants("then a time service sets it", "")
}

// The mark follows the clock where a time service disciplines it, and after a day without a step.
func TestTheMarkFollowsWhatIsConfirmed(t *testing.T) {
	m := running(t, false)
	if lag := m.true.Sub(m.mark.Certain); lag > 2*time.Minute {
		t.Errorf("after two days without a step the mark lags by %s", lag)
	}
	m.down(5 * day)
	m.pass(time.Hour)
	if lag := m.true.Sub(m.mark.Certain); lag < 5*day-time.Hour || m.mark.Newest != m.true {
		t.Errorf("an hour after a start the mark lags by %s, and the newest time is %s", lag, m.mark.Newest)
	}
	m.synced = true
	m.pass(2 * time.Minute)
	if lag := m.true.Sub(m.mark.Certain); lag > 2*time.Minute {
		t.Errorf("with a time service the mark lags by %s", lag)
	}
	m.synced = false
	m.down(5 * day)
	m.pass(25 * time.Hour)
	if lag := m.true.Sub(m.mark.Certain); lag > 2*time.Minute {
		t.Errorf("after a day without a step the mark lags by %s", lag)
	}
	before := m.mark.Certain
	m.off = -time.Hour
	m.pass(10 * time.Minute)
	if m.mark.Certain != before {
		t.Error("the mark moved while the clock was not trusted")
	}
	m.off = -10 * time.Minute
	m.pass(10 * time.Minute)
	m.wants("a clock that was set back by ten minutes, ten minutes later", "")
}

// A machine that was suspended, and one that is off each night, have good clocks.
func TestTimeThatPassesUnseen(t *testing.T) {
	m := running(t, false)
	m.true, m.boot = m.true.Add(20*day), m.boot+20*day
	m.wants("after twenty days of suspension", "")
	for range 90 {
		m.pass(12 * time.Hour)
		m.down(12 * time.Hour)
		m.wants("in the morning", "")
	}
}

func TestAnOperatorAccepts(t *testing.T) {
	m := running(t, false)
	m.off = 400 * day
	m.wants("ahead", clock.SteppedAhead)
	m.clock.Accept()
	m.wants("accepted", "")
	m.goesBy("accepted", 400*day)
	m.pass(time.Minute)
	m.down(time.Minute)
	m.wants("after a restart", "")
	m.off = 0
	m.wants("it was wrong all the same", clock.BehindMark)
	m.goesBy("it was wrong all the same", 400*day)
	m.clock.Accept()
	m.wants("accepted too", "")
	m.goesBy("accepted too", 0)
	m.off = -200 * day
	m.clock.Accept()
	m.wants("before the build date it cannot be accepted", clock.BeforeBuild)
}

// The clocks of this machine agree with themselves, and Now is the time of day.
func TestTheClocksOfThisMachine(t *testing.T) {
	c := clock.New(clock.Options{})
	for range 1000 {
		if off := time.Since(c.Now()); off < 0 || off > 10*time.Second {
			t.Fatalf("the time is off by %s", off)
		}
	}
	if err := c.Check(); err != nil {
		t.Error(err)
	}
	c = clock.New(clock.Options{Mark: clock.Mark{Certain: time.Now().Add(day), Newest: time.Now().Add(day)}})
	if got := watchword.CodeOf(c.Check()); got != watchword.ClockUntrusted {
		t.Errorf("behind the mark by a day: %q", got)
	}
	if ahead := time.Until(c.Now()); ahead < day-time.Minute {
		t.Errorf("the time is %s ahead of the clock, want a day", ahead)
	}
}
