package enroll

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/fair"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// PairingRequest is what a device with no code shows: the id that it requests, its two
// public keys as JWK, and the proof that it holds the signing key and means the
// sealing key.
type PairingRequest struct {
	ClientID string // the wished id, or the signing key's thumbprint for no wish
	Sign     []byte
	Seal     []byte
	Proof    string
}

// PairingResponse is what the client gets: DeviceCode is its own secret, of 22 characters.
type PairingResponse struct {
	Pairing
	DeviceCode string
	Interval   time.Duration
}

// RequestPairing stores that two keys wait for an operator's decision. The same keys
// asking again get new codes, and the old ones are gone; what was approved
// meanwhile stays approved, because it is the keys that were.
//
// Codes: bad_request, proof_invalid, conflict where a key was used before;
// rate_limited where too many wait from one network, busy where too many wait.
func (svc *Service) RequestPairing(ctx context.Context, t watchword.TenantID, a PairingRequest, from netip.Addr, now time.Time) (PairingResponse, error) {
	if err := watchword.CheckName("client_id", a.ClientID); err != nil {
		return PairingResponse{}, err
	}
	sign, seal, err := parseKeys("sign", a.Sign, "seal", a.Seal)
	if err != nil {
		return PairingResponse{}, err
	}
	if err := svc.opts.Semaphore.Do(ctx, func() error {
		return proofInvalid(token.VerifyEnrollment(a.Proof, sign, svc.issuer(t, a.Proof, now), token.PairingHashClaim(), seal.ID(), now))
	}); err != nil {
		return PairingResponse{}, err
	}
	requestedID := watchword.SubjectID(a.ClientID)
	if a.ClientID == string(sign.ID()) {
		requestedID = ""
	}
	return svc.addPairing(ctx, Pairing{
		Tenant: t, Kind: watchword.Device, RequestedID: requestedID,
		Sign:    watchword.Key{ID: sign.ID(), Purpose: watchword.Sign, JWK: sign.JWK(), State: watchword.KeyActive, Added: now},
		Seal:    watchword.Key{ID: seal.ID(), Purpose: watchword.Seal, JWK: seal.JWK(), State: watchword.KeyActive, Added: now},
		Expires: now.Add(svc.opts.PairingLifetime),
	}, from, now)
}

// addPairing stores a pairing whose keys are proved, with new codes.
func (svc *Service) addPairing(ctx context.Context, p Pairing, from netip.Addr, now time.Time) (PairingResponse, error) {
	code := watchword.NewNonce()
	p.ID, p.Hash, p.State, p.Created = watchword.NewID("pair_", now), token.CodeDigest(code), PairingPending, now
	p.Remote, p.Network = from.Unmap().String(), fair.Network(from.Unmap()).String()
	for {
		p.UserCode = newUserCode()
		stored, err := svc.store.AddPairing(ctx, p, now)
		if errors.Is(err, ErrUserCodeTaken) { // of thousands of millions, at most a thousand are in use
			continue
		}
		return PairingResponse{stored, code, svc.opts.PairingInterval}, err
	}
}

// PollPairing returns the state of a pairing to the device, once it has proved by its signing key that the device code is
// its own: other callers learn nothing. The proof can be exchanged for one token, and spent is its single use; an approved
// pairing answers again until it expires, each time for a new proof.
//
// Codes: pairing_expired for an unknown, used or expired code; busy, proof_invalid, client_invalid; pairing_pending,
// pairing_slow, pairing_rejected.
func (svc *Service) PollPairing(ctx context.Context, t watchword.TenantID, deviceCode, clientID, proof string, now time.Time) (s watchword.Subject, key watchword.KeyID, spent token.SingleUse, err error) {
	p, sign, err := svc.pairingToPoll(ctx, t, watchword.Device, deviceCode, now)
	if err != nil {
		return s, key, spent, err
	}
	if err := svc.opts.Semaphore.Do(ctx, func() (err error) {
		spent, err = token.VerifyPairing(proof, sign, svc.issuer(p.Tenant, proof, now), token.CodeHashClaim(deviceCode), p.Seal.ID, now)
		return proofInvalid(err)
	}); err != nil {
		return s, key, spent, err
	}
	if clientID != string(p.clientID()) {
		return s, key, spent, watchword.Refuse(watchword.ClientInvalid, "client_id must be the one of the pairing request")
	}
	s, err = svc.pairedSubject(ctx, p, now)
	return s, p.Sign.ID, spent, err
}

// errPairingExpired is the answer to the code of a client that is unknown, used or expired. It does not say which.
func errPairingExpired(k watchword.Kind) error {
	if k == watchword.Operator {
		return watchword.Refuse(watchword.PairingExpired, "login_code is unknown, used or expired: request another")
	}
	return watchword.Refuse(watchword.PairingExpired, "device_code is unknown, used or expired: request another")
}

// pairingToPoll finds the pairing of a device code, and the key by which its client must prove that the code is its own. Code:
// pairing_expired.
func (svc *Service) pairingToPoll(ctx context.Context, t watchword.TenantID, k watchword.Kind, deviceCode string, now time.Time) (p Pairing, sign *jose.PublicKey, err error) {
	if !token.WellFormedCode(deviceCode) {
		return p, nil, errPairingExpired(k)
	}
	p, err = svc.store.PairingByDeviceCode(ctx, t, k, token.CodeDigest(deviceCode), now)
	if watchword.CodeOf(err) == watchword.NotFound {
		err = errPairingExpired(k)
	}
	if err != nil {
		return p, nil, err
	}
	if sign, err = jose.ParseJWK(p.Sign.JWK, jose.ForSigning); err != nil {
		return p, nil, watchword.Wrap(err, watchword.Internal, "stored key of pairing %s", p.ID)
	}
	return p, sign, nil
}

// pairedSubject returns the subject whose keys the client of an approved pairing has. Codes: pairing_pending, pairing_slow,
// pairing_rejected; pairing_expired where the subject has other keys by now.
func (svc *Service) pairedSubject(ctx context.Context, p Pairing, now time.Time) (s watchword.Subject, err error) {
	switch p.State {
	case PairingRejected:
		err = watchword.Refuse(watchword.PairingRejected, "an operator rejected the pairing")
	case PairingPending:
		polls := svc.polls
		if p.Kind == watchword.Operator {
			polls = svc.logins
		}
		if err = polls.poll(p.Hash, now); err == nil {
			err = watchword.Refuse(watchword.PairingPending, "no operator has decided on the pairing yet")
		}
	case PairingApproved:
		s, err = svc.store.Subject(ctx, p.Tenant, p.Subject)
		_, signs := s.SignKey(p.Sign.ID, now)
		if watchword.CodeOf(err) == watchword.NotFound || err == nil && !signs {
			err = errPairingExpired(p.Kind) // the subject was revoked or deleted since, or has other keys by now
		}
	}
	return s, err
}
