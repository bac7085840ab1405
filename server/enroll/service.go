package enroll

import (
	"context"
	"net/netip"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/token"
)

// Store is what the service needs from the store.
type Store interface {
	CreateSubject(ctx context.Context, s watchword.Subject, code *Code, e audit.Entry) error
	AddCode(ctx context.Context, c Code, e audit.Entry) error
	// Recover stores the code and the notice of r, and adds its owner unless there is one of that id: r.Check decides on that one.
	Recover(ctx context.Context, by audit.Actor, r Recovery, entries func(created bool) []audit.Entry) (watchword.Subject, error)
	// Code returns a code by its hash. PendingCode returns the one that a subject can enroll with. Code: code_invalid.
	Code(ctx context.Context, t watchword.TenantID, hash [32]byte) (Code, error)
	PendingCode(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, now time.Time) (Code, error)
	// RedeemCode compares maker, the versions that the redemption was decided on: those of the maker of the code and of its subject.
	RedeemCode(ctx context.Context, r Redemption, maker watchword.AuthorityVersions, now time.Time, entry audit.EntryOf[watchword.Subject]) (s watchword.Subject, replay bool, err error)
	RekeyStore
	PairingStore
}

// Options is what a service needs to know beside the store.
type Options struct {
	PublicURL string // where links of the default tenant point, without a path
	// Issuers returns the server's issuers as they are now. After a move the current one is where links point.
	Issuers   watchword.IssuerSource
	TrustPin  func() string   // of the root of this moment
	TrustPins func() []string // of all roots that the trust bundle names: two while a new one is introduced
	// CheckGiven refuses a subject that is to be added, or to come back, if its token would outgrow its bound or the actor may
	// not give what it would have. CheckActOn refuses an act on a subject that has more than the actor. Code: exceeds_own.
	CheckGiven func(ctx context.Context, by session.Actor, s watchword.Subject) error
	CheckActOn func(ctx context.Context, by session.Actor, s watchword.Subject) error
	// RunFor runs an act under what policy gives a subject now, which ordered the act earlier. It is [session.Guard.RunFor].
	RunFor func(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, do func(context.Context, session.Actor) error) error
	// Live applies the change of each subject that has changed in the store, before the answer. It is a [session.Live].
	Live interface {
		Apply(ctx context.Context, c watchword.Change) error
	}
	// How long a pairing waits for an operator, and how often its device may ask; 0
	// means PairingLife and PairingInterval.
	PairingLifetime, PairingInterval time.Duration
	// Semaphore limits the concurrent verification of signatures; nil: no limit.
	Semaphore *fair.Semaphore
}

// Service lets subjects in. It is safe for concurrent use.
type Service struct {
	store    Store
	opts     Options
	throttle *throttle
	polls    *pollLimiter // of pairings of devices
	logins   *pollLimiter // of logins
}

// New returns a service that writes to st.
func New(st Store, o Options) *Service {
	if o.PairingLifetime == 0 {
		o.PairingLifetime = DefaultPairingLifetime
	}
	if o.PairingInterval == 0 {
		o.PairingInterval = DefaultPairingInterval
	}
	return &Service{
		store: st, opts: o, throttle: newThrottle(),
		polls: newPollLimiter(o.PairingInterval, MaxPairings), logins: newPollLimiter(o.PairingInterval, MaxLogins),
	}
}

// issuer returns the issuer identifier of a tenant that a proof names, and the current one if it names none that is accepted.
func (svc *Service) issuer(t watchword.TenantID, proof string, now time.Time) string {
	return token.ClaimedIssuer(proof, svc.opts.Issuers().Accepted(t, now))
}

// url returns where the links of a tenant point.
func (svc *Service) url(t watchword.TenantID) string {
	if set := svc.opts.Issuers(); set.Moved() {
		return set.Current(t)
	}
	return svc.opts.PublicURL + watchword.TenantPath(t)
}

// NewSubject is a subject that is to be added.
type NewSubject struct {
	ID     watchword.SubjectID
	Kind   watchword.Kind
	Role   string // of an operator, which needs one; empty for other kinds
	Labels watchword.Labels
	Name   string        // for people; empty for none
	Proof  string        // [watchword.RequireProof] or empty
	TTL    time.Duration // lifetime of the link; 0 means [DefaultCodeLifetime]
	KeyTTL time.Duration // lifetime of its first key, as [Lifetimes.Key]
}

