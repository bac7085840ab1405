package sqlite

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
	"github.com/watchword-iot/watchword/enroll"
)

const subjectColumns = `tenant, id, kind, state, labels, version, basis, incarnation, proof, created, changed`

// subjectRow is where a subject's columns are scanned to.
type subjectRow struct {
	watchword.Subject
	labels           []byte
	created, changed int64
}

func (r *subjectRow) columns() []any {
	return []any{&r.Tenant, &r.ID, &r.Kind, &r.State, &r.labels, &r.Version, &r.Basis, &r.Incarnation, &r.Proof, &r.created, &r.changed}
}

func (r *subjectRow) subject() (watchword.Subject, error) {
	r.Created, r.Changed = moment(r.created), moment(r.changed)
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

// subject reads one subject with its keys: the active ones and the newest. It is
// one query, as a rule: who comes back after a while is in no memory.
func subject(ctx context.Context, from rows, t watchword.TenantID, id watchword.SubjectID) (watchword.Subject, error) {
	var row subjectRow
	scanKey := func(r scanner) (k watchword.Key, err error) {
		var added, retired int64
		err = r.Scan(append(row.columns(), &k.ID, &k.Purpose, &k.JWK, &k.State, &added, &retired)...)
		k.Added, k.Retired = moment(added), moment(retired)
		return k, err
	}
	const query = `SELECT s.tenant, s.id, s.kind, s.state, s.labels, s.version, s.basis, s.incarnation, s.proof, s.created, s.changed,
			coalesce(k.id, ''), coalesce(k.purpose, ''), coalesce(k.jwk, x''), coalesce(k.state, ''), coalesce(k.added, 0), coalesce(k.retired, 0)
		FROM subjects s LEFT JOIN subject_keys k ON k.tenant = s.tenant AND k.subject = s.id
		WHERE s.tenant = ? AND s.id = ? AND s.deleted = 0`
	keys, err := all(ctx, from, scanKey, query+` ORDER BY k.n DESC LIMIT ?`, t, id, watchword.KeysShown)
	if err == nil && len(keys) == 0 {
		err = notFound("subject", id)
	}
	if err == nil && len(keys) == watchword.KeysShown { // an active one may be older than all these
		var older []watchword.Key
		older, err = all(ctx, from, scanKey, query+` AND k.state = 'active' AND k.n < (SELECT n FROM subject_keys WHERE tenant = ? AND id = ?) ORDER BY k.n DESC`,
			t, id, t, keys[len(keys)-1].ID)
		keys = append(keys, older...)
	}
	if err != nil {
		return watchword.Subject{}, err
	}
	s, err := row.subject()
	if keys[0].ID != "" { // it has one
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

// Subjects returns a page of a tenant's subjects, without their keys.
func (s *Store) Subjects(ctx context.Context, t watchword.TenantID, kind watchword.Kind, state watchword.State, sel watchword.Labels, after watchword.SubjectID, limit int) ([]watchword.Subject, error) {
	var q strings.Builder
	args := []any{t, after}
	q.WriteString(`SELECT ` + subjectColumns + ` FROM subjects s WHERE tenant = ? AND id > ? AND deleted = 0`)
	if kind != "" {
		q.WriteString(` AND kind = ?`)
		args = append(args, kind)
	}
	if state != "" {
		q.WriteString(` AND state = ?`)
		args = append(args, state)
	}
	for _, k := range slices.Sorted(maps.Keys(sel)) {
		q.WriteString(` AND EXISTS (SELECT 1 FROM labels l WHERE l.tenant = s.tenant AND l.key = ? AND l.value = ? AND l.subject = s.id)`)
		args = append(args, k, sel[k])
	}
	q.WriteString(` ORDER BY id LIMIT ?`)
	return all(ctx, unprepared{s}, scanSubject, q.String(), append(args, limit)...)
}

func (t *tx) addSubject(s watchword.Subject) error {
	labels, err := labelText(s.Labels)
	if err != nil {
		return err
	}
	n, err := t.exec(`INSERT INTO subjects (`+subjectColumns+`) VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		s.Tenant, s.ID, s.Kind, s.State, labels, s.Version, s.Incarnation, s.Proof, stamp(s.Created), stamp(s.Changed))
	if err != nil {
		return err
	}
	if n == 0 {
		return watchword.Refuse(watchword.Conflict, "the id %q is taken, or was taken before: no id means two things over time", s.ID)
	}
	return t.addLabels(s.Tenant, s.ID, s.Labels)
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
	n, err := t.exec(`INSERT INTO subject_keys (tenant, subject, id, purpose, jwk, state, added) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		tenant, id, k.ID, k.Purpose, k.JWK, k.State, stamp(k.Added))
	if err == nil && n == 0 {
		err = watchword.Refuse(watchword.Conflict, "a key that was used before does not come in again; make new keys")
	}
	return err
}

// CreateSubject adds a subject, and its first code if it has one.
func (s *Store) CreateSubject(ctx context.Context, sub watchword.Subject, code *enroll.Code, e audit.Entry) error {
	return s.w.act(ctx, func(t *tx) error {
		sub.Version, sub.Incarnation = 1, 1
		if err := t.addSubject(sub); err != nil {
			return err
		}
		if code != nil {
			if err := t.putCode(*code); err != nil {
				return err
			}
		}
		return t.enter(e)
	}, e)
}

// SetLabels replaces the labels. The entry says which they were and are.
func (s *Store) SetLabels(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, l watchword.Labels, ifVersion int64, now time.Time, e audit.Entry) (out watchword.Subject, err error) {
	err = s.w.act(ctx, func(t *tx) error {
		if out, err = t.subject(tenant, id); err != nil {
			return err
		}
		if ifVersion != 0 && ifVersion != out.Version {
			return watchword.Refuse(watchword.PreconditionFailed, "the version is %d now", out.Version)
		}
		labels, err := labelText(l)
		if err != nil {
			return err
		}
		if _, err := t.exec(`UPDATE subjects SET labels = ?, version = version + 1, changed = ? WHERE tenant = ? AND id = ?`, labels, stamp(now), tenant, id); err != nil {
			return err
		}
		if _, err := t.exec(`DELETE FROM labels INDEXED BY labels_of WHERE tenant = ? AND subject = ?`, tenant, id); err != nil {
			return err
		}
		if err := t.addLabels(tenant, id, l); err != nil {
			return err
		}
		if err := t.enter(e.With("before", out.Labels.String(), "after", l.String())); err != nil {
			return err
		}
		out, err = t.subject(tenant, id)
		return err
	}, e)
	return out, err
}

// SetProof writes whether a subject gets anything without a proof.
func (s *Store) SetProof(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, proof string, now time.Time, e audit.Entry) (out watchword.Subject, err error) {
	err = s.w.act(ctx, func(t *tx) error {
		if out, err = t.subject(tenant, id); err != nil || out.Proof == proof {
			return err
		}
		if _, err := t.exec(`UPDATE subjects SET proof = ?, version = version + 1, changed = ? WHERE tenant = ? AND id = ?`, proof, stamp(now), tenant, id); err != nil {
			return err
		}
		if err := t.enter(e.With("before", out.Proof)); err != nil {
			return err
		}
		out, err = t.subject(tenant, id)
		return err
	}, e)
	return out, err
}

// setState writes a state and returns the subject as it is then.
func (t *tx) setState(s watchword.Subject, to watchword.State, now time.Time, es ...audit.Entry) (watchword.Subject, error) {
	if _, err := t.exec(`UPDATE subjects SET state = ?, version = version + 1, changed = ? WHERE tenant = ? AND id = ?`, to, stamp(now), s.Tenant, s.ID); err != nil {
		return s, err
	}
	es = slices.Clone(es)
	if last := len(es) - 1; last >= 0 { // what else happened stands before it
		es[last] = es[last].With("before", string(s.State), "after", string(to))
	}
	if err := t.enter(es...); err != nil {
		return s, err
	}
	return t.subject(s.Tenant, s.ID)
}

// Suspend moves a new or active subject to suspended.
func (s *Store) Suspend(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, now time.Time, e audit.Entry) (out watchword.Subject, err error) {
	err = s.w.act(ctx, func(t *tx) error {
		if out, err = t.subject(tenant, id); err != nil {
			return err
		}
		switch out.State {
		case watchword.Suspended:
			return nil
		case watchword.Revoked:
			return watchword.Refuse(watchword.Conflict, "%q is revoked", id)
		}
		out, err = t.setState(out, watchword.Suspended, now, e)
		return err
	}, e)
	return out, err
}

// Resume moves a suspended subject back to what it was.
func (s *Store) Resume(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, now time.Time, e audit.Entry) (out watchword.Subject, err error) {
	err = s.w.act(ctx, func(t *tx) error {
		if out, err = t.subject(tenant, id); err != nil {
			return err
		}
		switch out.State {
		case watchword.New, watchword.Active:
			return nil
		case watchword.Revoked:
			return watchword.Refuse(watchword.Conflict, "%q is revoked; it can enroll again with a new link", id)
		}
		to := watchword.New
		for _, k := range out.Keys {
			if k.Purpose == watchword.Sign && k.State == watchword.KeyActive {
				to = watchword.Active
			}
		}
		out, err = t.setState(out, to, now, e)
		return err
	}, e)
	return out, err
}

// Revoke ends a subject's keys, codes, tokens and commands.
func (s *Store) Revoke(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, now time.Time, e audit.Entry) (out watchword.Subject, err error) {
	err = s.w.act(ctx, func(t *tx) error {
		if out, err = t.subject(tenant, id); err != nil {
			return err
		}
		if out.State == watchword.Revoked {
			return nil
		}
		if err := t.end(tenant, id, now); err != nil {
			return err
		}
		out, err = t.setState(out, watchword.Revoked, now, e)
		return err
	}, e)
	return out, err
}

// DeleteSubject revokes a subject and leaves a tombstone.
func (s *Store) DeleteSubject(ctx context.Context, tenant watchword.TenantID, id watchword.SubjectID, now time.Time, e audit.Entry) error {
	return s.w.act(ctx, func(t *tx) error {
		if _, err := t.subject(tenant, id); err != nil {
			return err
		}
		if err := t.end(tenant, id, now); err != nil {
			return err
		}
		if _, err := t.exec(`DELETE FROM labels INDEXED BY labels_of WHERE tenant = ? AND subject = ?`, tenant, id); err != nil {
			return err
		}
		if _, err := t.exec(`UPDATE subjects SET state = 'revoked', labels = '{}', deleted = 1, version = version + 1, changed = ? WHERE tenant = ? AND id = ?`, stamp(now), tenant, id); err != nil {
			return err
		}
		return t.enter(e)
	}, e)
}

// end takes from a subject whatever it could act with.
func (t *tx) end(tenant watchword.TenantID, id watchword.SubjectID, now time.Time) error {
	for _, q := range []string{
		`UPDATE subject_keys SET state = 'revoked' WHERE tenant = ? AND subject = ?`,
		`DELETE FROM codes INDEXED BY codes_of WHERE tenant = ? AND subject = ?`,
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
