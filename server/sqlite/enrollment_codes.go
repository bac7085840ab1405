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
	n, err := t.exec(`INSERT INTO codes (tenant, hash, subject, expires, created_by, created_by_key, key_ends) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		c.Tenant, c.Hash[:], c.Subject, toMillis(c.Expires), c.CreatedBy, c.CreatedByKey, toMillis(c.KeyEnds))
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
		if err := enroll.MayHaveLink(&sub, c, e.At); err != nil {
			return err
		}
		if err := t.putCode(c); err != nil {
			return err
		}
		return t.addEntry(e)
	}, e)
}

const codeColumns = `tenant, hash, subject, expires, created_by, created_by_key, sign, seal, key_ends`

func scanCode(r scanner) (c enroll.Code, err error) {
	var expires, ends int64
	var hash []byte
	err = r.Scan(&c.Tenant, &hash, &c.Subject, &expires, &c.CreatedBy, &c.CreatedByKey, &c.Sign, &c.Seal, &ends)
	copy(c.Hash[:], hash)
	c.Expires, c.KeyEnds = fromMillis(expires), fromMillis(ends)
	return c, err
}

// code reads a code that a device shows. Code: code_invalid.
func code(ctx context.Context, from querier, tenant watchword.TenantID, hash [32]byte) (enroll.Code, error) {
	return queryOne(ctx, from, scanCode, enroll.ErrCode, `SELECT `+codeColumns+` FROM codes WHERE tenant = ? AND hash = ?`, tenant, hash[:])
}

// Code returns a code by the hash of its characters. Code: code_invalid.
func (s *Store) Code(ctx context.Context, tenant watchword.TenantID, hash [32]byte) (enroll.Code, error) {
	return code(ctx, s, tenant, hash)
}

// PendingCode returns the code with which a subject can enroll, or get a further key. Code: code_invalid where there is none.
func (s *Store) PendingCode(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, now time.Time) (enroll.Code, error) {
	return queryOne(ctx, s, scanCode, enroll.ErrCode,
		`SELECT `+codeColumns+` FROM codes INDEXED BY codes_of WHERE tenant = ? AND subject = ? AND sign = '' AND expires > ?`, tenant, id, toMillis(now))
}

// voidCodes deletes the unused codes that a change of a subject makes invalid: those for it, and those that it has made.
func (t *tx) voidCodes(before, after watchword.Subject) error {
	if enroll.VoidsCodesFor(before, after) {
		if _, err := t.exec(`DELETE FROM codes INDEXED BY codes_of WHERE tenant = ? AND subject = ? AND sign = ''`, after.Tenant, after.ID); err != nil {
			return err
		}
	}
	if enroll.VoidsCodesBy(before, after) {
		if _, err := t.exec(`DELETE FROM codes INDEXED BY codes_by WHERE tenant = ? AND created_by = ? AND sign = ''`, after.Tenant, after.ID); err != nil {
			return err
		}
	}
	return nil
}

// voidCodesOfKey deletes the unused codes that were made with a key of a subject, or for the subject.
func (t *tx) voidCodesOfKey(tenant watchword.TenantID, id watchword.SubjectID, key watchword.KeyID) error {
	if _, err := t.exec(`DELETE FROM codes INDEXED BY codes_of WHERE tenant = ? AND subject = ? AND sign = ''`, tenant, id); err != nil {
		return err
	}
	_, err := t.exec(`DELETE FROM codes INDEXED BY codes_by WHERE tenant = ? AND created_by = ? AND created_by_key = ? AND sign = ''`, tenant, id, key)
	return err
}

// RedeemCode consumes an enrollment code: it activates the subject with its keys, or gives it a further one. maker is what was
// decided on about the maker of the code.
func (s *Store) RedeemCode(ctx context.Context, r enroll.Redemption, maker watchword.AuthorityVersions, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, bool, error) {
	now = truncateToMillis(now)
	out, err := write(ctx, s, func(t *tx) (out replayed, err error) {
		if err := t.checkVersions(r.Tenant, maker); err != nil { // the entry is of the subject, not of the maker
			return out, err
		}
		c, err := code(context.Background(), t, r.Tenant, r.Hash)
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
