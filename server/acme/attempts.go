package acme

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
	"unicode"

	xacme "golang.org/x/crypto/acme"

	"github.com/watchword-iot/watchword/internal/truncate"
)

// How long after a failure the next order is made: the first wait doubles with each failure. An authority that limits the rate may ask
// for more.
const (
	firstWait   = time.Minute
	longestWait = 6 * time.Hour
	longestRate = 7 * 24 * time.Hour
)

// How long after a success the next order is made at the earliest, for an authority whose certificates are to be renewed at once: a
// quarter of their life, within these limits.
const (
	shortestRest = 10 * time.Second
	longestRest  = time.Hour
)

// attempts are the orders since the last success, or that success where Failures is 0. They are in a file, so that a server that starts
// again and again makes no more orders than one that runs on.
type attempts struct {
	Directory string    `json:"directory"`
	Names     []string  `json:"names"`
	Failures  int       `json:"failures"`
	Error     string    `json:"error,omitempty"`
	Tried     time.Time `json:"tried"`
	Next      time.Time `json:"next"`
	Limited   bool      `json:"limited,omitempty"` // the authority asked for the wait
}

// waitAfter returns the wait after so many failures, 1 or more, of which the last one is err.
func waitAfter(failures int, err error) time.Duration {
	wait := longestWait
	if n := failures - 1; n < 10 {
		wait = min(firstWait<<n, longestWait)
	}
	if d, limited := rateLimit(err); limited {
		wait = max(wait, min(d, longestRate))
	}
	return wait
}

// rateLimit returns for how long an authority that limits the rate wants no order.
func rateLimit(err error) (time.Duration, bool) {
	if e, ok := errors.AsType[*xacme.Error](err); ok {
		return xacme.RateLimit(e)
	}
	return 0, false
}

// heldUntil returns until when no order is made after the last one. The time of an order that is in the future is of a clock that was
// ahead, and holds nothing.
func (m *Manager) heldUntil(now time.Time) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now.Before(m.state.Tried) {
		return time.Time{}
	}
	return m.state.Next
}

// Retry has an order that is held after a failure made at once, unless the authority itself asked for the wait: a person has corrected
// what it needs. The next wait, if it fails again, is as long as it would have been.
func (m *Manager) Retry() {
	m.mu.Lock()
	if m.state.Failures > 0 && !m.state.Limited {
		m.state.Next = time.Time{}
	}
	m.mu.Unlock()
	m.Wake()
}

// failed notes an order that failed.
func (m *Manager) failed(err error, now time.Time) {
	m.mu.Lock()
	n := m.state.Failures + 1
	wait := waitAfter(n, err)
	wait += time.Duration(rand.Int64N(int64(wait)/10 + 1)) // servers that fail together do not come again together
	_, limited := rateLimit(err)
	m.state = attempts{m.c.Directory, m.c.Names, n, errorText(err), now, now.Add(wait).Truncate(time.Second), limited}
	state, c := m.state, m.cert
	m.mu.Unlock()
	line, attrs := "the authority issued no certificate: clients get the server's own one", []any{
		slog.Any("names", m.c.Names), slog.String("directory", m.c.Directory), slog.Int("failures", n), slog.Time("next", state.Next), slog.String("err", state.Error),
	}
	if c != nil {
		line, attrs = "the certificate was not renewed", append(attrs, slog.Time("not_after", c.leaf().NotAfter))
	}
	if c == nil || m.Status().Late(now) {
		m.o.Log.Error(line, attrs...)
	} else {
		m.o.Log.Warn(line, attrs...)
	}
	m.store(AttemptsFile, state)
}

// succeeded notes an order that succeeded.
func (m *Manager) succeeded(c *certificate, now time.Time) {
	life := c.leaf().NotAfter.Sub(c.leaf().NotBefore)
	m.mu.Lock()
	m.window = renewalWindow{}
	m.state = attempts{Directory: m.c.Directory, Names: m.c.Names, Tried: now, Next: now.Add(min(max(life/4, shortestRest), longestRest))}
	state := m.state
	m.mu.Unlock()
	m.store(AttemptsFile, state)
	m.o.Log.Info("the authority issued a certificate, which is in use", slog.Any("names", m.c.Names), slog.String("directory", m.c.Directory),
		slog.Time("not_before", c.leaf().NotBefore), slog.Time("not_after", c.leaf().NotAfter), slog.Time("now", now))
}

// of reports whether the attempts are those of a configuration: another one is tried at once.
func (a attempts) of(c Config) bool {
	return a.Directory == c.Directory && slices.Equal(a.Names, c.Names)
}

// errorText returns the text of an error in one line of at most 400 bytes. The authority, which is authenticated, chose a part of it.
func errorText(err error) string {
	line := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, err.Error())
	return truncate.Text(line, 400)
}
