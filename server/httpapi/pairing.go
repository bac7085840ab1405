package httpapi

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/url"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/authn"
	"github.com/watchword-iot/watchword/server/enroll"
)

// Pairing: a device without an enrollment link asks for approval (RFC 8628), and an operator
// decides.

const deviceGrant = "urn:ietf:params:oauth:grant-type:device_code"

func (a *API) pairingRoutes() {
	a.mux.HandleFunc("POST /oauth/device_authorization", a.deviceAuthorization)
	a.mux.HandleFunc("GET /enroll", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "A device shows a code and a key. Compare the key, whole, and run:\n\n    watchword enrollment approve CODE --key KEY\n") // the error means that the client has closed the connection
	})
	a.describePublic(http.MethodPost, "/oauth/device_authorization", "Request a pairing (RFC 8628); a form")
	a.pairingListRoutes()
	a.pairingDecisionRoutes()
}

// deviceAuthorization is the device authorization endpoint (RFC 8628 §3.1). The proof of the
// device's keys takes the place of client authentication.
func (a *API) deviceAuthorization(w http.ResponseWriter, r *http.Request) {
	in, now := requestInfoOf(r.Context()), a.Now()
	asked, err := func() (enroll.PairingResponse, error) {
		form, err := a.oauthForm(r)
		if err == nil {
			err = refuseNarrowing(form)
		}
		if err != nil {
			return enroll.PairingResponse{}, err
		}
		return a.Enrollment.RequestPairing(r.Context(), tenantOf(r), enroll.PairingRequest{
			ClientID: form.Get("client_id"), Sign: []byte(form.Get("sign")), Seal: []byte(form.Get("seal")), Proof: form.Get("proof"),
		}, in.remote, now)
	}()
	if err != nil {
		a.oauthError(w, r, err)
		return
	}
	code := enroll.FormatUserCode(asked.UserCode)
	interval := roundUpToSeconds(asked.Interval)
	writeAnswer(w, http.StatusOK, api.DeviceAuthorization{
		DeviceCode: asked.DeviceCode, UserCode: code, VerificationURI: a.url(tenantOf(r)) + "/enroll",
		VerificationURIComplete: a.url(tenantOf(r)) + "/enroll?user_code=" + code,
		ExpiresIn:               int64(asked.Expires.Sub(now) / time.Second), Interval: &interval,
	})
}

// roundUpToSeconds rounds up to whole seconds. Below one second it returns 0, which only tests use.
func roundUpToSeconds(d time.Duration) int64 {
	if d < time.Second {
		return 0
	}
	return int64(math.Ceil(d.Seconds()))
}

// refuseNarrowing refuses scope and resource: the token of a pairing always has all permissions of
// policy.
func refuseNarrowing(form url.Values) error {
	for _, name := range []string{"scope", "resource", "audience"} {
		if form.Get(name) != "" {
			return watchword.RefuseField(name, "is not supported for pairings: leave it out")
		}
	}
	return nil
}

// pairingToken serves the device code grant (RFC 8628 §3.4). With a DPoP proof its token is bound
// to the proof's key.
func (a *API) pairingToken(r *http.Request, form url.Values, proof *authn.DPoPRequest) (any, error) {
	if err := refuseNarrowing(form); err != nil {
		return nil, err
	}
	for _, name := range []string{"device_code", "client_id", "proof"} {
		if form.Get(name) == "" {
			return nil, watchword.RefuseField(name, "is required")
		}
	}
	now := a.Now()
	s, key, possession, err := a.Enrollment.PollPairing(r.Context(), tenantOf(r), form.Get("device_code"), form.Get("client_id"), form.Get("proof"), now)
	if err != nil {
		return nil, err
	}
	issued, err := a.Auth.IssueForPairing(r.Context(), tenantOf(r), s.ID, key, possession, proof, requestInfoOf(r.Context()).trace, now)
	t := viewToken(issued)
	return api.PairingResponse{EnrollResponse: a.enrollResponse(s), AccessToken: t.AccessToken, TokenType: t.TokenType, ExpiresIn: t.ExpiresIn}, err
}

