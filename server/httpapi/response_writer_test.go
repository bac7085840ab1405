package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// countingListener counts what is handed to its connections.
type countingListener struct {
	net.Listener
	handed atomic.Int64
}

type countingConn struct {
	net.Conn
	l *countingListener
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return countingConn{c, l}, err
}

func (c countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.l.handed.Add(int64(n))
	return n, err
}

func request() *http.Request { return httptest.NewRequest(http.MethodGet, "/", nil) }

var errTaken = watchword.Refuse(watchword.SubjectRevoked, "taken away")

// A client that does not read neither delays the edit that removes its right nor gets a byte that was not written before.
func TestNoResponseBytesAfterRefusal(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			writers := make(chan *responseWriter, 1)
			ended := make(chan error, 1)
			l := &countingListener{}
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				aw := newResponseWriter(w, r)
				aw.guard()
				writers <- aw
				page := bytes.Repeat([]byte("secret "), 1<<15)
				for range 1 << 12 { // 900 MB, which no buffers hold: the client does not read
					if _, err := aw.Write(page); err != nil {
						ended <- err
						panic(http.ErrAbortHandler)
					}
				}
				ended <- nil
			}))
			l.Listener = srv.Listener
			srv.Listener = l
			srv.Config.ConnContext = ConnContext
			srv.EnableHTTP2 = http2
			if http2 {
				srv.StartTLS()
			} else {
				srv.Start()
			}
			defer srv.Close()
			resp, err := srv.Client().Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			aw := testwait.For(t, "the request", writers)
			wait := testwait.Within()
			for last := int64(-1); last != l.handed.Load(); { // until the client's buffers are full, and the write waits
				wait.Check(t, "a write that waits")
				last = l.handed.Load()
				aw.waitIdle(50 * time.Millisecond)
			}
			aw.refuse(errTaken)
			aw.breakWrite()
			handed := l.handed.Load()
			select {
			case err := <-ended:
				if err == nil {
					t.Error("the write succeeded")
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the handler's write goes on after cut returned")
			}
			n, err := io.Copy(io.Discard, resp.Body)
			if err == nil {
				t.Error("the answer looks whole")
			}
			// What TLS and HTTP/2 say at the end (an alert, a reset) is no part of the answer.
			if later := l.handed.Load() - handed; later > 200 {
				t.Errorf("%d bytes were handed over after cut returned; the client read %d", later, n)
			}
		})
	}
}

func TestBufferedResponseIsRefusedWhole(t *testing.T) {
	rec := httptest.NewRecorder()
	aw := newResponseWriter(rec, request())
	aw.guard()
	aw.Header().Set("ETag", "x")
	_, _ = aw.Write([]byte("secret"))
	aw.refuse(errTaken)
	reason, started := aw.finish()
	if !errors.Is(reason, errTaken) || started || rec.Body.Len() > 0 {
		t.Fatalf("%v, started %v, %q", reason, started, rec.Body)
	}
	aw.restart(http.Header{"Trace-Id": {"t"}})
	aw.WriteHeader(http.StatusForbidden)
	_, _ = aw.Write([]byte("problem"))
	if reason, _ := aw.finish(); reason != nil || rec.Code != http.StatusForbidden || rec.Body.String() != "problem" || rec.Header().Get("ETag") != "" || rec.Header().Get("Trace-Id") != "t" {
		t.Errorf("%v: %d %q %v", reason, rec.Code, rec.Body, rec.Header())
	}
}

func TestReleasedResponseIsSent(t *testing.T) {
	rec := httptest.NewRecorder()
	aw := newResponseWriter(rec, request())
	aw.guard()
	aw.refuse(errTaken)
	aw.release()
	aw.WriteHeader(http.StatusCreated)
	_, _ = aw.Write([]byte("done"))
	if reason, started := aw.finish(); reason != nil || !started || rec.Code != http.StatusCreated || rec.Body.String() != "done" || rec.Header().Get("Content-Length") != "4" {
		t.Errorf("%v %v: %d %q %v", reason, started, rec.Code, rec.Body, rec.Header())
	}
}

// patientWriter takes each write as long as it says, or fails at its deadline.
type patientWriter struct {
	*httptest.ResponseRecorder
	mu    sync.Mutex
	until time.Time
	takes time.Duration
}

func (w *patientWriter) SetWriteDeadline(t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.until = t
	return nil
}

