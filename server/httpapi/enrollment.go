package httpapi

import (
	"io"
	"net/http"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/truncate"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/token"
)

// Endpoints that need no access token.

func (a *API) enrollRoutes() {
	a.mux.HandleFunc("GET /v1/trust", func(w http.ResponseWriter, r *http.Request) {
		bundle, err := a.TrustBundle(tenantOf(r))
		if err != nil {
			a.fail(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/"+token.TypTrust)
		w.Header().Set("Cache-Control", "no-cache")
		_, _ = io.WriteString(w, bundle) // the error means that the client has closed the connection
	})
	a.mux.HandleFunc("POST /v1/enroll", a.enroll)
	a.mux.HandleFunc("GET /e", func(w http.ResponseWriter, r *http.Request) {
		// Browsers do not send the fragment, so the code in it never reaches the server.
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "This is a one-time link for a device. On the device, run:\n\n    watchword agent enroll 'THIS LINK' --dir DIR\n")
	})
	a.describePublic(http.MethodGet, "/v1/trust", "Get the trust bundle, which the root has signed")
	a.describePublic(http.MethodPost, "/v1/enroll", "Enroll with a one-time code, two public keys and a proof of possession")
}

func (a *API) enroll(w http.ResponseWriter, r *http.Request) {
	in := requestInfoOf(r.Context())
	s, err := func() (watchword.Subject, error) {
		if err := a.rates.Take(fair.Network(in.remote), a.Now()); err != nil {
			return watchword.Subject{}, err
		}
		body, err := readBody(w, r, "application/json", 16<<10)
		if err != nil {
			return watchword.Subject{}, err
		}
		var e api.EnrollRequest
		if err := decodeStrict(body, &e); err != nil {
			return watchword.Subject{}, err
		}
		return a.Enrollment.Enroll(r.Context(), tenantOf(r), enroll.EnrollRequest{
			Code: e.Code, Name: e.Keys.Name, Sign: e.Keys.Sign, Seal: e.Keys.Seal, Proof: e.Proof,
		}, in.remote, in.trace, a.Now())
	}()
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeAnswer(w, http.StatusOK, a.enrollResponse(s))
}

func (a *API) enrollResponse(s watchword.Subject) api.EnrollResponse {
	return api.EnrollResponse{
		ID: s.ID, Kind: s.Kind, Labels: s.Labels, Issuer: a.Auth.Issuer(s.Tenant), TokenEndpoint: a.url(s.Tenant) + "/oauth/token",
		HTTPS: a.url(s.Tenant), MQTTS: a.MQTTS(), CA: a.caPEM(),
	}
}

// decodeStrict decodes one JSON object: unknown and duplicate members are refused. Code:
// bad_request, with Field.
func decodeStrict(body []byte, into any) error {
	err := jsonv2.Unmarshal(body, into, jsonv2.RejectUnknownMembers(true))
	if err == nil {
		return nil
	}
	e := &watchword.Error{Code: watchword.BadRequest, Detail: "must be a JSON object with the members of the API description; unknown members and duplicates are not accepted", Err: err, Field: "body"}
	if se, ok := err.(*jsonv2.SemanticError); ok && se.JSONPointer != "" {
		e.Field = truncate.LogText(string(se.JSONPointer[1:]))
	}
	return e
}

// caPEM returns the CA certificates that a client must trust to reach this server; empty where a
// public CA issued the certificate.
func (a *API) caPEM() string {
	if a.CAPEM == nil {
		return ""
	}
	return string(a.CAPEM())
}
