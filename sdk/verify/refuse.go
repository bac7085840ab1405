package verify

import (
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/truncate"
)

// algs is the list of signature algorithms for DPoP proofs (RFC 9449 §7.1).
const algs = `algs="ES256 Ed25519 EdDSA"`

// statusByCode maps codes of this package to HTTP status codes; the other codes concern the token: 401.
var statusByCode = map[watchword.Code]int{
	watchword.BadRequest:  http.StatusBadRequest,
	watchword.Denied:      http.StatusForbidden,
	watchword.Busy:        http.StatusTooManyRequests,
	watchword.Unavailable: http.StatusServiceUnavailable,
	watchword.Internal:    http.StatusInternalServerError,
}

// Refuse answers a request with an error of this package: the status and challenges of RFC 6750 §3 and RFC 9449 §7.1, and a
// problem document. It also logs the cause. Neither contains parts of the token.
func (v *Verifier) Refuse(w http.ResponseWriter, r *http.Request, err error) {
	code := watchword.CodeOf(err)
	status, ok := statusByCode[code]
	if !ok {
		status = http.StatusUnauthorized
	}
	p := api.Problem{Type: code.Page(), Title: string(code), Status: status, Code: code}
	if e, ok := errors.AsType[*watchword.Error](err); ok {
		p.Detail, p.Field, p.Rule = e.Detail, e.Field, e.Rule
		p.RetryAfter = int(math.Ceil(e.RetryAfter.Seconds()))
	}
	level := slog.LevelInfo
	if status >= http.StatusInternalServerError {
		level = slog.LevelWarn
	}
	v.log.LogAttrs(r.Context(), level, "request refused", slog.String("code", string(code)), slog.String("method", r.Method),
		slog.String("path", truncate.LogText(r.URL.Path)), slog.String("rule", p.Rule), slog.Any("err", err))

	h := w.Header()
	for _, c := range v.challenges(r, err, status) {
		h.Add("WWW-Authenticate", c)
	}
	if v.nonces != nil && usesDPoP(r) {
		h.Set("DPoP-Nonce", v.nonces.current(v.now()))
	}
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(p) // the connection is broken; there is no client to inform
}

// challenges returns a challenge with the error for the scheme that was used, and, if another token would help, one for the
// other scheme that this service accepts (RFC 9449 §7.2).
func (v *Verifier) challenges(r *http.Request, err error, status int) []string {
	switch status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
	default:
		return nil
	}
	common := ` realm="` + v.audience + `"`
	if v.metadata != "" {
		common += `, resource_metadata="` + v.metadata + `"`
	}
	wrong := ""
	if name := oauthError(err, status); name != "" {
		wrong = `, error="` + name + `", error_description="` + string(watchword.CodeOf(err)) + `"`
	}
	dpop := v.proof || len(v.bases) > 0 && usesDPoP(r)
	used, other := "Bearer"+common+wrong, "DPoP"+common+", "+algs
	if dpop {
		used, other = "DPoP"+common+wrong+", "+algs, "Bearer"+common
	}
	if status != http.StatusUnauthorized || v.proof || len(v.bases) == 0 {
		return []string{used}
	}
	return []string{used, other}
}

// oauthError returns the error of RFC 6750 §3.1 and RFC 9449 §7.1; empty if no token was sent.
func oauthError(err error, status int) string {
	switch code := watchword.CodeOf(err); {
	case code == watchword.Unauthenticated:
		return ""
	case status == http.StatusBadRequest:
		return "invalid_request"
	case status == http.StatusForbidden:
		return "insufficient_scope"
	case code == watchword.DPoPNonce:
		return "use_dpop_nonce"
	case code == watchword.DPoPInvalid && !errors.Is(err, errKeyNotBound):
		return "invalid_dpop_proof"
	}
	return "invalid_token"
}

func usesDPoP(r *http.Request) bool {
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.EqualFold(scheme, "DPoP")
}
