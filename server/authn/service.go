package authn

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/cache"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/internal/ratelimit"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/token"
)

// Directory returns a subject as it is now, with what policy gives it and its parsed keys.
type Directory interface {
	Principal(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (*session.Principal, error)
}

// Keys is the issuer's keys as they are now.
type Keys interface {
	// IssuerSigner signs what is issued now.
	IssuerSigner() *jose.Signer
	// IssuerKeys is every key whose signature is accepted. It is read only.
	IssuerKeys() map[watchword.KeyID]*jose.PublicKey
	// IssuerKeyRevoked reports whether the key of that id was one, and was revoked.
	IssuerKeyRevoked(id watchword.KeyID) bool
}

// TokenStore keeps what was issued and what was spent.
type TokenStore interface {
	IssueToken(ctx context.Context, r token.Record, spent token.SingleUse, e audit.Entry) error
	TokenRecord(ctx context.Context, t watchword.TenantID, jti string) (token.Record, error)
	ConsumeAssertion(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, spent token.SingleUse) error
	RevokeToken(ctx context.Context, t watchword.TenantID, jti string, e audit.Entry) error
}

// Live takes a change to every live session. It is a [session.Live].
type Live interface {
	Apply(ctx context.Context, c watchword.Change) error
}

// Options tunes an [Service]. The zero value is ready to use.
type Options struct {
	// Issuers returns the server's issuers as they are now; nil: the issuer of [New] alone.
	Issuers  watchword.IssuerSource
	Lifetime time.Duration // of an access token; 0 means 10 minutes
	// Origins is the addresses of the server that a DPoP proof may name beside its issuers.
	Origins token.Origins
	// Semaphore limits the concurrent verification of signatures; nil: no limit.
	Semaphore *fair.Semaphore
	// IssueRate is how many tokens a second one subject gets, over HTTP and MQTT together; ten seconds' worth at once.
	// Ten times as many of its assertions are taken for anything else. 0 is no bound.
	IssueRate float64
	// Observe is called for each request for a token, with the reason why it was refused or nil; nil: it is not called.
	Observe func(err error)
}

// Service exchanges client assertions for access tokens, and admits those tokens
// at the endpoints. It is safe for concurrent use.
type Service struct {
	issuers   watchword.IssuerSource
	keys      Keys
	directory Directory
	live      Live
	tokens    TokenStore
	lifetime  time.Duration
	decoy     token.KeySet // random key, checked in place of an unknown subject's keys so that both take the same time

	observe       func(error)
	dpop          *dpopVerifier
	semaphore     *fair.Semaphore
	issueRate     *ratelimit.Map[subjectRef] // of tokens, as each is signed, written and logged
	assertionRate *ratelimit.Map[subjectRef] // of assertions that are spent for anything else

	mu        sync.Mutex
	evictions uint64                                          // how often something was taken out of verified
	verified  *cache.Sized[[sha256.Size]byte, *verifiedToken] // by the SHA-256 of the token; revoking a token removes it; package session ends credentials of revoked issuer keys
}

// verifiedCacheBytes is how much memory the verified tokens that are remembered may take, in bytes.
const verifiedCacheBytes = 128 << 20

// New returns the service of the issuers of all tenants, which sign and verify with keys. issuer is that of the default tenant.
func New(issuer string, keys Keys, d Directory, records TokenStore, live Live, o Options) (*Service, error) {
	decoy, err := jose.GenerateKey("P-256")
	if err != nil {
		return nil, err
	}
	if o.Lifetime == 0 {
		o.Lifetime = 10 * time.Minute
	}
	if o.Issuers == nil {
		o.Issuers = watchword.FixedIssuer(issuer)
	}
	if o.Observe == nil {
		o.Observe = func(error) {}
	}
	return &Service{
		observe: o.Observe,
		dpop:    newDPoPVerifier(o.Origins, o.Issuers), semaphore: o.Semaphore,
		issueRate:     ratelimit.NewBurst[subjectRef](o.IssueRate, int(max(10, 10*o.IssueRate)), "too many tokens for this subject"),
		assertionRate: ratelimit.NewBurst[subjectRef](10*o.IssueRate, int(max(10, 100*o.IssueRate)), "too many assertions of this subject"),
		issuers:       o.Issuers, keys: keys, directory: d, live: live, tokens: records, lifetime: o.Lifetime, decoy: token.NewKeySet(decoy.Public()),
		verified: cache.NewSized[[sha256.Size]byte, *verifiedToken](verifiedCacheBytes),
	}, nil
}

// Issuer returns the issuer identifier of a tenant.
func (svc *Service) Issuer(t watchword.TenantID) string { return svc.issuers().Current(t) }

// Issuers returns the server's issuers as they are now.
func (svc *Service) Issuers() *watchword.IssuerSet { return svc.issuers() }

// named returns the accepted issuer of a tenant that a credential names, and the current one if it names none: what its
// verification must expect.
func (svc *Service) named(t watchword.TenantID, raw string, now time.Time) string {
	return token.ClaimedIssuer(raw, svc.issuers().Accepted(t, now))
}

// TokenRequest is what a client shows for an access token, and what it asks for.
type TokenRequest struct {
	Assertion    string
	AllowUntyped bool         // an absent typ of the assertion is taken
	Proof        *DPoPRequest // nil: a bearer token
	// Scope is all that the token shall give, each line within the current policy. nil means
	// all of it, for another resource all of it on api: alone.
	Scope []watchword.Permission
	// FullScope asks for all that policy gives, whatever the resource; Scope is nil then.
	FullScope bool
	// Resource is the audience; empty means the issuer.
	Resource string
}

// IssuedToken is an access token that is on record. Beside an error, Subject and Key say
// whom the assertion had proved by then.
type IssuedToken struct {
	Token     string
	Subject   watchword.SubjectID
	Key       watchword.KeyID // that signed the assertion
	BoundKey  watchword.KeyID // empty for a bearer token
	Expires   time.Time
	ExpiresIn time.Duration // exp less iat, whole seconds: what expires_in says
}

// Exchange checks a client assertion, spends it, and answers with an access
// token that carries device information and the current permissions, or those that
// were asked for. With a proof the token is bound to the proof's key. Of two
// exchanges of one assertion one wins; what is refused spends no assertion.
//
// Codes: client_invalid for whatever would disclose which subjects exist;
// too_large, token_malformed, token_kind, algorithm_invalid, issuer_mismatch, audience_mismatch,
// token_expired, token_early, token_lifetime, token_replayed, subject_new,
// subject_suspended, subject_revoked, token_too_large, unavailable, dpop_invalid,
// dpop_nonce, proof_required, scope_invalid, busy, rate_limited.
func (svc *Service) Exchange(ctx context.Context, t watchword.TenantID, req TokenRequest, trace string, now time.Time) (issued IssuedToken, err error) {
	defer func() { svc.observe(err) }()
	var p dpopProof
	if req.Proof != nil {
		if p, err = svc.checkDPoP(ctx, *req.Proof, "", now); err != nil {
			return IssuedToken{}, err
		}
	}
	s, current, a, err := svc.verifyAssertion(ctx, t, req.Assertion, req.AllowUntyped, now)
	if err != nil {
		return IssuedToken{}, err
	}
	return svc.issue(ctx, authenticated{t, s, current, a}, req, p, trace, now)
}

// TokenType is how a token is shown: "Bearer", or "DPoP" for a bound one.
func (i IssuedToken) TokenType() string {
	if i.BoundKey != "" {
		return "DPoP"
	}
	return "Bearer"
}

// authenticated is a subject with its current policy, and the assertion that proved it.
type authenticated struct {
	tenant    watchword.TenantID
	subject   *watchword.Subject
	grant     *policy.Grant
	assertion token.Assertion
}

// issue signs a token for the subject of c. It spends the assertion of c and the proof p, and records the token.
// p is zero where req has no proof.
func (svc *Service) issue(ctx context.Context, c authenticated, req TokenRequest, p dpopProof, trace string, now time.Time) (IssuedToken, error) {
	t, s, a := c.tenant, c.subject, c.assertion
	who := IssuedToken{Subject: s.ID, Key: a.Key}
	if err := svc.issueRate.Take(subjectRef{t, s.ID}, now); err != nil {
		return who, err
	}
	g, err := svc.requestedGrant(s, c.grant, a, req, p.Key, now)
	if err != nil {
		return who, err
	}
	if g.Bound = p.Key; !mayBind(s, a.Key, g.Bound) {
		return who, watchword.Refuse(watchword.DPoPInvalid, "the DPoP proof is signed by another key of the client than the assertion: use the same key for both, or a key that is not the client's")
	}
	signed, err := token.SignAccess(svc.keys.IssuerSigner(), g)
	if err != nil {
		return who, err
	}
	if req.Proof != nil {
		if err := svc.dpop.consume(subjectRef{t, s.ID}, p, now); err != nil {
			return who, err
		}
	}
	if err := svc.recordToken(ctx, t, g, g.ClaimsDigest(), a, trace, now); err != nil {
		return who, err
	}
	return IssuedToken{Token: signed, Subject: s.ID, Key: a.Key, BoundKey: g.Bound, Expires: g.Expires, ExpiresIn: time.Duration(g.Expires.Unix()-g.Issued.Unix()) * time.Second}, nil
}

// mayBind reports whether a token that is issued to key may be bound to another one: not to one that the subject has or had,
// whose end and revocation would not be those of the token.
func mayBind(s *watchword.Subject, key, bound watchword.KeyID) bool {
	return bound == key || !slices.ContainsFunc(s.Keys, func(k watchword.Key) bool { return k.ID == bound })
}

// requestedGrant returns what the token for req says, but for its binding to a key. proved is the key of the DPoP proof, empty
// without one; the proof of a key that is not the subject's does not count where a proof is required. Codes:
// proof_required, scope_invalid.
func (svc *Service) requestedGrant(s *watchword.Subject, current *policy.Grant, a token.Assertion, req TokenRequest, proved watchword.KeyID, now time.Time) (token.Grant, error) {
	if proved != a.Key {
		if err := session.RequireProof(s, current); err != nil {
			return token.Grant{}, err
		}
	}
	g, err := svc.fullGrant(s, current, a, now)
	if err != nil {
		return g, err
	}
	if req.Resource != "" && !slices.Contains(svc.issuers().Accepted(s.Tenant, now), req.Resource) {
		g.Audience = req.Resource
		if req.Scope == nil && !req.FullScope {
			// Topics and functions are this server's: another service that gets hold of the
			// token learns and may nothing of them, unless the client meant it.
			g.Perm, g.Deny = apiPermissions(g.Perm), apiPermissions(g.Deny)
		}
	}
	if req.Scope == nil {
		return g, nil
	}
	for _, p := range req.Scope {
		if !current.Contains(p) {
			return g, watchword.Refuse(watchword.ScopeInvalid, "scope must be within the permissions that policy gives; see docs/errors.md")
		}
	}
	g.Perm = req.Scope
	return g, nil
}

func apiPermissions(ps []watchword.Permission) (out []watchword.Permission) {
	for _, p := range ps {
		if strings.HasPrefix(p.Resource, watchword.APIPrefix) {
			out = append(out, p)
		}
	}
	return out
}

// AuthenticateAssertion is [Service.Exchange] for a connection that needs the credentials and not the token: the same
// record is written and the assertion is used, but no token is signed. The typ of the assertion is mandatory. allow is
// called with the credentials before the assertion is used. Codes: those of Exchange, and those of allow.
func (svc *Service) AuthenticateAssertion(ctx context.Context, t watchword.TenantID, raw string, allow func(session.Credentials) error, trace string, now time.Time) (session.Credentials, error) {
	s, current, a, err := svc.verifyAssertion(ctx, t, raw, false, now)
	if err != nil {
		return session.Credentials{}, err
	}
	if err := svc.issueRate.Take(subjectRef{t, s.ID}, now); err != nil {
		return session.Credentials{}, err
	}
	g, err := svc.requestedGrant(s, current, a, TokenRequest{}, "", now)
	if err != nil {
		return session.Credentials{}, err
	}
	permissions, err := policy.FromPermissions(g.Perm, g.Deny)
	if err != nil {
		return session.Credentials{}, err
	}
	creds := session.Credentials{
		Tenant: t, Subject: s.ID, Incarnation: s.Incarnation, Key: a.Key, JTI: g.JTI,
		IssuerKey: svc.keys.IssuerSigner().Public().ID(), Issued: g.Issued, Expires: g.Expires, Permissions: permissions,
	}
	if err := allow(creds); err != nil {
		return session.Credentials{}, err
	}
	if err := svc.recordToken(ctx, t, g, [32]byte{}, a, trace, now); err != nil { // no token of it passes: there is none
		return session.Credentials{}, err
	}
	return creds, nil
}

// verifyAssertion checks a client assertion, but does not spend it.
func (svc *Service) verifyAssertion(ctx context.Context, t watchword.TenantID, raw string, untyped bool, now time.Time) (*watchword.Subject, *policy.Grant, token.Assertion, error) {
	p, err := token.ParseAssertion(raw, untyped)
	if err != nil {
		return nil, nil, token.Assertion{}, err
	}
	issuer := svc.named(t, raw, now)
	if err := p.CheckClaims(issuer, now); err != nil {
		return nil, nil, token.Assertion{}, err
	}
	s, current, a, err := svc.authenticate(ctx, t, p, now)
	if err != nil {
		return nil, nil, token.Assertion{}, err
	}
	a.Audience = issuer
	return s, current, a, s.CheckActive()
}

// fullGrant is what a token for s says. The token ends with the key of a at the latest. Code: client_invalid where that key is
// not valid any more.
func (svc *Service) fullGrant(s *watchword.Subject, current *policy.Grant, a token.Assertion, now time.Time) (token.Grant, error) {
	k, ok := s.SignKey(a.Key, now)
	if !ok {
		return token.Grant{}, watchword.Refuse(watchword.ClientInvalid, "the key is not an active key of the subject")
	}
	g := token.Grant{
		Issuer: svc.Issuer(s.Tenant), Subject: *s, Key: a.Key, JTI: watchword.NewID("tok_", now),
		Issued: now.Truncate(time.Second), Perm: current.Perm(), Deny: current.Deny(),
	}
	if g.Expires = g.Issued.Add(svc.lifetime); k.EndedAt(g.Expires) {
		g.Expires = k.Ends
	}
	return g, nil
}

// recordToken puts g on record and spends a, in one transaction.
func (svc *Service) recordToken(ctx context.Context, t watchword.TenantID, g token.Grant, digest [32]byte, a token.Assertion, trace string, now time.Time) error {
	by := audit.Actor{Tenant: t, Subject: g.Subject.ID, Key: a.Key, Trace: trace}
	asked := ""
	if svc.issuers().Moved() {
		asked = a.Audience
	}
	return svc.tokens.IssueToken(ctx, token.Record{
		AskedIssuer: asked, Tenant: t, JTI: g.JTI, Subject: g.Subject.ID, Incarnation: g.Subject.Incarnation, Key: a.Key, ClaimsDigest: digest, Issued: g.Issued, Expires: g.Expires,
	}, a.SingleUse(), by.DoneEntry(audit.TokenIssue, g.JTI, now, nil))
}

// VerifyPossession checks that sig is a signature over message by the key that credentials
// name, which must be valid now. Codes: signature_invalid, key_unknown, busy, unavailable.
func (svc *Service) VerifyPossession(ctx context.Context, p session.Credentials, message, sig []byte, now time.Time) error {
	who, err := svc.directory.Principal(ctx, p.Tenant, p.Subject)
	if err != nil {
		return err
	}
	keys, err := who.Keys.ActiveSigningKeys(now)
	if err != nil {
		return err
	}
	k, ok := keys[p.Key]
	if !ok {
		return watchword.Refuse(watchword.KeyUnknown, "the key of the token's key claim is not active any more; see docs/errors.md")
	}
	return svc.semaphore.Do(ctx, func() error { return k.VerifyBytes(message, sig) })
}

// authenticate finds the subject that signed p. An unknown subject is handled like a known one with a wrong key: it gets
// the same answer, also if too many signatures are queued. The response times differ, because other data is read and the
// keys may have another algorithm. A client that measures them can learn which ids exist; ids are no secrets.
func (svc *Service) authenticate(ctx context.Context, t watchword.TenantID, p *token.UnverifiedAssertion, now time.Time) (*watchword.Subject, *policy.Grant, token.Assertion, error) {
	who, err := svc.directory.Principal(ctx, t, p.Subject())
	keys := svc.decoy
	switch code := watchword.CodeOf(err); code {
	case "":
		if keys, err = who.Keys.ActiveSigningKeys(now); err != nil {
			return nil, nil, token.Assertion{}, err
		}
	case watchword.NotFound:
	default:
		return nil, nil, token.Assertion{}, err
	}
	var a token.Assertion
	cerr := svc.semaphore.Do(ctx, func() (err error) {
		a, err = p.Verify(keys)
		return err
	})
	if watchword.CodeOf(cerr) == watchword.Busy { // the same for all clients
		return nil, nil, token.Assertion{}, cerr
	}
	if err != nil || cerr != nil {
		return nil, nil, token.Assertion{}, watchword.Wrap(errors.Join(err, cerr), watchword.ClientInvalid, "the client assertion is not valid: iss and sub must be a client of this server, aud exactly %q, kid an active key of the client; see docs/errors.md", svc.Issuer(t))
	}
	return who.Subject, who.Grant, a, nil
}
