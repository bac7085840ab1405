package authn

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// IssueForPairing answers a device whose pairing was approved with its first access token
// (RFC 8628 §3.5), for the key that signed its proof of possession, which it
// spends. shown, if not nil, binds the token. Codes: token_replayed,
// client_invalid, subject_new, subject_suspended, subject_revoked, token_too_large,
// not_found, unavailable, and those of a DPoP proof as in [Service.Exchange].
func (svc *Service) IssueForPairing(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, key watchword.KeyID, possession token.SingleUse, req *DPoPRequest, trace string, now time.Time) (issued IssuedToken, err error) {
	defer func() { svc.observe(err) }()
	var p dpopProof
	if req != nil {
		if p, err = svc.checkDPoP(ctx, *req, "", now); err != nil {
			return IssuedToken{}, err
		}
	}
	who, err := svc.directory.Principal(ctx, t, id)
	if err != nil {
		return IssuedToken{}, err
	}
	if err := who.Subject.CheckActive(); err != nil {
		return IssuedToken{}, err
	}
	a := token.Assertion{Subject: id, Key: key, JTI: possession.JTI, Issued: possession.Issued, Expires: possession.Expires}
	return svc.issue(ctx, authenticated{t, who.Subject, who.Grant, a}, TokenRequest{Proof: req}, p, trace, now)
}
