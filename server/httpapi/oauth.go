package httpapi

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/server/authn"
)

// The OAuth endpoints read forms and answer with OAuth's JSON documents.

const (
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	maxForm       = 16 << 10
	proofAlgs     = "ES256 Ed25519 EdDSA" // algorithms of DPoP proofs
)

// The well-known paths of metadata; for another tenant than the default one they are followed by /t/TENANT.
const (
	issuerMetadata   = "/.well-known/oauth-authorization-server"
	resourceMetadata = "/.well-known/oauth-protected-resource"
)

func (a *API) oauthRoutes() {
	a.mux.HandleFunc("POST /oauth/token", a.token)
	a.mux.HandleFunc("POST /oauth/introspect", a.introspect)
	a.mux.HandleFunc("POST /oauth/revoke", a.revoke)
	a.describePublic(http.MethodPost, "/oauth/token", "Exchange a client assertion for an access token (RFC 6749, 7523), or poll a pairing (RFC 8628); a form")
	a.describePublic(http.MethodPost, "/oauth/introspect", "Introspect an access token: its current permissions (RFC 7662); a form")
	a.describePublic(http.MethodPost, "/oauth/revoke", "Revoke an access token of the caller (RFC 7009); a form")
	a.mux.HandleFunc("GET "+issuerMetadata, a.publicDocument(a.issuerMetadata))
	a.mux.HandleFunc("GET "+resourceMetadata, a.publicDocument(a.resourceMetadata))
	a.mux.HandleFunc("GET /.well-known/jwks.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/jwk-set+json")
		w.Header().Set("Cache-Control", "public, max-age=300")
		_, _ = w.Write(a.JWKS()) // the error means that the client has closed the connection
	})
}

// issuerMetadata describes the issuer of a tenant (RFC 8414 §2).
func (a *API) issuerMetadata(issuer, at string) map[string]any {
	methods, algs := []string{"private_key_jwt"}, []string{"ES256", "Ed25519", "EdDSA"}
	return map[string]any{
		"issuer":                                issuer,
		"token_endpoint":                        at + "/oauth/token",
		"introspection_endpoint":                at + "/oauth/introspect",
		"revocation_endpoint":                   at + "/oauth/revoke",
		"jwks_uri":                              at + "/.well-known/jwks.json",
		"device_authorization_endpoint":         at + "/oauth/device_authorization", // RFC 8628 §4
		"grant_types_supported":                 []string{"client_credentials", deviceGrant},
		"response_types_supported":              []string{},
		"token_endpoint_auth_methods_supported": methods,

		"token_endpoint_auth_signing_alg_values_supported":         algs,
		"introspection_endpoint_auth_methods_supported":            append([]string{bearerScheme, dpopScheme}, methods...),
		"introspection_endpoint_auth_signing_alg_values_supported": algs,
		"revocation_endpoint_auth_methods_supported":               methods,
		"revocation_endpoint_auth_signing_alg_values_supported":    algs,
		"dpop_signing_alg_values_supported":                        strings.Fields(proofAlgs), // RFC 9449 §5.1
		"service_documentation":                                    at + "/openapi.json",
	}
}

// resourceMetadata describes a tenant's API (RFC 9728 §2).
func (a *API) resourceMetadata(issuer, at string) map[string]any {
	return map[string]any{
		"resource":                          issuer,
		"authorization_servers":             []string{issuer},
		"bearer_methods_supported":          []string{"header"},
		"dpop_signing_alg_values_supported": strings.Fields(proofAlgs),
		"resource_documentation":            at + "/openapi.json",
	}
}

// publicDocument serves a document about a tenant.
func (a *API) publicDocument(of func(issuer, at string) map[string]any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "public, max-age=300")
		writeJSON(w, of(a.issuerAt(r)))
	}
}

