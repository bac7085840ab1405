package httpapi

import (
	"context"
	"net/http"
	"strings"
	"sync"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/session"
)

// A request with a token is authorized twice. Before its body is read, it is refused if its token
// or permissions do not allow it. Once its input is complete, it becomes a session of
// [session.Guard], which is notified of every change of authority until the answer is written:
//
//   - A request that changes something runs in [session.Session.RunAuthorized]: the store compares, in the transaction of the
//     change, the versions that the decision was based on. Nothing commits after an edit that took the permission away.
//   - A request that reads writes its answer through [responseWriter], which passes nothing to the connection any more
//     once the session has ended or has lost the permission.

// Transports of HTTP sessions.
const (
	requestTransport = "request" // an ordinary request
	streamTransport  = "sse"
	pollTransport    = "poll"
	exportTransport  = "export"
)

// requestSession is the session of one request.
type requestSession struct {
	*session.Session
	response *responseWriter
	cancel   context.CancelCauseFunc

	waited bool // the request waited and its answer contains later data, so the answer is guarded like a read

	mu     sync.Mutex
	checks []func(*session.Authority) error
}

// beginSession opens a session for a request whose input is complete. may, if not nil, is checked
// at every change of authority while the session lasts. The answer of a request that only reads is
// guarded (see [responseWriter]); the answer of a request that changes something is always sent,
// whatever the change took away. c.ctx ends when the session ends, when may refuses, or when the
// client closes the connection.
func (a *API) beginSession(r *http.Request, c *caller, transport string, may func(*session.Authority) error) error {
	in := requestInfoOf(r.Context())
	ctx, cancel := context.WithCancelCause(r.Context())
	w := &requestSession{response: in.writer, cancel: cancel}
	if may != nil {
		w.checks = []func(*session.Authority) error{may}
	}
	class := session.ClassConnection
	if transport == requestTransport {
		class = session.ClassAnswer
	}
	in.writer.guard()
	in.writer.setAccount(quota.Key{Tenant: c.credentials.Tenant, Subject: c.credentials.Subject})
	// Both run while authority changes, before the change is answered. Waiting for the end of the
	// session instead would let a write pass after the answer.
	s, err := a.Guard.Open(r.Context(), c.credentials, session.Options{
		Transport: transport, Remote: c.remote, Class: class, Changed: w.changed,
		Ended: w.end, Abort: w.response.breakWrite, Covers: w.allowed,
	})
	if err != nil {
		in.writer.release()
		cancel(err)
		return err
	}
	w.Session = s
	c.session, c.ctx, in.session = w, ctx, w
	c.Authority = s.Authority()
	if err := w.check(); err != nil {
		in.writer.release()
		return err
	}
	return nil
}

// require adds a check that the session must pass as long as it lasts. Codes: those of may.
func (w *requestSession) require(may func(*session.Authority) error) error {
	w.mu.Lock()
	w.checks = append(w.checks, may)
	w.mu.Unlock()
	return w.check()
}

// check runs all checks against the current authority of the session.
func (w *requestSession) check() error {
	if err := w.allowed(w.Authority()); err != nil {
		w.end(err)
		return err
	}
	return nil
}

func (w *requestSession) allowed(now *session.Authority) error {
	w.mu.Lock()
	may := w.checks
	w.mu.Unlock()
	for _, f := range may {
		if err := f(now); err != nil {
			return err
		}
	}
	return nil
}

// changed and end are called with the session locked.
func (w *requestSession) changed(now *session.Authority) {
	if err := w.allowed(now); err != nil {
		w.end(err)
	}
}

func (w *requestSession) end(cause error) {
	if cause == nil { // the handler has finished
		w.cancel(nil)
		return
	}
	w.cancel(cause)
	w.response.refuse(cause)
}

// close ends the session after the answer was written.
func (w *requestSession) close() {
	w.End(nil)
	w.cancel(nil)
}

// requestKind says what kind of operation a request is.
type requestKind struct {
	readsOnly   bool // the request changes nothing; its answer is guarded
	editsPolicy bool // the request edits policies; it is authorized while no other edit runs
}

// runAuthorized runs the handler h of a request under its authority. h runs again where authority
// changed before the change of h was committed.
func (a *API) runAuthorized(r *http.Request, c *caller, may func(*session.Authority) error, m requestKind, h func() error) error {
	err := a.runDecided(r, c, may, m, h)
	if err == nil && (m.readsOnly || c.session.waited) && !c.session.response.direct {
		// A permission may depend on another subject, such as the labels of a command's device. The
		// guard does not notify this session of their changes, so the checks run again before the
		// answer is written.
		err = c.session.check()
	}
	if err != nil || !m.readsOnly && !c.session.waited {
		c.session.response.release()
	}
	return err
}

func (a *API) runDecided(r *http.Request, c *caller, may func(*session.Authority) error, m requestKind, h func() error) (err error) {
	if m.editsPolicy {
		if c.policyEdit, err = a.Registry.EditPolicies(c.ctx); err != nil {
			if cause := streamEnded(c.ctx); cause != nil { // the session ended while the handler ran
				return cause
			}
			return err
		}
		defer c.policyEdit.Release()
	}
	return c.session.RunAuthorized(r.Context(), may, func(_ context.Context, now *session.Authority) error {
		c.Authority = now
		c.actor.Versions, c.actor.Policy = now.Versions(), now.Policy()
		return h()
	})
}

// route describes a plain handler.
type route struct {
	pattern     string                       // "METHOD /path"
	anyToken    bool                         // any valid token is enough; the handler checks permissions itself
	safePost    bool                         // a POST that changes nothing; GET never changes anything
	editsPolicy bool                         // edits policies, through caller.policyEdit
	maxBody     int64                        // largest body in bytes; 0: no body is read
	contentType string                       // required content type; empty: any
	stream      func(r *http.Request) string // returns the transport of a streaming or polling request; nil or "": an ordinary request
}

func (rt route) readsOnly() bool { return rt.safePost || strings.HasPrefix(rt.pattern, "GET ") }

// handle registers a plain handler. The body is read before the handler is called.
func (a *API) handle(rt route, h func(w http.ResponseWriter, r *http.Request, c *caller) error) {
	a.mux.HandleFunc(rt.pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := a.serveRoute(w, r, rt, h); err != nil {
			a.fail(w, r, err)
		}
	})
}

func (a *API) serveRoute(w http.ResponseWriter, r *http.Request, rt route, h func(w http.ResponseWriter, r *http.Request, c *caller) error) error {
	may := func(now *session.Authority) error { return now.Request(r.Method, policyPath(r)).Err() }
	if rt.anyToken {
		may = nil
	}
	c, err := a.caller(r)
	if err == nil && may != nil {
		err = may(c.Authority)
	}
	if err != nil {
		return err
	}
	if rt.maxBody > 0 {
		if c.body, err = readBody(w, r, rt.contentType, rt.maxBody); err != nil {
			return err
		}
	}
	transport := requestTransport
	if rt.stream != nil {
		if t := rt.stream(r); t != "" {
			transport = t
		}
	}
	if err := a.beginSession(r, c, transport, may); err != nil {
		return err
	}
	return a.runAuthorized(r, c, may, requestKind{readsOnly: rt.readsOnly(), editsPolicy: rt.editsPolicy}, func() error { return h(w, r, c) })
}

// streamEnded returns why a stream or poll must end; nil if its client closed the connection or its wait time has passed.
func streamEnded(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil && watchword.CodeOf(err) != watchword.Internal {
		return err
	}
	return nil
}
