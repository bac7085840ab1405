package token

import (
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
)

// VerifyIssued is [VerifyAccess] for introspection and revocation at the issuer: it accepts tokens of every audience. Its
// result must not be used to authorize a request.
func VerifyIssued(raw string, keys KeySet, issuer string, now time.Time) (*Access, error) {
	u, err := jose.ParseJWS(raw, watchword.MaxToken)
	if err != nil {
		return nil, err
	}
	aud := issuer
	err = jose.Walk(u.UnverifiedPayload(), func(name string, v jsontext.Value) (err error) {
		if name == "aud" && v.Kind() == '"' {
			aud, err = jose.String(v)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return VerifyAccess(raw, keys, issuer, aud, now, 0)
}
