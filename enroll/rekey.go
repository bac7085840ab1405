package enroll

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Rekeys is what a key change needs of the cellar.
type Rekeys interface {
	Subject(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (watchword.Subject, error)
	Rekey(ctx context.Context, by audit.Actor, r Rekeying, now time.Time, entry audit.EntryOf[watchword.Subject]) (s watchword.Subject, replay bool, err error)
}

// How often a device may change its keys, so that its history does not grow
// without end: this many new keys within that time.
const (
	RekeysMost = 32
	RekeysSpan = 24 * time.Hour
)

// The newest RekeysMost keys come with a subject.
var _ [watchword.KeysShown - RekeysMost]struct{}

// Rekeying is a proven change of a subject's keys. Sign and Seal are the keys that
// count after it, whether they are new or stay; From is the signing key that asks.
type Rekeying struct {
	Tenant      watchword.TenantID
	Subject     watchword.SubjectID
	Incarnation int64
	From        watchword.KeyID
	Sign        watchword.Key
	Seal        watchword.Key
	Spent       token.Spent
}

// Apply decides whether the keys of r take the place of s's. Where they are s's keys already, replay is true and nothing is
// to be changed; otherwise r.Spent is to be spent with the change.
//
// Codes: subject_new, subject_suspended, subject_revoked; client_invalid where r was proved in another life of the subject
// or by a key that is not active; rate_limited, with RetryAfter.
func (r Rekeying) Apply(s watchword.Subject, now time.Time) (_ watchword.Subject, replay bool, err error) {
	if err := s.Usable(); err != nil {
		return s, false, err
	}
	gone := watchword.Refuse(watchword.ClientInvalid, "the key is none of the subject's")
	if s.Incarnation != r.Incarnation {
		return s, false, gone
	}
	_, signs := s.SignKey(r.Sign.ID)
	if seal, _ := s.SealKey(); signs && seal.ID == r.Seal.ID {
		return s, true, nil
	}
	if _, ok := s.SignKey(r.From); !ok {
		return s, false, gone
	}
	if n := len(s.Keys); n >= RekeysMost {
		if free := s.Keys[n-RekeysMost].Added.Add(RekeysSpan); free.After(now) {
			return s, false, &watchword.Error{Code: watchword.RateLimited, Detail: "too many new keys in a day", RetryAfter: free.Sub(now)}
		}
	}
	return s.ReplaceKeys(r.Sign, r.Seal, now), false, nil
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
// change keys. Whoever asks for the keys that count already is answered alike and
// changes nothing: so a device whose answer was lost finds out where it is.
//
// Codes: denied for who is no device; bad_request, proof_invalid (and the codes
// of [token.VerifyRekey] behind it), token_replayed, conflict for a key that was
// used before, rate_limited, client_invalid where the old key went meanwhile.
func (g *Gate) Rekey(ctx context.Context, by audit.Actor, r RekeyRequest, now time.Time) (watchword.Subject, error) {
	s, err := g.store.Subject(ctx, by.Tenant, by.Subject)
	if err != nil {
		return s, err
	}
	if s.Kind != watchword.Device {
		return s, watchword.Refuse(watchword.Denied, "only a device changes its keys here")
	}
	red, data, err := g.checkRekey(s, by, r, now)
	if err != nil || data == nil {
		return s, err
	}
	after, replay, err := g.store.Rekey(ctx, by, red, now, func(before, after watchword.Subject) audit.Entry {
		return by.Did(audit.DeviceRekey, string(s.ID), now, data).With("before", string(before.State), "after", string(after.State))
	})
	if err == nil && !replay {
		g.o.Changed(ctx, by.Tenant, s.ID)
	}
	return after, err
}

// checkRekey is everything that needs no transaction. It returns what the audit
// entry says, nil where nothing is to be changed.
func (g *Gate) checkRekey(s watchword.Subject, by audit.Actor, r RekeyRequest, now time.Time) (Rekeying, map[string]string, error) {
	none := func(err error) (Rekeying, map[string]string, error) { return Rekeying{}, nil, err }
	was, ok := s.SignKey(by.Key)
	seal, ok2 := s.SealKey()
	if !ok || !ok2 {
		return none(watchword.Refuse(watchword.ClientInvalid, "the key that got this token no longer counts"))
	}
	from, err := jose.ParseJWK(was.JWK, jose.ForSigning)
	if err != nil {
		return none(watchword.Because(err, watchword.Internal, "stored key of %s", s.ID))
	}
	red := Rekeying{Tenant: s.Tenant, Subject: s.ID, Incarnation: s.Incarnation, From: was.ID, Sign: was, Seal: seal}
	to := from
	if r.Sign != nil {
		if to, err = parseKey("keys.sign", r.Sign, jose.ForSigning); err != nil {
			return none(err)
		}
		if to.ID() != was.ID {
			red.Sign = watchword.Key{ID: to.ID(), Purpose: watchword.Sign, JWK: to.JWK(), State: watchword.KeyActive, Added: now}
		}
	}
	if r.Seal != nil {
		k, err := parseKey("keys.seal", r.Seal, jose.ForSealing)
		if err != nil {
			return none(err)
		}
		if k.ID() != seal.ID {
			red.Seal = watchword.Key{ID: k.ID(), Purpose: watchword.Seal, JWK: k.JWK(), State: watchword.KeyActive, Added: now}
		}
	}
	if red.Sign.ID == red.Seal.ID {
		return none(watchword.RefuseField("keys.seal", "must be another key than keys.sign"))
	}
	if red.Sign.ID == was.ID && red.Seal.ID == seal.ID {
		return none(nil)
	}
	p, err := token.VerifyRekey(string(r.Proof), from, to, s.ID, g.o.Issuer, now)
	if err == nil && (p.Sign != red.Sign.ID || p.Seal != red.Seal.ID) {
		err = watchword.Refuse(watchword.KeyUnknown, "the thumbprints are not those of the keys beside it")
	}
	if err != nil {
		return none(watchword.Because(err, watchword.ProofInvalid, "the proof of the key change does not hold: %s", watchword.CodeOf(err)))
	}
	red.Spent = token.Spent{JTI: p.JTI, Expires: p.Expires.Add(token.Skew)}
	return red, map[string]string{
		"sign": string(red.Sign.ID), "seal": string(red.Seal.ID), "sign_jwk": string(red.Sign.JWK), "seal_jwk": string(red.Seal.JWK), "sign_before": string(was.ID), "seal_before": string(seal.ID),
	}, nil
}
