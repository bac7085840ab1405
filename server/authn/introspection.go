package authn

import (
	"context"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/token"
)

// Client is the subject that a client assertion authenticated.
type Client struct {
	Subject     watchword.SubjectID
	Incarnation int64           // of the subject
	Key         watchword.KeyID // that signed the assertion
}

// AuthenticateClient checks a client assertion for something else than a token, and spends it.
// may, if not nil, is asked before that. Codes: as [Service.Exchange], and may's.
func (svc *Service) AuthenticateClient(ctx context.Context, t watchword.TenantID, raw string, allow func(*watchword.Subject, *policy.Grant) error, now time.Time) (Client, error) {
	s, current, a, err := svc.verifyAssertion(ctx, t, raw, true, now)
	if err != nil {
		return Client{}, err
	}
	c := Client{s.ID, s.Incarnation, a.Key}
	if err := svc.assertionRate.Take(subjectRef{t, s.ID}, now); err != nil {
		return c, err
	}
	if allow != nil {
		if err := allow(s, current); err != nil {
			return c, err
		}
	}
	return c, svc.tokens.ConsumeAssertion(ctx, t, s.ID, a.SingleUse())
}

// Introspection is the state and the current permissions of an access token (RFC 7662 §2.2).
type Introspection struct {
	*token.Access
	Who        policy.Subject
	Perm, Deny []watchword.Permission
}

// Introspect returns the current permissions of a token of any audience: those of its claims that the current policy still gives,
// without what either denies. authorize checks the subject. It returns nil without an error where the token is not active, for
// whatever reason. Codes: busy, unavailable.
func (svc *Service) Introspect(ctx context.Context, t watchword.TenantID, raw string, authorize func(context.Context, session.Credentials) (*session.Authority, error), now time.Time) (*Introspection, error) {
	i, err := svc.introspect(ctx, t, raw, authorize, now)
	switch watchword.CodeOf(err) {
	case "", watchword.Busy, watchword.Unavailable, watchword.Internal:
		return i, err
	}
	return nil, nil
}

func (svc *Service) introspect(ctx context.Context, t watchword.TenantID, raw string, authorize func(context.Context, session.Credentials) (*session.Authority, error), now time.Time) (*Introspection, error) {
	a, err := svc.verifyIssued(ctx, t, raw, now)
	if err != nil {
		return nil, err
	}
	verified, err := svc.checkRecord(ctx, t, a)
	if err != nil {
		return nil, err
	}
	creds := verified.credentials()
	creds.KeyProved = boundToOwnKey(a) // it is nothing without a proof, wherever it is shown
	authority, err := authorize(ctx, creds)
	if err != nil {
		return nil, err
	}
	perm, deny, err := a.Permissions()
	if err != nil {
		return nil, err
	}
	deny = slices.Clone(deny)
	for _, p := range authority.Policy().Deny() {
		if !slices.ContainsFunc(deny, func(d watchword.Permission) bool {
			return d.Resource == p.Resource && slices.Equal(d.Actions, p.Actions)
		}) {
			deny = append(deny, p)
		}
	}
	return &Introspection{Access: a, Who: authority.PolicySubject(), Perm: authority.Policy().Narrow(perm), Deny: deny}, nil
}

// verifyIssued is [token.VerifyIssued] within the concurrency limit.
func (svc *Service) verifyIssued(ctx context.Context, t watchword.TenantID, raw string, now time.Time) (a *token.Access, err error) {
	err = svc.semaphore.Do(ctx, func() (err error) {
		a, err = token.VerifyIssued(raw, svc.keys.IssuerKeys(), svc.named(t, raw, now), now)
		return err
	})
	return a, err
}

// RevocableRecord returns the record of a token of any audience that the client was issued, and
// that has not expired; nil where there is nothing to revoke. by is the authority of the token
// that the client shows for itself, nil where it signed an assertion: a token ends itself
// and what is no wider, and a whole one any other. Codes: denied, with no record where the
// token that was shown is too narrow, and with it where the other is another's; busy,
// unavailable.
func (svc *Service) RevocableRecord(ctx context.Context, t watchword.TenantID, c watchword.SubjectID, by *session.Authority, raw string, now time.Time) (*token.Record, error) {
	a, err := svc.verifyIssued(ctx, t, raw, now)
	if watchword.CodeOf(err) == watchword.Busy {
		return nil, err
	}
	if err != nil {
		return nil, nil // RFC 7009 §2.2: an invalid token is not an error
	}
	rec, err := svc.tokens.TokenRecord(ctx, t, a.JTI)
	switch {
	case watchword.CodeOf(err) == watchword.NotFound || err == nil && rec.Revoked:
		return nil, nil
	case err != nil:
		return nil, err
	case rec.Subject != c:
		return &rec, watchword.Refuse(watchword.Denied, "the token was issued to another client")
	}
	if by == nil || by.JTI() == a.JTI || by.CoversPolicy() {
		return &rec, nil
	}
	perm, deny, err := a.Permissions()
	if err != nil {
		return nil, err
	}
	if !by.Token().Covers(perm, deny) {
		return nil, watchword.Refuse(watchword.Denied, "the presented token has fewer permissions than the token to be revoked")
	}
	return &rec, nil
}

// TokenSubject returns whom a token was issued to. Codes: not_found, unavailable.
func (svc *Service) TokenSubject(ctx context.Context, t watchword.TenantID, jti string) (watchword.SubjectID, error) {
	rec, err := svc.tokens.TokenRecord(ctx, t, jti)
	return rec.Subject, err
}

// Revoke revokes one token, and ends its sessions, before it returns. Codes: not_found, unavailable.
func (svc *Service) Revoke(ctx context.Context, by audit.Actor, jti string, now time.Time) error {
	rec, err := svc.tokens.TokenRecord(ctx, by.Tenant, jti)
	if err != nil {
		return err
	}
	e := by.DoneEntry(audit.TokenRevoke, jti, now, map[string]string{"subject": string(rec.Subject)})
	if err := svc.tokens.RevokeToken(ctx, by.Tenant, jti, e); err != nil {
		return err
	}
	return svc.live.Apply(ctx, watchword.Change{Tenant: by.Tenant, Kind: watchword.AccessTokenRevoked, ID: jti, Version: 1})
}

// HandleChange forgets an admitted token that was revoked.
func (svc *Service) HandleChange(_ context.Context, c watchword.Change) error {
	if c.Kind == watchword.AccessTokenRevoked {
		svc.evict(c.Tenant, c.ID)
	}
	return nil
}
