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

// requestInfo is what the door knows of a request. who is filled in when papers were shown.
type requestInfo struct {
	trace  string
	remote netip.Addr
	actor  audit.Actor
	scheme string      // of the token that was shown; empty before one was
	header http.Header // of the answer
	writer *responseWriter
	// session is the request's once its input is whole, if it has a token.
	session *requestSession
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

// requestInfoOf returns the request's info; a zero one outside a request.
func requestInfoOf(ctx context.Context) *requestInfo {
	if in, ok := ctx.Value(infoKey{}).(*requestInfo); ok {
		return in
	}
	return &requestInfo{}
}

// ServeHTTP gives every request its trace id, its bounds, and an answer even
// where the code behind it panics.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	in := &requestInfo{trace: watchword.NewID("", a.Now()), actor: audit.Actor{Tenant: tenant}}
	in.actor.Trace = in.trace
	in.writer = newResponseWriter(w, r)
	in.header = w.Header()
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		in.remote = ap.Addr().Unmap()
	}
	in.writer.quota, in.writer.account.network = a.answerQuota, rates.Network(in.remote)
	r = r.WithContext(context.WithValue(fair.WithNetwork(r.Context(), rates.Network(in.remote)), infoKey{}, in))
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
	}()
	// Many requests go over one connection (HTTP/2), and each takes memory until its answer is written.
	network := rates.Network(in.remote)
	if err := a.requestQuota.Reserve(network, 1); err != nil {
		a.fail(in.writer, r, &watchword.Error{Code: watchword.Busy, Detail: "too many requests are under way", RetryAfter: time.Second, Err: err})
	} else {
		defer a.requestQuota.Release(network, 1)
		a.serve(r, in, common)
	}
	a.delayRefusal(r.Context(), in)
	a.finish(r, in, common)
}

// An answer of status 429 to a subject is given late, so that one who asks again at once costs the server no more than
// one who waits. Where so many are late already, it is given at once. Strangers are bounded by address before.
const (
	refusalDelay        = 20 * time.Millisecond
	maxDelayedResponses = 1024
)

// delayRefusal waits, where the answer is one that is given late, or until the client goes.
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

// serve has the request answered, even where the code panics.
func (a *API) serve(r *http.Request, in *requestInfo, common http.Header) {
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
func (a *API) finish(r *http.Request, in *requestInfo, common http.Header) {
	reason, started := in.writer.finish()
	switch {
	case reason == nil:
	case started:
		panic(http.ErrAbortHandler) // a client sees that it has not all of it
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

// isCanonicalPath reports whether a path is written in the one way that is taken: clean, and
// without what is percent-encoded though it need not be. A topic at its end is encoded.
func isCanonicalPath(u *url.URL) bool {
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
	probe := &muxProbe{header: http.Header{}}
	handler.ServeHTTP(probe, r)
	if probe.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", probe.header.Get("Allow"))
		a.fail(w, r, watchword.Refuse(watchword.MethodNotAllowed, "this address has no such method"))
		return
	}
	a.fail(w, r, watchword.Refuse(watchword.NotFound, "no such address"))
}

// muxProbe takes the mux's answer without sending it.
type muxProbe struct {
	header http.Header
	status int
}

func (p *muxProbe) Header() http.Header         { return p.header }
func (p *muxProbe) Write(b []byte) (int, error) { return len(b), nil }
func (p *muxProbe) WriteHeader(status int)      { p.status = status }
