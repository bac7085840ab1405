package sqlite

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/truncate"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/enroll"
)

const subjectColumns = `tenant, id, kind, role, state, labels, name, version, authority_version, incarnation, proof, created, changed, last_seen`

// subjectRow is the scan target of a subject's columns.
type subjectRow struct {
	watchword.Subject
	labels           []byte
	created, changed int64
	lastSeen         int64
}

func (r *subjectRow) columns() []any {
	return []any{&r.Tenant, &r.ID, &r.Kind, &r.Role, &r.State, &r.labels, &r.Name, &r.Version, &r.AuthorityVersion, &r.Incarnation, &r.Proof, &r.created, &r.changed, &r.lastSeen}
}

func (r *subjectRow) subject() (watchword.Subject, error) {
	r.Created, r.Changed, r.LastSeen = fromMillis(r.created), fromMillis(r.changed), fromMillis(r.lastSeen)
	if string(r.labels) == "{}" {
		return r.Subject, nil
	}
	return r.Subject, json.Unmarshal(r.labels, &r.Labels)
}

func scanSubject(r scanner) (watchword.Subject, error) {
	var row subjectRow
	if err := r.Scan(row.columns()...); err != nil {
		return row.Subject, err
	}
	return row.subject()
}

// subject reads one subject with its active keys and its newest ones, as a rule in one query, since
// it runs for every subject that is not cached.
func subject(ctx context.Context, from querier, t watchword.TenantID, id watchword.SubjectID) (watchword.Subject, error) {
	var row subjectRow
	scanKey := func(r scanner) (k watchword.Key, err error) {
		var added, retired, ends int64
		err = r.Scan(append(row.columns(), &k.ID, &k.Purpose, &k.JWK, &k.State, &added, &retired, &k.Name, &ends)...)
		k.Added, k.Retired, k.Ends = fromMillis(added), fromMillis(retired), fromMillis(ends)
		return k, err
	}
	const query = `SELECT s.tenant, s.id, s.kind, s.role, s.state, s.labels, s.name, s.version, s.authority_version, s.incarnation, s.proof, s.created, s.changed, s.last_seen,
			coalesce(k.id, ''), coalesce(k.purpose, ''), coalesce(k.jwk, x''), coalesce(k.state, ''), coalesce(k.added, 0), coalesce(k.retired, 0), coalesce(k.name, ''), coalesce(k.ends, 0)
		FROM subjects s LEFT JOIN subject_keys k ON k.tenant = s.tenant AND k.subject = s.id
		WHERE s.tenant = ? AND s.id = ? AND s.deleted = 0`
	keys, err := queryAll(ctx, from, scanKey, query+` ORDER BY k.n DESC LIMIT ?`, t, id, watchword.MaxKeysReturned)
	if err == nil && len(keys) == 0 {
		err = notFound("subject", id)
	}
	if err == nil && len(keys) == watchword.MaxKeysReturned { // an active key may be older than all of these
		var older []watchword.Key
		older, err = queryAll(ctx, from, scanKey, query+` AND k.state = 'active' AND k.n < (SELECT n FROM subject_keys WHERE tenant = ? AND id = ?) ORDER BY k.n DESC`,
			t, id, t, keys[len(keys)-1].ID)
		keys = append(keys, older...)
	}
	if err != nil {
		return watchword.Subject{}, err
	}
	s, err := row.subject()
	if keys[0].ID != "" { // the subject has keys
		slices.Reverse(keys)
		s.Keys = keys
	}
	return s, err
}

func (t *tx) subject(tenant watchword.TenantID, id watchword.SubjectID) (watchword.Subject, error) {
	return subject(context.Background(), t, tenant, id)
}

// Subject returns one subject with its keys.
func (s *Store) Subject(ctx context.Context, t watchword.TenantID, id watchword.SubjectID) (watchword.Subject, error) {
	return subject(ctx, s, t, id)
}

