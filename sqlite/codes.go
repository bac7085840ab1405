package sqlite

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/enroll"
)

// putCode stores a code in place of every other one of its subject.
func (t *tx) putCode(c enroll.Code) error {
	if _, err := t.exec(`DELETE FROM codes INDEXED BY codes_of WHERE tenant = ? AND subject = ?`, c.Tenant, c.Subject); err != nil {
		return err
	}
	n, err := t.exec(`INSERT INTO codes (tenant, hash, subject, expires, maker) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		c.Tenant, c.Hash[:], c.Subject, stamp(c.Expires), c.By)
	if err == nil && n == 0 {
		err = watchword.Refuse(watchword.Conflict, "this code exists")
	}
	return err
}

// AddCode stores a code for a subject that may enroll.
func (s *Store) AddCode(ctx context.Context, c enroll.Code, e audit.Entry) error {
	return s.w.act(ctx, func(t *tx) error {
		sub, err := t.subject(c.Tenant, c.Subject)
		if err != nil {
			return err
		}
		if sub.State != watchword.New && sub.State != watchword.Revoked {
			return watchword.Refuse(watchword.Conflict, "%q is %s: only a new or revoked one can enroll; revoke it first", sub.ID, sub.State)
		}
		if err := t.putCode(c); err != nil {
			return err
		}
		return t.enter(e)
	}, e)
}

type code struct {
	subject    watchword.SubjectID
	expires    int64
	sign, seal watchword.KeyID
}

// RedeemCode turns the code's subject active with the two keys.
func (s *Store) RedeemCode(ctx context.Context, r enroll.Redemption, now time.Time, e audit.Entry) (out watchword.Subject, replay bool, err error) {
	refused := watchword.Refuse(watchword.CodeInvalid, "the code is wrong, used or over")
	err = s.w.do(ctx, func(t *tx) error {
		c, err := one(context.Background(), t, func(r scanner) (c code, err error) {
			err = r.Scan(&c.subject, &c.expires, &c.sign, &c.seal)
			return c, err
		}, refused, `SELECT subject, expires, sign, seal FROM codes WHERE tenant = ? AND hash = ?`, r.Tenant, r.Hash[:])
		if err != nil {
			return err
		}
		if c.expires <= stamp(now) {
			return refused
		}
		if out, err = t.subject(r.Tenant, c.subject); err != nil {
			return refused
		}
		if c.sign != "" {
			_, signs := out.SignKey(r.Sign.ID)
			seal, _ := out.SealKey()
			if out.State == watchword.Active && signs && c.sign == r.Sign.ID && c.seal == r.Seal.ID && seal.ID == r.Seal.ID {
				replay = true
				return nil
			}
			return refused
		}
		if out.State != watchword.New && out.State != watchword.Revoked {
			return refused
		}
		out, err = t.admit(out, r, now, e)
		return err
	})
	if err != nil {
		return watchword.Subject{}, false, err
	}
	return out, replay, nil
}

func (t *tx) admit(s watchword.Subject, r enroll.Redemption, now time.Time, e audit.Entry) (watchword.Subject, error) {
	if _, err := t.exec(`UPDATE codes SET sign = ?, seal = ? WHERE tenant = ? AND hash = ?`, r.Sign.ID, r.Seal.ID, r.Tenant, r.Hash[:]); err != nil {
		return s, err
	}
	e.Object, e.Actor = string(s.ID), s.ID
	return t.activate(s, r.Sign, r.Seal, now, e)
}

// activate gives a new or revoked subject its keys.
func (t *tx) activate(s watchword.Subject, sign, seal watchword.Key, now time.Time, es ...audit.Entry) (watchword.Subject, error) {
	for _, k := range []watchword.Key{sign, seal} {
		if err := t.addKey(s.Tenant, s.ID, k); err != nil {
			return s, err
		}
	}
	grown := 0
	if s.State == watchword.Revoked {
		grown = 1
	}
	if _, err := t.exec(`UPDATE subjects SET incarnation = incarnation + ? WHERE tenant = ? AND id = ?`, grown, s.Tenant, s.ID); err != nil {
		return s, err
	}
	return t.setState(s, watchword.Active, now, es...)
}
