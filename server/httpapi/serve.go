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
	"github.com/watchword-iot/watchword/internal/authz"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/logbudget"
	"github.com/watchword-iot/watchword/server/audit"
)

// Limits of one request that is no stream.
const (
	maxBody      = 96 << 10 // largest body of any route; each route has a smaller limit of its own
	writeTimeout = 30 * time.Second
)

// requestInfo is what the API knows about a request. actor is set once its credentials are
// verified.
type requestInfo struct {
	trace  string
	remote netip.Addr
	actor  audit.Actor
	prefix string      // what the path of the request has before that of its route: /t/TENANT, or nothing
	scheme string      // scheme of the Authorization header; empty without one
	header http.Header // header of the answer
	writer *responseWriter
	// session is set once the input of a request with a token is complete.
	session *requestSession
	route   string // pattern of the route; empty: no route has the path
}

type connKey struct{}

// ConnContext is for [http.Server.ConnContext]: it lets an answer close its connection.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn() // closing the TLS connection would wait for the peer
	}
	return context.WithValue(ctx, connKey{}, c)
}

type refusalKey struct{}

// WithRefusal returns the request with a reason for which the API answers it with an error and does nothing else.
func WithRefusal(r *http.Request, err error) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), refusalKey{}, err))
}

type infoKey struct{}

// requestInfoOf returns the request's info, or an empty one.
func requestInfoOf(ctx context.Context) *requestInfo {
	if in, ok := ctx.Value(infoKey{}).(*requestInfo); ok {
		return in
	}
	return &requestInfo{}
}

// ServeHTTP gives every request a trace id and its limits, and answers even if a handler panics.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	in := &requestInfo{trace: watchword.NewID("", a.Now()), actor: audit.Actor{}}
	in.actor.Trace = in.trace
	in.writer = newResponseWriter(w, r)
	in.header = w.Header()
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		in.remote = ap.Addr().Unmap()
	}
	in.writer.quota, in.writer.account.network = a.answerQuota, fair.Network(in.remote)
	r = r.WithContext(context.WithValue(logbudget.WithTrace(fair.WithNetwork(r.Context(), fair.Network(in.remote)), in.trace), infoKey{}, in))
	h := w.Header()
	h.Set("Trace-Id", in.trace)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	if a.strictTransport {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	common := h.Clone()
	defer func() {
		if s := in.session; s != nil {
			s.close()
		}
		in.writer.detach()
		a.observe(in)
	}()
	// Limits count requests, not connections: HTTP/2 carries many requests on one connection, and
	// each takes memory until its answer is written.
	network := fair.Network(in.remote)
	refused := a.resolveTenant(r, in)
	if err, ok := r.Context().Value(refusalKey{}).(error); ok {
		refused = err
	}
	if err := a.requestQuota.Reserve(network, 1); err != nil {
		a.fail(in.writer, r, &watchword.Error{Code: watchword.Busy, Detail: "too many requests run at the same time", RetryAfter: time.Second, Err: err})
	} else {
		defer a.requestQuota.Release(network, 1)
		if refused != nil {
			a.fail(in.writer, r, refused)
		} else {
			a.serve(r, in, common)
		}
	}
	a.delayRefusal(r.Context(), in)
	a.finish(r, in, common)
}

// An answer with status 429 to a subject is delayed, so that a client that retries at once costs
// the server no more than one that waits. At most maxDelayedResponses are delayed at a time;
// further ones are answered at once. Requests without a token are limited by address before.
const (
	refusalDelay        = 20 * time.Millisecond
	maxDelayedResponses = 1024
)

// delayRefusal waits before an answer that is to be delayed, or until the client closes the
// connection.
func (a *API) delayRefusal(ctx context.Context, in *requestInfo) {
	if in.actor.Subject == "" || in.writer.direct || in.writer.status != http.StatusTooManyRequests {
		return
	}
	defer a.delayedResponses.Add(-1)
	if a.delayedResponses.Add(1) > maxDelayedResponses {
		return
	}
	t := time.NewTimer(refusalDelay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// serve answers the request, even if a handler panics.
func (a *API) serve(r *http.Request, in *requestInfo, common http.Header) {
	defer func() {
		if v := recover(); v != nil {
			if v == http.ErrAbortHandler {
				panic(v)
			}
			a.Log.ErrorContext(r.Context(), "panic in a request", slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
			if in.writer.direct {
				panic(http.ErrAbortHandler) // the client sees that the answer is incomplete
			}
			in.writer.restart(common)
			a.fail(in.writer, r, watchword.Refuse(watchword.Internal, "panic"))
		}
	}()
	a.handleRequest(in.writer, r)
}

// finish writes what is buffered of the answer, or the reason why the answer is refused.
func (a *API) finish(r *http.Request, in *requestInfo, common http.Header) {
	reason, started := in.writer.finish()
	switch {
	case reason == nil:
	case started:
		panic(http.ErrAbortHandler) // the client sees that the answer is incomplete
	default:
		in.writer.restart(common)
		a.fail(in.writer, r, reason)
		if reason, started := in.writer.finish(); reason != nil && started {
			panic(http.ErrAbortHandler)
		}
	}
}

func (a *API) handleRequest(w http.ResponseWriter, r *http.Request) {
	if !isCanonicalPath(r.URL) {
		a.fail(w, r, watchword.Refuse(watchword.NotFound, "no resource has this path"))
		return
	}
	if !authz.Printable(r.URL.Path) { // no policy can name such a path
		a.fail(w, r, watchword.RefuseField("path", "must be UTF-8 without control characters"))
		return
	}
	handler, pattern := a.mux.Handler(r)
	if pattern == "" {
		a.unrouted(w, r, handler)
		return
	}
	requestInfoOf(r.Context()).route = pattern
	a.mux.ServeHTTP(w, r)
}

// observe reports a request that has ended.
func (a *API) observe(in *requestInfo) {
	if a.Observe == nil {
		return
	}
	took := time.Since(in.writer.began)
	if in.writer.perWrite > 0 { // a stream lasts as long as its reader
		took = -1
	}
	a.Observe(in.route, in.writer.status, took)
}

// isCanonicalPath reports whether a path has its canonical form: clean, and percent-encoded only
// where necessary. A topic at its end is encoded.
func isCanonicalPath(u *url.URL) bool {
	p := u.EscapedPath()
	if !strings.HasPrefix(p, retainedPrefix) {
		if p = u.Path; strings.Contains(u.RawPath, "%") {
			return false
		}
	}
	return p == "/" || path.Clean(p) == p
}

// unrouted answers requests that match no route with a problem document. Without valid credentials
// the answer does not disclose which paths exist.
func (a *API) unrouted(w http.ResponseWriter, r *http.Request, handler http.Handler) {
	if strings.HasPrefix(r.URL.Path, "/v1/") {
		if _, err := a.caller(r); err != nil {
			a.fail(w, r, err)
			return
		}
	}
	probe := &muxProbe{header: http.Header{}}
	handler.ServeHTTP(probe, r)
	if probe.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", probe.header.Get("Allow"))
		a.fail(w, r, watchword.Refuse(watchword.MethodNotAllowed, "the path does not have this method: the header Allow lists those that it has"))
		return
	}
	a.fail(w, r, watchword.Refuse(watchword.NotFound, "no resource has this path"))
}

// muxProbe records the answer of the mux without sending it.
type muxProbe struct {
	header http.Header
	status int
}

func (p *muxProbe) Header() http.Header         { return p.header }
func (p *muxProbe) Write(b []byte) (int, error) { return len(b), nil }
func (p *muxProbe) WriteHeader(status int)      { p.status = status }
