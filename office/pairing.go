package office

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// Paired answers a device whose pairing was approved with its first access token
// (RFC 8628 §3.5), for the key that signed its proof of possession, which it
// spends. shown, if not nil, binds the token. Codes: token_replayed,
// client_invalid, subject_new, subject_suspended, subject_revoked, token_too_large,
// not_found, unavailable, and those of a DPoP proof as in [Office.Exchange].
func (o *Office) Paired(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, key watchword.KeyID, possession token.Spent, shown *Shown, trace string, now time.Time) (Issued, error) {
	var p proof
	if shown != nil {
		var err error
		if p, err = o.proves(ctx, *shown, "", now); err != nil {
			return Issued{}, err
		}
	}
	who, err := o.directory.Principal(ctx, t, id)
	if err != nil {
		return Issued{}, err
	}
	s, today := who.Subject, who.Grant
	if err := s.Usable(); err != nil {
		return Issued{}, err
	}
	a := token.Assertion{Subject: id, Key: key, JTI: possession.JTI, Expires: possession.Expires}
	return o.issue(ctx, t, s, today, a, Ask{Proof: shown}, p, trace, now)
}