func (t *tx) addSubject(s watchword.Subject) error {
	labels, err := labelText(s.Labels)
	if err != nil {
		return err
	}
	n, err := t.exec(`INSERT INTO subjects (`+subjectColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, 0) ON CONFLICT DO NOTHING`,
		s.Tenant, s.ID, s.Kind, s.Role, s.State, labels, s.Name, s.Version, s.Incarnation, s.Proof, toMillis(s.Created), toMillis(s.Changed))
	if err != nil {
		return err
	}
	if n == 0 {
		if err := t.replaceTombstone(s, labels); err != nil {
			return err
		}
	}
	return t.addLabels(s.Tenant, s.ID, s.Labels)
}

// replaceTombstone adds a subject where a deleted one had its id. Its commands go on with the next number.
func (t *tx) replaceTombstone(s watchword.Subject, labels string) error {
	stone, err := t.tombstone(s.Tenant, s.ID)
	if watchword.CodeOf(err) == watchword.NotFound {
		return watchword.IDTaken(s.ID)
	}
	if err != nil {
		return err
	}
	if s, err = s.AddedAfter(stone); err != nil {
		return err
	}
	_, err = t.exec(`UPDATE subjects SET role = ?, state = ?, labels = ?, name = ?, proof = ?, version = ?, incarnation = ?, created = ?, changed = ?, last_seen = 0, deleted = 0 WHERE tenant = ? AND id = ?`,
		s.Role, s.State, labels, s.Name, s.Proof, s.Version, s.Incarnation, toMillis(s.Created), toMillis(s.Changed), s.Tenant, s.ID)
	return err
}

// The values of the column deleted.
const (
	deletedSubject   = 1
	forgottenSubject = 2 // its id is free
)

// tombstone returns what is stored of a deleted subject. Code: not_found.
func (t *tx) tombstone(tenant watchword.TenantID, id watchword.SubjectID) (watchword.Tombstone, error) {
	return queryOne(context.Background(), t, func(r scanner) (s watchword.Tombstone, err error) {
		var deleted int
		err = r.Scan(&s.Kind, &s.Version, &s.Incarnation, &deleted)
		s.Forgotten = deleted == forgottenSubject
		return s, err
	}, watchword.Refuse(watchword.NotFound, "no deleted subject has the id %q", truncate.LogText(string(id))),
		`SELECT kind, version, incarnation, deleted FROM subjects WHERE tenant = ? AND id = ? AND deleted <> 0`, tenant, id)
}

// ForgetSubject makes the id of a deleted device free.
func (s *Store) ForgetSubject(ctx context.Context, by audit.Actor, id watchword.SubjectID, e audit.Entry) error {
	_, err := writeAs(ctx, s, by, func(t *tx) (none struct{}, err error) {
		changed, err := t.forget(by.Tenant, id)
		if err != nil || !changed {
			return none, err
		}
		return none, t.addEntry(e)
	})
	return err
}

func (t *tx) forget(tenant watchword.TenantID, id watchword.SubjectID) (changed bool, err error) {
	stone, err := t.tombstone(tenant, id)
	if err != nil {
		return false, err
	}
	if _, changed, err = stone.Forget(id); err != nil || !changed {
		return false, err
	}
	_, err = t.exec(`UPDATE subjects SET deleted = ? WHERE tenant = ? AND id = ?`, forgottenSubject, tenant, id)
	return true, err
}

func (t *tx) addLabels(tenant watchword.TenantID, id watchword.SubjectID, l watchword.Labels) error {
	for k, v := range l {
		if _, err := t.exec(`INSERT INTO labels (tenant, key, value, subject) VALUES (?, ?, ?, ?)`, tenant, k, v, id); err != nil {
			return err
		}
	}
	return nil
}

func labelText(l watchword.Labels) (string, error) {
	if len(l) == 0 {
		return "{}", nil
	}
	b, err := json.Marshal(l)
	return string(b), err
}

func (t *tx) addKey(tenant watchword.TenantID, id watchword.SubjectID, k watchword.Key) error {
	n, err := t.exec(`INSERT INTO subject_keys (tenant, subject, id, purpose, jwk, state, added, name, ends) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		tenant, id, k.ID, k.Purpose, k.JWK, k.State, toMillis(k.Added), k.Name, toMillis(k.Ends))
	if err == nil && n == 0 {
		err = watchword.ErrKeyUsed
	}
	return err
}

// CreateSubject adds a subject, and its first code if it has one.
func (s *Store) CreateSubject(ctx context.Context, sub watchword.Subject, code *enroll.Code, e audit.Entry) error {
	return s.w.doAuthorized(ctx, func(t *tx) error {
		if err := t.addSubject(sub.Added()); err != nil {
			return err
		}
		if code != nil {
			if err := t.putCode(*code); err != nil {
				return err
			}
		}
		return t.addEntry(e)
	}, e)
}

// changeSubject changes a subject as rule decides, and returns the changed subject. If rule changes nothing, nothing is
// written.
func (s *Store) changeSubject(ctx context.Context, by audit.Actor, id watchword.SubjectID, rule func(watchword.Subject) (watchword.Subject, bool, error), entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error) {
	return writeAs(ctx, s, by, func(t *tx) (watchword.Subject, error) {
		before, err := t.subject(by.Tenant, id)
		if err != nil {
			return before, err
		}
		after, changes, err := rule(before)
		if err != nil || !changes {
			return before, err
		}
		return t.putSubject(before, after, entry(before, after))
	})
}

