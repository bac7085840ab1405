package rest_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
)

// pipes is a listener over memory, for bubbles of testing/synctest.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn), make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { close(p.closed); return nil }

func (*pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// inMemory serves h over memory until the test ends, and returns the way there, for
// http://localhost.
func inMemory(t *testing.T, h http.HandlerFunc) *http.Transport {
	t.Helper()
	p := newPipes()
	var busy atomic.Int64
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		busy.Add(1)
		defer busy.Add(-1)
		h(w, r)
	})}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(p) }()
	tr := rest.Transport(&tls.Config{}, p.dial)
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-ended
		for busy.Load() > 0 {
			time.Sleep(time.Second) // of the bubble
		}
	})
	return tr
}

// silence sends nothing more until the client closes the connection.
func silence(w http.ResponseWriter, r *http.Request) {
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	mute(w, r)
}

// mute does not even begin its answer.
func mute(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // otherwise the handler does not notice the end of the connection
	<-r.Context().Done()
}

const fakeText = "\x1b[2Jfake"

// Whatever an unauthenticated peer answers: nothing of it counts but the bytes of a 200.
func TestUnauthenticatedAnswersAreNotTrusted(t *testing.T) {
	answers := map[string]http.HandlerFunc{}
	for _, code := range watchword.Codes {
		for _, status := range []int{201, 204, 301, 304, 400, 401, 403, 404, 429, 503} {
			answers[fmt.Sprint(code, " ", status)] = func(w http.ResponseWriter, _ *http.Request) {
				h := w.Header()
				h.Set("Content-Type", "application/problem+json")
				h.Set("Retry-After", "3600")
				h.Set("Location", "https://elsewhere.example/")
				h.Set("DPoP-Nonce", fakeText)
				w.WriteHeader(status)
				_, _ = fmt.Fprintf(w, `{"code":%q,"detail":"fake","rule":"fake","field":"fake","retry_after":3600}`, code)
			}
		}
	}
	answers["OAuth's error"] = func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(400)
		_, _ = io.WriteString(w, `{"error":"invalid_client","error_description":"fake"}`)
	}
	answers["no JSON"] = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "fake") }
	answers["JSON of another type"] = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"fake":["fake"]}`) }
	answers["more than was asked for"] = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat("fake", 1000)) }
	answers["a bomb"] = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = z.Write(bytes.Repeat([]byte("fake"), 1<<18))
		_ = z.Close()
	}
	raw := func(say string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_, _ = io.WriteString(c, say)
				_ = c.Close()
			}
		}
	}
	answers["no HTTP"] = raw("fake fake fake\r\n\r\n")
	answers["an invalid status"] = raw("HTTP/1.1 fake fake\r\n\r\n")
	answers["an invalid header"] = raw("HTTP/1.1 200 OK\r\nfake fake fake\r\n\r\n")
	answers["less than was said"] = raw("HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\nfake")
	answers["nothing"] = raw("")
	answers["headers without end"] = raw("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("fake", 1<<16) + "\r\n\r\n")

	var answer atomic.Pointer[http.HandlerFunc]
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*answer.Load())(w, r) }))
	t.Cleanup(srv.Close)
	tr := rest.WithoutKeepAlive(rest.Transport(&tls.Config{}, nil))
	for name, h := range answers {
		answer.Store(&h)
		var out struct{ Fake int }
		_, err := rest.NewUnauthenticated(srv.URL, tr).JSON(t.Context(), rest.Request{Method: "GET", Path: "/", Max: 2000}, nil, &out)
		e, ok := errors.AsType[*watchword.Error](err)
		if !ok || e.Code != watchword.Unavailable || e.RetryAfter != 0 || e.Rule != "" || e.Field != "" {
			t.Errorf("%s: got %+v", name, e)
			continue
		}
		if strings.Contains(err.Error(), "fake") || strings.Contains(err.Error(), "elsewhere") {
			t.Errorf("%s: the peer's words are in %q", name, err)
		}
		if _, is := errors.AsType[*rest.Problem](err); is {
			t.Errorf("%s: the peer's document is handed on", name)
		}
	}
}

// No error contains text of a certificate: an attacker may have written it.
func TestCertificateNamesAreNotPrinted(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo) // that the client hangs up is the point
	srv.StartTLS()
	t.Cleanup(srv.Close)
	conf := srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	conf.ServerName = "hub.test"
	_, err := rest.New(srv.URL, rest.Transport(conf, nil), nil).Do(t.Context(), rest.Request{Method: "GET", Path: "/"})
	if _, is := errors.AsType[*tls.CertificateVerificationError](err); !is || watchword.CodeOf(err) != watchword.Unavailable || strings.Contains(err.Error(), "example.com") {
		t.Errorf("got %v", err)
	}
}

// Every exchange ends, wherever the server falls silent, and never sooner than it may.
func TestEveryExchangeHasAnEnd(t *testing.T) {
	trickle := func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, "1"); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			time.Sleep(5 * time.Second)
		}
	}
	ask := rest.Request{Method: "GET", Path: "/x"}
	poll := ask
	poll.Wait = 50 * time.Second
	large := ask
	large.Max = 10 << 20
	for name, c := range map[string]struct {
		silent http.HandlerFunc
		r      rest.Request
		token  bool // it is the token endpoint that is silent
		within time.Duration
	}{
		"before the answer":              {mute, ask, false, 38 * time.Second},
		"after headers":                  {silence, ask, false, 38 * time.Second},
		"after a byte":                   {func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "["); silence(w, r) }, ask, false, 38 * time.Second},
		"a byte now and then":            {trickle, ask, false, 38 * time.Second},
		"in a refusal":                   {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(403); silence(w, r) }, ask, false, 38 * time.Second},
		"a refusal, a byte now and then": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(403); trickle(w, r) }, ask, false, 38 * time.Second},
		"the token endpoint":             {mute, ask, true, 30 * time.Second},
		"the token endpoint's refusal":   {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(401); silence(w, r) }, ask, true, 30 * time.Second},
		"a long poll":                    {mute, poll, false, 88 * time.Second},
		"a large answer":                 {silence, large, false, 110 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tr := inMemory(t, func(w http.ResponseWriter, r *http.Request) {
					if c.token == (r.URL.Path == "/token") {
						c.silent(w, r)
					}
				})
				const base = "http://localhost"
				cl := rest.New(base, tr, nil)
				if c.token {
					cl = rest.New(base, tr, &rest.Tokens{Client: cl, Path: "/token", Now: time.Now, Sign: func() (string, error) { return "assertion", nil }})
				}
				begun := time.Now()
				_, err := cl.Do(t.Context(), c.r)
				if took := time.Since(begun); took != c.within {
					t.Errorf("it took %s, want %s", took, c.within)
				}
				if watchword.CodeOf(err) != watchword.Unavailable {
					t.Errorf("got %v", err)
				}
			})
		})
	}
	t.Run("the caller's own end is the caller's", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := rest.New("http://localhost", inMemory(t, silence), nil).Do(ctx, ask); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	})
}

// A request that waits for a token which another request fetches ends with its own context.
func TestTheWaitForATokenEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := inMemory(t, silence)
		tokens := &rest.Tokens{Client: rest.New("http://localhost", tr, nil), Path: "/token", Now: time.Now, Sign: func() (string, error) { return "assertion", nil }}
		first := make(chan error, 1)
		go func() {
			_, err := tokens.Get(t.Context())
			first <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		if _, err := tokens.Get(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Second {
			t.Errorf("got %v after %s", err, time.Since(begun))
		}
		if err := <-first; watchword.CodeOf(err) != watchword.Unavailable {
			t.Errorf("got %v", err)
		}
	})
}

// Headers are bounded over every version of HTTP, and by any transport.
func TestResponseHeadersAreBounded(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		for size, good := range map[int]bool{32 << 10: true, 80 << 10: false, 8 << 20: false} {
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				for range size >> 10 {
					w.Header().Add("X-Much", strings.Repeat("x", 1<<10))
				}
			}))
			srv.EnableHTTP2 = h2
			srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
			srv.StartTLS()
			conf := srv.Client().Transport.(*http.Transport).TLSClientConfig
			other := &http.Transport{TLSClientConfig: conf.Clone(), ForceAttemptHTTP2: h2}
			own := rest.Transport(conf.Clone(), nil)
			own.ForceAttemptHTTP2 = h2
			for name, rt := range map[string]http.RoundTripper{"own": own, "another's": rest.WithHeaderLimit(other), "once": rest.WithoutKeepAlive(rest.Transport(conf.Clone(), nil))} {
				a, err := rest.New(srv.URL, rt, nil).Do(t.Context(), rest.Request{Method: "GET", Path: "/"})
				if (err == nil) != good {
					t.Errorf("HTTP/2 %v, %s, %d bytes: %v", h2, name, size, err)
				}
				if good && err == nil && len(a.Header["X-Much"]) != size>>10 {
					t.Errorf("HTTP/2 %v, %s: %d headers", h2, name, len(a.Header["X-Much"]))
				}
			}
			srv.Close()
		}
	}
}

func TestAStreamHasAnEndAndBounds(t *testing.T) {
	ask := rest.Request{Method: "GET", Path: "/x"}
	each := func(every time.Duration, n int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			for range n {
				_, _ = io.WriteString(w, "line\n")
				w.(http.Flusher).Flush()
				time.Sleep(every)
			}
			silence(w, r)
		}
	}
	for name, c := range map[string]struct {
		h     http.HandlerFunc
		lines int
		after time.Duration
		code  watchword.Code
	}{
		"it never begins":      {mute, 0, 38 * time.Second, watchword.Unavailable},
		"it falls silent":      {each(80*time.Second, 10), 10, 800*time.Second + 10*time.Second, watchword.Unavailable},
		"a line without end":   {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat("x", 1<<10)) }, 0, 0, watchword.TooLarge},
		"it ends":              {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a\nb\nc") }, 3, 0, ""},
		"a line of all it may": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat("x", 99)+"\n") }, 1, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun, lines := time.Now(), 0
				s, err := rest.New("http://localhost", inMemory(t, c.h), nil).Stream(t.Context(), ask)
				if err == nil {
					defer s.Close()
					err = s.Lines(100, func([]byte) error { lines++; return nil })
				}
				if watchword.CodeOf(err) != c.code || lines != c.lines || time.Since(begun) != c.after {
					t.Errorf("%d lines in %s: %v", lines, time.Since(begun), err)
				}
			})
		})
	}
	t.Run("a slow reader is not the server's silence", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, err := rest.New("http://localhost", inMemory(t, each(time.Hour, 3)), nil).Stream(t.Context(), ask)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for range 3 {
				if _, err := io.ReadFull(s, make([]byte, len("line\n"))); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour - time.Second)
			}
		})
	})
}

// If a server always answers that something is missing, the client sends no more than three requests.
func TestTheSameRequestIsSentAgainTwiceAtMost(t *testing.T) {
	for _, code := range []watchword.Code{
		watchword.DPoPNonce, watchword.ProofRequired, watchword.TokenExpired, watchword.TokenUnrecorded, watchword.TokenRevoked, watchword.IssuerRevoked, watchword.KeyUnknown, watchword.Unauthenticated,
	} {
		var asked, tokens int
		w := answering(func(r *http.Request) (int, string) {
			if r.URL.Path == "/token" {
				tokens++
				kind := "Bearer"
				if r.Header.Get("DPoP") != "" {
					kind = "DPoP"
				}
				return 200, `{"access_token":"t","token_type":"` + kind + `","expires_in":1}`
			}
			asked++
			return 401, fmt.Sprintf(`{"code":%q}`, code)
		})
		p := &rest.Prover{Sign: func(_, _, _, _ string) (string, error) { return "proof", nil }}
		c := rest.New("https://hub.example", w, &rest.Tokens{Client: rest.New("https://hub.example", w, nil), Path: "/token", Now: time.Now, Sign: func() (string, error) { return "a", nil }, Prover: p})
		_, err := c.Do(t.Context(), rest.Request{Method: "GET", Path: "/x"})
		if watchword.CodeOf(err) != code || asked != 3 || tokens > 3 {
			t.Errorf("%s: asked %d times, and for %d tokens: %v", code, asked, tokens, err)
		}
	}
}

// A nonce is used in the next proof, unless it is longer than any server needs.
func TestOverlongNonceIsIgnored(t *testing.T) {
	for size, back := range map[int]bool{1: true, 512: true, 513: false, 60_000: false} {
		nonce, sent := strings.Repeat("n", size), ""
		p := &rest.Prover{Sign: func(_, _, nonce, _ string) (string, error) { sent = nonce; return "proof", nil }}
		c := rest.New("https://hub.example", saying{nonce}, nil)
		for range 2 {
			if _, err := c.Do(t.Context(), rest.Request{Method: "GET", Path: "/x", Prover: p}); err != nil {
				t.Fatal(err)
			}
		}
		if (sent == nonce) != back {
			t.Errorf("a nonce of %d bytes: %d bytes came back", size, len(sent))
		}
	}
}

// saying answers with a nonce.
type saying struct{ nonce string }

func (s saying) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Header: http.Header{"Dpop-Nonce": {s.nonce}}, Body: http.NoBody}, nil
}

type answering func(*http.Request) (int, string)

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	status, body := a(r)
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}, nil
}

// A token that expires at once is requested once a second, and one without expiry once a day.
func TestTokenRequestsArePaced(t *testing.T) {
	for in, limit := range map[string]int{"1": 61, "9223372036854775807": 1, "3600": 1} {
		synctest.Test(t, func(t *testing.T) {
			asked := 0
			tokens := &rest.Tokens{Client: rest.New("https://hub.example", answering(func(*http.Request) (int, string) {
				asked++
				return 200, `{"access_token":"t","token_type":"Bearer","expires_in":` + in + `}`
			}), nil), Path: "/token", Now: time.Now, Sign: func() (string, error) { return "a", nil }}
			for range 6000 {
				if _, err := tokens.Get(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Millisecond)
			}
			if asked > limit || asked == 0 {
				t.Errorf("expires_in %s: asked %d times in a minute", in, asked)
			}
		})
	}
}

func TestPollPaceBacksOffAndResets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := rest.PollPace{Least: time.Second, Most: 10 * time.Second}
		round := func(took time.Duration, brought bool) time.Duration {
			time.Sleep(took)
			begun := time.Now()
			if err := p.Wait(t.Context(), brought); err != nil {
				t.Fatal(err)
			}
			return time.Since(begun)
		}
		for i, c := range []struct {
			took      time.Duration
			brought   bool
			low, high time.Duration
		}{
			{0, false, time.Second, 1100 * time.Millisecond},
			{0, false, 2 * time.Second, 2200 * time.Millisecond},
			{3 * time.Second, false, time.Second, 1400 * time.Millisecond},
			{0, false, 8 * time.Second, 8800 * time.Millisecond},
			{0, false, 10 * time.Second, 11 * time.Second},
			{12 * time.Second, false, 0, 0},
			{0, true, 0, 0},
			{0, false, time.Second, 1100 * time.Millisecond},
		} {
			if got := round(c.took, c.brought); got < c.low || got > c.high {
				t.Errorf("round %d: %s, want %s to %s", i, got, c.low, c.high)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.Wait(ctx, true); !errors.Is(err, context.Canceled) {
			t.Errorf("at the end: %v", err)
		}
		if err := p.Wait(ctx, false); !errors.Is(err, context.Canceled) {
			t.Errorf("at the end: %v", err)
		}
	})
}

// An HTTP/2 connection that breaks silently costs one request, and no further one.
func TestBrokenConnectionIsNotReused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		var protocols http.Protocols
		protocols.SetUnencryptedHTTP2(true)
		srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), Protocols: &protocols}
		ended := make(chan error, 1)
		go func() { ended <- srv.Serve(p) }()
		var lines []*deadable
		tr := rest.Transport(&tls.Config{}, func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := p.dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			lines = append(lines, &deadable{Conn: c})
			return lines[len(lines)-1], nil
		})
		tr.Protocols = &protocols
		defer func() {
			tr.CloseIdleConnections()
			for _, l := range lines {
				_ = l.Conn.Close()
			}
			_ = srv.Close()
			<-ended
			time.Sleep(time.Minute) // of the bubble
		}()
		c := rest.New("http://localhost", tr, nil)
		ask := func() (took time.Duration, err error) {
			begun := time.Now()
			_, err = c.Do(t.Context(), rest.Request{Method: "GET", Path: "/"})
			return time.Since(begun), err
		}
		for range 2 {
			if _, err := ask(); err != nil {
				t.Fatal(err)
			}
		}
		if len(lines) != 1 {
			t.Fatalf("%d connections", len(lines))
		}
		lines[0].dead.Store(true)
		if took, err := ask(); watchword.CodeOf(err) != watchword.Unavailable || took > 38*time.Second {
			t.Errorf("over the dead one: %v after %s", err, took)
		}
		if took, err := ask(); err != nil || took > time.Second || len(lines) != 2 {
			t.Errorf("after it: %v after %s, %d connections", err, took, len(lines))
		}
	})
}

// deadable is a connection that transports nothing once it is dead.
type deadable struct {
	net.Conn
	dead atomic.Bool
}

func (d *deadable) Write(b []byte) (int, error) {
	if d.dead.Load() {
		return len(b), nil
	}
	return d.Conn.Write(b)
}
