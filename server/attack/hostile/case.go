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

// Device is a device under test: an object or a program, in any language. It is enrolled once, and
// may be restarted. Its only function, [Function], writes its argument n to where Acted finds it,
// and returns.
type Device interface {
	// Enroll enrolls the device with a link.
	Enroll(ctx context.Context, link string) error
	// Start runs the device until Stop.
	Start() error
	// Stop stops the device. It returns an error if it had ended by itself, or does not end.
	Stop() error
	// Acted returns the n of each execution, in order.
	Acted() ([]int64, error)
}

// Forbidden is the smallest n of commands that no device may execute.
const Forbidden = 1_000_000

// Case is one misbehaviour of a server, or of a man in the middle. Its functions are called from
// several goroutines. Where a function is nil, the good server answers.
type Case struct {
	// Name describes the misbehaviour; it is the name of a test.
	Name string
	// UnknownCA serves a certificate of another CA, like a man in the middle without keys.
	UnknownCA bool
	// Connection gets each connection before TLS, and reports whether it handled it completely.
	Connection func(s *Server, d Endpoint, c net.Conn) bool
	// Protocols is the ALPN protocols of the HTTPS endpoint; nil: HTTP/2 and HTTP/1.1.
	Protocols []string
	// Raw gets each connection after TLS, and reports whether it handled it completely.
	Raw func(s *Server, d Endpoint, c *tls.Conn) bool
	// Request answers a request, or returns false for the good server to answer it.
	Request func(s *Server, w http.ResponseWriter, r *http.Request) bool
	// Session handles an MQTT connection, from before CONNECT to its end.
	Session func(m *Session)
	// Begin is called before the case starts, and Check at its end; an error of Check is a fault of
	// the device.
	Begin func(s *Server)
	Check func(s *Server) error
	// Duration is how long the case lasts, where it needs longer than usual.
	Duration time.Duration
	// KeepsConnections keeps the connections of the case open when the good server returns: the
	// device must close them by itself.
	KeepsConnections bool
	// Bytes limits what the device may read of one HTTP answer, or of one connection without HTTP,
	// where the case is about that; 0: no limit. Bytes in the network's buffers count as read.
	Bytes int64
	// Commands is how many valid commands wait for the device during the case; each must be
	// executed once.
	Commands int
	// MayRestart says that the device may keep the receipts of Commands, which its own server
	// refused, until it is restarted.
	MayRestart bool
	// MustObey says that the device must execute commands during the case.
	MustObey bool
	// RecoveryTime is how long after the good server's return the device may take to execute a command, if its server told
	// the device to wait longer than a pause; 0: [Limits.MaxPause].
	RecoveryTime time.Duration
	// Slow marks a case that needs virtual time.
	Slow bool
}

// Limits is what a device must not exceed in each case.
type Limits struct {
	// Duration is how long a case lasts, unless it says otherwise.
	Duration time.Duration
	// MaxPause is the device's longest pause, and Deadline its longest wait for one answer. It must
	// have executed a command that long after the good server's return: after MaxPause, and where
	// connections stayed open after both.
	MaxPause, Deadline time.Duration
	// PerSecond and PerMinute limit the connections and requests together in any second and any
	// minute.
	PerSecond, PerMinute int
}

// Standard is the limits of a device in this process, in virtual time.
var Standard = Limits{Duration: 2 * time.Minute, MaxPause: 65 * time.Second, Deadline: 95 * time.Second, PerSecond: 30, PerMinute: 240}

// Outcome is what was measured of a device in one case.
type Outcome struct {
	Attempts             int           // connections and requests during the case
	PerSecond, PerMinute int           // maxima in any second and any minute
	Largest              int64         // most bytes read of one answer or connection
	RecoveryTime         time.Duration // from the good server's return to the receipt of the next command
}

// Run runs one case against an enrolled, running device, and returns which limits it exceeded. The
// server is good before and after; in the middle of the case the device is restarted, so that the
// case also meets its start. ctx ends it early.
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
		if again { // the case must meet a start too
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
	s.Cut() // connections of the case
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

// waitForCommand waits until the device has executed a command.
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

// resetCounts resets the counters.
func (s *Server) resetCounts() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attempts, s.largest = nil, 0
}

// counts returns the counters.
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

// most returns the largest number of ts within one span.
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

// compare compares the device's executions with the commands so far.
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