func viewPairing(p enroll.Pairing) api.Pairing {
	return api.Pairing{
		UserCode: enroll.FormatUserCode(p.UserCode), State: string(p.State), RequestedID: p.RequestedID, Sign: p.Sign.ID, Seal: p.Seal.ID, Remote: p.Remote,
		CreatedAt: p.Created.UTC(), ExpiresAt: p.Expires.UTC(), Device: p.Subject, By: p.By, DecidedAt: optionalTime(p.Decided),
	}
}

type pairingOut struct{ Body api.Pairing }

// PairingPath is the path parameter of operations on one pairing. The API library needs it
// exported.
type PairingPath struct {
	Code string `path:"user_code" maxLength:"16"`
}

func (a *API) pairingListRoutes() {
	type pairingListOut struct{ Body api.PairingList }
	register(a, operation{method: http.MethodGet, path: "/v1/enrollments", summary: "List pairings that wait for approval, and recent decisions, newest first"},
		func(ctx context.Context, c *caller, in *Page) (*pairingListOut, error) {
			rows, err := a.Enrollment.Pairings(ctx, c.Tenant(), watchword.Device, in.Token, in.Size+1, a.Now())
			if err != nil {
				return nil, err
			}
			out := &pairingListOut{}
			out.Body.Pairings, out.Body.Pin = []api.Pairing{}, a.Enrollment.TrustPin()
			for _, p := range rows {
				out.Body.Pairings = append(out.Body.Pairings, viewPairing(p))
			}
			var more bool
			if out.Body.Pairings, more, err = cutPage(out.Body.Pairings, in.Size); more {
				out.Body.NextPageToken = rows[len(out.Body.Pairings)-1].ID
			}
			return out, err
		})
	register(a, operation{method: http.MethodGet, path: "/v1/enrollments/{user_code}", summary: "Get one pairing"},
		func(ctx context.Context, c *caller, in *PairingPath) (*pairingOut, error) {
			p, err := a.Enrollment.Pairing(ctx, c.Tenant(), watchword.Device, in.Code, a.Now())
			if err != nil {
				return nil, a.recordRefusedDecision(c, audit.RequestRefuse, in.Code, err)
			}
			return &pairingOut{viewPairing(p)}, nil
		})
}

func (a *API) pairingDecisionRoutes() {
	type pairingApproveIn struct {
		PairingPath
		Body api.ApprovePairingRequest
	}
	register(a, operation{method: http.MethodPost, path: "/v1/enrollments/{user_code}/approve", summary: "Approve a pairing: enroll its keys as a device"},
		func(ctx context.Context, c *caller, in *pairingApproveIn) (*deviceOut, error) {
			s, err := a.Enrollment.ApprovePairing(ctx, c.actor, enroll.PairingApproval{
				UserCode: in.Code, Sign: watchword.KeyID(in.Body.Sign), ID: watchword.SubjectID(in.Body.ID), Labels: in.Body.Labels,
			}, a.Now())
			return deviceAnswer(s, a.recordRefusedDecision(c, audit.DeviceEnroll, in.Code, err))
		})
	register(a, operation{method: http.MethodPost, path: "/v1/enrollments/{user_code}/reject", summary: "Reject a pairing"},
		func(ctx context.Context, c *caller, in *PairingPath) (*pairingOut, error) {
			p, err := a.Enrollment.RejectPairing(ctx, c.actor, watchword.Device, in.Code, a.Now())
			if err != nil {
				return nil, a.recordRefusedDecision(c, audit.PairingReject, in.Code, err)
			}
			return &pairingOut{viewPairing(p)}, nil
		})
}

// recordRefusedDecision writes an audit entry for a refused decision and returns err, so that
// guessing codes leaves a trace.
func (a *API) recordRefusedDecision(c *caller, kind, typed string, err error) error {
	if err != nil && !errors.Is(err, watchword.ErrAuthorityChanged) { // runAuthorized repeats the decision
		object := ""
		if code, cerr := enroll.ParseUserCode(typed); cerr == nil { // a code that does not parse is not logged
			object = enroll.FormatUserCode(code)
		}
		a.Recorder.Refused(c.actor.RefusedEntry(kind, object, a.Now(), err, map[string]string{"remote": c.remote}))
	}
	return err
}
