package httpapi

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/permit"
	"github.com/watchword-iot/watchword/internal/rates"
)

// The bounds of one request that is no stream.
const (
	maxBody      = 96 << 10 // the largest body of any address; each has its own bound below it
	writeTimeout = 30 * time.Second
)

// info is what the door knows of a request. who is filled in when papers were shown.
type info struct {
	trace  string
	remote netip.Addr
	who    audit.Actor
	scheme string      // of the token that was shown; empty before one was
	header http.Header // of the answer
	writer *answerWriter
	// session is the request's once its input is whole, if it has a token.
	session *watched
}

type connKey struct{}

// ConnContext is for [http.Server]: an answer that is broken off can close its connection.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn() // closing TLS would wait for the peer
	}
	return context.WithValue(ctx, connKey{}, c)
}

type infoKey struct{}

// infoOf returns the request's info; a zero one outside a request.
func infoOf(ctx context.Context) *info {
	if in, ok := ctx.Value(infoKey{}).(*info); ok {
		return in
	}
	return &info{}
}

// ServeHTTP gives every request its trace id, its bounds, and an answer even
// where the code behind it panics.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	in := &info{trace: watchword.NewID("", a.Now()), who: audit.Actor{Tenant: tenant}}
	in.who.Trace = in.trace
	in.writer = newAnswerWriter(w, r)
	in.header = w.Header()
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		in.remote = ap.Addr().Unmap()
	}
	in.writer.answers, in.writer.account.network = a.answers, rates.Network(in.remote)
	r = r.WithContext(context.WithValue(fair.With(r.Context(), rates.Network(in.remote)), infoKey{}, in))
	h := w.Header()
	h.Set("Trace-Id", in.trace)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	if a.strict {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	common := h.Clone()
	defer func() {
		if s := in.session; s != nil {
			s.close()
		}
		in.writer.end()
	}()
	// Many requests go over one connection (HTTP/2), and each takes memory until its answer is written.
	network := rates.Network(in.remote)
	if err := a.requests.Take(network, 1); err != nil {
		a.fail(in.writer, r, &watchword.Error{Code: watchword.Busy, Detail: "too many requests are under way", RetryAfter: time.Second, Err: err})
	} else {
		defer a.requests.Give(network, 1)
		a.serve(r, in, common)
	}
	a.pause(r.Context(), in)
	a.finish(r, in, common)
}

// An answer of status 429 to a subject is given late, so that one who asks again at once costs the server no more than
// one who waits. Where so many are late already, it is given at once. Strangers are bounded by address before.
const (
	refusalPause = 20 * time.Millisecond
	pausedMost   = 1024
)

// pause waits, where the answer is one that is given late, or until the client goes.
func (a *API) pause(ctx context.Context, in *info) {
	if in.who.Subject == "" || in.writer.direct || in.writer.status != http.StatusTooManyRequests {
		return
	}
	defer a.paused.Add(-1)
	if a.paused.Add(1) > pausedMost {
		return
	}
	t := time.NewTimer(refusalPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// serve has the request answered, even where the code panics.
func (a *API) serve(r *http.Request, in *info, common http.Header) {
	defer func() {
		if v := recover(); v != nil {
			if v == http.ErrAbortHandler {
				panic(v)
			}
			a.Log.ErrorContext(r.Context(), "panic in a request", slog.Any("panic", v), slog.String("trace", in.trace), slog.String("stack", string(debug.Stack())))
			if in.writer.direct {
				panic(http.ErrAbortHandler) // what was written has no end
			}
			in.writer.restart(common)
			a.fail(in.writer, r, watchword.Refuse(watchword.Internal, "panic"))
		}
	}()
	a.handleRequest(in.writer, r)
}

// finish writes what is held back of an answer, or why it is not given.
func (a *API) finish(r *http.Request, in *info, common http.Header) {
	why, started := in.writer.finish()
	switch {
	case why == nil:
	case started:
		panic(http.ErrAbortHandler) // a client sees that it has not all of it
	default:
		in.writer.restart(common)
		a.fail(in.writer, r, why)
		if why, started := in.writer.finish(); why != nil && started {
			panic(http.ErrAbortHandler)
		}
	}
}

func (a *API) handleRequest(w http.ResponseWriter, r *http.Request) {
	if !plainPath(r.URL) {
		a.fail(w, r, watchword.Refuse(watchword.NotFound, "no such address"))
		return
	}
	if !permit.Printable(r.URL.Path) { // no policy can name it
		a.fail(w, r, watchword.RefuseField("path", "must be UTF-8 without control characters"))
		return
	}
	handler, pattern := a.mux.Handler(r)
	if pattern == "" {
		a.unrouted(w, r, handler)
		return
	}
	a.mux.ServeHTTP(w, r)
}

// plainPath reports whether a path is written in the one way that is taken: clean, and
// without what is percent-encoded though it need not be. A topic at its end is encoded.
func plainPath(u *url.URL) bool {
	p := u.EscapedPath()
	if !strings.HasPrefix(p, retainedPrefix) {
		if p = u.Path; strings.Contains(u.RawPath, "%") {
			return false
		}
	}
	return p == "/" || path.Clean(p) == p
}

// unrouted answers in our words what the mux answers in plain text. Whoever
// shows no papers does not learn which addresses there are.
func (a *API) unrouted(w http.ResponseWriter, r *http.Request, handler http.Handler) {
	if strings.HasPrefix(r.URL.Path, "/v1/") {
		if _, err := a.caller(r); err != nil {
			a.fail(w, r, err)
			return
		}
	}
	probe := &statusProbe{header: http.Header{}}
	handler.ServeHTTP(probe, r)
	if probe.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", probe.header.Get("Allow"))
		a.fail(w, r, watchword.Refuse(watchword.MethodNotAllowed, "this address has no such method"))
		return
	}
	a.fail(w, r, watchword.Refuse(watchword.NotFound, "no such address"))
}

// statusProbe takes the mux's answer without sending it.
type statusProbe struct {
	header http.Header
	status int
}

func (p *statusProbe) Header() http.Header         { return p.header }
func (p *statusProbe) Write(b []byte) (int, error) { return len(b), nil }
func (p *statusProbe) WriteHeader(status int)      { p.status = status }
