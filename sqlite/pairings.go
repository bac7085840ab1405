package sqlite

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/enroll"
)

const pairingColumns = `tenant, id, device, user_code, wish, sign, sign_jwk, seal, seal_jwk, remote, network, state, subject, decider, created, decided, expires`

func scanPairing(r scanner) (p enroll.Pairing, err error) {
	var device []byte
	var created, decided, expires int64
	err = r.Scan(&p.Tenant, &p.ID, &device, &p.UserCode, &p.Wish, &p.Sign.ID, &p.Sign.JWK, &p.Seal.ID, &p.Seal.JWK,
		&p.Remote, &p.Network, &p.State, &p.Subject, &p.By, &created, &decided, &expires)
	copy(p.Hash[:], device)
	p.Sign.Purpose, p.Seal.Purpose = watchword.Sign, watchword.Seal
	p.Sign.State, p.Seal.State = watchword.KeyActive, watchword.KeyActive
	p.Created, p.Decided, p.Expires = moment(created), moment(decided), moment(expires)
	return p, err
}

var noPairing = watchword.Refuse(watchword.NotFound, "no pairing waits under this code; it may be over, and the device must ask anew")

// AskPairing writes down that two keys wait for an operator's word.
func (s *Store) AskPairing(ctx context.Context, p enroll.Pairing, code func() string, now time.Time) (enroll.Pairing, error) {
	err := s.w.do(ctx, func(t *tx) error {
		old, err := all(context.Background(), t, scanPairing, `SELECT `+pairingColumns+` FROM pairings WHERE tenant = ? AND sign = ?`, p.Tenant, p.Sign.ID)
		if err != nil {
			return err
		}
		used, err := t.keysUsed(p)
		if err != nil {
			return err
		}
		if used {
			// The device lost its device code after an operator had approved its keys: the word stands.
			if len(old) == 0 || !t.stillItsKeys(old[0], p, now) {
				return watchword.Refuse(watchword.Conflict, "a key that was used before cannot be paired; make new keys")
			}
			p.State, p.Subject, p.By, p.Decided, p.Expires = old[0].State, old[0].Subject, old[0].By, old[0].Decided, old[0].Expires
		}
		if _, err := t.exec(`DELETE FROM pairings WHERE tenant = ? AND sign = ?`, p.Tenant, p.Sign.ID); err != nil {
			return err
		}
		if p.State == enroll.PairingPending {
			if err := t.roomFor(p, now); err != nil {
				return err
			}
		}
		return t.putPairing(&p, code)
	})
	return p, err
}

// keysUsed reports whether the tenant knows one of the keys.
func (t *tx) keysUsed(p enroll.Pairing) (bool, error) {
	return one(context.Background(), t, func(r scanner) (used bool, err error) { err = r.Scan(&used); return used, err }, nil,
		`SELECT EXISTS (SELECT 1 FROM subject_keys WHERE tenant = ? AND id IN (?, ?))`, p.Tenant, p.Sign.ID, p.Seal.ID)
}

// stillItsKeys reports whether old is an approved pairing of the keys of p, whose
// subject still has them.
func (t *tx) stillItsKeys(old, p enroll.Pairing, now time.Time) bool {
	if old.State != enroll.PairingApproved || stamp(old.Expires) <= stamp(now) || old.Seal.ID != p.Seal.ID {
		return false
	}
	s, err := t.subject(old.Tenant, old.Subject)
	_, signs := s.SignKey(p.Sign.ID)
	return err == nil && signs
}

// roomFor refuses one more that waits where too many do. Codes: rate_limited, busy.
func (t *tx) roomFor(p enroll.Pairing, now time.Time) error {
	type waiting struct {
		all, near          int
		first, firstNearby int64
	}
	w, err := one(context.Background(), t, func(r scanner) (w waiting, err error) {
		err = r.Scan(&w.all, &w.first, &w.near, &w.firstNearby)
		return w, err
	}, nil, `SELECT count(*), coalesce(min(expires), 0), count(*) FILTER (WHERE network = ?1), coalesce(min(expires) FILTER (WHERE network = ?1), 0)
		FROM pairings WHERE tenant = ?2 AND state = 'pending' AND expires > ?3`, p.Network, p.Tenant, stamp(now))
	switch {
	case err != nil:
		return err
	case w.near >= enroll.MaxPairingsNearby:
		return &watchword.Error{Code: watchword.RateLimited, Detail: "too many pairings from this network wait for an operator", RetryAfter: moment(w.firstNearby).Sub(now)}
	case w.all >= enroll.MaxPairings:
		return &watchword.Error{Code: watchword.Busy, Detail: "too many pairings wait for an operator", RetryAfter: moment(w.first).Sub(now)}
	}
	return nil
}

