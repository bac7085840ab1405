package server

import (
	"context"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/internal/clock"
)

// clockEvery is how often the clocks are compared, beside the acts that ask: a clock that is right again is trusted, and what was
// due meanwhile is done, within that time.
const clockEvery = time.Second

// openClock makes the server's clock with the mark of the run before. From here on Options.Now is its time.
func (s *Server) openClock(ctx context.Context) error {
	mark, err := s.store.ClockMark(ctx)
	if err != nil {
		return err
	}
	s.clock = clock.New(clock.Options{
		Source: clock.Source{Wall: s.o.clock, Boot: s.o.Boot, Synchronized: s.o.Synchronized}, Built: s.o.Built, Mark: mark,
	})
	s.markWritten = mark
	s.o.Now = func() time.Time { return s.clock.Now().Truncate(time.Millisecond) }
	return nil
}

// buildDate returns the time of the commit that the program was built from; zero where the toolchain did not write it down.
func buildDate() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			at, err := time.Parse(time.RFC3339, s.Value)
			if err == nil {
				return at
			}
		}
	}
	return time.Time{}
}

// watchClock says when the clock is not trusted, and when it is trusted again, in the process log and the audit log, and keeps the
// mark. It writes the mark once more when ctx ends.
func (s *Server) watchClock(ctx context.Context) error {
	tick := time.NewTicker(clockEvery)
	defer tick.Stop()
	var last clock.Reason
	for {
		if st := s.clock.Read(); st.Reason != last {
			s.clockChanged(ctx, st)
			last = st.Reason
		}
		s.keepMark(ctx, clock.MarkEvery)
		if !s.keys.AuthorityValid(s.o.Now()) {
			s.maintainSoon()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.keepMark(context.WithoutCancel(ctx), 0)
			return nil
		}
	}
}

// clockChanged reports another state of the clock, and has done what is due under a clock that is trusted again.
func (s *Server) clockChanged(ctx context.Context, st clock.Status) {
	kind, data := audit.ClockTrust, map[string]string{"wall": st.Wall.UTC().Format(time.RFC3339)}
	if st.Reason != "" {
		kind, data["reason"], data["mark"] = audit.ClockRefuse, string(st.Reason), st.Mark.Certain.UTC().Format(time.RFC3339)
		s.o.Log.ErrorContext(ctx, "the clock of this machine is not trusted: no trust bundle, certificate or time is signed; set it, or accept it as it is with watchword clock accept",
			slog.String("reason", string(st.Reason)), slog.String("why", st.Explain()), slog.Time("wall", st.Wall), slog.Time("time", st.Time))
	} else {
		s.o.Log.InfoContext(ctx, "the clock of this machine is trusted again", slog.Time("wall", st.Wall))
		s.maintainSoon()
		if s.acme != nil {
			s.acme.Wake()
		}
	}
	e := audit.Actor{Tenant: watchword.DefaultTenant}.DoneEntry(kind, "", s.o.Now(), data)
	if err := s.store.AddEntry(ctx, e); err != nil && ctx.Err() == nil {
		s.o.Log.ErrorContext(ctx, "audit entry not written", slog.String("kind", kind), slog.Any("err", err))
	}
}

// maintainSoon has [Server.maintain] do at once what is due.
func (s *Server) maintainSoon() {
	select {
	case s.maintainNow <- struct{}{}:
	default:
	}
}

// keepMark writes the mark where it has moved by more than least since it was written.
func (s *Server) keepMark(ctx context.Context, least time.Duration) {
	s.markMu.Lock()
	defer s.markMu.Unlock()
	st := s.clock.Read()
	if st.Reason != "" || st.Mark.Newest.Sub(s.markWritten.Newest).Abs() <= least {
		return
	}
	if err := s.store.SetClockMark(ctx, st.Mark); err != nil {
		if ctx.Err() == nil {
			s.o.Log.ErrorContext(ctx, "the mark of the clock was not written", slog.Any("err", err))
		}
		return
	}
	s.markWritten = st.Mark
}

// acceptClock vouches for the clock of this machine as it is now. Codes: clock_untrusted before the build date, unavailable.
func (s *Server) acceptClock(ctx context.Context) (clock.Status, error) {
	s.markMu.Lock()
	defer s.markMu.Unlock()
	before := s.clock.Read()
	st := s.clock.Accept()
	if err := st.Err(); err != nil {
		return st, err
	}
	e := operator().DoneEntry(audit.ClockAccept, "", st.Wall.Truncate(time.Millisecond), map[string]string{
		"reason": string(before.Reason), "time": before.Time.UTC().Format(time.RFC3339), "wall": st.Wall.UTC().Format(time.RFC3339), "mark": before.Mark.Certain.UTC().Format(time.RFC3339),
	})
	if err := s.store.SetClockMark(ctx, st.Mark, e); err != nil {
		return st, err
	}
	s.markWritten = st.Mark
	return st, nil
}
