package hostile

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"
)

// Device is a device under test: an object or a program, in any language. It is enrolled once,
// and may be started again after it was stopped. Its one function, [Function], writes the n of its arguments down where
// Acted finds it, and ends.
type Device interface {
	// Enroll makes it the device of a link.
	Enroll(ctx context.Context, link string) error
	// Start lets it obey until Stop.
	Start() error
	// Stop ends it, and returns an error where it had ended by itself, or does not end.
	Stop() error
	// Acted returns the n of each act, in their order.
	Acted() ([]int64, error)
}

// Forbidden is the least n of a command that no device may act on.
const Forbidden = 1_000_000

// Case is one way for a server, or for one who sits between, to be bad. Its functions are called
// from several goroutines. A function that is nil leaves its part to the good server.
type Case struct {
	// Name says what the server does; it is the name of a test.
	Name string
	// UnknownCA serves under a certificate of another authority, as one who sits between without any key.
	UnknownCA bool
	// Connection is given each connection before TLS, and reports whether it served it to its end.
	Connection func(s *Server, d Endpoint, c net.Conn) bool
	// Protocols is what the HTTPS door offers in TLS (ALPN); nil for HTTP/2 and HTTP/1.1.
	Protocols []string
	// Raw is given each connection after TLS, and reports whether it served it to its end.
	Raw func(s *Server, d Endpoint, c *tls.Conn) bool
	// Request answers a request, or reports false and leaves it to the good server.
	Request func(s *Server, w http.ResponseWriter, r *http.Request) bool
	// Session is an MQTT connection, from before CONNECT to its end.
	Session func(m *Session)
	// Begin is called before anything of the case is served, and Check at its end; what Check
	// returns is a fault of the device.
	Begin func(s *Server)
	Check func(s *Server) error
	// Duration is how long the server is bad, where it takes longer than usual to show it.
	Duration time.Duration
	// KeepsConnections leaves the connections of the case as they are when the good server is back: the device
	// must give them up by itself.
	KeepsConnections bool
	// Bytes bounds what the device takes of one answer over HTTP, or from one connection where there is
	// no HTTP, where that is what the case is about; 0 for no bound. What the network holds for it
	// counts as taken.
	Bytes int64
	// Commands is how many good commands wait for the device during the case, to be done once each.
	Commands int
	// MayRestart says that the device may keep the receipts of Orders back, which its own server
	// refused, until it is started again.
	MayRestart bool
	// MustObey says that the device must do commands while the server is bad in this way.
	MustObey bool
	// RecoveryTime is how long after the good server's return the device may take to obey, where it is told
	// by its own server to wait for longer than a pause; 0 for [Limits.MaxPause].
	RecoveryTime time.Duration
	// Slow says that only virtual time is long enough to show it.
	Slow bool
}

// Limits is what a device must hold in each case.
type Limits struct {
	// Duration is how long the server is bad, unless the case says more.
	Duration time.Duration
	// MaxPause is the device's longest pause, and Deadline the longest that it waits for one answer.
	// It must have obeyed that long after the good server's return: after Pause, and where
	// connections stayed open after both.
	MaxPause, Deadline time.Duration
	// PerSecond and Minute bound the connections and requests together, in any second and any minute.
	PerSecond, PerMinute int
}

// Standard is what a device in this process must hold, in virtual time.
var Standard = Limits{Duration: 2 * time.Minute, MaxPause: 65 * time.Second, Deadline: 95 * time.Second, PerSecond: 30, PerMinute: 240}

// Outcome is what was seen of a device in one case.
type Outcome struct {
	Attempts             int           // connections and requests while the server was bad
	PerSecond, PerMinute int           // the most of them in any second and any minute
	Largest              int64         // bytes that it took of one answer or connection, at most
	RecoveryTime         time.Duration // from the good server's return to the receipt of the next command
}

