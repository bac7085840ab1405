package sqlite

import (
	"context"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/token"
)

// IssueToken spends the assertion and records the token, if the subject may have it. The statement's conditions are those of
// [token.Record.Issue], which a test compares: loading first would cost as much again as all the rest.
func (s *Store) IssueToken(ctx context.Context, r token.Record, spent token.SingleUse, e audit.Entry) error {
	return s.w.doWithoutSavepoint(ctx, func(t *tx) error {
		if err := spent.CheckIssued(t.consumed.restored); err != nil {
			return err
		}
		k := t.consumed.key(r.Tenant, r.Subject, spent)
		if t.consumed.has(k) {
			return t.tokenRefusal(r)
		}
		if err := t.consumed.add(k); err != nil {
			return err
		}
		n, err := t.exec(`INSERT INTO tokens (jti, tenant, subject, assertion, incarnation, key, claims_digest, issued, expires, assertion_expires)
			SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10 FROM subjects s
			WHERE s.tenant = ?2 AND s.id = ?3 AND s.deleted = 0 AND s.state = 'active' AND s.incarnation = ?5
				AND EXISTS (SELECT 1 FROM subject_keys k WHERE k.tenant = ?2 AND k.id = ?6 AND k.subject = ?3 AND k.purpose = 'sign' AND k.state = 'active' AND (k.ends = 0 OR k.ends >= ?9))`,
			r.JTI, r.Tenant, r.Subject, spent.JTI, r.Incarnation, r.Key, r.ClaimsDigest[:], toMillis(r.Issued), toMillis(r.Expires), toMillis(spent.Expires))
		if err != nil {
			return err
		}
		if n == 0 {
			return t.tokenRefusal(r)
		}
		if r.AskedIssuer != "" {
			if err := t.noteIssuer(r.Tenant, r.Subject, r.AskedIssuer, r.Issued); err != nil {
				return err
			}
		}
		return t.addEntry(e)
	})
}

// tokenRefusal returns why a token was not issued.
func (t *tx) tokenRefusal(r token.Record) error {
	h, err := queryOne(context.Background(), t, func(r scanner) (h token.SubjectState, err error) {
		var ends int64
		err = r.Scan(&h.Kind, &h.State, &h.Incarnation, &h.HasKey, &ends)
		h.KeyEnds = fromMillis(ends)
		return h, err
	}, nil, `SELECT s.kind, s.state, s.incarnation, k.id IS NOT NULL, coalesce(k.ends, 0)
		FROM subjects s LEFT JOIN subject_keys k ON k.tenant = s.tenant AND k.id = ?3 AND k.subject = s.id AND k.purpose = 'sign' AND k.state = 'active'
		WHERE s.tenant = ?1 AND s.id = ?2 AND s.deleted = 0`, r.Tenant, r.Subject, r.Key)
	if err != nil {
		return err
	}
	return r.Issue(h, true)
}

// consumeAssertion spends an assertion, or a proof, that gets no token. Codes: token_replayed, token_expired, busy.
func (t *tx) consumeAssertion(tenant watchword.TenantID, id watchword.SubjectID, spent token.SingleUse) error {
	if err := spent.CheckIssued(t.consumed.restored); err != nil {
		return err
	}
	k := t.consumed.key(tenant, id, spent)
	if t.consumed.has(k) {
		return token.ErrJTIUsed
	}
	if err := t.consumed.add(k); err != nil {
		return err
	}
	_, err := t.exec(`INSERT INTO consumed_jtis (tenant, subject, jti, expires) VALUES (?, ?, ?, ?)`, tenant, id, spent.JTI, toMillis(spent.Expires))
	return err
}

// ConsumeAssertion spends an assertion that gets no token.
func (s *Store) ConsumeAssertion(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, spent token.SingleUse) error {
	return s.w.do(ctx, func(t *tx) error { return t.consumeAssertion(tenant, id, spent) })
}

// RevokeToken revokes one token.
func (s *Store) RevokeToken(ctx context.Context, tenant watchword.TenantID, jti string, e audit.Entry) error {
	return s.w.doAuthorized(ctx, func(t *tx) error {
		revoked, err := queryOne(context.Background(), t, func(r scanner) (revoked bool, err error) { return revoked, r.Scan(&revoked) },
			token.ErrNotRecorded, `SELECT revoked FROM tokens WHERE tenant = ? AND jti = ?`, tenant, jti)
		if err != nil || revoked {
			return err
		}
		if _, err := t.exec(`UPDATE tokens SET revoked = 1 WHERE tenant = ? AND jti = ?`, tenant, jti); err != nil {
			return err
		}
		return t.addEntry(e)
	}, e)
}

