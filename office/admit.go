package office

import (
	"context"
	"crypto/sha256"
	"errors"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/session"
	"github.com/watchword-iot/watchword/token"
)

// admitted is an access token that stood at a door: checked, and on record.
type admitted struct {
	tenant      watchword.TenantID
	access      *token.Access
	incarnation int64
	permissions *policy.Grant
}

// admittedMemory is about what a token takes that was admitted: what it says, parsed and compiled.
func admittedMemory(raw string) int { return 2048 + 6*len(raw) }

func (k *admitted) papers() session.Papers {
	a := k.access
	return session.Papers{
		Tenant: k.tenant, Subject: a.Subject, Incarnation: k.incarnation, Key: a.Key, JTI: a.JTI,
		SignedBy: a.SignedBy, Issued: a.Issued, Expires: a.Expires, Permissions: k.permissions,
	}
}

// Admit checks an access token, and that this very token is on record as issued
// to that subject and key, and returns it as papers. A token that is bound to a
// key is refused. Whether the subject still counts is the guard's to say.
//
// Codes: as [token.VerifyAccess]; token_unrecorded, token_revoked, busy, unavailable.
func (o *Office) Admit(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (session.Papers, error) {
	known, err := o.known(ctx, t, raw, now)
	if err != nil {
		return session.Papers{}, err
	}
	if known.access.Bound != "" {
		return session.Papers{}, watchword.Refuse(watchword.TokenKind, "this token is bound to a key and does not pass as Bearer (RFC 9449 §7.2)")
	}
	return known.papers(), nil
}

// ErrBinding marks a refusal where the proof is good, but is not this token's: to
// OAuth it is the token that is invalid (RFC 9449 §7.1).
var ErrBinding = errors.New("the token is not bound to this key")

// AdmitBound is [Office.Admit] for a token that is bound to a key, with the proof of
// that key for this one request (RFC 9449 §7.1). Codes: those of Admit; token_kind for
// a bearer token; dpop_invalid, dpop_nonce, busy.
func (o *Office) AdmitBound(ctx context.Context, t watchword.TenantID, raw string, shown Shown, now time.Time) (session.Papers, error) {
	known, err := o.known(ctx, t, raw, now)
	if err != nil {
		return session.Papers{}, err
	}
	if known.access.Bound == "" {
		return session.Papers{}, watchword.Refuse(watchword.TokenKind, "this is a bearer token: no proof makes it another")
	}
	p, err := o.proves(ctx, shown, raw, now)
	if err != nil {
		return session.Papers{}, err
	}
	if p.Key != known.access.Bound {
		return session.Papers{}, watchword.Because(ErrBinding, watchword.DPoPInvalid, "the token is bound to another key than the one that signed the DPoP proof")
	}
	if err := o.proofs.spend(bearer{t, known.access.Subject}, p, now); err != nil {
		return session.Papers{}, err
	}
	papers := known.papers()
	papers.Proved = true
	return papers, nil
}

// AdmitToProve is [Office.Admit] for a connection that is about to prove the key
// which the token's key claim names. A token that is bound to that key passes, one
// that is bound to another does not. The papers are not proved yet. Codes: those of Admit.
func (o *Office) AdmitToProve(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (session.Papers, error) {
	known, err := o.known(ctx, t, raw, now)
	if err != nil {
		return session.Papers{}, err
	}
	if a := known.access; a.Bound != "" && a.Bound != a.Key {
		return session.Papers{}, watchword.Refuse(watchword.TokenKind, "this token is bound to another key than the one that is proved here")
	}
	return known.papers(), nil
}

// known checks a token of either sort. The very bytes that passed before pass again,
// until their end: nothing that was checked of them can have changed but the time.
func (o *Office) known(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (*admitted, error) {
	hash := sha256.Sum256([]byte(raw))
	o.mu.Lock()
	known, ok := o.admitted.Get(hash)
	forgot := o.forgot
	o.mu.Unlock()
	if ok && known.tenant == t && now.Before(known.access.Expires) {
		return known, nil
	}
	var a *token.Access
	err := o.room.Do(ctx, func() (err error) {
		a, err = token.VerifyAccess(raw, o.keys.IssuerKeys(), o.issuer, o.issuer, now, 0)
		return err
	})
	if err != nil {
		return nil, o.unknownIssuer(raw, err)
	}
	if known, err = o.lookUp(ctx, t, a); err != nil {
		return nil, err
	}
	o.mu.Lock()
	if o.forgot == forgot { // what was taken out meanwhile must not come back
		o.admitted.Put(hash, known, admittedMemory(raw))
	}
	o.mu.Unlock()
	return known, nil
}

// unknownIssuer says of a token whose key counts no more why that is: by then it is
// no secret, and whoever holds the token must get another one.
func (o *Office) unknownIssuer(raw string, err error) error {
	if watchword.CodeOf(err) != watchword.KeyUnknown {
		return err
	}
	u, perr := jose.ParseJWS(raw, watchword.MaxToken)
	if perr == nil && o.keys.RevokedIssuer(watchword.KeyID(u.Kid)) {
		return watchword.Refuse(watchword.IssuerRevoked, "the server's key that signed this token was revoked")
	}
	return err
}

// lookUp holds a token that is well signed against the record. Codes:
// token_unrecorded, token_revoked, token_malformed, unavailable.
func (o *Office) lookUp(ctx context.Context, t watchword.TenantID, a *token.Access) (*admitted, error) {
	rec, err := o.records.TokenRecord(ctx, t, a.JTI)
	switch {
	case watchword.CodeOf(err) == watchword.NotFound || err == nil && (rec.Subject != a.Subject || rec.Key != a.Key || !rec.Expires.Equal(a.Expires) || rec.Says != a.Says()):
		return nil, watchword.Refuse(watchword.TokenUnrecorded, "this token is not on record as issued")
	case err != nil:
		return nil, err
	case rec.Revoked:
		return nil, watchword.Refuse(watchword.TokenRevoked, "this token was revoked")
	}
	perm, deny, err := a.Permissions()
	if err != nil {
		return nil, err
	}
	g, err := policy.FromPermissions(perm, deny)
	if err != nil {
		return nil, err
	}
	return &admitted{tenant: t, access: a, incarnation: rec.Incarnation, permissions: g}, nil
}

// forget drops one token, in whatever encodings it was shown.
func (o *Office) forget(t watchword.TenantID, jti string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.forgot++
	o.admitted.DeleteFunc(func(_ [sha256.Size]byte, k *admitted) bool { return k.tenant == t && k.access.JTI == jti })
}