// putSubject writes a subject and its entries, and returns the written subject.
func (t *tx) putSubject(before, after watchword.Subject, es ...audit.Entry) (watchword.Subject, error) {
	if err := errors.Join(t.putRow(before, after), t.putKeys(before, after)); err != nil {
		return after, err
	}
	if err := t.addEntry(es...); err != nil {
		return after, err
	}
	return t.subject(after.Tenant, after.ID)
}

// putRow writes what a subject is beside its keys.
func (t *tx) putRow(before, after watchword.Subject) error {
	labels, err := labelText(after.Labels)
	if err != nil {
		return err
	}
	if before.IsOwner() && before.HasPermanentKey() && !(after.IsOwner() && after.HasPermanentKey()) {
		if err := t.checkOtherOwner(after.Tenant, after.ID); err != nil {
			return err
		}
	}
	if err := t.voidCodes(before, after); err != nil {
		return err
	}
	if _, err := t.exec(`UPDATE subjects SET role = ?, state = ?, labels = ?, name = ?, proof = ?, version = ?, incarnation = ?, changed = ? WHERE tenant = ? AND id = ?`,
		after.Role, after.State, labels, after.Name, after.Proof, after.Version, after.Incarnation, toMillis(after.Changed), after.Tenant, after.ID); err != nil {
		return err
	}
	if maps.Equal(before.Labels, after.Labels) {
		return nil
	}
	if _, err := t.exec(`DELETE FROM labels INDEXED BY labels_of WHERE tenant = ? AND subject = ?`, after.Tenant, after.ID); err != nil {
		return err
	}
	return t.addLabels(after.Tenant, after.ID, after.Labels)
}

// checkOtherOwner refuses the end of an owner if no other owner of the tenant has a key without an end. Code: conflict.
func (t *tx) checkOtherOwner(tenant watchword.TenantID, id watchword.SubjectID) error {
	owners, err := queryAll(context.Background(), t, func(r scanner) (o watchword.SubjectID, err error) { return o, r.Scan(&o) },
		`SELECT id FROM subjects INDEXED BY subjects_owners WHERE tenant = ? AND role = 'owner' AND deleted = 0`, tenant)
	if err != nil {
		return err
	}
	for _, o := range owners {
		if o == id {
			continue
		}
		other, err := t.subject(tenant, o)
		if err != nil {
			return err
		}
		if other.IsOwner() && other.HasPermanentKey() {
			return nil
		}
	}
	return watchword.ErrLastOwner
}

