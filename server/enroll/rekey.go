package enroll

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

// RekeyStore is what a key change needs from the store.
type RekeyStore interface {
	Subject(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (watchword.Subject, error)
	Rekey(ctx context.Context, by audit.Actor, r KeyChange, now time.Time, entry audit.EntryOf[watchword.Subject]) (s watchword.Subject, replay bool, err error)
}

// KeyChange is a proven change of a subject's keys. Sign and Seal are the keys that
// count after it, whether they are new or stay; From is the signing key that asks.
type KeyChange struct {
	Tenant      watchword.TenantID
	Subject     watchword.SubjectID
	Incarnation int64
	From        watchword.KeyID
	Sign        watchword.Key
	Seal        watchword.Key
	Spent       token.SingleUse
}

// Apply decides whether the keys of r take the place of s's. Where they are s's keys already, replay is true and nothing is
// to be changed; otherwise r.Spent is to be spent with the change.
//
// Codes: subject_new, subject_suspended, subject_revoked; client_invalid where r was proved in another life of the subject
// or by a key that is not active; rate_limited, with RetryAfter.
func (r KeyChange) Apply(s watchword.Subject, now time.Time) (_ watchword.Subject, replay bool, err error) {
	if err := s.CheckActive(); err != nil {
		return s, false, err
	}
	gone := watchword.Refuse(watchword.ClientInvalid, "the key must be an active key of the subject")
	if s.Incarnation != r.Incarnation {
		return s, false, gone
	}
	_, signs := s.SignKey(r.Sign.ID, now)
	if seal, _ := s.SealKey(now); signs && seal.ID == r.Seal.ID {
		return s, true, nil
	}
	if _, ok := s.SignKey(r.From, now); !ok {
		return s, false, gone
	}
	s, err = s.ReplaceKeys(r.Sign, r.Seal, now)
	return s, false, err
}

// RekeyRequest is what a device shows that changes its keys: the new public keys
// as JWK (nil for one that stays), and the proof, a JSON array of one JWS by the
// old signing key and one by the new.
type RekeyRequest struct {
	Sign  []byte
	Seal  []byte
	Proof []byte
}

// Rekey puts new keys of a device in the place of its old ones, which are retired.
// by is the device itself, as it authenticated: only with that very key can it
// change keys. A caller that asks for the valid keys already is answered alike and
// changes nothing: so a device whose answer was lost finds out where it is.
//
// Codes: denied for a subject that is not a device; bad_request, proof_invalid (and the codes
// of [token.VerifyRekey] behind it), token_replayed, conflict for a key that was
// used before, rate_limited, client_invalid where the old key went meanwhile.
func (svc *Service) Rekey(ctx context.Context, by audit.Actor, r RekeyRequest, now time.Time) (watchword.Subject, error) {
	s, err := svc.store.Subject(ctx, by.Tenant, by.Subject)
	if err != nil {
		return s, err
	}
	if s.Kind != watchword.Device {
		return s, watchword.Refuse(watchword.Denied, "only devices can change their keys at this endpoint")
	}
	change, data, err := svc.checkRekey(s, by, r, now)
	if err != nil || data == nil {
		return s, err
	}
	after, replay, err := svc.store.Rekey(ctx, by, change, now, func(before, after watchword.Subject) audit.Entry {
		return by.DoneEntry(audit.DeviceRekey, string(s.ID), now, data).With("before", string(before.State), "after", string(after.State))
	})
	if err == nil && !replay {
		err = svc.opts.Live.Apply(ctx, watchword.SubjectChange(&after))
	}
	return after, err
}

// checkRekey is everything that needs no transaction. It returns what the audit
// entry says, nil where nothing is to be changed.
func (svc *Service) checkRekey(s watchword.Subject, by audit.Actor, r RekeyRequest, now time.Time) (KeyChange, map[string]string, error) {
	none := func(err error) (KeyChange, map[string]string, error) { return KeyChange{}, nil, err }
	current, ok := s.SignKey(by.Key, now)
	seal, ok2 := s.SealKey(now)
	if !ok || !ok2 {
		return none(watchword.Refuse(watchword.ClientInvalid, "the key of the access token is not active any more"))
	}
	from, err := jose.ParseJWK(current.JWK, jose.ForSigning)
	if err != nil {
		return none(watchword.Wrap(err, watchword.Internal, "stored key of %s", s.ID))
	}
	change := KeyChange{Tenant: s.Tenant, Subject: s.ID, Incarnation: s.Incarnation, From: current.ID, Sign: current, Seal: seal}
	to := from
	if r.Sign != nil {
		if to, err = parseKey("keys.sign", r.Sign, jose.ForSigning); err != nil {
			return none(err)
		}
		if to.ID() != current.ID {
			change.Sign = watchword.Key{ID: to.ID(), Purpose: watchword.Sign, JWK: to.JWK(), State: watchword.KeyActive, Added: now}
		}
	}
	if r.Seal != nil {
		k, err := parseKey("keys.seal", r.Seal, jose.ForEncryption)
		if err != nil {
			return none(err)
		}
		if k.ID() != seal.ID {
			change.Seal = watchword.Key{ID: k.ID(), Purpose: watchword.Seal, JWK: k.JWK(), State: watchword.KeyActive, Added: now}
		}
	}
	if change.Sign.ID == change.Seal.ID {
		return none(watchword.RefuseField("keys.seal", "must be another key than keys.sign"))
	}
	if change.Sign.ID == current.ID && change.Seal.ID == seal.ID {
		return none(nil)
	}
	p, err := token.VerifyRekey(string(r.Proof), from, to, s.ID, svc.issuer(s.Tenant, string(r.Proof), now), now)
	if err == nil && (p.Sign != change.Sign.ID || p.Seal != change.Seal.ID) {
		err = watchword.Refuse(watchword.KeyUnknown, "the thumbprints in the proof must be those of keys.sign and keys.seal")
	}
	if err != nil {
		return none(watchword.WrapRefusal(err, watchword.ProofInvalid, "the proof of the key change is not valid"))
	}
	change.Spent = token.SingleUse{JTI: p.JTI, Issued: p.Issued, Expires: p.Expires.Add(token.Skew)}
	return change, map[string]string{
		"sign": string(change.Sign.ID), "seal": string(change.Seal.ID), "sign_jwk": string(change.Sign.JWK), "seal_jwk": string(change.Seal.JWK), "sign_before": string(current.ID), "seal_before": string(seal.ID),
	}, nil
}
