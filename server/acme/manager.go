package acme

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Config says which certificate is ordered, and of whom.
type Config struct {
	Directory string   // URL of the authority's directory (RFC 8555 §7.1.1): https
	Names     []string // DNS names of the certificate, in their canonical form; at least one
	Email     string   // contact of the account; empty: none
	HTTP      bool     // validations by HTTP-01 (RFC 8555 §8.3) in place of TLS-ALPN-01 (RFC 8737)
	External  *External
}

// External is the account at the authority that the ACME account is bound to (RFC 8555 §7.3.4).
type External struct {
	KID string
	Key []byte // of HMAC-SHA-256
}

// Options holds what a manager needs beside its configuration. All are required but Roots.
type Options struct {
	Dir        string         // folder of its files, private to this process's user
	Roots      *x509.CertPool // authorities that clients trust, and that certify the directory's host; nil: the system's
	Now        func() time.Time
	CheckClock func() error // an error while the time is not trusted
	Log        *slog.Logger
}

// lookEvery is how often the manager compares the time with what is due: the clock may be set.
const lookEvery = time.Second

// Manager keeps one certificate. Make one with [New]. It is safe for concurrent use.
type Manager struct {
	c    Config
	o    Options
	http *http.Client
	wake chan struct{}

	challenge atomic.Pointer[challenge] // of the validation in progress; nil: none
	account   account                   // used by Run alone

	mu     sync.Mutex
	cert   *certificate // nil: none
	window renewalWindow
	state  attempts
}

// New returns a manager with the account and the certificate that are in the folder. It sends no request. Codes: key_exposed,
// file_untrusted, unavailable.
func New(c Config, o Options) (*Manager, error) {
	m := &Manager{c: c, o: o, wake: make(chan struct{}, 1)}
	m.http = newHTTPClient(o.Roots, o.Now)
	return m, m.load()
}

// Wake has Run look at once at what is due.
func (m *Manager) Wake() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Run orders and renews until ctx ends. It returns nil.
func (m *Manager) Run(ctx context.Context) error {
	for {
		t := time.NewTimer(min(max(m.step(ctx), 0), lookEvery))
		select {
		case <-t.C:
		case <-m.wake:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		t.Stop()
	}
}

// step orders a certificate if that is due, and returns for how long nothing will be due.
func (m *Manager) step(ctx context.Context) time.Duration {
	if m.o.CheckClock() != nil {
		return lookEvery // the server says so
	}
	now := m.o.Now()
	m.look(ctx, now)
	due, held := m.due(now), m.heldUntil(now)
	if due.Before(held) {
		due = held
	}
	if now.Before(due) {
		return due.Sub(now)
	}
	c, err := m.order(ctx)
	if err != nil && ctx.Err() != nil { // the server ends: this says nothing of the authority
		return lookEvery
	}
	now = m.o.Now()
	if err == nil {
		err = m.use(c)
	}
	if err != nil {
		m.failed(err, now)
		return 0
	}
	m.succeeded(c, now)
	return 0
}

// due returns when a certificate is to be ordered; zero: now.
func (m *Manager) due(now time.Time) time.Time {
	m.mu.Lock()
	c, w := m.cert, m.window
	m.mu.Unlock()
	if c == nil || !c.covers(m.c.Names) || !now.Before(c.leaf().NotAfter) {
		return time.Time{}
	}
	return c.renewAt(w)
}

// Status is where a certificate stands.
type Status struct {
	NotBefore, NotAfter time.Time // of the certificate; zero: there is none
	Renew               time.Time // when it is to be renewed
	Missing             []string  // configured names that it is not for
	Failures            int       // orders that failed since the last one that succeeded
	Err                 string    // of the last one
	Next                time.Time // when the next one is made
}

// Late reports whether the certificate ends soon, or has ended, and should have been renewed long before: half of the time for a
// renewal has passed, or a week is left.
func (s Status) Late(now time.Time) bool {
	return !s.NotAfter.IsZero() && !now.Before(s.NotAfter.Add(-lateBefore(s.NotAfter.Sub(s.NotBefore))))
}

// Status returns where the certificate stands.
func (m *Manager) Status() (s Status) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.Failures = m.state.Failures; s.Failures > 0 {
		s.Err, s.Next = m.state.Error, m.state.Next
	}
	if m.cert == nil {
		s.Missing = slices.Clone(m.c.Names)
		return s
	}
	leaf := m.cert.leaf()
	s.NotBefore, s.NotAfter, s.Renew, s.Missing = leaf.NotBefore, leaf.NotAfter, m.cert.renewAt(m.window), m.cert.missing(m.c.Names)
	return s
}
