package sqlite

import (
	"context"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/registry"
)

// WalkSubjects returns at most limit subjects of a walk, without their keys.
func (s *Store) WalkSubjects(ctx context.Context, t watchword.TenantID, w registry.Walk, limit int) ([]watchword.Subject, error) {
	q, args := walkQuery(t, w, limit)
	return queryAll(ctx, unpreparedQueries{s}, scanSubject, q, args...)
}

// walkQuery reads in the order of one index, which it names: no row is read that the walk does not pass, and none is sorted.
func walkQuery(t watchword.TenantID, w registry.Walk, limit int) (query string, args []any) {
	direction, beyond := "", ">"
	if w.Descending {
		direction, beyond = " DESC", "<"
	}
	columns := prefixed("s.", subjectColumns)
	var q strings.Builder
	if w.Label != nil { // CROSS JOIN keeps the order: the label first
		q.WriteString(`SELECT ` + columns + ` FROM labels l CROSS JOIN subjects s ON s.tenant = l.tenant AND s.id = l.subject
			WHERE l.tenant = ? AND l.key = ? AND l.value = ? AND s.kind = ? AND s.deleted = 0`)
		args = []any{t, w.Label.Key, w.Label.Values[0], w.Kind}
		if w.After != nil {
			q.WriteString(` AND l.subject ` + beyond + ` ?`)
			args = append(args, w.After.ID)
		}
		q.WriteString(` ORDER BY l.subject` + direction + ` LIMIT ?`)
		return q.String(), append(args, limit)
	}
	index, column := "subjects_kind", ""
	switch {
	case w.Order == registry.OrderCreated:
		index, column = "subjects_created", "s.created"
	case w.Order == registry.OrderChanged:
		index, column = "subjects_changed", "s.changed"
	case w.Order == registry.OrderLastSeen:
		index, column = "subjects_last_seen", "s.last_seen"
	case w.Order == registry.OrderState:
		index, column = "subjects_state", "s.state"
	case w.State != "":
		index = "subjects_state"
	}
	q.WriteString(`SELECT ` + columns + ` FROM subjects s INDEXED BY ` + index + ` WHERE s.tenant = ? AND s.kind = ? AND s.deleted = 0`)
	args = []any{t, w.Kind}
	if w.Order == registry.OrderID && w.State != "" {
		q.WriteString(` AND s.state = ?`)
		args = append(args, w.State)
	}
	if w.After != nil && column != "" {
		q.WriteString(` AND (` + column + `, s.id) ` + beyond + ` (?, ?)`)
		if w.Order == registry.OrderState {
			args = append(args, w.After.State, w.After.ID)
		} else {
			args = append(args, w.After.Millis, w.After.ID)
		}
	} else if w.After != nil {
		q.WriteString(` AND s.id ` + beyond + ` ?`)
		args = append(args, w.After.ID)
	}
	q.WriteString(` ORDER BY `)
	if column != "" {
		q.WriteString(column + direction + `, `)
	}
	q.WriteString(`s.id` + direction + ` LIMIT ?`)
	return q.String(), append(args, limit)
}

// SetLastSeen writes when subjects were seen. One that is no more than registry.SeenPrecision after the stored time is not written.
func (s *Store) SetLastSeen(ctx context.Context, seen []registry.Seen) error {
	return s.w.do(ctx, func(t *tx) error {
		for _, x := range seen {
			at := toMillis(x.At)
			if _, err := t.exec(`UPDATE subjects SET last_seen = ? WHERE tenant = ? AND id = ? AND deleted = 0 AND last_seen < ?`, at, x.Tenant, x.Subject, at-registry.SeenPrecision.Milliseconds()); err != nil {
				return err
			}
		}
		return nil
	})
}

// SubjectCounts returns how many subjects of a kind there are in each state.
func (s *Store) SubjectCounts(ctx context.Context, t watchword.TenantID, kind watchword.Kind) (map[watchword.State]int64, error) {
	type count struct {
		state watchword.State
		n     int64
	}
	rows, err := queryAll(ctx, s, func(r scanner) (c count, err error) { return c, r.Scan(&c.state, &c.n) },
		`SELECT state, n FROM subject_counts WHERE tenant = ? AND kind = ? AND n > 0`, t, kind)
	out := map[watchword.State]int64{}
	for _, c := range rows {
		out[c.state] = c.n
	}
	return out, err
}

// LabelCount returns how many subjects of a kind have a label with that value.
func (s *Store) LabelCount(ctx context.Context, t watchword.TenantID, kind watchword.Kind, key, value string) (int64, error) {
	rows, err := queryAll(ctx, s, func(r scanner) (n int64, err error) { return n, r.Scan(&n) },
		`SELECT n FROM label_counts WHERE tenant = ? AND kind = ? AND key = ? AND value = ?`, t, kind, key, value)
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	return rows[0], nil
}

// LabelCounts returns at most limit counts of labels, in order of key and value, after the given ones; of one key alone if it is not
// empty.
func (s *Store) LabelCounts(ctx context.Context, t watchword.TenantID, kind watchword.Kind, key, afterKey, afterValue string, limit int) ([]registry.LabelTotal, error) {
	scan := func(r scanner) (c registry.LabelTotal, err error) { return c, r.Scan(&c.Key, &c.Value, &c.Count) }
	if key != "" {
		return queryAll(ctx, s, scan, `SELECT key, value, n FROM label_counts WHERE tenant = ? AND kind = ? AND key = ? AND value > ? ORDER BY value LIMIT ?`, t, kind, key, afterValue, limit)
	}
	return queryAll(ctx, s, scan, `SELECT key, value, n FROM label_counts WHERE tenant = ? AND kind = ? AND (key, value) > (?, ?) ORDER BY key, value LIMIT ?`, t, kind, afterKey, afterValue, limit)
}
