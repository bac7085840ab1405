package httpapi

import (
	"context"
	"net/http"
	"net/url"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/authn"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

// maxTokenParameter is the longest token in bytes; a longer one was not issued here.
const maxTokenParameter = watchword.MaxToken

// introspect answers RFC 7662. The caller needs permission to post to this path, and authenticates
// with a token or with a client assertion.
func (a *API) introspect(w http.ResponseWriter, r *http.Request) {
	form, err := a.tokenForm(r)
	var c *caller
	if err == nil {
		c, err = a.introspectionCaller(r, form)
	}
	may := func(now *session.Authority) error { return now.Request(r.Method, policyPath(r)).Err() }
	if err == nil {
		err = a.beginSession(r, c, requestTransport, may)
	}
	var i *authn.Introspection
	if err == nil {
		err = a.runAuthorized(r, c, may, requestKind{readsOnly: true}, func() (err error) {
			if len(form.Get("token")) <= maxTokenParameter {
				i, err = a.Auth.Introspect(r.Context(), tenantOf(r), form.Get("token"), a.Guard.Check, a.Now())
			}
			return err
		})
	}
	if err != nil {
		a.oauthError(w, r, err)
		return
	}
	if i == nil {
		writeAnswer(w, http.StatusOK, api.Introspection{})
		return
	}
	out := api.Introspection{
		Active: true, TokenType: bearerScheme, Issuer: i.Issuer, Subject: i.Subject, ClientID: i.ClientID, Audience: i.Audience[0],
		IssuedAt: i.Issued.Unix(), ExpiresAt: i.Expires.Unix(), JTI: i.JTI, Key: i.Key, Perm: i.Perm, Deny: i.Deny,
		Device: &api.IntrospectedDevice{ID: i.Who.ID, Labels: nonNilLabels(i.Who.Labels)},
	}
	if out.Perm == nil {
		out.Perm = []watchword.Permission{}
	}
	if i.Bound != "" {
		out.TokenType, out.Confirm = dpopScheme, &api.Confirmation{Thumbprint: i.Bound}
	}
	writeAnswer(w, http.StatusOK, out)
}

func nonNilLabels(l watchword.Labels) watchword.Labels {
	if l == nil {
		return watchword.Labels{}
	}
	return l
}

// tokenForm reads a form with the parameter token.
func (a *API) tokenForm(r *http.Request) (url.Values, error) {
	form, err := a.oauthForm(r)
	if err == nil && form.Get("token") == "" {
		err = watchword.RefuseField("token", "is required") // checked before the caller's assertion is consumed
	}
	return form, err
}

func (a *API) introspectionCaller(r *http.Request, form url.Values) (*caller, error) {
	if r.Header.Get("Authorization") != "" {
		return a.authorizedCaller(r)
	}
	return a.clientByAssertion(r, form, func(s *watchword.Subject, today *policy.Grant) error {
		if err := session.RequireProof(s, today); err != nil {
			return err // an assertion is not bound to one request, so the token does not count as proved
		}
		return today.Request(r.Method, r.URL.Path).Err()
	})
}

// clientByAssertion returns the subject that an assertion in the form authenticates. Codes: those of
// [authn.Service.AuthenticateClient].
func (a *API) clientByAssertion(r *http.Request, form url.Values, may func(*watchword.Subject, *policy.Grant) error) (*caller, error) {
	in := requestInfoOf(r.Context())
	assertion, err := clientAssertion(r, form)
	if err != nil {
		return nil, err
	}
	c, err := a.Auth.AuthenticateClient(r.Context(), tenantOf(r), assertion, may, a.Now())
	in.actor.Subject, in.actor.Key = c.Subject, c.Key
	if err != nil {
		return nil, err
	}
	return &caller{credentials: session.KeyCredentials(tenantOf(r), c.Subject, c.Incarnation, c.Key), actor: session.Actor{Actor: in.actor}, remote: in.remote.String()}, nil
}

// revoke revokes a token of the client (RFC 7009) and ends its sessions before it answers. An
// invalid token changes nothing and is no error (§2.2); the token of another client is recorded as
// a refusal.
func (a *API) revoke(w http.ResponseWriter, r *http.Request) {
	form, err := a.tokenForm(r)
	if err == nil {
		err = a.revokeByCaller(r, form)
	}
	if err != nil {
		a.oauthError(w, r, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
}

func (a *API) revokeByCaller(r *http.Request, form url.Values) error {
	c, err := a.revocationCaller(r, form)
	if err == nil {
		err = a.beginSession(r, c, requestTransport, nil)
	}
	if err != nil {
		return err
	}
	return a.runAuthorized(r, c, nil, requestKind{}, func() error { return a.revokeOwnToken(r, c, form.Get("token")) })
}

// revokeOwnToken revokes a token of the same subject. An invalid token is no error (RFC 7009 §2.2).
func (a *API) revokeOwnToken(r *http.Request, c *caller, raw string) error {
	if len(raw) > maxTokenParameter {
		return nil
	}
	var with *session.Authority // authority of the caller's token
	if !c.credentials.WithoutToken() {
		with = c.Authority
	}
	rec, err := a.Auth.RevocableRecord(r.Context(), tenantOf(r), c.actor.Subject, with, raw, a.Now())
	if watchword.CodeOf(err) == watchword.Denied && rec != nil {
		a.Recorder.Refused(c.actor.RefusedEntry(audit.TokenRevoke, rec.JTI, a.Now(), err, map[string]string{"subject": string(rec.Subject)}))
		return nil
	}
	if err != nil || rec == nil {
		return err
	}
	return a.Auth.Revoke(r.Context(), c.actor.Actor, rec.JTI, a.Now())
}

// revocationCaller authenticates the client of a revocation, by token or by client assertion.
func (a *API) revocationCaller(r *http.Request, form url.Values) (*caller, error) {
	if r.Header.Get("Authorization") == "" {
		return a.clientByAssertion(r, form, nil)
	}
	return a.caller(r)
}

func (a *API) tokenRoutes() {
	type tokenJTI struct {
		JTI string `path:"jti" maxLength:"128"`
	}
	register(a, operation{method: http.MethodDelete, path: "/v1/tokens/{jti}", summary: "Revoke an access token and close its sessions", status: http.StatusNoContent},
		func(ctx context.Context, c *caller, in *tokenJTI) (*noBody, error) {
			subject, err := a.Auth.TokenSubject(ctx, c.Tenant(), in.JTI)
			if err != nil {
				return nil, err
			}
			by, err := a.Registry.MayActOn(ctx, c.actor, subject)
			if err != nil {
				return nil, err
			}
			return nil, a.Auth.Revoke(ctx, by.Actor, in.JTI, a.Now())
		})
}