func (w *patientWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	until := w.until
	w.mu.Unlock()
	if left := time.Until(until); left < w.takes {
		time.Sleep(left)
		return 0, os.ErrDeadlineExceeded
	}
	time.Sleep(w.takes)
	return len(b), nil
}

// A client that reads a byte now and then is disconnected within minutes, even if each read is in time.
func TestSlowResponseReaderIsDisconnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		aw := newResponseWriter(&patientWriter{ResponseRecorder: httptest.NewRecorder(), takes: 9 * time.Second}, request())
		aw.guard()
		aw.perWrite = sseTimeout
		began := time.Now()
		err := aw.stream()
		for err == nil && time.Since(began) < time.Hour {
			err = aw.send([]byte("event"))
		}
		if took := time.Since(began); err == nil || took > 2*time.Minute {
			t.Errorf("cut off after %v: %v", took, err)
		}
	})
}

// A reader that keeps pace is served for as long as it wants, also with a slow moment now and then.
func TestPausingResponseReaderIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &patientWriter{ResponseRecorder: httptest.NewRecorder(), takes: 9 * time.Second}
		aw := newResponseWriter(w, request())
		aw.perWrite = sseTimeout
		if err := aw.stream(); err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			time.Sleep(time.Hour)
			if err := aw.send([]byte("event")); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// The time for writing an answer begins with the answer: a request that waited before is not cut off earlier.
func TestLateResponseMayBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &patientWriter{ResponseRecorder: httptest.NewRecorder(), takes: writeTimeout - time.Second}
		aw := newResponseWriter(w, request())
		time.Sleep(maxWait)
		_, _ = io.WriteString(aw, strings.Repeat("x", 100))
		if reason, _ := aw.finish(); reason != nil {
			t.Error(reason)
		}
		w = &patientWriter{ResponseRecorder: httptest.NewRecorder(), takes: writeTimeout + time.Minute}
		aw = newResponseWriter(w, request())
		_, _ = aw.Write([]byte("x"))
		if reason, _ := aw.finish(); reason == nil {
			t.Error("a peer that does not read for that long is not cut off")
		}
	})
}

// pipes is a listener whose connections are pipes: within a bubble their deadlines go by its clock.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// serveOverPipes serves h on pipes, and has use make its requests.
func serveOverPipes(t *testing.T, http2 bool, h http.HandlerFunc, use func(c *http.Client)) {
	t.Helper()
	var protocols http.Protocols
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	l := newPipes()
	srv := &http.Server{Handler: h, Protocols: &protocols, ConnContext: ConnContext}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	tr := &http.Transport{DialContext: l.dial, Protocols: &protocols}
	use(&http.Client{Transport: tr})
	tr.CloseIdleConnections()
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	if err := testwait.For(t, "the end of the server", served); !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

// The limit of a write does not include the time in which nothing is written.
func TestIdleStreamOutlivesWriteTimeout(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				serveOverPipes(t, http2, func(w http.ResponseWriter, r *http.Request) {
					aw := newResponseWriter(w, r)
					aw.perWrite = sseTimeout
					err := aw.stream()
					for _, event := range []string{"one ", "two ", "three"} {
						if err == nil {
							err = aw.send([]byte(event))
						}
						time.Sleep(2 * writeTimeout)
					}
					if err == nil {
						err, _ = aw.finish()
					}
					if err != nil {
						t.Error(err)
					}
				}, func(c *http.Client) {
					resp, err := c.Get("http://here/")
					if err != nil {
						t.Fatal(err)
					}
					if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "one two three" {
						t.Errorf("%q, %v", b, err)
					}
					_ = resp.Body.Close()
				})
			})
		})
	}
}

