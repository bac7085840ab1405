package httpapi

import (
	"io"
	"net/http"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/token"
)

// TimeSigner returns the current time, signed with the current time key for the issuer of a tenant.
type TimeSigner func(t watchword.TenantID, nonce string, now time.Time) (string, error)

// timeRoutes serve signed time to devices without a clock, which cannot sign an assertion yet.
func (a *API) timeRoutes() {
	a.mux.HandleFunc("POST /v1/time", a.time)
	a.describePublic(http.MethodPost, "/v1/time", "Get the time, signed for a nonce of the caller")
}

func (a *API) time(w http.ResponseWriter, r *http.Request) {
	jws, err := func() (string, error) {
		now := a.Now()
		if err := a.rates.Take(fair.Network(requestInfoOf(r.Context()).remote), now); err != nil {
			return "", err
		}
		body, err := readBody(w, r, "application/json", 1<<10)
		if err != nil {
			return "", err
		}
		var q api.TimeRequest
		if err := decodeStrict(body, &q); err != nil {
			return "", err
		}
		if err := token.CheckTimeNonce(q.Nonce); err != nil {
			return "", err
		}
		return a.Time(tenantOf(r), q.Nonce, a.Now()) // the clock is read again after the body: reading it may have taken long
	}()
	if err != nil {
		a.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/"+token.TypTime)
	w.Header().Set("Cache-Control", "no-store")
	_, _ = io.WriteString(w, jws) // the error means that the client has closed the connection
}
