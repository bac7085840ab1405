package sqlite

import (
	"context"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

// RevokeKey revokes one signing key of an operator or a service, and deletes the enrollment codes for the subject and those that were
// made with the key: a thief of the key may have made them.
func (s *Store) RevokeKey(ctx context.Context, by audit.Actor, id watchword.SubjectID, key watchword.KeyID, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error) {
	return writeAs(ctx, s, by, func(t *tx) (watchword.Subject, error) {
		before, err := t.subjectWithKey(by.Tenant, id, key)
		if err != nil {
			return before, err
		}
		after, changes, err := before.RevokeKey(key, truncateToMillis(now))
		if err != nil || !changes {
			return before, err
		}
		return t.putSubject(before, after, entry(before, after))
	})
}

// subjectWithKey reads a subject with one of its keys, of which [watchword.MaxKeysReturned] newer ones may be there.
func (t *tx) subjectWithKey(tenant watchword.TenantID, id watchword.SubjectID, key watchword.KeyID) (watchword.Subject, error) {
	s, err := t.subject(tenant, id)
	if err != nil || slices.ContainsFunc(s.Keys, func(k watchword.Key) bool { return k.ID == key }) {
		return s, err
	}
	older, err := queryAll(context.Background(), t, func(r scanner) (k watchword.Key, err error) {
		var added, retired, ends int64
		err = r.Scan(&k.ID, &k.Purpose, &k.JWK, &k.State, &added, &retired, &k.Name, &ends)
		k.Added, k.Retired, k.Ends = fromMillis(added), fromMillis(retired), fromMillis(ends)
		return k, err
	}, `SELECT id, purpose, jwk, state, added, retired, name, ends FROM subject_keys WHERE tenant = ? AND id = ? AND subject = ?`, tenant, key, id)
	s.Keys = append(older, s.Keys...)
	return s, err
}

// SetKeyEnd sets or shortens the end of a key of an operator or a service.
func (s *Store) SetKeyEnd(ctx context.Context, by audit.Actor, id watchword.SubjectID, key watchword.KeyID, end, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error) {
	return s.changeSubject(ctx, by, id, func(before watchword.Subject) (watchword.Subject, bool, error) {
		return before.SetKeyEnd(key, end, truncateToMillis(now))
	}, entry)
}

// RetireEndedKeys retires the keys of at most limit subjects of all tenants whose ends have passed, and returns these subjects.
// The keys are not valid since their ends; the change takes them out of lists and of what depends on them.
func (s *Store) RetireEndedKeys(ctx context.Context, now time.Time, limit int, entry audit.EntryOf[watchword.Subject]) ([]watchword.Subject, error) {
	now = truncateToMillis(now)
	return write(ctx, s, func(t *tx) (out []watchword.Subject, err error) {
		type ref struct {
			tenant watchword.TenantID
			id     watchword.SubjectID
		}
		refs, err := queryAll(ctx, t, func(r scanner) (k ref, err error) { return k, r.Scan(&k.tenant, &k.id) },
			`SELECT DISTINCT tenant, subject FROM subject_keys INDEXED BY keys_ending WHERE state = 'active' AND ends > 0 AND ends <= ? LIMIT ?`, toMillis(now), limit)
		for _, k := range refs {
			var before watchword.Subject
			if before, err = t.subject(k.tenant, k.id); err != nil {
				return nil, err
			}
			after, changes := before.RetireEndedKeys(now)
			if !changes {
				continue
			}
			if after, err = t.putSubject(before, after, entry(before, after)); err != nil {
				return nil, err
			}
			out = append(out, after)
		}
		return out, err
	})
}

// SubjectsWithEndingKeys returns the ids of a tenant's subjects of which an active key ends after now and at the latest at until, at
// most limit of them: operators first, and of a kind those whose keys end first.
func (s *Store) SubjectsWithEndingKeys(ctx context.Context, tenant watchword.TenantID, now, until time.Time, limit int) ([]watchword.SubjectID, error) {
	return queryAll(ctx, s, func(r scanner) (id watchword.SubjectID, err error) { return id, r.Scan(&id) },
		`SELECT k.subject FROM subject_keys k INDEXED BY keys_ending JOIN subjects s ON s.tenant = k.tenant AND s.id = k.subject
			WHERE k.tenant = ? AND k.state = 'active' AND k.ends > 0 AND k.ends > ? AND k.ends <= ?
			GROUP BY k.subject ORDER BY s.kind = 'operator' DESC, min(k.ends), k.subject LIMIT ?`,
		tenant, toMillis(now), toMillis(until), limit)
}
