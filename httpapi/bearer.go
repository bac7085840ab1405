package httpapi

import (
	"net/http"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/session"
)

// caller is who makes a request: the papers that were shown, and what they are
// good for at this moment.
type caller struct {
	*session.Authority
	papers session.Papers
	actor  audit.Actor
	remote string
}

// caller checks the request's papers. Codes: unauthenticated, those of
// [office.Office.Admit] and of [session.Guard.Check].
func (a *API) caller(r *http.Request) (*caller, error) {
	in := infoOf(r.Context())
	raw, err := bearer(r)
	if err != nil {
		return nil, err
	}
	papers, err := a.Office.Admit(r.Context(), tenant, raw, a.Now())
	if err != nil {
		return nil, err
	}
	in.who.Subject, in.who.Key = papers.Subject, papers.Key
	authority, err := a.Guard.Check(r.Context(), papers)
	if err != nil {
		return nil, err
	}
	return &caller{Authority: authority, papers: papers, actor: in.who, remote: in.remote.String()}, nil
}

// bearer takes the token from the Authorization header and from nowhere else
// (RFC 6750 §2.1): not from the query, not from a form.
func bearer(r *http.Request) (string, error) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return "", watchword.Refuse(watchword.Unauthenticated, "send an access token: Authorization: Bearer …")
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if len(values) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", watchword.Refuse(watchword.TokenMalformed, "send one Authorization header: Bearer and the token")
	}
	return token, nil
}

// authorized is the caller of a request that its papers' api: permission covers.
func (a *API) authorized(r *http.Request) (*caller, error) {
	c, err := a.caller(r)
	if err != nil {
		return nil, err
	}
	return c, c.Request(r.Method, r.URL.Path).Err()
}

// handle registers a plain handler. free says that papers are enough: the
// handler asks for what it needs by itself.
func (a *API) handle(pattern string, free bool, h func(w http.ResponseWriter, r *http.Request, c *caller) error) {
	who := a.authorized
	if free {
		who = a.caller
	}
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		c, err := who(r)
		if err == nil {
			err = h(w, r, c)
		}
		if err != nil {
			a.fail(w, r, err)
		}
	})
}
