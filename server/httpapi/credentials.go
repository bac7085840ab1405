package httpapi

import (
	"context"
	"net/http"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/authn"
	"github.com/watchword-iot/watchword/server/registry"
	"github.com/watchword-iot/watchword/server/session"
)

// Schemes of the Authorization header, which are also the token types of OAuth.
const (
	bearerScheme = "Bearer"
	dpopScheme   = "DPoP"
)

// caller is an authenticated client: its credentials and its current authority.
type caller struct {
	*session.Authority
	credentials session.Credentials
	actor       session.Actor // Versions and Policy are those of Authority, inside [API.runAuthorized]
	remote      string
	method      string
	path        string          // path in the form that policies match
	body        []byte          // body of a plain handler
	session     *requestSession // set by [API.beginSession]
	ctx         context.Context // ends with the session

	policyEdit *registry.PolicyEdit // set for requests that edit policies, inside [API.runAuthorized]
}

// caller checks the request's credentials. Codes: unauthenticated, those of
// [authn.Service.VerifyBearer], [authn.Service.VerifyDPoP] and [session.Guard.Check];
// rate_limited, since each of these requests is counted against its subject; busy where there is no room for its body.
func (a *API) caller(r *http.Request) (*caller, error) {
	in := requestInfoOf(r.Context())
	scheme, raw, err := readAuthorization(r)
	if err != nil {
		return nil, err
	}
	in.scheme = scheme
	credentials, err := a.verifyCredentials(r, scheme, raw)
	if err != nil {
		return nil, err
	}
	in.actor.Subject, in.actor.Key = credentials.Subject, credentials.Key
	if err := a.subjectRates.take(r.Pattern, quota.Key{Tenant: credentials.Tenant, Subject: credentials.Subject}, a.Now()); err != nil {
		return nil, err
	}
	in.writer.setAccount(quota.Key{Tenant: credentials.Tenant, Subject: credentials.Subject})
	if err := in.writer.chargeRequestBody(r); err != nil {
		return nil, err
	}
	authority, err := a.Guard.Check(r.Context(), credentials)
	if err != nil {
		return nil, err
	}
	a.addNotices(r.Context(), in.header, authority)
	return &caller{Authority: authority, credentials: credentials, actor: session.Actor{Actor: in.actor}, remote: in.remote.String(), method: r.Method, path: policyPath(r)}, nil
}

func (a *API) verifyCredentials(r *http.Request, scheme, raw string) (session.Credentials, error) {
	if scheme == bearerScheme {
		return a.Auth.VerifyBearer(r.Context(), tenantOf(r), raw, a.Now())
	}
	proof, err := a.dpopProof(r)
	if err != nil {
		return session.Credentials{}, err
	}
	if proof == nil {
		return session.Credentials{}, watchword.Refuse(watchword.DPoPInvalid, "a DPoP header with the proof is required, since the Authorization scheme is DPoP")
	}
	return a.Auth.VerifyDPoP(r.Context(), tenantOf(r), raw, *proof, a.Now())
}

// readAuthorization reads the token from the Authorization header only (RFC 6750 §2.1, RFC 9449
// §7.1), never from the query or a form.
func readAuthorization(r *http.Request) (scheme, token string, err error) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return "", "", watchword.Refuse(watchword.Unauthenticated, "an access token is required: Authorization: Bearer TOKEN, or DPoP TOKEN with a DPoP header")
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	for _, known := range []string{bearerScheme, dpopScheme} {
		if len(values) == 1 && ok && strings.EqualFold(scheme, known) && token != "" {
			return known, token, nil
		}
	}
	if len(values) == 1 && !strings.EqualFold(scheme, bearerScheme) && !strings.EqualFold(scheme, dpopScheme) {
		return "", "", watchword.Refuse(watchword.Unauthenticated, "an access token is required: Authorization: Bearer TOKEN, or DPoP TOKEN with a DPoP header") // RFC 6750 §3.1: without credentials the challenge carries no error code
	}
	return "", "", watchword.Refuse(watchword.TokenMalformed, "Authorization must be one header with Bearer or DPoP, one space and the access token")
}

// dpopProof takes the DPoP proof of a request, nil where there is none, and puts the
// nonce for the next one into the answer (RFC 9449 §8.2). Code: dpop_invalid for two.
func (a *API) dpopProof(r *http.Request) (*authn.DPoPRequest, error) {
	values := r.Header.Values("DPoP")
	in := requestInfoOf(r.Context())
	if in.header != nil && (len(values) > 0 || in.scheme == dpopScheme) {
		in.header.Set("DPoP-Nonce", a.Auth.DPoPNonce(a.Now()))
		in.header.Set("Cache-Control", "no-store") // RFC 9449 §8.2: caches must not serve an old nonce
	}
	switch len(values) {
	case 0:
		return nil, nil
	case 1:
		return &authn.DPoPRequest{Proof: values[0], Method: r.Method, Path: in.prefix + r.URL.EscapedPath()}, nil
	}
	return nil, watchword.Refuse(watchword.DPoPInvalid, "exactly one DPoP header is required")
}

// authorizedCaller authenticates a request and checks that its permissions cover method and path.
func (a *API) authorizedCaller(r *http.Request) (*caller, error) {
	c, err := a.caller(r)
	if err != nil {
		return nil, err
	}
	return c, c.Request(r.Method, policyPath(r)).Err()
}
