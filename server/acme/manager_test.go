package acme_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/server/acme"
)

// client is a manager with listeners for validations.
type client struct {
	*acme.Manager
	t     *testing.T
	name  string // its first one
	dir   string
	at    *validations // where it is validated; nil: nowhere
	stop  context.CancelFunc
	ended chan error
	ahead *atomic.Int64 // how far its clock is ahead of the real one
}

func (c *client) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// pool returns the public authorities, the issuing one of which is Pebble's, and that of a front.
func (f *front) pool(t *testing.T) *x509.CertPool {
	t.Helper()
	p, err := x509.SystemCertPool()
	must(t, err)
	p.AppendCertsFromPEM(f.ca)
	return p
}

// newClient makes a manager with its files in dir. It does not run.
func newClient(t *testing.T, f *front, dir string, change func(*acme.Config, *acme.Options)) *client {
	t.Helper()
	c := &client{t: t, name: nameOf(t), dir: dir, ahead: &atomic.Int64{}, ended: make(chan error, 1)}
	conf := acme.Config{Directory: f.directory, Names: []string{c.name}}
	o := acme.Options{Dir: dir, Roots: f.pool(t), Now: c.now, CheckClock: func() error { return nil }, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&conf, &o)
	}
	var err error
	c.Manager, err = acme.New(conf, o)
	must(t, err)
	return c
}

// run runs the manager until stop, which waits for its end.
func (c *client) run() {
	if c.at != nil {
		c.at.set(c.name, c.Manager)
		c.at.set("mqtt-"+c.name, c.Manager)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { c.ended <- c.Manager.Run(ctx) }()
	done := false
	c.stop = func() {
		if !done {
			done = true
			cancel()
			must(c.t, testwait.For(c.t, "the end of the manager", c.ended))
		}
	}
	c.t.Cleanup(c.stop)
}

// validations are the listeners at the ports where the authority looks, for the managers of all cases.
type validations struct {
	mu sync.Mutex
	by map[string]*acme.Manager
}

// of returns the manager that is validated for a name.
func (v *validations) of(name string) *acme.Manager {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.by[name]
}

func (v *validations) set(name string, m *acme.Manager) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.by[name] = m
}

func (a *authority) listen(t *testing.T) *validations {
	t.Helper()
	v := &validations{by: map[string]*acme.Manager{}}
	own, err := tls.X509KeyPair(a.ownCA, a.ownKey)
	must(t, err)
	l, err := tls.Listen("tcp", "localhost:"+a.tlsPort, &tls.Config{
		Certificates: []tls.Certificate{own}, NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			if m := v.of(h.ServerName); m != nil {
				return m.ChallengeConfig(h), nil
			}
			return nil, nil
		},
	})
	must(t, err)
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = nc.(*tls.Conn).Handshake(); _ = nc.Close() }() // the authority says what was wrong
		}
	}()
	plain, err := net.Listen("tcp", "localhost:"+a.httpPort)
	must(t, err)
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := strings.Cut(r.Host, ":")
		if m := v.of(host); m != nil {
			m.ServeHTTP(w, r)
			return
		}
		w.WriteHeader(http.StatusMisdirectedRequest)
	})}
	go func() { _ = s.Serve(plain) }()
	t.Cleanup(func() { _, _ = l.Close(), s.Close() })
	return v
}

// nameOf returns a name for a case, since they run in parallel.
func nameOf(t *testing.T) string {
	h := fnv.New32()
	_, _ = h.Write([]byte(t.Name())) // a hash returns no error
	return fmt.Sprintf("h%x.example", h.Sum32())
}

// until waits for a state.
func (c *client) until(what string, is func(acme.Status) bool) acme.Status {
	c.t.Helper()
	for wait := testwait.Within(); ; pause() {
		s := c.Status()
		if is(s) {
			return s
		}
		wait.Check(c.t, fmt.Sprintf("%s: %+v", what, s))
	}
}

func issued(s acme.Status) bool { return !s.NotAfter.IsZero() && len(s.Missing) == 0 }

// failed returns whether as many orders failed.
func failed(n int) func(acme.Status) bool { return func(s acme.Status) bool { return s.Failures == n } }

func (c *client) leaf(name string) *x509.Certificate {
	if p := c.Certificate(name); p != nil {
		return p.Leaf
	}
	return nil
}