// token is the token endpoint (RFC 6749 §3.2).
func (a *API) token(w http.ResponseWriter, r *http.Request) {
	form, err := a.oauthForm(r)
	var proof *authn.DPoPRequest
	if err == nil {
		proof, err = a.dpopProof(r)
	}
	if err != nil {
		a.oauthError(w, r, err)
		return
	}
	var issued any
	switch form.Get("grant_type") {
	case "client_credentials":
		issued, err = a.clientCredentials(r, form, proof)
	case deviceGrant:
		issued, err = a.pairingToken(r, form, proof)
	case "":
		err = watchword.RefuseField("grant_type", "is required")
	default:
		err = watchword.Refuse(watchword.GrantUnsupported, "grant_type must be client_credentials or %s", deviceGrant)
	}
	if err != nil {
		a.oauthError(w, r, err)
		return
	}
	w.Header().Set("Pragma", "no-cache") // RFC 6749 §5.1
	writeAnswer(w, http.StatusOK, issued)
}

// clientCredentials serves grant_type client_credentials (RFC 6749 §4.4) with a client assertion
// (RFC 7523 §2.2), with or without a DPoP proof (RFC 9449 §5).
func (a *API) clientCredentials(r *http.Request, form url.Values, proof *authn.DPoPRequest) (any, error) {
	in := requestInfoOf(r.Context())
	ask := authn.TokenRequest{AllowUntyped: true, Proof: proof, Resource: form.Get("resource")}
	var err error
	if ask.Assertion, err = clientAssertion(r, form); err != nil {
		return nil, err
	}
	if err := checkResource(form); err != nil {
		return nil, err
	}
	if ask.FullScope = form.Get("scope") == watchword.FullScope; !ask.FullScope {
		if ask.Scope, err = watchword.ParseScope(form.Get("scope")); err != nil {
			return nil, err
		}
	}
	issued, err := a.Auth.Exchange(r.Context(), tenantOf(r), ask, in.trace, a.Now())
	in.actor.Subject, in.actor.Key = issued.Subject, issued.Key
	if err != nil {
		return nil, err
	}
	out := viewToken(issued)
	switch {
	case ask.FullScope:
		out.Scope = watchword.FullScope
	case ask.Scope != nil:
		out.Scope = watchword.FormatScope(ask.Scope)
	}
	return out, nil
}

func viewToken(i authn.IssuedToken) api.TokenResponse {
	return api.TokenResponse{AccessToken: i.Token, TokenType: i.TokenType(), ExpiresIn: int64(i.ExpiresIn / time.Second)}
}

// checkResource refuses an invalid resource (RFC 8707 §2), and the parameter audience of other
// servers: ignoring it would issue a token for another audience than the client asked for.
func checkResource(form url.Values) error {
	if form.Get("audience") != "" {
		return watchword.Refuse(watchword.TargetInvalid, "audience is not supported: use resource (RFC 8707)")
	}
	switch list := form["resource"]; {
	case len(list) > 1:
		return watchword.Refuse(watchword.TargetInvalid, "resource must be given at most once: a token has one audience")
	case len(list) == 1 && list[0] != "":
		u, err := url.Parse(list[0])
		if err != nil || len(list[0]) > maxResourceParameter || !u.IsAbs() || u.Host == "" && u.Opaque == "" || strings.Contains(list[0], "#") || ascii(list[0]) != list[0] || strings.Contains(list[0], " ") {
			return watchword.Refuse(watchword.TargetInvalid, "resource must be one absolute URI without a fragment, of at most %d bytes", maxResourceParameter)
		}
	}
	return nil
}

const maxResourceParameter = 256

// clientAssertion reads the client assertion from a form (RFC 7521 §4.2), the only client
// authentication. Code: client_invalid.
func clientAssertion(r *http.Request, form url.Values) (string, error) {
	if form.Get("client_secret") != "" || r.Header.Get("Authorization") != "" {
		return "", watchword.Refuse(watchword.ClientInvalid, "client_secret is not supported: authenticate with client_assertion")
	}
	assertion := form.Get("client_assertion")
	if form.Get("client_assertion_type") != assertionType || assertion == "" {
		return "", watchword.Refuse(watchword.ClientInvalid, "client_assertion_type must be %s, with a client_assertion", assertionType)
	}
	return assertion, checkClientID(form.Get("client_id"), assertion)
}