// putPairing takes codes until one is free.
func (t *tx) putPairing(p *enroll.Pairing, code func() string) error {
	for {
		p.UserCode = code()
		taken, err := one(context.Background(), t, func(r scanner) (taken bool, err error) { err = r.Scan(&taken); return taken, err }, nil,
			`SELECT EXISTS (SELECT 1 FROM pairings WHERE tenant = ? AND user_code = ?)`, p.Tenant, p.UserCode)
		if err != nil {
			return err
		}
		if taken {
			continue
		}
		_, err = t.exec(`INSERT INTO pairings (`+pairingColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			p.Tenant, p.ID, p.Hash[:], p.UserCode, p.Wish, p.Sign.ID, p.Sign.JWK, p.Seal.ID, p.Seal.JWK,
			p.Remote, p.Network, p.State, p.Subject, p.By, stamp(p.Created), stamp(p.Decided), stamp(p.Expires))
		return err
	}
}

// PairingOf returns the pairing of a device code's hash.
func (s *Store) PairingOf(ctx context.Context, t watchword.TenantID, device [32]byte, now time.Time) (enroll.Pairing, error) {
	return one(ctx, s, scanPairing, noPairing,
		`SELECT `+pairingColumns+` FROM pairings WHERE tenant = ? AND device = ? AND expires > ?`, t, device[:], stamp(now))
}

// PairingFor returns the pairing of a user code.
func (s *Store) PairingFor(ctx context.Context, t watchword.TenantID, userCode string, now time.Time) (enroll.Pairing, error) {
	return one(ctx, s, scanPairing, noPairing,
		`SELECT `+pairingColumns+` FROM pairings WHERE tenant = ? AND user_code = ? AND expires > ?`, t, userCode, stamp(now))
}

// Pairings returns a page of pairings that are not over, newest first.
func (s *Store) Pairings(ctx context.Context, t watchword.TenantID, before string, limit int, now time.Time) ([]enroll.Pairing, error) {
	return all(ctx, s, scanPairing, `SELECT `+pairingColumns+` FROM pairings
		WHERE tenant = ?1 AND (?2 = '' OR id < ?2) AND expires > ?3 ORDER BY id DESC LIMIT ?4`, t, before, stamp(now), limit)
}

// waiting reads a pairing that an operator decides on.
func (t *tx) waiting(tenant watchword.TenantID, id string, now time.Time) (enroll.Pairing, error) {
	p, err := one(context.Background(), t, scanPairing, noPairing,
		`SELECT `+pairingColumns+` FROM pairings WHERE tenant = ? AND id = ? AND expires > ?`, tenant, id, stamp(now))
	if err == nil {
		err = p.Waits()
	}
	return p, err
}

func (t *tx) decide(p enroll.Pairing) error {
	_, err := t.exec(`UPDATE pairings SET state = ?, subject = ?, decider = ?, decided = ?, expires = ? WHERE tenant = ? AND id = ?`,
		p.State, p.Subject, p.By, stamp(p.Decided), stamp(p.Expires), p.Tenant, p.ID)
	return err
}

// ApprovePairing makes a pairing's keys those of a device.
func (s *Store) ApprovePairing(ctx context.Context, a enroll.Approval, now time.Time, es ...audit.Entry) (out watchword.Subject, err error) {
	err = s.w.act(ctx, func(t *tx) error {
		tenant, id := a.Subject.Tenant, a.Subject.ID
		p, err := t.waiting(tenant, a.Pairing, now)
		if err != nil {
			return err
		}
		if a.Add {
			err = t.addSubject(a.Subject)
		}
		if err == nil {
			out, err = t.subject(tenant, id)
		}
		switch {
		case err != nil:
			return err
		case out.Kind != watchword.Device:
			return watchword.Refuse(watchword.Conflict, "the id %q is taken", id)
		case out.State != watchword.New && out.State != watchword.Revoked:
			return watchword.Refuse(watchword.Conflict, "%q is %s: only a new or revoked one can enroll; revoke it first", id, out.State)
		}
		// A link that was made for it dies: its keys are these.
		if _, err := t.exec(`DELETE FROM codes INDEXED BY codes_of WHERE tenant = ? AND subject = ?`, tenant, id); err != nil {
			return err
		}
		p.Sign.Added, p.Seal.Added = now, now
		if out, err = t.activate(out, p.Sign, p.Seal, now, es...); err != nil {
			return err
		}
		p.State, p.Subject, p.By, p.Decided, p.Expires = enroll.PairingApproved, id, a.By, now, a.Until
		return t.decide(p)
	}, es...)
	if err != nil {
		return watchword.Subject{}, err
	}
	return out, nil
}

// RejectPairing turns a pairing down.
func (s *Store) RejectPairing(ctx context.Context, tenant watchword.TenantID, id string, by watchword.SubjectID, now time.Time, e audit.Entry) (p enroll.Pairing, err error) {
	err = s.w.act(ctx, func(t *tx) error {
		if p, err = t.waiting(tenant, id, now); err != nil {
			return err
		}
		p.State, p.By, p.Decided = enroll.PairingRejected, by, now
		if err := t.decide(p); err != nil {
			return err
		}
		return t.enter(e)
	}, e)
	return p, err
}
