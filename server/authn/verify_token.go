package authn

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/token"
)

// verifiedToken is an access token that stood at an endpoint: checked, and on record.
type verifiedToken struct {
	tenant      watchword.TenantID
	access      *token.Access
	incarnation int64
	grant       *policy.Grant
}

// verifiedTokenSize is about what a verified token takes of memory, in bytes: its claims, parsed and compiled.
func verifiedTokenSize(raw string) int { return 2048 + 6*len(raw) }

func (v *verifiedToken) credentials() session.Credentials {
	a := v.access
	return session.Credentials{
		Tenant: v.tenant, Subject: a.Subject, Incarnation: v.incarnation, Key: a.Key, JTI: a.JTI,
		IssuerKey: a.SignedBy, Issued: a.Issued, Expires: a.Expires, Permissions: v.grant,
	}
}

// VerifyBearer checks an access token, and that this very token is on record as issued
// to that subject and key, and returns it as credentials. A token that is bound to a
// key is refused. Whether the subject still counts is the guard's to say.
//
// Codes: as [token.VerifyAccess]; token_unrecorded, token_revoked, busy, unavailable.
func (svc *Service) VerifyBearer(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (session.Credentials, error) {
	verified, err := svc.verifyCached(ctx, t, raw, now)
	if err != nil {
		return session.Credentials{}, err
	}
	if verified.access.Bound != "" {
		return session.Credentials{}, watchword.Refuse(watchword.TokenKind, "the token is bound to a key (cnf.jkt): send it as DPoP, not as Bearer (RFC 9449 §7.2); see docs/errors.md")
	}
	return verified.credentials(), nil
}

// ErrKeyNotBound marks a refusal where the proof is good, but is not this token's: to
// OAuth it is the token that is invalid (RFC 9449 §7.1).
var ErrKeyNotBound = errors.New("the token is not bound to this key")

// VerifyDPoP is [Service.VerifyBearer] for a token that is bound to a key, with the proof of
// that key for this one request (RFC 9449 §7.1). Codes: those of VerifyBearer; token_kind for
// a bearer token; dpop_invalid, dpop_nonce, busy.
func (svc *Service) VerifyDPoP(ctx context.Context, t watchword.TenantID, raw string, req DPoPRequest, now time.Time) (session.Credentials, error) {
	verified, err := svc.verifyCached(ctx, t, raw, now)
	if err != nil {
		return session.Credentials{}, err
	}
	if verified.access.Bound == "" {
		return session.Credentials{}, watchword.Refuse(watchword.TokenKind, "the token is a bearer token (no cnf): send it as Bearer, not as DPoP; see docs/errors.md")
	}
	p, err := svc.checkDPoP(ctx, req, raw, now)
	if err != nil {
		return session.Credentials{}, err
	}
	if p.Key != verified.access.Bound {
		return session.Credentials{}, watchword.Wrap(ErrKeyNotBound, watchword.DPoPInvalid, "cnf.jkt of the token must be the key that signed the DPoP proof; see docs/errors.md")
	}
	if err := svc.dpop.consume(subjectRef{t, verified.access.Subject}, p, now); err != nil {
		return session.Credentials{}, err
	}
	creds := verified.credentials()
	creds.KeyProved, creds.BindingProved = boundToOwnKey(verified.access), true
	return creds, nil
}

// boundToOwnKey reports whether a proof of the key that the token is bound to proves the subject's key. A token may be bound to a
// key that is not the subject's: the holder of that key proves that it may use the token, and nothing about the subject.
func boundToOwnKey(a *token.Access) bool { return a.Bound != "" && a.Bound == a.Key }

// VerifyPoP is [Service.VerifyBearer] for a connection that is about to prove the key
// which the token's key claim names. A token that is bound to that key passes, one
// that is bound to another does not. The credentials are not proved yet. Codes: those of VerifyBearer.
func (svc *Service) VerifyPoP(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (session.Credentials, error) {
	verified, err := svc.verifyCached(ctx, t, raw, now)
	if err != nil {
		return session.Credentials{}, err
	}
	if a := verified.access; a.Bound != "" && a.Bound != a.Key {
		return session.Credentials{}, watchword.Refuse(watchword.TokenKind, "cnf.jkt of the token must be the key that is proved here; see docs/errors.md")
	}
	return verified.credentials(), nil
}

// verifyCached checks a token of either sort. The very bytes that passed before pass again,
// until their end: nothing that was checked of them can have changed but the time.
func (svc *Service) verifyCached(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (*verifiedToken, error) {
	hash := sha256.Sum256([]byte(raw))
	svc.mu.Lock()
	verified, ok := svc.verified.Get(hash)
	evictions := svc.evictions
	svc.mu.Unlock()
	if ok && verified.tenant == t && now.Before(verified.access.Expires) && slices.Contains(svc.issuers().Accepted(t, now), verified.access.Issuer) {
		return verified, nil
	}
	var a *token.Access
	issuer := svc.named(t, raw, now)
	err := svc.semaphore.Do(ctx, func() (err error) {
		a, err = token.VerifyAccess(raw, svc.keys.IssuerKeys(), issuer, issuer, now, 0)
		return err
	})
	if err != nil {
		return nil, svc.explainUnknownKey(raw, err)
	}
	if verified, err = svc.checkRecord(ctx, t, a); err != nil {
		return nil, err
	}
	svc.mu.Lock()
	if svc.evictions == evictions { // what was taken out meanwhile must not come back
		svc.verified.Put(hash, verified, verifiedTokenSize(raw))
	}
	svc.mu.Unlock()
	return verified, nil
}

// explainUnknownKey returns the reason for which a token's key is no longer valid: it is no secret by then, and the holder
// of the token must get another one.
func (svc *Service) explainUnknownKey(raw string, err error) error {
	if watchword.CodeOf(err) != watchword.KeyUnknown {
		return err
	}
	u, perr := jose.ParseJWS(raw, watchword.MaxToken)
	if perr == nil && svc.keys.IssuerKeyRevoked(watchword.KeyID(u.Kid)) {
		return watchword.Refuse(watchword.IssuerRevoked, "the server's key that signed this token was revoked: get a new token; see docs/errors.md")
	}
	return err
}

// checkRecord holds a token that is well signed against the record. Codes:
// token_unrecorded, token_revoked, token_malformed, unavailable.
func (svc *Service) checkRecord(ctx context.Context, t watchword.TenantID, a *token.Access) (*verifiedToken, error) {
	rec, err := svc.tokens.TokenRecord(ctx, t, a.JTI)
	switch {
	case watchword.CodeOf(err) == watchword.NotFound || err == nil && (rec.Subject != a.Subject || rec.Key != a.Key || !rec.Expires.Equal(a.Expires) || rec.ClaimsDigest != a.ClaimsDigest()):
		return nil, watchword.Refuse(watchword.TokenUnrecorded, "this server has no record of issuing the token; see docs/errors.md")
	case err != nil:
		return nil, err
	case rec.Revoked:
		return nil, watchword.Refuse(watchword.TokenRevoked, "the token was revoked: get a new one; see docs/errors.md")
	}
	perm, deny, err := a.Permissions()
	if err != nil {
		return nil, err
	}
	g, err := policy.FromPermissions(perm, deny)
	if err != nil {
		return nil, err
	}
	return &verifiedToken{tenant: t, access: a, incarnation: rec.Incarnation, grant: g}, nil
}

// evict drops one token, in whatever encodings it was shown.
func (svc *Service) evict(t watchword.TenantID, jti string) {
	svc.mu.Lock()
	defer svc.mu.Unlock()
	svc.evictions++
	svc.verified.DeleteFunc(func(_ [sha256.Size]byte, k *verifiedToken) bool { return k.tenant == t && k.access.JTI == jti })
}