// problem makes the authority answer requests for a part with a problem document.
func problem(part string, status int, kind, after string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/"+part) {
			return false
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.Header().Set("Replay-Nonce", "AAAAAAAAAAAAAAAAAAAAAA")
		if after != "" {
			w.Header().Set("Retry-After", after)
		}
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"type":"urn:ietf:params:acme:error:%s","status":%d,"detail":"a problem\nof the test"}`, kind, status)
		return true
	}
}

func testManager(t *testing.T, a *authority) {
	at := a.listen(t)
	t.Run("several names, by TLS-ALPN-01", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, a)
		c := newClient(t, f, folder(t), func(c *acme.Config, _ *acme.Options) {
			c.Names, c.Email = append(c.Names, "mqtt-"+c.Names[0]), "admin@hub.example"
		})
		c.at = at
		c.run()
		s := c.until("a certificate", issued)
		if s.Failures != 0 || s.Err != "" {
			t.Errorf("status %+v", s)
		}
		for name, want := range map[string]bool{c.name: true, strings.ToUpper(c.name): true, "mqtt-" + c.name: true, "other.example": false, "": false, "localhost": false} {
			if got := c.leaf(name) != nil; got != want {
				t.Errorf("a handshake for %q: %v", name, got)
			}
		}
		if life := s.NotAfter.Sub(s.NotBefore); s.Renew.Before(s.NotAfter.Add(-life/3-life/30)) || s.Renew.After(s.NotAfter.Add(-life/3)) {
			t.Errorf("renewed at %v of %v to %v", s.Renew, s.NotBefore, s.NotAfter)
		}
		if shown(t, "localhost:"+a.tlsPort, c.name, "acme-tls/1") != nil {
			t.Error("a handshake of a validation succeeds when none is in progress")
		}
		for _, name := range []string{"account.json", "certificate.pem", "attempts.json"} {
			info, err := os.Stat(filepath.Join(c.dir, name))
			for wait := testwait.Within(); err != nil; info, err = os.Stat(filepath.Join(c.dir, name)) {
				wait.Check(t, name)
				pause()
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", name, info.Mode())
			}
		}
		c.ahead.Store(int64(-2 * time.Hour))
		if c.leaf(c.name) != nil {
			t.Error("a certificate that is not valid yet is used")
		}
		c.ahead.Store(int64(time.Until(s.NotAfter) + time.Minute))
		if c.leaf(c.name) != nil {
			t.Error("a certificate that has ended is used")
		}
	})
	t.Run("by HTTP-01", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, a)
		c := newClient(t, f, folder(t), func(c *acme.Config, _ *acme.Options) { c.HTTP = true })
		c.at = at
		answers := make(chan int, 8)
		f.set(func(f *front) {
			f.alter = func(_ http.ResponseWriter, r *http.Request) bool {
				if strings.HasPrefix(r.URL.Path, "/chalZ/") { // the answer is there before the authority is told
					q, err := http.NewRequest(http.MethodGet, "http://localhost:"+a.httpPort+"/.well-known/acme-challenge/other", nil)
					if err != nil {
						t.Error(err)
						return false
					}
					q.Host = c.name
					res, err := http.DefaultClient.Do(q)
					if err == nil {
						answers <- res.StatusCode
						_ = res.Body.Close()
					}
				}
				return false
			}
		})
		c.run()
		c.until("a certificate", issued)
		if got := testwait.For(t, "an answer for another token", answers); got != http.StatusNotFound {
			t.Errorf("another token: status %d", got)
		}
	})
	t.Run("an authority that is down, then up", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, a)
		f.set(func(f *front) { f.down = true })
		dir := folder(t)
		c := newClient(t, f, dir, nil)
		c.at = at
		c.run()
		s := c.until("a failure", failed(1))
		if wait := s.Next.Sub(c.now()); wait < 50*time.Second || wait > 70*time.Second {
			t.Errorf("the first wait is %v", wait)
		}
		c.Retry()
		s = c.until("a second failure, at once", failed(2))
		if wait := s.Next.Sub(c.now()); wait < 110*time.Second || wait > 140*time.Second {
			t.Errorf("the second wait is %v", wait)
		}
		c.stop()
		before := f.all()
		again := newClient(t, f, dir, nil)
		if s := again.Status(); s.Failures != 2 || s.Err == "" {
			t.Errorf("after a restart: %+v", s)
		}
		f.set(func(f *front) { f.down = false })
		again.Manager, c.Manager = c.Manager, again.Manager // the listeners are those of c
		c.ended = make(chan error, 1)
		c.run()
		if f.all() != before {
			t.Error("a restart makes another order at once")
		}
		c.ahead.Store(int64(10 * time.Minute))
		again.ahead.Store(int64(10 * time.Minute))
		c.until("a certificate", issued)
	})
	t.Run("a rate limit", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, a)
		f.set(func(f *front) { f.alter = problem("order-plz", 429, "rateLimited", "7200") })
		c := newClient(t, f, folder(t), nil)
		c.at = at
		c.run()
		s := c.until("a failure", failed(1))
		if wait := s.Next.Sub(c.now()); wait < 119*time.Minute || wait > 140*time.Minute {
			t.Errorf("the wait is %v, the authority asked for 2 h", wait)
		}
		if !strings.Contains(s.Err, "rateLimited") || strings.ContainsAny(s.Err, "\n\r") {
			t.Errorf("the error is %q", s.Err)
		}
		c.Retry() // the authority asked for the wait
		if again := c.Status(); !again.Next.Equal(s.Next) {
			t.Errorf("after a retry: %+v", again)
		}
		if n := f.got("order-plz"); n != 1 {
			t.Errorf("%d orders", n)
		}
	})
	t.Run("an account that the authority lost", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, a)
		dir := folder(t)
		c := newClient(t, f, dir, nil)
		c.at = at
		c.run()
		c.until("a certificate", issued)
		leaf := c.leaf(c.name)
		var once atomic.Bool
		f.set(func(f *front) {
			f.alter = func(w http.ResponseWriter, r *http.Request) bool {
				return !once.Load() && problem("order-plz", 400, "accountDoesNotExist", "")(w, r) && !once.Swap(true)
			}
		})
		c.ahead.Store(int64(65 * 24 * time.Hour))
		s := c.until("a renewal", func(s acme.Status) bool { return s.Failures > 0 || !c.leaf(c.name).Equal(leaf) })
		if s.Failures > 0 {
			t.Errorf("status %+v", s)
		}
		if n := f.got("sign-me-up"); !once.Load() || n < 2 {
			t.Errorf("%d registrations", n)
		}
	})
	t.Run("the account and the certificate outlive a restart", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, a)
		dir := folder(t)
		c := newClient(t, f, dir, nil)
		c.at = at
		c.run()
		first := c.until("a certificate", issued)
		leaf := c.leaf(c.name)
		c.stop()
		// Pebble rejects good nonces, so a registration may take several requests.
		registrations, orders := f.got("sign-me-up"), f.got("order-plz")
		again := newClient(t, f, dir, nil)
		if got := again.leaf(c.name); got == nil || !got.Equal(leaf) {
			t.Error("the certificate is lost")
		}
		c.Manager, c.ended = again.Manager, make(chan error, 1)
		c.run()
		again.ahead.Store(int64(time.Until(first.Renew) - time.Hour))
		if f.got("order-plz") != orders {
			t.Error("a restart makes an order")
		}
		again.ahead.Store(int64(65 * 24 * time.Hour))
		c.until("a renewal", func(s acme.Status) bool {
			return issued(s) && c.leaf(c.name) != nil && !c.leaf(c.name).Equal(leaf)
		})
		if f.got("sign-me-up") != registrations {
			t.Error("another account was registered")
		}
		if leaf.PublicKey.(*ecdsa.PublicKey).Equal(c.leaf(c.name).PublicKey) {
			t.Error("the renewed certificate has the old key")
		}
	})
	t.Run("a renewal that the authority wants sooner", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, a)
		c := newClient(t, f, folder(t), nil)
		c.at = at
		c.run()
		c.until("a certificate", issued)
		leaf := c.leaf(c.name)
		a.suggest(t, leaf, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour))
		c.ahead.Store(int64(7 * time.Hour)) // it asks every 6 h
		c.until("a renewal", func(acme.Status) bool { return !c.leaf(c.name).Equal(leaf) })
	})
	t.Run("a name that was added", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, a)
		dir := folder(t)
		c := newClient(t, f, dir, nil)
		c.at = at
		c.run()
		c.until("a certificate", issued)
		c.stop()
		more := newClient(t, f, dir, func(c *acme.Config, _ *acme.Options) { c.Names = append(c.Names, "mqtt-"+c.Names[0]) })
		if s := more.Status(); !slices.Equal(s.Missing, []string{"mqtt-" + c.name}) || more.leaf(c.name) == nil {
			t.Errorf("before: %+v", s)
		}
		c.Manager, c.ended = more.Manager, make(chan error, 1)
		c.run()
		c.until("a certificate for both", issued)
	})
	t.Run("no order while the clock is not trusted", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, a)
		var looks atomic.Int64
		c := newClient(t, f, folder(t), func(_ *acme.Config, o *acme.Options) {
			o.CheckClock = func() error {
				if looks.Add(1) < 4 {
					if n := f.all(); n > 0 {
						t.Errorf("%d requests under a clock that is not trusted", n)
					}
					return errors.New("the clock is not trusted")
				}
				return nil
			}
		})
		c.at = at
		c.run()
		for range 3 {
			c.Wake()
		}
		c.until("a certificate", issued)
		if looks.Load() < 4 {
			t.Error("the clock was not asked")
		}
	})
	t.Run("a certificate that clients would refuse is not used", func(t *testing.T) {
		t.Parallel()
		t.Run("for another key", func(t *testing.T) {
			t.Parallel()
			f := newFront(t, a)
			f.set(func(f *front) {
				f.body = func(path string, b []byte) []byte {
					if strings.HasPrefix(path, "/certZ/") && bytes.HasPrefix(b, []byte("-----BEGIN")) {
						return a.ownCA
					}
					return b
				}
			})
			c := newClient(t, f, folder(t), nil)
			c.at = at
			c.run()
			if s := c.until("a failure", failed(1)); !strings.Contains(s.Err, "another key") || c.leaf(c.name) != nil {
				t.Errorf("status %+v", s)
			}
		})
		t.Run("of an authority that is not known", func(t *testing.T) {
			t.Parallel()
			f := newFront(t, a)
			c := newClient(t, f, folder(t), func(_ *acme.Config, o *acme.Options) {
				o.Roots = x509.NewCertPool()
				o.Roots.AppendCertsFromPEM(f.ca)
			})
			c.at = at
			c.run()
			if s := c.until("a failure", failed(1)); !strings.Contains(s.Err, "this machine does not") || c.leaf(c.name) != nil {
				t.Errorf("status %+v", s)
			}
		})
	})
	t.Run("a name that the authority does not take", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, a)
		c := newClient(t, f, folder(t), func(c *acme.Config, _ *acme.Options) { c.Names = []string{"blocked.example"} })
		c.at = at
		c.run()
		if s := c.until("a failure", failed(1)); !strings.Contains(s.Err, "rejectedIdentifier") {
			t.Errorf("status %+v", s)
		}
	})
	t.Run("a validation that fails", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, a)
		c := newClient(t, f, folder(t), nil) // nothing answers for it
		c.run()
		if s := c.until("a failure", failed(1)); !strings.Contains(s.Err, "the validation of "+c.name) || !strings.Contains(s.Err, "tls-alpn-01") {
			t.Errorf("status %+v", s)
		}
	})
	t.Run("an external account", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, a)
		key, err := base64.RawURLEncoding.DecodeString(externalKey)
		must(t, err)
		for kid, ok := range map[string]bool{"ext-1": true, "ext-2": false} {
			c := newClient(t, f, folder(t), func(c *acme.Config, _ *acme.Options) { c.External = &acme.External{KID: kid, Key: key} })
			if ok {
				c.at = at
			}
			c.run()
			if s := c.until("an answer", func(s acme.Status) bool { return issued(s) || s.Failures > 0 }); issued(s) != ok {
				t.Errorf("%s: %+v", kid, s)
			}
			c.stop()
		}
	})
	t.Run("answers that are refused", func(t *testing.T) {
		t.Parallel()
		for name, answer := range map[string]string{
			"too long":    `{"newOrder":"` + strings.Repeat("x", 300<<10) + `"}`,
			"without TLS": `{"newNonce":"http://127.0.0.1:1/n","newAccount":"http://127.0.0.1:1/a","newOrder":"http://127.0.0.1:1/o"}`,
			"not JSON":    `<html>`,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				f := newFront(t, a)
				f.set(func(f *front) {
					f.alter = func(w http.ResponseWriter, _ *http.Request) bool { _, _ = w.Write([]byte(answer)); return true }
				})
				c := newClient(t, f, folder(t), nil)
				c.run()
				says := map[string]string{"too long": "too long", "without TLS": "not https", "not JSON": "invalid character"}[name]
				if s := c.until("a failure", failed(1)); !strings.Contains(s.Err, says) {
					t.Errorf("status %+v", s)
				}
			})
		}
	})
	t.Run("files", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, a)
		dir := folder(t)
		must(t, os.Mkdir(dir, 0o700))
		for _, name := range []string{"account.json", "certificate.pem", "attempts.json"} {
			must(t, os.WriteFile(filepath.Join(dir, name), []byte("{"), 0o600))
		}
		c := newClient(t, f, dir, nil) // damaged ones are replaced
		c.at = at
		c.run()
		c.until("a certificate", issued)
		c.stop()
		must(t, os.Chmod(filepath.Join(dir, "account.json"), 0o644))
		_, err := acme.New(acme.Config{Directory: f.directory, Names: []string{"hub.example"}}, acme.Options{Dir: dir, Now: time.Now, CheckClock: func() error { return nil }, Log: slog.New(slog.DiscardHandler)})
		if watchword.CodeOf(err) != watchword.KeyExposed {
			t.Errorf("a key that others can read: %v", err)
		}
	})
}

// folder returns the name of a folder that does not exist.
func folder(t *testing.T) string { return filepath.Join(t.TempDir(), "acme") }
