package httpapi

import (
	"context"
	"net/http"
	"net/url"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/office"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/session"
)

// maxShown is the longest token that is looked at: what is longer is none of ours.
const maxShown = watchword.MaxToken

// introspect answers what a token counts for now (RFC 7662). Who may ask is who may
// post here: by a token, or by an assertion of a client that policy lets.
func (a *API) introspect(w http.ResponseWriter, r *http.Request) {
	form, err := a.tokenForm(r)
	var c *caller
	if err == nil {
		c, err = a.introspector(r, form)
	}
	may := func(now *session.Authority) error { return now.Request(r.Method, judgedPath(r)).Err() }
	if err == nil {
		err = a.begin(r, c, requestTransport, may)
	}
	var i *office.Introspection
	if err == nil {
		err = a.act(r, c, may, manner{reads: true}, func() (err error) {
			if len(form.Get("token")) <= maxShown {
				i, err = a.Office.Introspect(r.Context(), tenant, form.Get("token"), a.Guard.Check, a.Now())
			}
			return err
		})
	}
	if err != nil {
		a.oauthError(w, r, err)
		return
	}
	if i == nil {
		answer(w, http.StatusOK, api.Introspection{})
		return
	}
	out := api.Introspection{
		Active: true, TokenType: bearerScheme, Issuer: i.Issuer, Subject: i.Subject, ClientID: i.ClientID, Audience: i.Audience[0],
		IssuedAt: i.Issued.Unix(), ExpiresAt: i.Expires.Unix(), JTI: i.JTI, Key: i.Key, Perm: i.Perm, Deny: i.Deny,
		Device: &api.IntrospectedDevice{ID: i.Who.ID, Labels: labels(i.Who.Labels)},
	}
	if out.Perm == nil {
		out.Perm = []watchword.Permission{}
	}
	if i.Bound != "" {
		out.TokenType, out.Confirm = proofScheme, &api.Confirmation{Thumbprint: i.Bound}
	}
	answer(w, http.StatusOK, out)
}

func labels(l watchword.Labels) watchword.Labels {
	if l == nil {
		return watchword.Labels{}
	}
	return l
}

// tokenForm is a form that is about a token.
func (a *API) tokenForm(r *http.Request) (url.Values, error) {
	form, err := a.oauthForm(r)
	if err == nil && form.Get("token") == "" {
		err = watchword.RefuseField("token", "is missing") // before the caller's assertion is spent
	}
	return form, err
}

func (a *API) introspector(r *http.Request, form url.Values) (*caller, error) {
	if r.Header.Get("Authorization") != "" {
		return a.authorized(r)
	}
	return a.client(r, form, func(s *watchword.Subject, today *policy.Grant) error {
		if err := session.NeedsProof(s, today); err != nil {
			return err // an assertion shows no proof that is for this request alone
		}
		return today.Request(r.Method, r.URL.Path).Err()
	})
}

// client is who an assertion in the form proves. Codes: those of [office.Office.Identify].
func (a *API) client(r *http.Request, form url.Values, may func(*watchword.Subject, *policy.Grant) error) (*caller, error) {
	in := infoOf(r.Context())
	assertion, err := clientAssertion(r, form)
	if err != nil {
		return nil, err
	}
	c, err := a.Office.Identify(r.Context(), tenant, assertion, may, a.Now())
	in.who.Subject, in.who.Key = c.Subject, c.Key
	if err != nil {
		return nil, err
	}
	return &caller{papers: session.ByKey(tenant, c.Subject, c.Incarnation, c.Key), actor: in.who, remote: in.remote.String()}, nil
}

// revoke ends a token of the client that asks (RFC 7009), and whatever session stands
// on it, before the answer. What is no token of theirs changes nothing, and is no
// error (§2.2); another's is a refusal in the log.
func (a *API) revoke(w http.ResponseWriter, r *http.Request) {
	form, err := a.tokenForm(r)
	if err == nil {
		err = a.revokeOwn(r, form)
	}
	if err != nil {
		a.oauthError(w, r, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
}

func (a *API) revokeOwn(r *http.Request, form url.Values) error {
	c, err := a.revoker(r, form)
	if err == nil {
		err = a.begin(r, c, requestTransport, nil)
	}
	if err != nil {
		return err
	}
	return a.act(r, c, nil, manner{}, func() error { return a.revokeToOwner(r, c, form.Get("token")) })
}

// revokeToOwner ends a token of the subject's own. What is none is no error (RFC 7009 §2.2).
func (a *API) revokeToOwner(r *http.Request, c *caller, raw string) error {
	if len(raw) > maxShown {
		return nil
	}
	var with *session.Authority // of the token that was shown
	if !c.papers.ByKey() {
		with = c.Authority
	}
	rec, err := a.Office.Own(r.Context(), tenant, c.actor.Subject, with, raw, a.Now())
	if watchword.CodeOf(err) == watchword.Denied && rec != nil {
		a.Recorder.Refused(c.actor.Failed(audit.TokenRevoke, rec.JTI, a.Now(), err, map[string]string{"subject": string(rec.Subject)}))
		return nil
	}
	if err != nil || rec == nil {
		return err
	}
	return a.revokeToken(r.Context(), c.actor, rec.JTI)
}

// revoker is who asks for a revocation: a client that shows a token, or signs an assertion.
func (a *API) revoker(r *http.Request, form url.Values) (*caller, error) {
	if r.Header.Get("Authorization") == "" {
		return a.client(r, form, nil)
	}
	return a.caller(r)
}

// revokeToken ends one token everywhere on this node. Code: not_found.
func (a *API) revokeToken(ctx context.Context, by audit.Actor, jti string) error {
	rec, err := a.Office.Revoke(ctx, by, jti, a.Now())
	if err != nil {
		return err
	}
	a.Guard.TokenRevoked(by.Tenant, rec.Subject, jti)
	return nil
}

func (a *API) tokenRoutes() {
	type tokenJTI struct {
		JTI string `path:"jti" maxLength:"128"`
	}
	register(a, operation{method: http.MethodDelete, path: "/v1/tokens/{jti}", summary: "Revoke one access token; the sessions on it end at once", status: http.StatusNoContent},
		func(ctx context.Context, c *caller, in *tokenJTI) (*none, error) {
			return nil, a.revokeToken(ctx, c.actor, in.JTI)
		})
}
