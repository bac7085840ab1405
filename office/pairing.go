package office

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// Paired answers a device whose pairing was approved with its first access token
// (RFC 8628 §3.5), for the key that signed its proof, which it spends. Codes:
// token_replayed, client_invalid, subject_new, subject_suspended,
// subject_revoked, token_too_large, not_found, unavailable.
func (o *Office) Paired(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, key watchword.KeyID, proof token.Spent, trace string, now time.Time) (Issued, error) {
	s, today, err := o.roll.Today(ctx, t, id)
	if err != nil {
		return Issued{}, err
	}
	if err := s.Usable(); err != nil {
		return Issued{}, err
	}
	a := token.Assertion{Subject: id, Key: key, JTI: proof.JTI, Expires: proof.Expires}
	g := o.grant(s, today, a, now)
	signed, err := token.SignAccess(o.keys.IssuerSigner(), g)
	if err != nil {
		return Issued{}, err
	}
	if err := o.record(ctx, t, g, a, trace, now); err != nil {
		return Issued{}, err
	}
	return Issued{Token: signed, Subject: id, Expires: g.Expires, Life: g.Expires.Sub(now)}, nil
}
