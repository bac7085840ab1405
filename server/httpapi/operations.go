package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	jsonv2 "github.com/go-json-experiment/json"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/truncate"
	"github.com/watchword-iot/watchword/server/session"
)

// The API library decodes, validates and describes /v1 (OpenAPI 3.1). Its own errors are converted
// to problem documents.

// strictJSON refuses duplicate members and invalid UTF-8, which encoding/json accepts.
var strictJSON = huma.Format{
	Marshal: func(w io.Writer, v any) error {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	},
	Unmarshal: func(b []byte, v any) error { return jsonv2.Unmarshal(b, v) },
}

// installErrorFormat converts the library's errors to problem documents. The library holds the
// function in a package variable; it is set once and does not depend on the API.
var installErrorFormat = sync.OnceFunc(func() {
	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		limit := int64(0)
		if ctx != nil && ctx.Operation() != nil {
			limit = ctx.Operation().MaxBodyBytes
		}
		err := validationError(status, limit, msg, errs)
		if ctx == nil {
			return newProblem(err)
		}
		r, _ := humago.Unwrap(ctx)
		if a, ok := r.Context().Value(apiKey{}).(*API); ok {
			return a.problem(r, err)
		}
		return newProblem(err)
	}
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		return newProblem(validationError(status, 0, msg, errs))
	}
})

// validationError converts a validation error of the library. It names the member and never repeats
// its value. limit is the limit of the operation's body in bytes, 0 where it is not known.
func validationError(status int, limit int64, msg string, errs []error) error {
	e := &watchword.Error{Code: watchword.BadRequest, Detail: "must be as the API description says (/openapi.json)"}
	for _, err := range errs {
		d, ok := err.(huma.ErrorDetailer)
		if !ok {
			continue
		}
		detail := d.ErrorDetail()
		e.Field = truncate.LogText(strings.TrimPrefix(strings.TrimPrefix(detail.Location, "body."), "query."))
		e.Detail = truncate.LogText(detail.Message)
		break
	}
	switch status {
	case http.StatusRequestEntityTooLarge:
		e.Code, e.Detail = watchword.TooLarge, "the request body must be smaller"
		if limit > 0 { // the library refuses a body of exactly the limit
			e.Detail = fmt.Sprintf("the request body must have fewer than %d bytes", limit)
		}
	case http.StatusUnsupportedMediaType:
		e.Code, e.Detail = watchword.UnsupportedMediaType, "Content-Type must be application/json"
	case http.StatusRequestTimeout:
		e.Code, e.Detail = watchword.TimedOut, "the request body did not arrive in time"
	default:
		if status >= http.StatusInternalServerError {
			return watchword.Refuse(watchword.Internal, "%s", msg)
		}
		if e.Field == "" {
			e.Field = "body"
			if strings.HasSuffix(msg, "required") {
				e.Detail = "is required"
			}
		}
	}
	return e
}

type apiKey struct{}

// security says that every operation accepts a Bearer token or a DPoP-bound one.
var security = []map[string][]string{{"token": {}}, {"proof": {}}}

func newHuma(a *API) huma.API {
	installErrorFormat()
	c := huma.DefaultConfig("Watchword", a.Version)
	c.CreateHooks, c.DocsPath, c.SchemasPath = nil, "", ""
	c.Formats = map[string]huma.Format{"application/json": strictJSON, "json": strictJSON}
	c.RejectUnknownQueryParameters = true
	c.Info.Description = "Identity and control for IoT devices. Errors are RFC 9457 problems with a stable code."
	c.Info.License = &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"}
	c.Servers = []*huma.Server{{URL: a.PublicURL}}
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token": {Type: "http", Scheme: "bearer", BearerFormat: "JWT", Description: "an access token from /oauth/token (RFC 9068)"},
		"proof": {Type: "http", Scheme: "dpop", BearerFormat: "JWT", Description: "an access token that is bound to a key, with a proof in the header DPoP (RFC 9449)"},
	}
	return humago.New(a.mux, c)
}

// operation describes a route of the API library.
type operation struct {
	method, path, summary string
	status                int   // 0 means 200
	maxBody               int64 // largest body in bytes; 0 means 16 KiB
	anyToken              bool  // any valid token is enough; the handler checks permissions itself
	readsOnly             bool  // a POST that changes nothing; GET never changes anything
	editsPolicy           bool  // edits policies, through caller.policyEdit
}

// register adds an operation of /v1. The caller is authenticated and authorized before the body is
// read, and authorized again once the input is complete; then the handler runs in
// [API.runAuthorized].
func register[I, O any](a *API, op operation, h func(ctx context.Context, c *caller, in *I) (*O, error)) {
	if op.maxBody == 0 {
		op.maxBody = 16 << 10
	}
	type key struct{}
	o := huma.Operation{
		Method: op.method, Path: op.path, Summary: op.summary, DefaultStatus: op.status, MaxBodyBytes: op.maxBody,
		OperationID: operationID(op.method, op.path), Security: security,
		Errors: []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound},
	}
	o.Middlewares = huma.Middlewares{func(ctx huma.Context, next func(huma.Context)) {
		r, w := humago.Unwrap(ctx)
		actor := a.authorizedCaller
		if op.anyToken {
			actor = a.caller
		}
		c, err := actor(r)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		ctx = huma.WithValue(ctx, apiKey{}, a)
		next(huma.WithValue(ctx, key{}, c))
	}}
	huma.Register(a.huma, o, func(ctx context.Context, in *I) (*O, error) {
		c := ctx.Value(key{}).(*caller)
		var may func(*session.Authority) error
		if !op.anyToken {
			may = func(now *session.Authority) error { return now.Request(c.method, c.path).Err() }
		}
		// The library does not expose the request; the members that handlers need are in the
		// context.
		r := requestOf(ctx, op)
		err := a.beginSession(r, c, requestTransport, may)
		var out *O
		if err == nil {
			err = a.runAuthorized(r, c, may, requestKind{readsOnly: op.readsOnly || op.method == http.MethodGet, editsPolicy: op.editsPolicy}, func() (err error) {
				out, err = h(ctx, c, in)
				return err
			})
		}
		if err != nil {
			return nil, a.problem(r, err)
		}
		return out, nil
	})
}

// requestOf rebuilds the parts of the request that a problem document needs.
func requestOf(ctx context.Context, op operation) *http.Request {
	r, err := http.NewRequestWithContext(ctx, op.method, op.path, http.NoBody)
	if err != nil {
		panic(err) // the pattern is no valid path; the first test of the route finds this
	}
	return r
}

func operationID(method, path string) string {
	return strings.ToLower(method) + strings.NewReplacer("/v1/", "-", "/", "-", "{", "", "...}", "", "}", "").Replace(path)
}

// describe adds a plain handler's route to the OpenAPI document.
func (a *API) describe(method, path, summary string, responses map[string]*huma.Response) {
	a.huma.OpenAPI().AddOperation(&huma.Operation{
		Method: method, Path: path, Summary: summary, OperationID: operationID(method, path), Responses: responses,
		Security: security,
	})
}

// describePublic is describe for a route that needs no access token.
func (a *API) describePublic(method, path, summary string) {
	a.huma.OpenAPI().AddOperation(&huma.Operation{Method: method, Path: path, Summary: summary, OperationID: operationID(method, path)})
}

// noBody is the input or output of an operation without one.
type noBody struct{}