// oauthErrorOf maps codes to the error codes of RFC 6749 §5.2, RFC 8707 §2 and RFC 9449 §5, §8;
// every other code is invalid_client.
var oauthErrorOf = map[watchword.Code]string{
	watchword.BadRequest:           "invalid_request",
	watchword.TooLarge:             "invalid_request",
	watchword.UnsupportedMediaType: "invalid_request",
	watchword.GrantUnsupported:     "unsupported_grant_type",
	watchword.Conflict:             "invalid_request", // the keys are in use already
	watchword.PairingPending:       "authorization_pending",
	watchword.PairingSlow:          "slow_down",
	watchword.PairingRejected:      "access_denied",
	watchword.PairingExpired:       "expired_token",
	watchword.ScopeInvalid:         "invalid_scope",
	watchword.TokenTooLarge:        "invalid_scope",
	watchword.TargetInvalid:        "invalid_target",
	watchword.ProofRequired:        "invalid_dpop_proof",
	watchword.DPoPInvalid:          "invalid_dpop_proof",
	watchword.DPoPNonce:            "use_dpop_nonce",
	watchword.Denied:               "unauthorized_client",
	watchword.RateLimited:          "temporarily_unavailable",
	watchword.Busy:                 "temporarily_unavailable",
	watchword.Unavailable:          "temporarily_unavailable",
	watchword.ClockUntrusted:       "temporarily_unavailable",
	watchword.Internal:             "server_error",
}

func (a *API) oauthError(w http.ResponseWriter, r *http.Request, err error) {
	p := a.problem(r, err)
	name, ok := oauthErrorOf[p.Code]
	proof := requestInfoOf(r.Context()).scheme != "" // requests with a token are answered as at any other resource
	switch {
	case proof && p.Code == watchword.Denied:
		name = "insufficient_scope"
	case proof && p.Status == http.StatusUnauthorized:
		name = challengeError(p)
	case !ok:
		name, p.Status = "invalid_client", http.StatusUnauthorized
	case name == "invalid_dpop_proof", name == "use_dpop_nonce", name == "unauthorized_client":
		p.Status = http.StatusBadRequest
	}
	for k, v := range p.GetHeaders() {
		if k != "Www-Authenticate" || r.Header.Get("Authorization") != "" { // RFC 6749 §5.2
			w.Header()[k] = v
		}
	}
	writeAnswer(w, p.Status, api.OAuthError{Error: name, Description: oauthDescription(p), Code: p.Code, TraceID: p.TraceID})
}

// oauthDescription returns the error_description of a refusal: the member, the detail, and docs/errors.md, since these
// answers have no member type as problem documents have.
func oauthDescription(p *problem) string {
	const page = "see docs/errors.md"
	var parts []string
	if text := strings.TrimSpace(p.Field + " " + p.Detail); text != "" {
		parts = append(parts, text)
	}
	if !strings.Contains(p.Detail, page) {
		parts = append(parts, page)
	}
	return ascii(strings.Join(parts, "; "))
}

// ascii replaces bytes that RFC 6749 §5.2 does not allow in error_description (%x20-21 / %x23-5B /
// %x5D-7E).
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

// challenges returns the WWW-Authenticate headers of a refusal (RFC 6750 §3, RFC 9449 §7.1, RFC
// 9728 §5.1): the scheme that the client used, with the error, or both schemes where it used none.
// DPoP is offered beside Bearer, since every endpoint accepts both.
func challenges(p *problem) []string {
	where := ""
	if p.metadata != "" {
		where = `, resource_metadata="` + p.metadata + `"`
	}
	bearer := `Bearer realm="watchword"`
	proof := `DPoP algs="` + proofAlgs + `"`
	said := ""
	switch {
	case p.Code == watchword.Denied:
		said = `, error="insufficient_scope"`
	case p.Code != watchword.Unauthenticated:
		said = `, error=` + strconv.Quote(challengeError(p)) + `, error_description="` + string(p.Code) + `"`
	}
	switch {
	case p.scheme == dpopScheme:
		return []string{proof + said + where}
	case p.Code == watchword.Denied:
		return []string{bearer + said + where}
	}
	return []string{bearer + said + where, proof + where}
}

func challengeError(p *problem) string {
	switch {
	case p.Code == watchword.DPoPNonce:
		return "use_dpop_nonce"
	case p.Code == watchword.DPoPInvalid && !p.binding:
		return "invalid_dpop_proof"
	}
	return "invalid_token"
}
