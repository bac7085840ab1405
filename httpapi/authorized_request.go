package httpapi

import (
	"context"
	"net/http"
	"strings"
	"sync"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/session"
)

// A request with a token is decided twice. Before its body is read it is refused where that is plain already. Once its
// input is whole it becomes a session, which the guard tells of every change of authority until the answer is written:
//
//   - What it changes runs in [session.Session.Act]: the store compares what it was decided on in the transaction of the
//     change, so nothing commits after an edit that took the right away.
//   - What it reads is written through [responseWriter], which hands nothing to the connection any more once the session
//     has ended or its right is gone.

// transports of sessions over HTTP.
const (
	requestTransport = "request" // a request that is being answered
	streamTransport  = "sse"
	pollTransport    = "poll"
	exportTransport  = "export"
)

// requestSession is the session of one request.
type requestSession struct {
	*session.Session
	response *responseWriter
	cancel   context.CancelCauseFunc

	waited bool // the answer tells of something that came after the act: it is read

	mu     sync.Mutex
	checks []func(*session.Authority) error
}

// beginSession makes the request a session, as it stands when its input is whole. may, if not nil, is what it must be allowed
// for as long as it lasts. The answer of one that reads is guarded; one that changes something is told how that ended
// whatever it took away. c.ctx ends when the session does, when may refuses, or when the client goes.
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
	// Both are called while authority changes, so that nothing passes once the change has its answer: whoever waited for
	// the session's end instead would be late.
	s, err := a.Guard.Open(r.Context(), c.credentials, session.Options{
		Transport: transport, Remote: c.remote, Class: class, Changed: w.changed,
		Ended: w.end, Cut: w.response.breakWrite, Covers: w.allowed,
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

// require adds something that the session must be allowed for as long as it lasts. Code: may's.
func (w *requestSession) require(may func(*session.Authority) error) error {
	w.mu.Lock()
	w.checks = append(w.checks, may)
	w.mu.Unlock()
	return w.check()
}

// check asks what the session must be allowed, after it was told to whoever changes authority.
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
	if cause == nil { // its own side is done with it
		w.cancel(nil)
		return
	}
	w.cancel(cause)
	w.response.refuse(cause)
}

// close gives the session up: the answer is written.
func (w *requestSession) close() {
	w.Close(nil)
	w.cancel(nil)
}

// requestKind is what kind of act a request is.
type requestKind struct {
	readsOnly   bool // it changes nothing, so that its answer stays guarded
	editsPolicy bool // it edits policies: it is decided once no other edit is under way
}

// runAuthorized runs what a request changes, and what it reads beside that: h runs again where authority changed before h's own
// change was written.
func (a *API) runAuthorized(r *http.Request, c *caller, may func(*session.Authority) error, m requestKind, h func() error) error {
	err := a.runDecided(r, c, may, m, h)
	if err == nil && (m.readsOnly || c.session.waited) && !c.session.response.direct {
		// What it must be allowed may hang on others, such as the labels of the device that a command is for: a change of
		// these is not told to this session. It is asked again, once what it answers with is there.
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
			if cause := streamEnded(c.ctx); cause != nil { // the session ended meanwhile
				return cause
			}
			return err
		}
		defer c.policyEdit.Release()
	}
	return c.session.Act(r.Context(), may, func(_ context.Context, now *session.Authority) error {
		c.Authority = now
		c.actor.Versions = now.Versions()
		return h()
	})
}

// route is what a plain handler's address says of itself.
type route struct {
	pattern     string                       // "METHOD /path"
	anyToken    bool                         // any valid token is enough: the handler asks for what it needs
	safePost    bool                         // a POST that changes nothing; GET never does
	editsPolicy bool                         // it edits policies, by caller.edit
	maxBody     int64                        // the largest body that is read; 0: none is
	contentType string                       // its content type; empty: any
	stream      func(r *http.Request) string // the transport of a request that lasts; nil, or empty: it does not
}

func (rt route) readsOnly() bool { return rt.safePost || strings.HasPrefix(rt.pattern, "GET ") }

// handle registers a plain handler. Its body is read before it is called.
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

// streamEnded returns why a request that lasts must stop: nil if its own client or its wait did it.
func streamEnded(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil && watchword.CodeOf(err) != watchword.Internal {
		return err
	}
	return nil
}
