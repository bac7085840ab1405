package enroll

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rates"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Ask is what a device with no code shows: who it would like to be, its two
// public keys as JWK, and the proof that it holds the signing key and means the
// sealing key.
type Ask struct {
	ClientID string // the wished id, or the signing key's thumbprint for no wish
	Sign     []byte
	Seal     []byte
	Proof    string
}

// Asked is what the device gets: DeviceCode is its own secret, of 22 characters.
type Asked struct {
	Pairing
	DeviceCode string
	Interval   time.Duration
}

// Ask writes down that two keys wait for an operator's word. The same keys
// asking again get new codes, and the old ones are gone; what was approved
// meanwhile stays approved, because it is the keys that were.
//
// Codes: bad_request, proof_invalid, conflict where a key was used before;
// rate_limited where too many wait from one network, busy where too many wait.
func (g *Gate) Ask(ctx context.Context, t watchword.TenantID, a Ask, from netip.Addr, now time.Time) (Asked, error) {
	if err := watchword.CheckName("client_id", a.ClientID); err != nil {
		return Asked{}, err
	}
	sign, seal, err := parseKeys("sign", a.Sign, "seal", a.Seal)
	if err != nil {
		return Asked{}, err
	}
	if err := g.o.Room.Do(ctx, func() error {
		return noProof(token.VerifyEnrollment(a.Proof, sign, g.o.Issuer, token.PairingHash(), seal.ID(), now))
	}); err != nil {
		return Asked{}, err
	}
	wish := watchword.SubjectID(a.ClientID)
	if a.ClientID == string(sign.ID()) {
		wish = ""
	}
	code := watchword.NewNonce()
	p := Pairing{
		Tenant: t, ID: watchword.NewID("pair_", now), Hash: token.HashCode(code), Wish: wish,
		Sign:   watchword.Key{ID: sign.ID(), Purpose: watchword.Sign, JWK: sign.JWK(), State: watchword.KeyActive, Added: now},
		Seal:   watchword.Key{ID: seal.ID(), Purpose: watchword.Seal, JWK: seal.JWK(), State: watchword.KeyActive, Added: now},
		Remote: from.Unmap().String(), Network: rates.Network(from.Unmap()).String(),
		State: PairingPending, Created: now, Expires: now.Add(g.o.PairingLife),
	}
	for {
		p.UserCode = newUserCode()
		stored, err := g.store.AskPairing(ctx, p, now)
		if errors.Is(err, ErrUserCodeTaken) { // of thousands of millions, at most a thousand are in use
			continue
		}
		return Asked{stored, code, g.o.PairingInterval}, err
	}
}

// Poll tells a device what became of its pairing, once it has proved by its
// signing key that the device code is its own: nobody else learns anything. The
// proof is worth one token, which spent says; an approved pairing answers again
// until it is over, each time for a new proof.
//
// Codes: pairing_expired for what is unknown, used or over; busy, proof_invalid,
// client_invalid; pairing_pending, pairing_slow, pairing_rejected.
func (g *Gate) Poll(ctx context.Context, t watchword.TenantID, deviceCode, clientID, proof string, now time.Time) (s watchword.Subject, key watchword.KeyID, spent token.Spent, err error) {
	over := watchword.Refuse(watchword.PairingExpired, "the device code is unknown, used, or over: ask anew")
	if !token.WellFormedCode(deviceCode) {
		return s, key, spent, over
	}
	hash := token.HashCode(deviceCode)
	p, err := g.store.PairingOf(ctx, t, hash, now)
	if watchword.CodeOf(err) == watchword.NotFound {
		err = over
	}
	if err != nil {
		return s, key, spent, err
	}
	sign, err := jose.ParseJWK(p.Sign.JWK, jose.ForSigning)
	if err != nil {
		return s, key, spent, watchword.Because(err, watchword.Internal, "stored key of pairing %s", p.ID)
	}
	if err := g.o.Room.Do(ctx, func() (err error) {
		spent, err = token.VerifyPairing(proof, sign, g.o.Issuer, token.CodeHash(deviceCode), p.Seal.ID, now)
		return noProof(err)
	}); err != nil {
		return s, key, spent, err
	}
	if clientID != string(p.clientID()) {
		return s, key, spent, watchword.Refuse(watchword.ClientInvalid, "client_id is not the one that asked")
	}
	switch p.State {
	case PairingRejected:
		err = watchword.Refuse(watchword.PairingRejected, "an operator turned this pairing down")
	case PairingPending:
		if err = g.paces.poll(hash, now); err == nil {
			err = watchword.Refuse(watchword.PairingPending, "nobody has decided yet")
		}
	case PairingApproved:
		s, err = g.store.Subject(ctx, t, p.Subject)
		_, signs := s.SignKey(p.Sign.ID)
		if watchword.CodeOf(err) == watchword.NotFound || err == nil && !signs {
			err = over // the device was revoked or deleted since, or has other keys by now
		}
	}
	return s, p.Sign.ID, spent, err
}
