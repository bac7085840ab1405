package httpapi

import (
	"io"
	"net/http"
	"time"

	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rates"
	"github.com/watchword-iot/watchword/token"
)

// TimeSigner says, signed with the time key of this moment, what time it is.
type TimeSigner func(nonce string, now time.Time) (string, error)

// timeRoutes is what a device without a clock asks, before it can sign anything.
func (a *API) timeRoutes() {
	a.mux.HandleFunc("POST /v1/time", a.time)
	a.describePublic(http.MethodPost, "/v1/time", "The time, signed for a nonce of one's own")
}

func (a *API) time(w http.ResponseWriter, r *http.Request) {
	jws, err := func() (string, error) {
		now := a.Now()
		if err := a.rates.Take(rates.Network(requestInfoOf(r.Context()).remote), now); err != nil {
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
		if err := token.CheckNonce(q.Nonce); err != nil {
			return "", err
		}
		return a.Time(q.Nonce, a.Now()) // read anew: a slow body is not the reader's time
	}()
	if err != nil {
		a.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/"+token.TypTime)
	w.Header().Set("Cache-Control", "no-store")
	_, _ = io.WriteString(w, jws) // the reader has gone, if at all
}