// TokenRecord returns the record of one token, in the current state of its subject.
func (s *Store) TokenRecord(ctx context.Context, t watchword.TenantID, jti string) (token.Record, error) {
	return queryOne(ctx, s, func(r scanner) (k token.Record, err error) {
		var h token.SubjectState
		var issued, expires int64
		var says []byte
		err = r.Scan(&k.Tenant, &k.JTI, &k.Subject, &k.Incarnation, &k.Key, &says, &issued, &expires, &k.Revoked, &h.State, &h.Incarnation)
		copy(k.ClaimsDigest[:], says)
		k.Issued, k.Expires = fromMillis(issued), fromMillis(expires)
		return k.WithSubjectState(h), err
	}, token.ErrNotRecorded, `SELECT i.tenant, i.jti, i.subject, i.incarnation, i.key, i.claims_digest, i.issued, i.expires, i.revoked, coalesce(s.state, ''), coalesce(s.incarnation, 0)
		FROM tokens i LEFT JOIN subjects s ON s.tenant = i.tenant AND s.id = i.subject AND s.deleted = 0 WHERE i.tenant = ? AND i.jti = ?`, t, jti)
}

// CheckToken refuses a token that was revoked or whose issuer key was revoked. Unrecorded tokens
// and unknown keys pass; other checks decide about them. Codes: token_revoked, issuer_revoked,
// unavailable.
func (s *Store) CheckToken(ctx context.Context, t watchword.TenantID, jti string, signedBy watchword.KeyID) error {
	type revoked struct{ token, key bool }
	v, err := queryOne(ctx, s, func(r scanner) (v revoked, err error) {
		return v, r.Scan(&v.token, &v.key)
	}, nil, `SELECT EXISTS (SELECT 1 FROM tokens WHERE tenant = ?1 AND jti = ?2 AND revoked = 1),
		EXISTS (SELECT 1 FROM server_keys WHERE role = 'issuer' AND id = ?3 AND state = 'revoked')`, t, jti, signedBy)
	if err != nil {
		return err
	}
	return token.CheckNotRevoked(v.token, v.key)
}

// DeleteExpired deletes rows that expired before a time, at most limit rows of each kind.
func (s *Store) DeleteExpired(ctx context.Context, before time.Time, limit int) (int, error) {
	return write(ctx, s, func(t *tx) (gone int, err error) {
		for _, q := range []string{
			`DELETE FROM consumed_jtis WHERE (tenant, subject, jti) IN (SELECT tenant, subject, jti FROM consumed_jtis WHERE expires < ? LIMIT ?)`,
			`DELETE FROM tokens WHERE max(expires, assertion_expires) < ?1 AND jti IN (SELECT jti FROM tokens ORDER BY jti LIMIT ?2)`, // mostly in order of expiry
			`DELETE FROM codes WHERE (tenant, hash) IN (SELECT tenant, hash FROM codes WHERE expires < ? LIMIT ?)`,
			`DELETE FROM pairings WHERE (tenant, id) IN (SELECT tenant, id FROM pairings WHERE expires < ? LIMIT ?)`,
			`DELETE FROM notices WHERE (tenant, kind) IN (SELECT tenant, kind FROM notices WHERE expires < ? LIMIT ?)`,
			`DELETE FROM idempotency WHERE (tenant, caller, key) IN (SELECT tenant, caller, key FROM idempotency WHERE expires < ? LIMIT ?)`,
		} {
			n, err := t.exec(q, toMillis(before), limit)
			if err != nil {
				return 0, err
			}
			gone += int(n)
		}
		// The last checkpoint of an hour is kept, once the hour is two hours in the past; earlier hours were handled
		// before.
		const hour = int64(time.Hour / time.Millisecond)
		n, err := t.exec(`DELETE FROM audit_checkpoints WHERE size IN (
			SELECT c.size FROM audit_checkpoints c WHERE c.at < ?1 AND c.at >= ?1 - 2 * ?2 AND EXISTS (
				SELECT 1 FROM audit_checkpoints n WHERE n.size > c.size AND n.at / ?2 = c.at / ?2) LIMIT ?3)`, toMillis(before)-hour, hour, limit)
		if err != nil {
			return 0, err
		}
		t.consumed.forget(before)
		return gone + int(n), nil
	})
}
