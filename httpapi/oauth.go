package httpapi

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rates"
)

// The OAuth endpoints take forms and answer with OAuth's own JSON.

const (
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	maxForm       = 16 << 10
)

func (a *API) oauthRoutes() {
	a.mux.HandleFunc("POST /oauth/token", a.token)
	issuer := a.Office.Issuer()
	methods := []string{"private_key_jwt"}
	algs := []string{"ES256", "Ed25519", "EdDSA"}
	metadata := map[string]any{ // RFC 8414 §2
		"issuer":                                issuer,
		"token_endpoint":                        a.PublicURL + "/oauth/token",
		"jwks_uri":                              a.PublicURL + "/.well-known/jwks.json",
		"device_authorization_endpoint":         a.PublicURL + "/oauth/device_authorization", // RFC 8628 §4
		"grant_types_supported":                 []string{"client_credentials", deviceGrant},
		"response_types_supported":              []string{},
		"token_endpoint_auth_methods_supported": methods,
		"token_endpoint_auth_signing_alg_values_supported": algs,
		"service_documentation":                            a.PublicURL + "/openapi.json",
	}
	resource := map[string]any{ // RFC 9728 §2
		"resource":                 issuer,
		"authorization_servers":    []string{issuer},
		"jwks_uri":                 a.PublicURL + "/.well-known/jwks.json",
		"bearer_methods_supported": []string{"header"},
	}
	a.mux.HandleFunc("GET /.well-known/oauth-authorization-server", public(metadata))
	a.mux.HandleFunc("GET /.well-known/oauth-protected-resource", public(resource))
	a.mux.HandleFunc("GET /.well-known/jwks.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/jwk-set+json")
		w.Header().Set("Cache-Control", "public, max-age=300")
		_, _ = w.Write(a.JWKS()) // the reader has gone, if at all
	})
}

func public(doc map[string]any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "public, max-age=300")
		writeJSON(w, doc)
	}
}

// token is the token endpoint (RFC 6749 §4.4, RFC 7523 §2.2).
func (a *API) token(w http.ResponseWriter, r *http.Request) {
	in := infoOf(r.Context())
	if err := a.rates.Take(rates.Network(in.remote), a.Now()); err != nil {
		a.oauthError(w, r, err)
		return
	}
	form, err := readForm(r)
	if err == nil && form.Get("grant_type") == deviceGrant {
		a.pairingToken(w, r, form)
		return
	}
	var assertion string
	if err == nil {
		assertion, err = tokenForm(r, form)
	}
	if err != nil {
		a.oauthError(w, r, err)
		return
	}
	issued, err := a.Office.Exchange(r.Context(), tenant, assertion, true, in.trace, a.Now())
	if err != nil {
		a.oauthError(w, r, err)
		return
	}
	w.Header().Set("Pragma", "no-cache") // RFC 6749 §5.1
	answer(w, http.StatusOK, map[string]any{
		"access_token": issued.Token, "token_type": "Bearer", "expires_in": int(issued.Life.Seconds()),
	})
}

// tokenForm returns the client assertion of a token request.
func tokenForm(r *http.Request, form url.Values) (string, error) {
	switch grant := form.Get("grant_type"); grant {
	case "client_credentials":
	case "":
		return "", watchword.RefuseField("grant_type", "is missing")
	default:
		return "", watchword.Refuse(watchword.GrantUnsupported, "grant_type must be client_credentials or %s", deviceGrant)
	}
	if form.Get("client_secret") != "" || r.Header.Get("Authorization") != "" {
		return "", watchword.Refuse(watchword.ClientInvalid, "this server knows no client secrets: send a client_assertion")
	}
	if form.Get("client_assertion_type") != assertionType || form.Get("client_assertion") == "" {
		return "", watchword.Refuse(watchword.ClientInvalid, "client_assertion_type must be %s, with a client_assertion", assertionType)
	}
	if err := narrowing(form); err != nil {
		return "", err
	}
	assertion := form.Get("client_assertion")
	return assertion, sameClient(form.Get("client_id"), assertion)
}

// narrowing refuses what asks for less than the whole grant: a token that gives
// more than was asked for would be worse than none.
func narrowing(form url.Values) error {
	for _, name := range []string{"scope", "resource", "audience"} {
		if form.Get(name) != "" {
			return watchword.RefuseField(name, "is not supported by this server yet")
		}
	}
	return nil
}

// oauthErrorOf maps codes to RFC 6749 §5.2; what is missing is invalid_client.
var oauthErrorOf = map[watchword.Code]string{
	watchword.BadRequest:           "invalid_request",
	watchword.TooLarge:             "invalid_request",
	watchword.UnsupportedMediaType: "invalid_request",
	watchword.GrantUnsupported:     "unsupported_grant_type",
	watchword.Conflict:             "invalid_request", // keys that were used before
	watchword.PairingPending:       "authorization_pending",
	watchword.PairingSlow:          "slow_down",
	watchword.PairingRejected:      "access_denied",
	watchword.PairingExpired:       "expired_token",
	watchword.TokenTooLarge:        "invalid_scope",
	watchword.RateLimited:          "temporarily_unavailable",
	watchword.Busy:                 "temporarily_unavailable",
	watchword.Unavailable:          "temporarily_unavailable",
	watchword.Internal:             "server_error",
}

func (a *API) oauthError(w http.ResponseWriter, r *http.Request, err error) {
	p := a.problem(r, err)
	name, ok := oauthErrorOf[p.Code]
	if !ok {
		name = "invalid_client"
	}
	if name == "invalid_client" {
		p.Status = http.StatusUnauthorized
	}
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	description := p.Detail
	if p.Field != "" {
		description = p.Field + " " + description
	}
	answer(w, p.Status, map[string]any{"error": name, "error_description": ascii(description), "code": p.Code, "trace_id": p.TraceID})
}

// ascii keeps a description within RFC 6749 §5.2: %x20-21 / %x23-5B / %x5D-7E.
func ascii(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '"' || r == '\\':
			return '\''
		case r < 0x20 || r > 0x7e:
			return '?'
		}
		return r
	}, s)
}
