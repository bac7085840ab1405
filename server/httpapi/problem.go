package httpapi

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/truncate"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/authn"
	"github.com/watchword-iot/watchword/server/policy"
)

// statusOf maps codes to HTTP statuses.
var statusOf = map[watchword.Code]int{
	watchword.BadRequest:           http.StatusBadRequest,
	watchword.TooLarge:             http.StatusRequestEntityTooLarge,
	watchword.UnsupportedMediaType: http.StatusUnsupportedMediaType,
	watchword.MethodNotAllowed:     http.StatusMethodNotAllowed,
	watchword.NotFound:             http.StatusNotFound,
	watchword.Conflict:             http.StatusConflict,
	watchword.PreconditionFailed:   http.StatusPreconditionFailed,
	watchword.Denied:               http.StatusForbidden,
	watchword.ExceedsOwn:           http.StatusForbidden,
	watchword.Unauthenticated:      http.StatusUnauthorized,
	watchword.RateLimited:          http.StatusTooManyRequests,
	watchword.Busy:                 http.StatusTooManyRequests,
	watchword.Unavailable:          http.StatusServiceUnavailable,
	watchword.ClockUntrusted:       http.StatusServiceUnavailable,
	watchword.Superseded:           http.StatusServiceUnavailable,
	watchword.TimedOut:             http.StatusGatewayTimeout,
	watchword.ClientInvalid:        http.StatusUnauthorized,
	watchword.GrantUnsupported:     http.StatusBadRequest,
	watchword.ScopeInvalid:         http.StatusBadRequest,
	watchword.TargetInvalid:        http.StatusBadRequest,
	watchword.ProofRequired:        http.StatusUnauthorized,
	watchword.DPoPInvalid:          http.StatusUnauthorized,
	watchword.DPoPNonce:            http.StatusUnauthorized,
	watchword.TokenMalformed:       http.StatusUnauthorized,
	watchword.TokenKind:            http.StatusUnauthorized,
	watchword.AlgorithmInvalid:     http.StatusUnauthorized,
	watchword.KeyUnknown:           http.StatusUnauthorized,
	watchword.SignatureInvalid:     http.StatusUnauthorized,
	watchword.TokenExpired:         http.StatusUnauthorized,
	watchword.TokenEarly:           http.StatusUnauthorized,
	watchword.TokenLifetime:        http.StatusUnauthorized,
	watchword.IssuerMismatch:       http.StatusUnauthorized,
	watchword.AudienceMismatch:     http.StatusUnauthorized,
	watchword.TokenReplayed:        http.StatusUnauthorized,
	watchword.TokenUnrecorded:      http.StatusUnauthorized,
	watchword.TokenRevoked:         http.StatusUnauthorized,
	watchword.IssuerRevoked:        http.StatusUnauthorized,
	watchword.TokenTooLarge:        http.StatusUnprocessableEntity,
	watchword.SubjectNew:           http.StatusUnauthorized,
	watchword.SubjectSuspended:     http.StatusUnauthorized,
	watchword.SessionClosed:        http.StatusConflict,
	watchword.SubjectRevoked:       http.StatusUnauthorized,
	watchword.CodeInvalid:          http.StatusForbidden,
	watchword.ProofInvalid:         http.StatusForbidden,
	watchword.PairingPending:       http.StatusBadRequest,
	watchword.PairingSlow:          http.StatusBadRequest,
	watchword.PairingRejected:      http.StatusBadRequest,
	watchword.PairingExpired:       http.StatusBadRequest,
	watchword.PinMismatch:          http.StatusInternalServerError,
	watchword.BundleInvalid:        http.StatusUnprocessableEntity,
	watchword.PeerUntrusted:        http.StatusInternalServerError,
	watchword.PolicyInvalid:        http.StatusUnprocessableEntity,
	watchword.ArgsInvalid:          http.StatusUnprocessableEntity,
	watchword.FunctionUnknown:      http.StatusUnprocessableEntity,
	watchword.OrderInvalid:         http.StatusUnprocessableEntity,
	watchword.CommandUnsealed:      http.StatusUnprocessableEntity,
	watchword.CommandStale:         http.StatusUnprocessableEntity,
	watchword.CommandExpired:       http.StatusUnprocessableEntity,
	watchword.NonceMismatch:        http.StatusUnprocessableEntity,
	watchword.ReceiptInvalid:       http.StatusUnprocessableEntity,
	watchword.CommandRefused:       http.StatusUnprocessableEntity,
	watchword.CommandFailed:        http.StatusUnprocessableEntity,
	watchword.CommandUnlogged:      http.StatusUnprocessableEntity,
	watchword.LogInvalid:           http.StatusInternalServerError,
	watchword.BackupInvalid:        http.StatusInternalServerError,
	watchword.ConfigInvalid:        http.StatusInternalServerError,
	watchword.FolderInUse:          http.StatusInternalServerError,
	watchword.FolderNewer:          http.StatusInternalServerError,
	watchword.KeyExposed:           http.StatusInternalServerError,
	watchword.FileUntrusted:        http.StatusInternalServerError,
	watchword.KeyMissing:           http.StatusInternalServerError,
	watchword.KeyUnwrap:            http.StatusInternalServerError,
	watchword.KeyDamaged:           http.StatusInternalServerError,
	watchword.Internal:             http.StatusInternalServerError,
}

