package httpapi

import (
	"context"
	"net/http"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/office"
	"github.com/watchword-iot/watchword/registry"
	"github.com/watchword-iot/watchword/session"
)

// The schemes of the Authorization header, which are also OAuth's token types.
const (
	bearerScheme = "Bearer"
	proofScheme  = "DPoP"
)

// caller is who makes a request: the papers that were shown, and what they are
// good for at this moment.
type caller struct {
	*session.Authority
	papers  session.Papers
	actor   audit.Actor // its Basis is that of Authority, inside of [API.act]
	remote  string
	method  string
	path    string          // as policies judge it
	body    []byte          // of a plain handler
	session *watched        // from [API.begin] on
	ctx     context.Context // ends with the session

	edit *registry.PolicyEdit // of a request that edits policies, inside of [API.act]; nil for others
}

// caller checks the request's papers. Codes: unauthenticated, those of
// [office.Office.Admit], [office.Office.AdmitBound] and [session.Guard.Check];
// rate_limited, since each of these requests is counted against its subject; busy where there is no room for its body.
func (a *API) caller(r *http.Request) (*caller, error) {
	in := infoOf(r.Context())
	scheme, raw, err := credentials(r)
	if err != nil {
		return nil, err
	}
	in.scheme = scheme
	papers, err := a.admit(r, scheme, raw)
	if err != nil {
		return nil, err
	}
	in.who.Subject, in.who.Key = papers.Subject, papers.Key
	if err := a.each.take(r.Pattern, papers.Subject, a.Now()); err != nil {
		return nil, err
	}
	in.writer.of(quota.Key{Tenant: papers.Tenant, Subject: papers.Subject})
	if err := in.writer.receives(r); err != nil {
		return nil, err
	}
	authority, err := a.Guard.Check(r.Context(), papers)
	if err != nil {
		return nil, err
	}
	return &caller{Authority: authority, papers: papers, actor: in.who, remote: in.remote.String(), method: r.Method, path: judgedPath(r)}, nil
}

func (a *API) admit(r *http.Request, scheme, raw string) (session.Papers, error) {
	if scheme == bearerScheme {
		return a.Office.Admit(r.Context(), tenant, raw, a.Now())
	}
	shown, err := a.shown(r)
	if err != nil {
		return session.Papers{}, err
	}
	if shown == nil {
		return session.Papers{}, watchword.Refuse(watchword.DPoPInvalid, "send the proof: DPoP: …")
	}
	return a.Office.AdmitBound(r.Context(), tenant, raw, *shown, a.Now())
}

// credentials takes the token from the Authorization header and from nowhere else
// (RFC 6750 §2.1, RFC 9449 §7.1): not from the query, not from a form.
func credentials(r *http.Request) (scheme, token string, err error) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return "", "", watchword.Refuse(watchword.Unauthenticated, "send an access token: Authorization: Bearer …")
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	for _, known := range []string{bearerScheme, proofScheme} {
		if len(values) == 1 && ok && strings.EqualFold(scheme, known) && token != "" {
			return known, token, nil
		}
	}
	if len(values) == 1 && !strings.EqualFold(scheme, bearerScheme) && !strings.EqualFold(scheme, proofScheme) {
		return "", "", watchword.Refuse(watchword.Unauthenticated, "send an access token: Authorization: Bearer …") // RFC 6750 §3.1: no error
	}
	return "", "", watchword.Refuse(watchword.TokenMalformed, "send one Authorization header: Bearer or DPoP, and the token")
}

// shown takes the DPoP proof of a request, nil where there is none, and puts the
// nonce for the next one into the answer (RFC 9449 §8.2). Code: dpop_invalid for two.
func (a *API) shown(r *http.Request) (*office.Shown, error) {
	values := r.Header.Values("DPoP")
	in := infoOf(r.Context())
	if in.header != nil && (len(values) > 0 || in.scheme == proofScheme) {
		in.header.Set("DPoP-Nonce", a.Office.Nonce(a.Now()))
		in.header.Set("Cache-Control", "no-store") // RFC 9449 §8.2: no cache may give a stale one
	}
	switch len(values) {
	case 0:
		return nil, nil
	case 1:
		return &office.Shown{Proof: values[0], Method: r.Method, Path: r.URL.EscapedPath()}, nil
	}
	return nil, watchword.Refuse(watchword.DPoPInvalid, "send one DPoP header")
}

// authorized is the caller of a request that its papers' api: permission covers.
func (a *API) authorized(r *http.Request) (*caller, error) {
	c, err := a.caller(r)
	if err != nil {
		return nil, err
	}
	return c, c.Request(r.Method, judgedPath(r)).Err()
}