// One edit ends many unread answers in the time of one, and does not affect a connection that another request uses by then.
func TestEditWaitsOnceForStalledReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guard := session.NewGuard(&fixedDirectory{subject: watchword.Subject{Tenant: tenant, ID: "lamp", Kind: watchword.Device, State: watchword.Active, Incarnation: 1, Keys: []watchword.Key{
			{ID: "k", Purpose: watchword.Sign, State: watchword.KeyActive},
		}}, set: policy.NewSet()}, session.GuardOptions{})
		a := &API{}
		a.Guard = guard
		credentials := session.Credentials{Tenant: tenant, Subject: "lamp", Incarnation: 1, Key: "k", JTI: "jti", Expires: time.Now().Add(time.Hour)}
		var wg sync.WaitGroup
		const readers = 100
		var closed atomic.Int32
		for range readers {
			in := &requestInfo{}
			r := request().WithContext(context.WithValue(t.Context(), infoKey{}, in))
			conn := &stuckConn{ResponseRecorder: httptest.NewRecorder(), free: make(chan struct{}), closed: &closed}
			in.writer = newResponseWriter(conn, r)
			in.writer.nc = conn
			if err := a.beginSession(r, &caller{credentials: credentials}, requestTransport, nil); err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				_, _ = in.writer.Write([]byte("x"))
				if reason, _ := in.writer.finish(); reason == nil {
					t.Error("the answer was given")
				}
				in.session.close()
				in.writer.detach()
			})
		}
		synctest.Wait()
		_ = guard.HandleChange(t.Context(), watchword.Change{Tenant: tenant, Kind: watchword.SubjectChanged, ID: "lamp"}) // nothing was taken
		if n := closed.Load(); n > 0 {
			t.Fatalf("%d connections were closed though nothing was taken", n)
		}
		began := time.Now()
		_ = guard.HandleChange(t.Context(), watchword.Change{Tenant: tenant, Kind: watchword.AccessTokenRevoked, ID: "jti", Version: 1})
		if took := time.Since(began); took > 60*cutGrace {
			t.Errorf("the edit took %v", took)
		}
		testwait.All(t, "the end of the readers", &wg)
		if n := closed.Load(); n != readers {
			t.Errorf("%d connections were closed, want %d", n, readers)
		}
	})
}

// stuckConn is a connection whose writes end when it is closed, and its response writer.
type stuckConn struct {
	net.Conn
	*httptest.ResponseRecorder
	free   chan struct{}
	closed *atomic.Int32
}

func (c *stuckConn) Write([]byte) (int, error) {
	<-c.free
	return 0, net.ErrClosed
}

func (c *stuckConn) Close() error {
	c.closed.Add(1)
	close(c.free)
	return nil
}

func (c *stuckConn) SetWriteDeadline(time.Time) error { return nil }

// A finished answer does not affect the connection: the next request uses it.
func TestFinishedResponseClosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var closed atomic.Int32
		conn := &stuckConn{ResponseRecorder: httptest.NewRecorder(), free: make(chan struct{}), closed: &closed}
		aw := newResponseWriter(conn, request())
		aw.nc = conn
		aw.guard()
		aw.WriteHeader(http.StatusOK)
		go func() { _ = aw.send([]byte("x")) }()
		synctest.Wait()
		aw.refuse(errTaken)
		aw.detach()
		aw.breakWrite()
		if closed.Load() > 0 {
			t.Error("the connection was closed")
		}
		close(conn.free)
	})
}

// fixedDirectory is a directory of one subject.
type fixedDirectory struct {
	subject watchword.Subject
	set     *policy.Set
}

func (r *fixedDirectory) Principal(context.Context, watchword.TenantID, watchword.SubjectID) (*session.Principal, error) {
	return session.NewPrincipal(&r.subject, r.set), nil
}

func (r *fixedDirectory) Policies(context.Context, watchword.TenantID) (*policy.Set, error) {
	return r.set, nil
}

func (r *fixedDirectory) TokenSubject(context.Context, watchword.TenantID, string) (watchword.SubjectID, error) {
	return r.subject.ID, nil
}

func (r *fixedDirectory) Refresh(context.Context, watchword.TenantID, watchword.SubjectID, string, watchword.KeyID) error {
	return nil
}

// undeadlined is a response writer whose deadlines cannot be set, as those of a closed connection.
type undeadlined struct{ *httptest.ResponseRecorder }

func (undeadlined) SetWriteDeadline(time.Time) error { return net.ErrClosed }

// A write without a time limit does not begin: a client that does not read would block it forever.
func TestEveryWriteHasADeadline(t *testing.T) {
	w := undeadlined{httptest.NewRecorder()}
	aw := newResponseWriter(w, request())
	if _, err := aw.Write([]byte("held back")); err != nil {
		t.Fatal(err)
	}
	if reason, started := aw.finish(); reason == nil || !started || w.Body.Len() > 0 {
		t.Errorf("%v, started %v, %d bytes", reason, started, w.Body.Len())
	}
}
