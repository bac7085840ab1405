package sqlite

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
)

const pairingColumns = `tenant, kind, id, device_code_hash, user_code, requested_id, sign, sign_jwk, seal, seal_jwk, remote, network, state, subject, decided_by, created, decided, expires`

func scanPairing(r scanner) (p enroll.Pairing, err error) {
	var device []byte
	var created, decided, expires int64
	err = r.Scan(&p.Tenant, &p.Kind, &p.ID, &device, &p.UserCode, &p.RequestedID, &p.Sign.ID, &p.Sign.JWK, &p.Seal.ID, &p.Seal.JWK,
		&p.Remote, &p.Network, &p.State, &p.Subject, &p.By, &created, &decided, &expires)
	copy(p.Hash[:], device)
	p.Sign.Purpose, p.Seal.Purpose = watchword.Sign, watchword.Seal
	p.Created, p.Decided, p.Expires = fromMillis(created), fromMillis(decided), fromMillis(expires)
	return p, err
}

// AddPairing stores two keys that wait for an operator's word.
func (s *Store) AddPairing(ctx context.Context, p enroll.Pairing, now time.Time) (enroll.Pairing, error) {
	p.Created, p.Expires = truncateToMillis(p.Created), truncateToMillis(p.Expires)
	return write(ctx, s, func(t *tx) (enroll.Pairing, error) {
		a, err := t.pairingRequester(p, truncateToMillis(now))
		if err != nil {
			return p, err
		}
		out, err := p.Request(a, truncateToMillis(now))
		if err != nil {
			return out, err
		}
		if _, err := t.exec(`DELETE FROM pairings WHERE tenant = ? AND sign = ?`, p.Tenant, p.Sign.ID); err != nil {
			return out, err
		}
		n, err := t.exec(`INSERT INTO pairings (`+pairingColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, user_code) DO NOTHING`,
			out.Tenant, out.Kind, out.ID, out.Hash[:], out.UserCode, out.RequestedID, out.Sign.ID, out.Sign.JWK, out.Seal.ID, append([]byte{}, out.Seal.JWK...),
			out.Remote, out.Network, out.State, out.Subject, out.By, toMillis(out.Created), toMillis(out.Decided), toMillis(out.Expires))
		if err == nil && n == 0 {
			err = enroll.ErrUserCodeTaken
		}
		return out, err
	})
}

// pairingRequester reads what there is of a device that asks with the keys of p.
func (t *tx) pairingRequester(p enroll.Pairing, now time.Time) (a enroll.PairingRequester, err error) {
	ctx := context.Background()
	if a.KeysUsed, err = queryOne(ctx, t, func(r scanner) (used bool, err error) { return used, r.Scan(&used) }, nil,
		`SELECT EXISTS (SELECT 1 FROM subject_keys WHERE tenant = ? AND id IN (?, ?))`, p.Tenant, p.Sign.ID, p.Seal.ID); err != nil {
		return a, err
	}
	old, err := queryAll(ctx, t, scanPairing, `SELECT `+pairingColumns+` FROM pairings WHERE tenant = ? AND sign = ?`, p.Tenant, p.Sign.ID)
	if err != nil {
		return a, err
	}
	if len(old) > 0 {
		a.LastPairing = old[0]
	}
	if a.LastPairing.Subject != "" {
		if a.Subject, err = t.subject(p.Tenant, a.LastPairing.Subject); err != nil && watchword.CodeOf(err) != watchword.NotFound {
			return a, err
		}
	}
	a.Pending, err = queryOne(ctx, t, func(r scanner) (q enroll.PendingPairings, err error) {
		var first, nearby int64
		err = r.Scan(&q.All, &first, &q.SameNetwork, &nearby)
		q.FirstExpiry, q.FirstExpirySameNetwork = fromMillis(first), fromMillis(nearby)
		return q, err
	}, nil, `SELECT count(*), coalesce(min(expires), 0), count(*) FILTER (WHERE network = ?1), coalesce(min(expires) FILTER (WHERE network = ?1), 0)
		FROM pairings WHERE tenant = ?2 AND state = 'pending' AND expires > ?3 AND sign <> ?4 AND kind = ?5`, p.Network, p.Tenant, toMillis(now), p.Sign.ID, p.Kind)
	return a, err
}

// PairingByDeviceCode returns the pairing of a device code, by its SHA-256.
func (s *Store) PairingByDeviceCode(ctx context.Context, t watchword.TenantID, k watchword.Kind, device [32]byte, now time.Time) (enroll.Pairing, error) {
	return queryOne(ctx, s, scanPairing, enroll.ErrPairing,
		`SELECT `+pairingColumns+` FROM pairings WHERE tenant = ? AND device_code_hash = ? AND kind = ? AND expires > ?`, t, device[:], k, toMillis(now))
}

// PairingByUserCode returns the pairing of a user code.
func (s *Store) PairingByUserCode(ctx context.Context, t watchword.TenantID, k watchword.Kind, userCode string, now time.Time) (enroll.Pairing, error) {
	return queryOne(ctx, s, scanPairing, enroll.ErrPairing,
		`SELECT `+pairingColumns+` FROM pairings WHERE tenant = ? AND user_code = ? AND kind = ? AND expires > ?`, t, userCode, k, toMillis(now))
}

// Pairings returns a page of unexpired pairings of one kind, newest first.
func (s *Store) Pairings(ctx context.Context, t watchword.TenantID, k watchword.Kind, before string, limit int, now time.Time) ([]enroll.Pairing, error) {
	return queryAll(ctx, s, scanPairing, `SELECT `+pairingColumns+` FROM pairings
		WHERE tenant = ?1 AND (?2 = '' OR id < ?2) AND expires > ?3 AND kind = ?5 ORDER BY id DESC LIMIT ?4`, t, before, toMillis(now), limit, k)
}

// pairing reads a pairing that an operator decides on.
func (t *tx) pairing(tenant watchword.TenantID, id string, now time.Time) (enroll.Pairing, error) {
	return queryOne(context.Background(), t, scanPairing, enroll.ErrPairing,
		`SELECT `+pairingColumns+` FROM pairings WHERE tenant = ? AND id = ? AND expires > ?`, tenant, id, toMillis(now))
}

func (t *tx) decidePairing(p enroll.Pairing) error {
	_, err := t.exec(`UPDATE pairings SET state = ?, subject = ?, decided_by = ?, decided = ?, expires = ? WHERE tenant = ? AND id = ?`,
		p.State, p.Subject, p.By, toMillis(p.Decided), toMillis(p.Expires), p.Tenant, p.ID)
	return err
}

// ApprovePairing gives the keys of a pairing to a device or an operator.
func (s *Store) ApprovePairing(ctx context.Context, by audit.Actor, a enroll.Approval, now time.Time, entries func(before, after watchword.Subject) []audit.Entry) (watchword.Subject, error) {
	now, a.AnswerUntil = truncateToMillis(now), truncateToMillis(a.AnswerUntil)
	return writeAs(ctx, s, by, func(t *tx) (out watchword.Subject, err error) {
		tenant, id := a.Subject.Tenant, a.Subject.ID
		p, err := t.pairing(tenant, a.Pairing, now)
		if err == nil {
			err = p.CheckPending() // before the subject is added
		}
		if err == nil && a.Create {
			err = t.addSubject(a.Subject.Added())
		}
		if err != nil {
			return out, err
		}
		before, err := t.subject(tenant, id)
		if err != nil {
			return out, err
		}
		p, out, err = p.Approve(a, by.Subject, before, now)
		if err != nil {
			return out, err
		}
		if out, err = t.putSubject(before, out, entries(before, out)...); err != nil {
			return out, err
		}
		return out, t.decidePairing(p)
	})
}

// RejectPairing rejects a pairing.
func (s *Store) RejectPairing(ctx context.Context, by audit.Actor, id string, now time.Time, entry audit.EntryOf[enroll.Pairing]) (enroll.Pairing, error) {
	now = truncateToMillis(now)
	return writeAs(ctx, s, by, func(t *tx) (enroll.Pairing, error) {
		before, err := t.pairing(by.Tenant, id, now)
		if err != nil {
			return before, err
		}
		after, err := before.Reject(by.Subject, now)
		if err != nil {
			return after, err
		}
		if err := t.decidePairing(after); err != nil {
			return after, err
		}
		return after, t.addEntry(entry(before, after))
	})
}