// Create adds a subject and returns the one-time link with which it enrolls. Codes: bad_request, conflict, token_too_large,
// exceeds_own.
func (svc *Service) Create(ctx context.Context, by session.Actor, n NewSubject, now time.Time) (watchword.Subject, Link, error) {
	s := watchword.Subject{
		Tenant: by.Tenant, ID: n.ID, Kind: n.Kind, Role: n.Role, State: watchword.New, Labels: n.Labels, Name: n.Name, Proof: n.Proof,
		Version: 1, Incarnation: 1, Created: now, Changed: now,
	}
	if err := watchword.CheckSubjectID(string(n.ID)); err != nil {
		return s, Link{}, err
	}
	if err := watchword.CheckLabels(n.Labels); err != nil {
		return s, Link{}, err
	}
	if err := watchword.CheckSubjectName(n.Name); err != nil {
		return s, Link{}, err
	}
	if err := watchword.CheckProof(n.Proof); err != nil {
		return s, Link{}, err
	}
	if err := svc.opts.CheckGiven(ctx, by, s); err != nil {
		return s, Link{}, err
	}
	code, link, err := svc.newCode(by, n.ID, Lifetimes{Link: n.TTL, Key: n.KeyTTL}, now)
	if err != nil {
		return s, Link{}, err
	}
	data := map[string]string{"labels": n.Labels.String()}
	if n.Proof != "" {
		data["proof"] = n.Proof
	}
	if n.Name != "" {
		data["name"] = n.Name
	}
	if n.Role != "" {
		data["role"] = n.Role
	}
	if !link.KeyEnds.IsZero() {
		data["key_ends"] = link.KeyEnds.UTC().Format(time.RFC3339)
	}
	if err := svc.store.CreateSubject(ctx, s, &code, by.DoneEntry(audit.KindFor(n.Kind, audit.DeviceCreate), string(n.ID), now, data)); err != nil {
		return s, Link{}, err
	}
	if s, err = svc.store.Subject(ctx, by.Tenant, n.ID); err != nil { // with its incarnation, where a forgotten device had the id
		return s, Link{}, err
	}
	return s, link, svc.opts.Live.Apply(ctx, watchword.SubjectChange(&s))
}

// CreateLink creates a new link; an older one becomes invalid. A subject that is new or revoked enrolls with it; an active operator
// or service gets a further key. Who makes one for itself gives nothing that it does not have, and the key ends at the latest with
// the one that the act was authorized with. Codes: bad_request, not_found, conflict, exceeds_own.
func (svc *Service) CreateLink(ctx context.Context, by session.Actor, id watchword.SubjectID, l Lifetimes, now time.Time) (Link, error) {
	s, err := svc.store.Subject(ctx, by.Tenant, id)
	if err != nil {
		return Link{}, err
	}
	by = by.On(&s)
	if givesItself(by, id) {
		if l.KeyEnds, err = endOfActingKey(by, &s, now); err != nil {
			return Link{}, err
		}
	} else if err := svc.checkComesBack(ctx, by, s); err != nil {
		return Link{}, err
	}
	code, link, err := svc.newCode(by, id, l, now)
	if err != nil {
		return Link{}, err
	}
	e := by.DoneEntry(audit.KindFor(s.Kind, audit.DeviceLink), string(id), now, nil)
	if !link.KeyEnds.IsZero() {
		e = e.With("key_ends", link.KeyEnds.UTC().Format(time.RFC3339))
	}
	return link, svc.store.AddCode(ctx, code, e)
}

// givesItself reports whether an actor that gives a key to id gives it to itself. It is false for the server and for a process with
// access to the data folder.
func givesItself(by session.Actor, id watchword.SubjectID) bool {
	return id == by.Subject && by.Versions.Compared()
}

// endOfActingKey returns the end of the key that the act of s was authorized with: a key that a subject gives itself ends with it
// at the latest, so that the end of a key limits what its holder can do. It is zero for a key without an end. Code: token_revoked.
func endOfActingKey(by session.Actor, s *watchword.Subject, now time.Time) (time.Time, error) {
	k, ok := s.SignKey(by.Key, now)
	if !ok {
		return time.Time{}, watchword.Refuse(watchword.TokenRevoked, "the key of the access token is not valid any more")
	}
	return k.Ends, nil
}

// checkComesBack refuses to let a subject enroll for an actor that may not act on it or may not give what it has.
func (svc *Service) checkComesBack(ctx context.Context, by session.Actor, s watchword.Subject) error {
	if err := svc.opts.CheckActOn(ctx, by, s); err != nil {
		return err
	}
	return svc.opts.CheckGiven(ctx, by, s)
}

func (svc *Service) newCode(by session.Actor, id watchword.SubjectID, l Lifetimes, now time.Time) (Code, Link, error) {
	expires, keyEnds, err := l.ends(now)
	if err != nil {
		return Code{}, Link{}, err
	}
	code := watchword.NewNonce()
	link := newLink(svc.url(by.Tenant), code, svc.opts.TrustPin(), expires, keyEnds)
	c := Code{Tenant: by.Tenant, Hash: token.CodeDigest(code), Subject: id, Expires: expires, KeyEnds: keyEnds}
	if by.Versions.Compared() {
		c.CreatedBy, c.CreatedByKey = by.Subject, by.Key
	}
	return c, link, nil
}

