package enroll

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/session"
	"github.com/watchword-iot/watchword/token"
)

// A login is the pairing of a person's client: a new key, which an operator approves as a key of an operator. It differs from the
// pairing of a device: the client proposes neither an id nor a role; its proofs have a typ of their own, and name the root that
// the client saw; other operations find and approve it, so the right to approve devices is not the right to make operators; and
// it answers for minutes, not for a day.

// LoginRequest is what the client of a person without a link presents: its public signing key as JWK, and a login proof.
type LoginRequest struct {
	Sign  []byte
	Proof string
}

// RequestLogin stores that a signing key waits for an approver. The same key asking again gets new codes that replace the old
// ones. Of [PairingResponse], DeviceCode is the login code.
//
// Codes: busy, bad_request, proof_invalid (also where the client saw another root than this server's), conflict where the key was
// used before; rate_limited where too many wait from one network, busy where too many wait.
func (svc *Service) RequestLogin(ctx context.Context, t watchword.TenantID, r LoginRequest, from netip.Addr, now time.Time) (PairingResponse, error) {
	sign, err := parseKey("keys.sign", r.Sign, jose.ForSigning)
	if err != nil {
		return PairingResponse{}, err
	}
	if err := svc.verifyLogin(ctx, t, r.Proof, sign, token.LoginHashClaim(), now); err != nil {
		return PairingResponse{}, err
	}
	return svc.addPairing(ctx, Pairing{
		Tenant: t, Kind: watchword.Operator,
		Sign:    watchword.Key{ID: sign.ID(), Purpose: watchword.Sign, JWK: sign.JWK(), State: watchword.KeyActive, Added: now},
		Expires: now.Add(LoginLifetime),
	}, from, now)
}

func (svc *Service) verifyLogin(ctx context.Context, t watchword.TenantID, proof string, sign *jose.PublicKey, codeHash string, now time.Time) error {
	return svc.opts.Semaphore.Do(ctx, func() error {
		return proofInvalid(token.VerifyLogin(proof, sign, svc.issuer(t, proof, now), codeHash, svc.opts.TrustPins(), now))
	})
}

// PollLogin returns the operator whose key the client has, once an approver has decided. The client proves by the key that the
// login code is its own; other callers learn nothing. The answer gives no permission: it gets tokens by assertions.
//
// Codes: pairing_expired for an unknown, used or expired code; busy, proof_invalid; pairing_pending, pairing_slow,
// pairing_rejected.
func (svc *Service) PollLogin(ctx context.Context, t watchword.TenantID, loginCode, proof string, now time.Time) (watchword.Subject, error) {
	p, sign, err := svc.pairingToPoll(ctx, t, watchword.Operator, loginCode, now)
	if err != nil {
		return watchword.Subject{}, err
	}
	if err := svc.verifyLogin(ctx, t, proof, sign, token.CodeHashClaim(loginCode), now); err != nil {
		return watchword.Subject{}, err
	}
	return svc.pairedSubject(ctx, p, now)
}

// LoginApproval is an operator's approval of a login. Sign is the whole thumbprint of the key and Pin the pin of the root, both
// as the person's screen shows them: an attacker between the person and the server has another key, or shows another pin.
type LoginApproval struct {
	UserCode string
	Sign     watchword.KeyID
	Pin      string
	ID       watchword.SubjectID // of the operator
	Role     string              // of an operator that is added; empty where the operator exists
	KeyTTL   time.Duration       // lifetime of the key from now on, as [Lifetimes.Key]
	KeyName  string              // what the approver calls the machine that has the key; may be empty
}

// ApproveLogin makes the key of a login one of the operator a.ID: a new one with a.Role, or one that exists. The operator of
// an active key keeps the keys it has. The key that an operator approves for itself ends at the latest with the key that the act
// was authorized with. Of two concurrent decisions one succeeds.
//
// Codes: bad_request; not_found for a code that is unknown or over; conflict where the thumbprint or the pin is another one,
// the login is decided, or the operator is suspended or has too many keys; exceeds_own, token_too_large.
func (svc *Service) ApproveLogin(ctx context.Context, by session.Actor, a LoginApproval, now time.Time) (watchword.Subject, error) {
	p, err := svc.pairingToApprove(ctx, by.Tenant, watchword.Operator, a.UserCode, a.Sign, now)
	if err != nil {
		return watchword.Subject{}, err
	}
	if !slices.Contains(svc.opts.TrustPins(), a.Pin) {
		return watchword.Subject{}, &watchword.Error{
			Code: watchword.Conflict, Field: "pin", Detail: "must be the pin of this server's root: the person's client saw another server; reject the login, and find out what is between them",
		}
	}
	if err := watchword.CheckSubjectID(string(a.ID)); err != nil {
		return watchword.Subject{}, err
	}
	if watchword.CheckKeyName(a.KeyName) != nil {
		return watchword.Subject{}, watchword.RefuseField("key_name", "must be at most %d printable ASCII characters", watchword.MaxKeyName)
	}
	out := Approval{Pairing: p.ID, KeyName: a.KeyName, AnswerUntil: now.Add(ApprovedLoginLifetime)}
	if out.KeyEnds, err = (Lifetimes{Key: a.KeyTTL}).keyEnd(now); err != nil {
		return watchword.Subject{}, err
	}
	switch out.Subject, err = svc.store.Subject(ctx, by.Tenant, a.ID); {
	case watchword.CodeOf(err) == watchword.NotFound:
		out.Create, out.Subject = true, watchword.Subject{
			Tenant: by.Tenant, ID: a.ID, Kind: watchword.Operator, Role: a.Role, State: watchword.New, Version: 1, Incarnation: 1, Created: now, Changed: now,
		}
		if a.Role == "" {
			return watchword.Subject{}, watchword.RefuseField("role", "is required for an operator that is added, and %q does not exist", a.ID)
		}
		err = svc.opts.CheckGiven(ctx, by, out.Subject)
	case err != nil:
	case out.Subject.Kind != watchword.Operator:
		err = watchword.Refuse(watchword.Conflict, "%q is a %s: only operators log in", a.ID, out.Subject.Kind)
	case a.Role != "":
		err = watchword.RefuseField("role", "must be empty, since the operator %q exists and has the role %s", a.ID, out.Subject.Role)
	default:
		if err = svc.checkComesBack(ctx, by, out.Subject); err == nil && givesItself(by, a.ID) {
			var latest time.Time
			latest, err = endOfActingKey(by, &out.Subject, now)
			out.KeyEnds = watchword.EarlierEnd(out.KeyEnds, latest)
		}
	}
	if err != nil {
		return watchword.Subject{}, err
	}
	return svc.approve(ctx, by, p, out, now)
}
