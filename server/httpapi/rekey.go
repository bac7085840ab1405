package httpapi

import (
	"net/http"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
)

func (a *API) rekeyRoutes() {
	a.handle(route{pattern: "POST /v1/self/keys", maxBody: 16 << 10, contentType: "application/json"}, a.rekey)
	a.describe(http.MethodPost, "/v1/self/keys", "Change the device's own keys: the new keys, and a proof by the old and the new signing key", nil)
}

func (a *API) rekey(w http.ResponseWriter, r *http.Request, c *caller) error {
	var in api.RekeyRequest
	if err := decodeStrict(c.body, &in); err != nil {
		return err
	}
	now := a.Now()
	s, err := a.Enrollment.Rekey(r.Context(), c.actor.Actor, enroll.RekeyRequest{Sign: in.Keys.Sign, Seal: in.Keys.Seal, Proof: in.Rekey}, now)
	if err != nil {
		a.Recorder.Refused(c.actor.RefusedEntry(audit.DeviceRekey, string(c.Subject()), a.Now(), err, nil))
		return err
	}
	out := api.RekeyResponse{ID: s.ID}
	for _, k := range s.Keys {
		switch {
		case !k.ValidAt(now):
		case k.Purpose == watchword.Sign:
			out.Keys.Sign = k.ID
		default:
			out.Keys.Seal = k.ID
		}
	}
	writeAnswer(w, http.StatusOK, out)
	return nil
}