// EnrollRequest is what a device presents: the code, its two public keys as JWK, and
// the proof that it holds the signing key. Name is what the holder calls the machine that keeps the key; it may be empty.
type EnrollRequest struct {
	Code  string
	Name  string
	Sign  []byte
	Seal  []byte
	Proof string
}

// Enroll turns the holder of a code into an active subject, or gives an active operator or service a further key. Everything that
// needs no store is checked first. The same code with the same keys gets the
// same answer until the code expires. A code is void if its maker could not make it now: because the maker is not active any more,
// or may not give what the subject has by now.
//
// Codes: rate_limited, busy, bad_request, proof_invalid (and the codes of
// [token.VerifyEnrollment] behind it), code_invalid, conflict.
func (svc *Service) Enroll(ctx context.Context, t watchword.TenantID, r EnrollRequest, from netip.Addr, trace string, now time.Time) (watchword.Subject, error) {
	if wait := svc.throttle.check(from, now); wait != nil {
		c, err := svc.store.Code(ctx, t, token.CodeDigest(r.Code))
		if watchword.CodeOf(err) == watchword.CodeInvalid || err == nil && (!now.Before(c.Expires) || c.Sign != "" && !isKey(r.Sign, c.Sign)) {
			err = wait
		}
		if err != nil {
			return watchword.Subject{}, err
		}
	}
	redemption, err := svc.verifyRequest(ctx, t, r, now)
	if err == nil {
		var s watchword.Subject
		entry := func(before, after watchword.Subject) audit.Entry {
			by := audit.Actor{Tenant: t, Subject: after.ID, Key: redemption.Sign.ID, Trace: trace}
			e := by.DoneEntry(audit.KindFor(after.Kind, audit.DeviceEnroll), string(after.ID), now, map[string]string{
				"sign": string(redemption.Sign.ID), "sign_jwk": string(redemption.Sign.JWK), "before": string(before.State), "after": string(after.State),
			})
			if redemption.Seal.ID != "" {
				e = e.With("seal", string(redemption.Seal.ID), "seal_jwk", string(redemption.Seal.JWK))
			}
			if redemption.Sign.Name != "" {
				e = e.With("name", redemption.Sign.Name)
			}
			if k, ok := after.SignKey(redemption.Sign.ID, now); ok && !k.Ends.IsZero() {
				e = e.With("key_ends", k.Ends.UTC().Format(time.RFC3339))
			}
			return e
		}
		var replay bool
		if s, replay, err = svc.redeem(ctx, redemption, now, entry); err == nil {
			if !replay {
				err = svc.opts.Live.Apply(ctx, watchword.SubjectChange(&s))
			}
			return s, err
		}
	}
	if watchword.CodeOf(err) == watchword.CodeInvalid {
		svc.throttle.fail(from, now)
	}
	return watchword.Subject{}, err
}

// redeem consumes a code under the present authority of its maker. Codes: code_invalid, and those of [Redemption.Redeem].
func (svc *Service) redeem(ctx context.Context, r Redemption, now time.Time, entry audit.EntryOf[watchword.Subject]) (s watchword.Subject, replay bool, err error) {
	c, err := svc.store.Code(ctx, r.Tenant, r.Hash)
	if err != nil {
		return s, false, err
	}
	if c.Sign != "" && (c.Sign != r.Sign.ID || c.Seal != r.Seal.ID) { // such attempts must not occupy the writer of the store
		return s, false, ErrCode
	}
	if c.CreatedBy == "" || c.Sign != "" { // made on the server's machine, or used before
		return svc.store.RedeemCode(ctx, r, watchword.AuthorityVersions{}, now, entry)
	}
	err = svc.opts.RunFor(ctx, r.Tenant, c.CreatedBy, func(ctx context.Context, maker session.Actor) error {
		maker, err := svc.checkMaker(ctx, maker, c, now)
		if err != nil {
			return err
		}
		s, replay, err = svc.store.RedeemCode(ctx, r, maker.Versions, now, entry)
		return err
	})
	switch watchword.CodeOf(err) {
	case watchword.NotFound, watchword.SubjectNew, watchword.SubjectSuspended, watchword.SubjectRevoked, watchword.TokenRevoked, watchword.ExceedsOwn, watchword.Denied:
		err = watchword.Wrap(err, watchword.CodeInvalid, "the code is unknown, used, expired or void")
	}
	return s, replay, err
}

