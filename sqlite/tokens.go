package sqlite

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/token"
)

type holder struct {
	kind        watchword.Kind
	state       watchword.State
	incarnation int64
	keyed       bool
}

// IssueToken spends the assertion and records the token.
func (s *Store) IssueToken(ctx context.Context, r token.Record, spent token.Spent, e audit.Entry) error {
	return s.w.do(ctx, func(t *tx) error {
		h, err := one(context.Background(), t, func(r scanner) (h holder, err error) {
			err = r.Scan(&h.kind, &h.state, &h.incarnation, &h.keyed)
			return h, err
		}, watchword.Refuse(watchword.ClientInvalid, "no such subject"),
			`SELECT kind, state, incarnation, EXISTS (SELECT 1 FROM subject_keys k WHERE k.tenant = s.tenant AND k.id = ?3
				AND k.subject = s.id AND k.purpose = 'sign' AND k.state = 'active')
			FROM subjects s WHERE tenant = ?1 AND id = ?2 AND deleted = 0`, r.Tenant, r.Subject, r.Key)
		if err != nil {
			return err
		}
		if err := (&watchword.Subject{Kind: h.kind, ID: r.Subject, State: h.state}).Usable(); err != nil {
			return err
		}
		if !h.keyed || h.incarnation != r.Incarnation {
			return watchword.Refuse(watchword.ClientInvalid, "the key is none of the subject's")
		}
		if err := t.spend(r.Tenant, r.Subject, spent); err != nil {
			return err
		}
		if _, err := t.exec(`INSERT INTO tokens (tenant, jti, subject, incarnation, key, issued, expires) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			r.Tenant, r.JTI, r.Subject, r.Incarnation, r.Key, stamp(r.Issued), stamp(r.Expires)); err != nil {
			return err
		}
		return t.enter(e)
	})
}

func (t *tx) spend(tenant watchword.TenantID, id watchword.SubjectID, spent token.Spent) error {
	n, err := t.exec(`INSERT INTO spent (tenant, subject, jti, expires) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		tenant, id, spent.JTI, stamp(spent.Expires))
	if err == nil && n == 0 {
		err = watchword.Refuse(watchword.TokenReplayed, "this assertion was used before")
	}
	return err
}

// SpendAssertion spends an assertion that gets no token.
func (s *Store) SpendAssertion(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, spent token.Spent) error {
	return s.w.do(ctx, func(t *tx) error { return t.spend(tenant, id, spent) })
}

// RevokeToken ends one token.
func (s *Store) RevokeToken(ctx context.Context, tenant watchword.TenantID, jti string, e audit.Entry) error {
	return s.w.do(ctx, func(t *tx) error {
		revoked, err := one(context.Background(), t, func(r scanner) (revoked bool, err error) {
			err = r.Scan(&revoked)
			return revoked, err
		}, watchword.Refuse(watchword.NotFound, "no such token"), `SELECT revoked FROM tokens WHERE tenant = ? AND jti = ?`, tenant, jti)
		if err != nil || revoked {
			return err
		}
		if _, err := t.exec(`UPDATE tokens SET revoked = 1 WHERE tenant = ? AND jti = ?`, tenant, jti); err != nil {
			return err
		}
		return t.enter(e)
	})
}

// TokenRecord returns the record of one token.
func (s *Store) TokenRecord(ctx context.Context, t watchword.TenantID, jti string) (token.Record, error) {
	return one(ctx, s, func(r scanner) (k token.Record, err error) {
		var issued, expires int64
		err = r.Scan(&k.Tenant, &k.JTI, &k.Subject, &k.Incarnation, &k.Key, &issued, &expires, &k.Revoked)
		k.Issued, k.Expires = moment(issued), moment(expires)
		return k, err
	}, watchword.Refuse(watchword.NotFound, "no such token"),
		`SELECT tenant, jti, subject, incarnation, key, issued, expires, revoked FROM tokens WHERE tenant = ? AND jti = ?`, t, jti)
}

// Prune forgets what ended before, at most limit rows of each kind.
func (s *Store) Prune(ctx context.Context, before time.Time, limit int) (gone int, err error) {
	err = s.w.do(ctx, func(t *tx) error {
		gone = 0
		for _, q := range []string{
			`DELETE FROM spent WHERE (tenant, subject, jti) IN (SELECT tenant, subject, jti FROM spent WHERE expires < ? LIMIT ?)`,
			`DELETE FROM tokens WHERE (tenant, jti) IN (SELECT tenant, jti FROM tokens WHERE expires < ? LIMIT ?)`,
			`DELETE FROM codes WHERE (tenant, hash) IN (SELECT tenant, hash FROM codes WHERE expires < ? LIMIT ?)`,
			`DELETE FROM pairings WHERE (tenant, id) IN (SELECT tenant, id FROM pairings WHERE expires < ? LIMIT ?)`,
			`DELETE FROM idempotency WHERE (tenant, caller, key) IN (SELECT tenant, caller, key FROM idempotency WHERE expires < ? LIMIT ?)`,
		} {
			n, err := t.exec(q, stamp(before), limit)
			if err != nil {
				return err
			}
			gone += int(n)
		}
		return nil
	})
	return gone, err
}