// problem is a problem document with what its challenge says beside. All its members are safe to show.
type problem struct {
	api.Problem

	scheme, metadata string // for the challenge: the scheme that the client used, and the URL of the resource metadata
	binding          bool   // the DPoP proof verifies, and the token is bound to another key
}

// Error, GetStatus, ContentType and GetHeaders make a problem an answer of the API library.
func (p *problem) Error() string { return string(p.Code) + ": " + p.Detail }

// GetStatus returns the HTTP status.
func (p *problem) GetStatus() int { return p.Status }

// ContentType returns the content type of problem documents.
func (p *problem) ContentType(string) string { return "application/problem+json" }

// GetHeaders returns the headers of RFC 6750 §3, RFC 9449 §7.1 and RFC 9110 §10.2.3.
func (p *problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	if p.Status == http.StatusUnauthorized || p.Code == watchword.Denied {
		h["Www-Authenticate"] = challenges(p)
	}
	return h
}

// problem converts err to a problem document, logs it, and writes an audit entry for the refusal.
func (a *API) problem(r *http.Request, err error) *problem {
	in := requestInfoOf(r.Context())
	p := newProblem(err)
	p.TraceID = in.trace
	p.addChallenge(a, in)
	if p.Code == watchword.PairingPending { // pending is no refusal; logging it every few seconds would fill the log
		return p
	}
	attrs := []slog.Attr{
		slog.String("code", string(p.Code)), slog.String("method", r.Method), slog.String("path", r.URL.Path),
		slog.String("remote", in.remote.String()),
	}
	if in.actor.Subject != "" {
		attrs = append(attrs, slog.String("subject", string(in.actor.Subject)))
	}
	if p.Rule != "" {
		attrs = append(attrs, slog.String("rule", p.Rule))
	}
	if p.Field != "" {
		attrs = append(attrs, slog.String("field", p.Field))
	}
	level := slog.LevelInfo
	switch {
	case p.Code == watchword.DPoPNonce: // each client's first request with a proof is answered so (RFC 9449 §8)
		level = slog.LevelDebug
	case p.Code == watchword.Unavailable:
		level = slog.LevelWarn
	case p.Status >= http.StatusInternalServerError:
		level = slog.LevelError
	}
	a.Log.LogAttrs(r.Context(), level, "request refused", append(attrs, slog.Any("err", err))...)
	if in.actor.Tenant != "" { // a host that is of no tenant has no log either
		a.Recorder.Refused(in.actor.RefusedEntry(audit.RequestRefuse, r.Method+" "+truncate.LogText(r.URL.Path), a.Now(), err, map[string]string{
			"remote": in.remote.String(), "rule": p.Rule,
		}))
	}
	return p
}

// addChallenge puts into p what its challenge says beside what was wrong.
func (p *problem) addChallenge(a *API, in *requestInfo) {
	p.scheme, p.metadata = in.scheme, strings.TrimSuffix(a.url(in.actor.Tenant), watchword.TenantPath(in.actor.Tenant))+resourceMetadata+watchword.TenantPath(in.actor.Tenant)
}

func newProblem(err error) *problem {
	code := watchword.CodeOf(err)
	status, ok := statusOf[code]
	if !ok {
		code, status = watchword.Internal, http.StatusInternalServerError
	}
	p := &problem{Problem: api.Problem{Type: code.Page(), Title: string(code), Status: status, Code: code}}
	if e, ok := errors.AsType[*watchword.Error](err); ok && code != watchword.Internal {
		p.Detail, p.Field, p.Rule = e.Detail, e.Field, e.Rule
		p.RetryAfter = int(math.Ceil(e.RetryAfter.Seconds()))
		for _, m := range policy.Mistakes(err) {
			p.Mistakes = append(p.Mistakes, api.Mistake(m))
		}
	}
	p.binding = errors.Is(err, authn.ErrKeyNotBound)
	if p.RetryAfter == 0 && (status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable) {
		p.RetryAfter = 1
	}
	return p
}

// fail answers a request with the problem document of err.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := a.problem(r, err)
	for k, v := range p.GetHeaders() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	writeJSON(w, p)
}

// writeAnswer writes v as JSON.
func writeAnswer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	writeJSON(w, v)
}

// writeJSON does not escape < > &: the reader is no HTML parser. An error means that the client has
// closed the connection.
func writeJSON(w io.Writer, v any) {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v)
}
