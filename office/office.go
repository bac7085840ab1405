package office

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/internal/rates"
	"github.com/watchword-iot/watchword/internal/recent"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/policy"
	"github.com/watchword-iot/watchword/session"
	"github.com/watchword-iot/watchword/token"
)

// Directory answers who a subject is now, what policy gives it, and its keys.
type Directory interface {
	Principal(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (*session.Principal, error)
}

// Keys is the issuer's keys as they stand at this moment.
type Keys interface {
	// IssuerSigner signs what is issued now.
	IssuerSigner() *jose.Signer
	// IssuerKeys is every key whose signature counts. It is read only.
	IssuerKeys() map[watchword.KeyID]*jose.PublicKey
	// RevokedIssuer reports whether the key of that id was one, and was revoked.
	RevokedIssuer(id watchword.KeyID) bool
}

// Records keeps what was issued and what was spent.
type Records interface {
	IssueToken(ctx context.Context, r token.Record, spent token.Spent, e audit.Entry) error
	TokenRecord(ctx context.Context, t watchword.TenantID, jti string) (token.Record, error)
	SpendAssertion(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, spent token.Spent) error
	RevokeToken(ctx context.Context, t watchword.TenantID, jti string, e audit.Entry) error
}

// Options tunes an [Office]. The zero value is ready to use.
type Options struct {
	Lifetime time.Duration // of an access token; 0 means 10 minutes
	// Origins is the addresses of the server that a DPoP proof may name; nil means the issuer's.
	Origins token.Origins
	// Room is where signatures are checked; nil lets everybody in at once.
	Room *fair.Room
	// IssueRate is how many tokens a second one subject gets, over HTTP and MQTT together; ten seconds' worth at once.
	// Ten times as many of its assertions are taken for anything else. 0 is no bound.
	IssueRate float64
}

// Office exchanges client assertions for access tokens, and admits those tokens
// at the doors. It is safe for concurrent use.
type Office struct {
	issuer    string
	keys      Keys
	directory Directory
	records   Records
	lifetime  time.Duration
	decoy     token.KeySet // a key that nobody has, in the place of an unknown subject's keys

	proofs *proofs
	room   *fair.Room
	issues *rates.Map[bearer] // of tokens, as each is signed, written and logged
	spends *rates.Map[bearer] // of assertions that are spent for anything else

	mu       sync.Mutex
	forgot   uint64                                      // how often something was taken out of admitted
	admitted *recent.Sized[[sha256.Size]byte, *admitted] // by the hash of their bytes; who revokes a token takes it out, and revoked issuer keys are the guard's to see
}

// admittedBytes is how much memory the admitted tokens that are remembered may take.
const admittedBytes = 128 << 20

// New returns the office of one issuer, which signs and verifies with keys.
func New(issuer string, keys Keys, d Directory, records Records, o Options) (*Office, error) {
	decoy, err := jose.GenerateKey("P-256")
	if err != nil {
		return nil, err
	}
	if o.Lifetime == 0 {
		o.Lifetime = 10 * time.Minute
	}
	if o.Origins == nil {
		o.Origins = token.NewOrigins(issuer)
	}
	return &Office{
		proofs: newProofs(o.Origins), room: o.Room,
		issues: rates.NewBurst[bearer](o.IssueRate, int(max(10, 10*o.IssueRate)), "too many tokens for this subject"),
		spends: rates.NewBurst[bearer](10*o.IssueRate, int(max(10, 100*o.IssueRate)), "too many assertions of this subject"),
		issuer: issuer, keys: keys, directory: d, records: records, lifetime: o.Lifetime, decoy: token.NewKeySet(decoy.Public()),
		admitted: recent.NewSized[[sha256.Size]byte, *admitted](admittedBytes),
	}, nil
}

// Issuer returns the issuer identifier.
func (o *Office) Issuer() string { return o.issuer }

// Ask is what a client shows for an access token, and what it asks for.
type Ask struct {
	Assertion string
	Untyped   bool   // an absent typ of the assertion is taken
	Proof     *Shown // nil: a bearer token
	// Scope is all that the token shall give, each line within today's policy. nil means
	// all of it, for another resource all of it on api: alone.
	Scope []watchword.Permission
	// Whole asks for all that policy gives, whatever the resource; Scope is nil then.
	Whole bool
	// Resource is the audience; empty means the issuer.
	Resource string
}

// Issued is an access token that is on record. Beside an error, Subject and Key say
// whom the assertion had proved by then.
type Issued struct {
	Token   string
	Subject watchword.SubjectID
	Key     watchword.KeyID // that signed the assertion
	Bound   watchword.KeyID // empty for a bearer token
	Expires time.Time
	Life    time.Duration // exp less iat, whole seconds: what expires_in says
}

// Exchange checks a client assertion, spends it, and answers with an access
// token that carries device information and today's permissions, or those that
// were asked for. With a proof the token is bound to the proof's key. Of two
// exchanges of one assertion one wins; what is refused spends no assertion.
//
// Codes: client_invalid for whatever would tell a stranger who is known here;
// too_large, token_malformed, token_kind, algorithm_invalid, issuer_mismatch, audience_mismatch,
// token_expired, token_early, token_lifetime, token_replayed, subject_new,
// subject_suspended, subject_revoked, token_too_large, unavailable, dpop_invalid,
// dpop_nonce, proof_required, scope_invalid, busy, rate_limited.
func (o *Office) Exchange(ctx context.Context, t watchword.TenantID, ask Ask, trace string, now time.Time) (Issued, error) {
	var p proof
	var err error
	if ask.Proof != nil {
		if p, err = o.proves(ctx, *ask.Proof, "", now); err != nil {
			return Issued{}, err
		}
	}
	s, today, a, err := o.welcome(ctx, t, ask.Assertion, ask.Untyped, now)
	if err != nil {
		return Issued{}, err
	}
	return o.issue(ctx, t, s, today, a, ask, p, trace, now)
}

// Scheme is how a token is shown: "Bearer", or "DPoP" for a bound one.
func (i Issued) Scheme() string {
	if i.Bound != "" {
		return "DPoP"
	}
	return "Bearer"
}

// issue signs a token for who a proved, spends p and a, and puts it on record. p is
// zero where ask has no proof.
func (o *Office) issue(ctx context.Context, t watchword.TenantID, s *watchword.Subject, today *policy.Grant, a token.Assertion, ask Ask, p proof, trace string, now time.Time) (Issued, error) {
	who := Issued{Subject: s.ID, Key: a.Key}
	if err := o.issues.Take(bearer{t, s.ID}, now); err != nil {
		return who, err
	}
	g, err := o.asked(s, today, a, ask, now)
	if err != nil {
		return who, err
	}
	g.Bound = p.Key
	signed, err := token.SignAccess(o.keys.IssuerSigner(), g)
	if err != nil {
		return who, err
	}
	if ask.Proof != nil {
		if err := o.proofs.spend(bearer{t, s.ID}, p, now); err != nil {
			return who, err
		}
	}
	if err := o.record(ctx, t, g, g.Says(), a, trace, now); err != nil {
		return who, err
	}
	return Issued{Token: signed, Subject: s.ID, Key: a.Key, Bound: g.Bound, Expires: g.Expires, Life: time.Duration(g.Expires.Unix()-g.Issued.Unix()) * time.Second}, nil
}

// asked is what the token of an ask says, but for its binding. Codes:
// proof_required, scope_invalid.
func (o *Office) asked(s *watchword.Subject, today *policy.Grant, a token.Assertion, ask Ask, now time.Time) (token.Grant, error) {
	if ask.Proof == nil {
		if err := session.NeedsProof(s, today); err != nil {
			return token.Grant{}, err
		}
	}
	g := o.grant(s, today, a, now)
	if ask.Resource != "" && ask.Resource != o.issuer {
		g.Audience = ask.Resource
		if ask.Scope == nil && !ask.Whole {
			// Topics and functions are this server's: another service that gets hold of the
			// token learns and may nothing of them, unless the client meant it.
			g.Perm, g.Deny = onlyAPI(g.Perm), onlyAPI(g.Deny)
		}
	}
	if ask.Scope == nil {
		return g, nil
	}
	for _, p := range ask.Scope {
		if !today.Holds(p) {
			return g, watchword.Refuse(watchword.ScopeInvalid, "scope asks for more than policy gives")
		}
	}
	g.Perm = ask.Scope
	return g, nil
}

func onlyAPI(ps []watchword.Permission) (out []watchword.Permission) {
	for _, p := range ps {
		if strings.HasPrefix(p.Resource, watchword.APIPrefix) {
			out = append(out, p)
		}
	}
	return out
}

// Login is [Office.Exchange] for a connection that needs the papers and never
// the token: what the token would say is on record and spent in the same way,
// but nobody signs it. typ is mandatory. may is asked about the papers before the
// assertion is spent. Codes: those of Exchange, and may's.
func (o *Office) Login(ctx context.Context, t watchword.TenantID, raw string, may func(session.Papers) error, trace string, now time.Time) (session.Papers, error) {
	s, today, a, err := o.welcome(ctx, t, raw, false, now)
	if err != nil {
		return session.Papers{}, err
	}
	if err := o.issues.Take(bearer{t, s.ID}, now); err != nil {
		return session.Papers{}, err
	}
	g, err := o.asked(s, today, a, Ask{}, now)
	if err != nil {
		return session.Papers{}, err
	}
	permissions, err := policy.FromPermissions(g.Perm, g.Deny)
	if err != nil {
		return session.Papers{}, err
	}
	papers := session.Papers{
		Tenant: t, Subject: s.ID, Incarnation: s.Incarnation, Key: a.Key, JTI: g.JTI,
		SignedBy: o.keys.IssuerSigner().Public().ID(), Issued: g.Issued, Expires: g.Expires, Permissions: permissions,
	}
	if err := may(papers); err != nil {
		return session.Papers{}, err
	}
	if err := o.record(ctx, t, g, [32]byte{}, a, trace, now); err != nil { // no token of it passes: there is none
		return session.Papers{}, err
	}
	return papers, nil
}

// welcome checks a client assertion, but does not spend it.
func (o *Office) welcome(ctx context.Context, t watchword.TenantID, raw string, untyped bool, now time.Time) (*watchword.Subject, *policy.Grant, token.Assertion, error) {
	p, err := token.ParseAssertion(raw, untyped)
	if err != nil {
		return nil, nil, token.Assertion{}, err
	}
	if err := p.Precheck(o.issuer, now); err != nil {
		return nil, nil, token.Assertion{}, err
	}
	s, today, a, err := o.authenticate(ctx, t, p)
	if err != nil {
		return nil, nil, token.Assertion{}, err
	}
	return s, today, a, s.Usable()
}

// grant is what a token for s says.
func (o *Office) grant(s *watchword.Subject, today *policy.Grant, a token.Assertion, now time.Time) token.Grant {
	g := token.Grant{
		Issuer: o.issuer, Subject: *s, Key: a.Key, JTI: watchword.NewID("tok_", now),
		Issued: now.Truncate(time.Second), Perm: today.Perm(), Deny: today.Deny(),
	}
	g.Expires = g.Issued.Add(o.lifetime)
	return g
}

// record puts g on record and spends a, in one transaction.
func (o *Office) record(ctx context.Context, t watchword.TenantID, g token.Grant, says [32]byte, a token.Assertion, trace string, now time.Time) error {
	by := audit.Actor{Tenant: t, Subject: g.Subject.ID, Key: a.Key, Trace: trace}
	return o.records.IssueToken(ctx, token.Record{
		Tenant: t, JTI: g.JTI, Subject: g.Subject.ID, Incarnation: g.Subject.Incarnation, Key: a.Key, Says: says, Issued: g.Issued, Expires: g.Expires,
	}, token.Spent{JTI: a.JTI, Expires: a.Expires.Add(token.Skew)}, by.Did(audit.TokenIssue, g.JTI, now, nil))
}

// Proves checks that sig is a signature over message by the key that papers
// name. Codes: signature_invalid, key_unknown, busy, unavailable.
func (o *Office) Proves(ctx context.Context, p session.Papers, message, sig []byte) error {
	who, err := o.directory.Principal(ctx, p.Tenant, p.Subject)
	if err != nil {
		return err
	}
	keys, err := who.Keys.Signing()
	if err != nil {
		return err
	}
	k, ok := keys[p.Key]
	if !ok {
		return watchword.Refuse(watchword.KeyUnknown, "the key that the token names no longer counts")
	}
	return o.room.Do(ctx, func() error { return k.Proves(message, sig) })
}

// authenticate finds who signed p. An unknown subject takes the way of a known one with
// a wrong key: it gets the same answer, also where too many signatures wait. It does not
// get it after the same time: what is read of the two differs, and so does the algorithm
// of their keys. Who measures can learn which ids there are; ids are no secrets.
func (o *Office) authenticate(ctx context.Context, t watchword.TenantID, p *token.Presented) (*watchword.Subject, *policy.Grant, token.Assertion, error) {
	who, err := o.directory.Principal(ctx, t, p.Subject())
	keys := o.decoy
	switch code := watchword.CodeOf(err); code {
	case "":
		if keys, err = who.Keys.Signing(); err != nil {
			return nil, nil, token.Assertion{}, err
		}
	case watchword.NotFound:
	default:
		return nil, nil, token.Assertion{}, err
	}
	var a token.Assertion
	cerr := o.room.Do(ctx, func() (err error) {
		a, err = p.Check(keys)
		return err
	})
	if watchword.CodeOf(cerr) == watchword.Busy { // to everybody alike
		return nil, nil, token.Assertion{}, cerr
	}
	if err != nil || cerr != nil {
		return nil, nil, token.Assertion{}, watchword.Because(errors.Join(err, cerr), watchword.ClientInvalid, "the assertion proves no client of this server")
	}
	return who.Subject, who.Grant, a, nil
}
