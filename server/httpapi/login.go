package httpapi

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
)

// Logins: a person without a link asks for a key to be approved as an operator's. These routes are not those of device pairings,
// since policy may give the right to approve devices to people who must not make operators.

func (a *API) loginRoutes() {
	a.mux.HandleFunc("POST /v1/logins", a.requestLogin)
	a.mux.HandleFunc("POST /v1/logins/poll", a.pollLogin)
	a.mux.HandleFunc("GET /login", func(w http.ResponseWriter, _ *http.Request) {
		// Browsers do not send the fragment, so the server never sees which key the link names.
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "This link asks you to approve the key of an operator. Ask the person who sent it whether it is theirs, and run:\n\n    watchword operator approve 'THIS LINK' NAME --role ROLE\n") // the error means that the client has closed the connection
	})
	a.describePublic(http.MethodPost, "/v1/logins", "Request the approval of a key as an operator's, with a proof of possession")
	a.describePublic(http.MethodPost, "/v1/logins/poll", "Ask whether a login is approved, with its code and a proof of possession")
	a.loginListRoutes()
	a.loginDecisionRoutes()
}

// readLogin reads the body of a client that has no token yet. Codes: rate_limited, and those of [readBody] and [decodeStrict].
func (a *API) readLogin(w http.ResponseWriter, r *http.Request, into any) error {
	if err := a.rates.Take(fair.Network(requestInfoOf(r.Context()).remote), a.Now()); err != nil {
		return err
	}
	body, err := readBody(w, r, "application/json", 16<<10)
	if err != nil {
		return err
	}
	return decodeStrict(body, into)
}

func (a *API) requestLogin(w http.ResponseWriter, r *http.Request) {
	var in api.RequestLoginRequest
	if err := a.readLogin(w, r, &in); err != nil {
		a.fail(w, r, err)
		return
	}
	now := a.Now()
	asked, err := a.Enrollment.RequestLogin(r.Context(), tenantOf(r), enroll.LoginRequest{Sign: in.Key, Proof: in.Proof}, requestInfoOf(r.Context()).remote, now)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeAnswer(w, http.StatusOK, api.RequestLoginResponse{
		LoginCode: asked.DeviceCode, UserCode: enroll.FormatUserCode(asked.UserCode),
		ExpiresIn: int64(asked.Expires.Sub(now) / time.Second), Interval: roundUpToSeconds(asked.Interval),
	})
}

func (a *API) pollLogin(w http.ResponseWriter, r *http.Request) {
	var in api.PollLoginRequest
	if err := a.readLogin(w, r, &in); err != nil {
		a.fail(w, r, err)
		return
	}
	s, err := a.Enrollment.PollLogin(r.Context(), tenantOf(r), in.LoginCode, in.Proof, a.Now())
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeAnswer(w, http.StatusOK, a.enrollResponse(s))
}

func viewLogin(p enroll.Pairing) api.Login {
	return api.Login{
		UserCode: enroll.FormatUserCode(p.UserCode), State: string(p.State), Sign: p.Sign.ID, Remote: p.Remote,
		CreatedAt: p.Created.UTC(), ExpiresAt: p.Expires.UTC(), Operator: p.Subject, By: p.By, DecidedAt: optionalTime(p.Decided),
	}
}

type loginOut struct{ Body api.Login }

func (a *API) loginListRoutes() {
	type loginListOut struct{ Body api.LoginList }
	register(a, operation{method: http.MethodGet, path: "/v1/logins", summary: "List logins that wait for approval, and recent decisions, newest first"},
		func(ctx context.Context, c *caller, in *Page) (*loginListOut, error) {
			rows, err := a.Enrollment.Pairings(ctx, c.Tenant(), watchword.Operator, in.Token, in.Size+1, a.Now())
			if err != nil {
				return nil, err
			}
			out := &loginListOut{}
			out.Body.Logins = []api.Login{}
			for _, p := range rows {
				out.Body.Logins = append(out.Body.Logins, viewLogin(p))
			}
			var more bool
			if out.Body.Logins, more, err = cutPage(out.Body.Logins, in.Size); more {
				out.Body.NextPageToken = rows[len(out.Body.Logins)-1].ID
			}
			return out, err
		})
	register(a, operation{method: http.MethodGet, path: "/v1/logins/{user_code}", summary: "Get one login"},
		func(ctx context.Context, c *caller, in *PairingPath) (*loginOut, error) {
			p, err := a.Enrollment.Pairing(ctx, c.Tenant(), watchword.Operator, in.Code, a.Now())
			if err != nil {
				return nil, a.recordRefusedDecision(c, audit.RequestRefuse, in.Code, err)
			}
			return &loginOut{viewLogin(p)}, nil
		})
}

func (a *API) loginDecisionRoutes() {
	type loginApproveIn struct {
		PairingPath
		Body api.ApproveLoginRequest
	}
	register(a, operation{method: http.MethodPost, path: "/v1/logins/{user_code}/approve", summary: "Approve a login: make its key that of an operator, who is added or exists"},
		func(ctx context.Context, c *caller, in *loginApproveIn) (*subjectOut, error) {
			s, err := a.approveLogin(ctx, c, in.Code, in.Body)
			return subjectAnswer(s, a.recordRefusedDecision(c, audit.KindFor(watchword.Operator, audit.DeviceEnroll), in.Code, err))
		})
	register(a, operation{method: http.MethodPost, path: "/v1/logins/{user_code}/reject", summary: "Reject a login"},
		func(ctx context.Context, c *caller, in *PairingPath) (*loginOut, error) {
			p, err := a.Enrollment.RejectPairing(ctx, c.actor, watchword.Operator, in.Code, a.Now())
			if err != nil {
				return nil, a.recordRefusedDecision(c, audit.LoginReject, in.Code, err)
			}
			return &loginOut{viewLogin(p)}, nil
		})
}

func (a *API) approveLogin(ctx context.Context, c *caller, code string, in api.ApproveLoginRequest) (watchword.Subject, error) {
	if err := checkWholeToken(c); err != nil {
		return watchword.Subject{}, err
	}
	if in.Role != "" {
		if err := a.Registry.CheckRole(ctx, c.Tenant(), in.Role); err != nil {
			return watchword.Subject{}, err
		}
	}
	if err := checkOwnKeys(c, watchword.SubjectID(in.ID)); err != nil {
		return watchword.Subject{}, err
	}
	ttl, err := parseDuration("key_ttl", in.KeyTTL)
	if err != nil {
		return watchword.Subject{}, err
	}
	return a.Enrollment.ApproveLogin(ctx, c.actor, enroll.LoginApproval{
		UserCode: code, Sign: watchword.KeyID(in.Sign), Pin: in.Pin, ID: watchword.SubjectID(in.ID), Role: in.Role, KeyName: in.Name, KeyTTL: ttl,
	}, a.Now())
}
