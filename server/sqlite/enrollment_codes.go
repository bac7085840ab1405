package sqlite

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
)

// putCode stores a code; it replaces earlier codes of the same subject.
func (t *tx) putCode(c enroll.Code) error {
	if _, err := t.exec(`DELETE FROM codes INDEXED BY codes_of WHERE tenant = ? AND subject = ?`, c.Tenant, c.Subject); err != nil {
		return err
	}
	n, err := t.exec(`INSERT INTO codes (tenant, hash, subject, expires, created_by, key_ends) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		c.Tenant, c.Hash[:], c.Subject, toMillis(c.Expires), c.CreatedBy, toMillis(c.KeyEnds))
	if err == nil && n == 0 {
		err = enroll.ErrCodeExists
	}
	return err
}

// AddCode stores a code for a subject that may enroll or get a further key at the time of the entry.
func (s *Store) AddCode(ctx context.Context, c enroll.Code, e audit.Entry) error {
	return s.w.doAuthorized(ctx, func(t *tx) error {
		sub, err := t.subject(c.Tenant, c.Subject)
		if err != nil {
			return err
		}
		if err := enroll.MayHaveLink(&sub, e.At); err != nil {
			return err
		}
		if err := t.putCode(c); err != nil {
			return err
		}
		return t.addEntry(e)
	}, e)
}

// code reads a code that a device shows.
func (t *tx) code(tenant watchword.TenantID, hash [32]byte) (enroll.Code, error) {
	return queryOne(context.Background(), t, func(r scanner) (c enroll.Code, err error) {
		var expires, ends int64
		c.Tenant, c.Hash = tenant, hash
		err = r.Scan(&c.Subject, &expires, &c.CreatedBy, &c.Sign, &c.Seal, &ends)
		c.Expires, c.KeyEnds = fromMillis(expires), fromMillis(ends)
		return c, err
	}, enroll.ErrCode, `SELECT subject, expires, created_by, sign, seal, key_ends FROM codes WHERE tenant = ? AND hash = ?`, tenant, hash[:])
}

// RedeemCode consumes an enrollment code: it activates the subject with its keys, or gives it a further one.
func (s *Store) RedeemCode(ctx context.Context, r enroll.Redemption, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, bool, error) {
	now = truncateToMillis(now)
	out, err := write(ctx, s, func(t *tx) (out replayed, err error) {
		c, err := t.code(r.Tenant, r.Hash)
		if err != nil {
			return out, err
		}
		before, err := t.subject(r.Tenant, c.Subject)
		if watchword.CodeOf(err) == watchword.NotFound {
			err = enroll.ErrCode
		}
		if err != nil {
			return out, err
		}
		out.subject, out.replay, err = r.Redeem(c, before, now)
		if err != nil || out.replay {
			return out, err
		}
		if _, err := t.exec(`UPDATE codes SET sign = ?, seal = ? WHERE tenant = ? AND hash = ?`, r.Sign.ID, r.Seal.ID, r.Tenant, r.Hash[:]); err != nil {
			return out, err
		}
		out.subject, err = t.putSubject(before, out.subject, entry(before, out.subject))
		return out, err
	})
	return out.subject, out.replay, err
}

// replayed is a subject after a step, and whether the step was done before.
type replayed struct {
	subject watchword.Subject
	replay  bool
}