// checkMaker refuses a code that its maker could not make now, and returns the maker with the version of the code's subject. Codes:
// not_found, code_invalid, denied, exceeds_own, token_too_large.
func (svc *Service) checkMaker(ctx context.Context, maker session.Actor, c Code, now time.Time) (session.Actor, error) {
	s, err := svc.store.Subject(ctx, c.Tenant, c.Subject)
	if err != nil {
		return maker, err
	}
	of, err := svc.store.Subject(ctx, c.Tenant, c.CreatedBy) // the store refuses the act if it is newer than the policy of maker
	if err != nil {
		return maker, err
	}
	if err := c.checkMakerKey(&of, now); err != nil {
		return maker, err
	}
	if err := c.checkMayMake(maker.Policy, &s); err != nil {
		return maker, err
	}
	if maker = maker.On(&s); c.CreatedBy == c.Subject { // a further key of its own gives it nothing
		return maker, nil
	}
	return maker, svc.checkComesBack(ctx, maker, s)
}

// PendingCode returns the unused code of a subject, without the characters of its link. Code: code_invalid where there is none.
func (svc *Service) PendingCode(ctx context.Context, t watchword.TenantID, id watchword.SubjectID, now time.Time) (Code, error) {
	return svc.store.PendingCode(ctx, t, id, now)
}

func (svc *Service) verifyRequest(ctx context.Context, t watchword.TenantID, r EnrollRequest, now time.Time) (Redemption, error) {
	if !token.WellFormedCode(r.Code) {
		return Redemption{}, ErrCode
	}
	if err := watchword.CheckKeyName(r.Name); err != nil {
		return Redemption{}, err
	}
	sign, seal, err := parseEnrollmentKeys(r, now)
	if err != nil {
		return Redemption{}, err
	}
	if err := svc.opts.Semaphore.Do(ctx, func() error {
		return proofInvalid(token.VerifyEnrollment(r.Proof, sign, svc.issuer(t, r.Proof, now), token.CodeHashClaim(r.Code), seal.ID, now))
	}); err != nil {
		return Redemption{}, err
	}
	return Redemption{
		Tenant: t, Hash: token.CodeDigest(r.Code),
		Sign: watchword.Key{ID: sign.ID(), Purpose: watchword.Sign, JWK: sign.JWK(), State: watchword.KeyActive, Added: now, Name: r.Name},
		Seal: seal,
	}, nil
}

// parseEnrollmentKeys reads the public keys of an enrollment. The sealing key is the zero Key where the request has none, which
// [watchword.Subject.Enroll] refuses to devices. Code: bad_request.
func parseEnrollmentKeys(r EnrollRequest, now time.Time) (sign *jose.PublicKey, seal watchword.Key, err error) {
	if r.Seal == nil {
		sign, err = parseKey("keys.sign", r.Sign, jose.ForSigning)
		return sign, seal, err
	}
	sign, public, err := parseKeys("keys.sign", r.Sign, "keys.seal", r.Seal)
	if err != nil {
		return nil, seal, err
	}
	return sign, watchword.Key{ID: public.ID(), Purpose: watchword.Seal, JWK: public.JWK(), State: watchword.KeyActive, Added: now}, nil
}

// isKey reports whether a public signing key as JWK has that id.
func isKey(jwk []byte, id watchword.KeyID) bool {
	k, err := parseKey("keys.sign", jwk, jose.ForSigning)
	return err == nil && k.ID() == id
}

// parseKeys reads the two public keys of a device that is not enrolled. Code: bad_request.
func parseKeys(signField string, signJWK []byte, sealField string, sealJWK []byte) (sign, seal *jose.PublicKey, err error) {
	if sign, err = parseKey(signField, signJWK, jose.ForSigning); err != nil {
		return nil, nil, err
	}
	if seal, err = parseKey(sealField, sealJWK, jose.ForEncryption); err != nil {
		return nil, nil, err
	}
	if sign.ID() == seal.ID() {
		return nil, nil, watchword.RefuseField(sealField, "must be another key than %s", signField)
	}
	return sign, seal, nil
}

func parseKey(field string, jwk []byte, use jose.Use) (*jose.PublicKey, error) {
	k, err := jose.ParseJWK(jwk, use)
	if err != nil {
		return nil, &watchword.Error{Code: watchword.BadRequest, Field: field, Detail: "must be a public JWK: P-256 or Ed25519 for signatures, P-256 or X25519 for encryption; use, key_ops and alg, where present, must fit", Err: err}
	}
	return k, nil
}

func proofInvalid(err error) error {
	return watchword.WrapRefusal(err, watchword.ProofInvalid, "the proof of possession is not valid")
}