// putKeys adds the keys that follow those of before, and writes what changed of the others.
func (t *tx) putKeys(before, after watchword.Subject) error {
	for i, k := range after.Keys {
		switch {
		case i >= len(before.Keys):
			if err := t.addKey(after.Tenant, after.ID, k); err != nil {
				return err
			}
		case k.State != before.Keys[i].State || !k.Ends.Equal(before.Keys[i].Ends):
			if enroll.VoidsCodesOfKey(before.Keys[i], k) {
				if err := t.voidCodesOfKey(after.Tenant, after.ID, k.ID); err != nil {
					return err
				}
			}
			if _, err := t.exec(`UPDATE subject_keys SET state = ?, retired = ?, ends = ? WHERE tenant = ? AND id = ? AND subject = ?`,
				k.State, toMillis(k.Retired), toMillis(k.Ends), after.Tenant, k.ID, after.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// SetLabels replaces the labels.
func (s *Store) SetLabels(ctx context.Context, by audit.Actor, id watchword.SubjectID, l watchword.Labels, ifVersion int64, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error) {
	return s.changeSubject(ctx, by, id, func(before watchword.Subject) (watchword.Subject, bool, error) {
		return before.Relabel(l, ifVersion, truncateToMillis(now))
	}, entry)
}

// SetName changes what people call a subject. It writes none of the columns that authority depends on, which would raise its version.
func (s *Store) SetName(ctx context.Context, by audit.Actor, id watchword.SubjectID, name string, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error) {
	return writeAs(ctx, s, by, func(t *tx) (watchword.Subject, error) {
		before, err := t.subject(by.Tenant, id)
		if err != nil {
			return before, err
		}
		after, changes := before.Rename(name, truncateToMillis(now))
		if !changes {
			return before, nil
		}
		if _, err := t.exec(`UPDATE subjects SET name = ?, version = ?, changed = ? WHERE tenant = ? AND id = ?`, after.Name, after.Version, toMillis(after.Changed), by.Tenant, id); err != nil {
			return after, err
		}
		return after, t.addEntry(entry(before, after))
	})
}

// SetProof sets whether a subject must prove its key.
func (s *Store) SetProof(ctx context.Context, by audit.Actor, id watchword.SubjectID, proof string, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error) {
	return s.changeSubject(ctx, by, id, func(before watchword.Subject) (watchword.Subject, bool, error) {
		after, changes := before.SetProof(proof, truncateToMillis(now))
		return after, changes, nil
	}, entry)
}

// SetRole gives an operator another role.
func (s *Store) SetRole(ctx context.Context, by audit.Actor, id watchword.SubjectID, role string, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error) {
	return s.changeSubject(ctx, by, id, func(before watchword.Subject) (watchword.Subject, bool, error) {
		return before.SetRole(role, truncateToMillis(now))
	}, entry)
}

// Suspend moves a new or active subject to suspended.
func (s *Store) Suspend(ctx context.Context, by audit.Actor, id watchword.SubjectID, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error) {
	return s.changeSubject(ctx, by, id, func(before watchword.Subject) (watchword.Subject, bool, error) {
		return before.Suspend(truncateToMillis(now))
	}, entry)
}

// Resume returns a suspended subject to its former state.
func (s *Store) Resume(ctx context.Context, by audit.Actor, id watchword.SubjectID, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error) {
	return s.changeSubject(ctx, by, id, func(before watchword.Subject) (watchword.Subject, bool, error) {
		return before.Resume(truncateToMillis(now))
	}, entry)
}

// Revoke ends a subject's keys, codes, tokens and commands.
func (s *Store) Revoke(ctx context.Context, by audit.Actor, id watchword.SubjectID, now time.Time, entry audit.EntryOf[watchword.Subject]) (watchword.Subject, error) {
	now = truncateToMillis(now)
	return writeAs(ctx, s, by, func(t *tx) (watchword.Subject, error) {
		before, err := t.subject(by.Tenant, id)
		if err != nil {
			return before, err
		}
		after, changes := before.Revoke(now)
		if !changes {
			return before, nil
		}
		if err := t.endAccess(before, after, now); err != nil {
			return after, err
		}
		if err := t.addEntry(entry(before, after)); err != nil {
			return after, err
		}
		return t.subject(by.Tenant, id)
	})
}

// DeleteSubject revokes a subject and leaves a tombstone.
func (s *Store) DeleteSubject(ctx context.Context, by audit.Actor, id watchword.SubjectID, now time.Time, entry audit.EntryOf[watchword.Subject]) error {
	now = truncateToMillis(now)
	_, err := writeAs(ctx, s, by, func(t *tx) (none struct{}, err error) {
		before, err := t.subject(by.Tenant, id)
		if err != nil {
			return none, err
		}
		after := before.Delete(now)
		if err := t.endAccess(before, after, now); err != nil {
			return none, err
		}
		if _, err := t.exec(`UPDATE subjects SET deleted = ? WHERE tenant = ? AND id = ?`, deletedSubject, by.Tenant, id); err != nil {
			return none, err
		}
		return none, t.addEntry(entry(before, after))
	})
	return err
}

// endAccess writes a subject that is revoked, and takes from it whatever it could act with: also the keys that do not come with it.
func (t *tx) endAccess(before, after watchword.Subject, now time.Time) error {
	if err := t.putRow(before, after); err != nil {
		return err
	}
	for _, q := range []string{
		`UPDATE subject_keys SET state = 'revoked' WHERE tenant = ? AND subject = ?`,
		`DELETE FROM codes INDEXED BY codes_of WHERE tenant = ? AND subject = ?`,
	} {
		if _, err := t.exec(q, after.Tenant, after.ID); err != nil {
			return err
		}
	}
	return t.endIncarnation(after.Tenant, after.ID, now)
}

// endIncarnation deletes what a subject has besides its row, labels, keys and codes, and abandons its commands: an id that enrolls
// again begins without it.
func (t *tx) endIncarnation(tenant watchword.TenantID, id watchword.SubjectID, now time.Time) error {
	for _, q := range []string{
		`DELETE FROM twins WHERE tenant = ? AND device = ?`,
		`DELETE FROM functions WHERE tenant = ? AND device = ?`,
		`DELETE FROM idempotency WHERE tenant = ? AND caller = ?`,
	} {
		if _, err := t.exec(q, tenant, id); err != nil {
			return err
		}
	}
	return t.abandonCommands(tenant, id, now)
}