// Run lets a device that has enrolled and runs meet one case, and returns what it did not hold. The
// server is good before and after; in the middle of the case the device is stopped and started, so
// that it meets the case on its way and at its start. ctx ends it early.
func (c *Case) Run(ctx context.Context, s *Server, d Device, l Limits) (out Outcome, err error) {
	if err := s.waitForCommand(ctx, s.Order(), l.MaxPause+l.Deadline); err != nil {
		return out, errors.Join(fmt.Errorf("before the case: %w", err), s.compare(d))
	}
	if c.Begin != nil {
		c.Begin(s)
	}
	var orders []*Command
	s.Switch(c)
	for range c.Commands {
		orders = append(orders, s.Order())
	}
	s.resetCounts()
	var errs []error
	lasts := max(l.Duration, c.Duration)
	for _, again := range []bool{true, false} {
		if c.MustObey {
			if err := s.waitForCommand(ctx, s.Order(), l.MaxPause); err != nil {
				errs = append(errs, fmt.Errorf("while the server is bad: %w", err))
			}
		}
		if err := sleep(ctx, lasts/2); err != nil {
			return out, err
		}
		if again { // it meets the case at its start too
			if err := errors.Join(d.Stop(), d.Start()); err != nil {
				return out, errors.Join(err, s.compare(d))
			}
		}
	}
	out = s.counts()
	if c.Check != nil {
		errs = append(errs, c.Check(s))
	}
	s.Switch(nil)
	within := max(l.MaxPause, c.RecoveryTime)
	if c.KeepsConnections {
		within += l.Deadline
	}
	back := time.Now()
	if err := s.waitForCommand(ctx, s.Order(), within); err != nil {
		errs = append(errs, fmt.Errorf("after the good server's return: %w", err))
	}
	out.RecoveryTime = time.Since(back)
	if c.MayRestart {
		if err := errors.Join(d.Stop(), d.Start()); err != nil {
			return out, errors.Join(err, s.compare(d))
		}
		back = time.Now()
	}
	for _, o := range orders {
		if err := s.waitForCommand(ctx, o, within-time.Since(back)); err != nil {
			errs = append(errs, fmt.Errorf("of the case, after the good server's return: %w", err))
		}
	}
	s.Cut() // of what stayed
	errs = append(errs, out.check(c, l), s.compare(d))
	return out, errors.Join(errs...)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// waitForCommand waits until the device has done a command.
func (s *Server) waitForCommand(ctx context.Context, o *Command, within time.Duration) error {
	t := time.NewTimer(max(within, time.Second))
	defer t.Stop()
	select {
	case <-o.Done:
		return nil
	case <-t.C:
		return fmt.Errorf("command %d was not done within %v", o.N, within)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// resetCounts counts anew.
func (s *Server) resetCounts() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attempts, s.largest = nil, 0
}

// counts returns what was counted.
func (s *Server) counts() Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Outcome{Attempts: len(s.attempts), PerSecond: most(s.attempts, time.Second), PerMinute: most(s.attempts, time.Minute), Largest: s.largest}
	for c := range s.connections {
		if !c.web {
			out.Largest = max(out.Largest, c.took.Load())
		}
	}
	return out
}

// most is how many of ts lie within one span.
func most(ts []time.Time, span time.Duration) (n int) {
	for from, to := 0, 0; to < len(ts); to++ {
		for ts[to].Sub(ts[from]) >= span {
			from++
		}
		n = max(n, to-from+1)
	}
	return n
}

func (o Outcome) check(c *Case, l Limits) error {
	var errs []error
	if o.PerSecond > l.PerSecond {
		errs = append(errs, fmt.Errorf("%d connections and requests in a second, and %d are the most", o.PerSecond, l.PerSecond))
	}
	if o.PerMinute > l.PerMinute {
		errs = append(errs, fmt.Errorf("%d connections and requests in a minute, and %d are the most", o.PerMinute, l.PerMinute))
	}
	if c.Bytes > 0 && o.Largest > c.Bytes {
		errs = append(errs, fmt.Errorf("it took %d bytes of one answer or connection, and %d are the most", o.Largest, c.Bytes))
	}
	return errors.Join(errs...)
}

// compare compares what the device did with what it was to do, so far.
func (s *Server) compare(d Device) error {
	acts, err := d.Acted()
	if err != nil {
		return err
	}
	var errs []error
	times := map[int64]int{}
	for _, n := range acts {
		times[n]++
		if n >= Forbidden {
			errs = append(errs, fmt.Errorf("it acted on %d, which no device may obey", n))
		}
		if times[n] == 2 {
			errs = append(errs, fmt.Errorf("it acted on %d twice", n))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.commands {
		if o.Done != nil && o.done && times[o.N] == 0 {
			errs = append(errs, fmt.Errorf("it signed for %d, and never acted on it", o.N))
		}
	}
	for _, p := range slices.Compact(slices.Clone(s.problems)) {
		errs = append(errs, errors.New(p))
	}
	s.problems = nil
	return errors.Join(errs...)
}
