package enroll

import (
	"context"
	"net/netip"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Store is what the gate needs of the cellar.
type Store interface {
	CreateSubject(ctx context.Context, s watchword.Subject, code *Code, e audit.Entry) error
	AddCode(ctx context.Context, c Code, e audit.Entry) error
	RedeemCode(ctx context.Context, r Redemption, now time.Time, entry audit.EntryOf[watchword.Subject]) (s watchword.Subject, replay bool, err error)
	Rekeys
	Pairings
}

// Options is what a gate needs to know beside the store.
type Options struct {
	PublicURL string // where links point
	Issuer    string
	Pin       func() string // of the root of this moment
	// Fits refuses a subject whose token would outgrow its bound.
	Fits func(ctx context.Context, s watchword.Subject) error
	// Changed tells that a subject has changed in the store, before the answer.
	Changed func(ctx context.Context, t watchword.TenantID, id watchword.SubjectID)
	// How long a pairing waits for an operator, and how often its device may ask; 0
	// means PairingLife and PairingInterval.
	PairingLife, PairingInterval time.Duration
	// Room is where signatures are checked; nil lets everybody in at once.
	Room *fair.Room
}

// Gate lets subjects in. It is safe for concurrent use.
type Gate struct {
	store   Store
	o       Options
	guesses *guesses
	paces   *paces
}

// NewGate returns a gate that writes to st.
func NewGate(st Store, o Options) *Gate {
	if o.PairingLife == 0 {
		o.PairingLife = PairingLife
	}
	if o.PairingInterval == 0 {
		o.PairingInterval = PairingInterval
	}
	return &Gate{store: st, o: o, guesses: newGuesses(), paces: newPaces(o.PairingInterval)}
}

// Add writes a new device down and returns the link by which it comes in. ttl 0
// means [CodeLife]. Codes: bad_request, conflict, token_too_large.
func (g *Gate) Add(ctx context.Context, by audit.Actor, id watchword.SubjectID, labels watchword.Labels, ttl time.Duration, now time.Time) (watchword.Subject, Link, error) {
	return g.AddProving(ctx, by, id, labels, "", ttl, now)
}

// AddProving is [Gate.Add] for a device that gets nothing without a proof of its
// key, where proof is [watchword.RequireProof].
func (g *Gate) AddProving(ctx context.Context, by audit.Actor, id watchword.SubjectID, labels watchword.Labels, proof string, ttl time.Duration, now time.Time) (watchword.Subject, Link, error) {
	s := watchword.Subject{
		Tenant: by.Tenant, ID: id, Kind: watchword.Device, State: watchword.New, Labels: labels, Proof: proof,
		Version: 1, Incarnation: 1, Created: now, Changed: now,
	}
	if err := watchword.CheckName("id", string(id)); err != nil {
		return s, Link{}, err
	}
	if err := watchword.CheckLabels(labels); err != nil {
		return s, Link{}, err
	}
	if err := watchword.CheckProof(proof); err != nil {
		return s, Link{}, err
	}
	if err := g.o.Fits(ctx, s); err != nil {
		return s, Link{}, err
	}
	code, link, err := g.code(by, id, ttl, now)
	if err != nil {
		return s, Link{}, err
	}
	data := map[string]string{"labels": labels.String()}
	if proof != "" {
		data["proof"] = proof
	}
	if err := g.store.CreateSubject(ctx, s, &code, by.Did(audit.DeviceCreate, string(id), now, data)); err != nil {
		return s, Link{}, err
	}
	g.o.Changed(ctx, by.Tenant, id)
	return s, link, nil
}

// Link makes a new link for a device that is new or revoked; an older one dies.
// Codes: bad_request, not_found, conflict.
func (g *Gate) Link(ctx context.Context, by audit.Actor, id watchword.SubjectID, ttl time.Duration, now time.Time) (Link, error) {
	code, link, err := g.code(by, id, ttl, now)
	if err != nil {
		return Link{}, err
	}
	return link, g.store.AddCode(ctx, code, by.Did(audit.DeviceLink, string(id), now, nil))
}

func (g *Gate) code(by audit.Actor, id watchword.SubjectID, ttl time.Duration, now time.Time) (Code, Link, error) {
	if ttl == 0 {
		ttl = CodeLife
	}
	if ttl < time.Second || ttl > CodeLifeMax {
		return Code{}, Link{}, watchword.RefuseField("ttl", "must lie between 1 s and 30 days")
	}
	code := watchword.NewNonce()
	link := newLink(g.o.PublicURL, code, g.o.Pin(), now.Add(ttl))
	return Code{Tenant: by.Tenant, Hash: token.HashCode(code), Subject: id, Expires: link.Expires, By: by.Subject}, link, nil
}

// Request is what a stranger shows: the code, its two public keys as JWK, and
// the proof that it holds the signing key.
type Request struct {
	Code  string
	Sign  []byte
	Seal  []byte
	Proof string
}

// Enroll turns the holder of a code into an active subject. Everything that
// needs no store is checked first. The same code with the same keys gets the
// same answer until the code is over.
//
// Codes: rate_limited, busy, bad_request, proof_invalid (and the codes of
// [token.VerifyEnrollment] behind it), code_invalid, conflict.
func (g *Gate) Enroll(ctx context.Context, t watchword.TenantID, r Request, from netip.Addr, trace string, now time.Time) (watchword.Subject, error) {
	if err := g.guesses.wait(from, now); err != nil {
		return watchword.Subject{}, err
	}
	red, err := g.check(ctx, t, r, now)
	if err == nil {
		var s watchword.Subject
		entry := func(before, after watchword.Subject) audit.Entry {
			by := audit.Actor{Tenant: t, Subject: after.ID, Key: red.Sign.ID, Trace: trace}
			return by.Did(audit.DeviceEnroll, string(after.ID), now, map[string]string{
				"sign": string(red.Sign.ID), "seal": string(red.Seal.ID), "sign_jwk": string(red.Sign.JWK), "seal_jwk": string(red.Seal.JWK),
				"before": string(before.State), "after": string(after.State),
			})
		}
		var replay bool
		if s, replay, err = g.store.RedeemCode(ctx, red, now, entry); err == nil {
			if !replay {
				g.o.Changed(ctx, t, s.ID)
			}
			return s, nil
		}
	}
	if watchword.CodeOf(err) == watchword.CodeInvalid {
		g.guesses.wrong(from, now)
	}
	return watchword.Subject{}, err
}

func (g *Gate) check(ctx context.Context, t watchword.TenantID, r Request, now time.Time) (Redemption, error) {
	if !token.WellFormedCode(r.Code) {
		return Redemption{}, watchword.Refuse(watchword.CodeInvalid, "the code is unknown, used, or over")
	}
	sign, seal, err := parseKeys("keys.sign", r.Sign, "keys.seal", r.Seal)
	if err != nil {
		return Redemption{}, err
	}
	if err := g.o.Room.Do(ctx, func() error {
		return noProof(token.VerifyEnrollment(r.Proof, sign, g.o.Issuer, token.CodeHash(r.Code), seal.ID(), now))
	}); err != nil {
		return Redemption{}, err
	}
	return Redemption{
		Tenant: t, Hash: token.HashCode(r.Code),
		Sign: watchword.Key{ID: sign.ID(), Purpose: watchword.Sign, JWK: sign.JWK(), State: watchword.KeyActive, Added: now},
		Seal: watchword.Key{ID: seal.ID(), Purpose: watchword.Seal, JWK: seal.JWK(), State: watchword.KeyActive, Added: now},
	}, nil
}

// parseKeys reads a stranger's two public keys. Code: bad_request.
func parseKeys(signField string, signJWK []byte, sealField string, sealJWK []byte) (sign, seal *jose.PublicKey, err error) {
	if sign, err = parseKey(signField, signJWK, jose.ForSigning); err != nil {
		return nil, nil, err
	}
	if seal, err = parseKey(sealField, sealJWK, jose.ForSealing); err != nil {
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
		return nil, &watchword.Error{Code: watchword.BadRequest, Field: field, Detail: "is no public JWK that this server takes (P-256, Ed25519 to sign; P-256, X25519 to seal; use, key_ops and alg, where it has them, for that)", Err: err}
	}
	return k, nil
}

func noProof(err error) error {
	if err == nil {
		return nil
	}
	return watchword.Because(err, watchword.ProofInvalid, "the proof of possession does not hold: %s", watchword.CodeOf(err))
}
