package sqlite

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/backup"
)

// journaled are the tables of each kind of journaled objects, in the order in which their rows are written, with the columns that select
// an object's rows: its tenant, and its id. Without columns the object has all rows.
var journaled = map[backup.ObjectKind][]journaledTable{
	backup.SubjectObject: {{"subjects", "tenant", "id"}, {"labels", "tenant", "subject"}, {"subject_keys", "tenant", "subject"}, {"codes", "tenant", "subject"}},
	backup.PolicyObject:  {{"policies", "tenant", "name"}},
	backup.TokenObject:   {{"tokens", "tenant", "jti"}},
	backup.ServerObject:  {{table: "instance"}, {table: "server_keys"}, {table: "bundles"}, {table: "issuers"}},
}

type journaledTable struct{ table, tenant, id string }

// rowNumber is the column of the number of a row, which each database gives by itself; numbered are the tables that have it. Their
// rows are journaled in its order.
const rowNumber = "n"

var numbered = map[string]bool{"subject_keys": true, "server_keys": true}

// JournalPage returns the entries after a number that changed authority, of at most limit entries, and the number of the last entry that
// it looked at.
func (s *Snapshot) JournalPage(ctx context.Context, after int64, limit int) (entries []audit.Entry, raw []backup.Entry, to int64, err error) {
	rs, err := records(ctx, s, after, limit)
	if err != nil {
		return nil, nil, 0, err
	}
	to = after
	for _, r := range rs {
		to = r.Seq
		if r.Pruned() {
			continue // older than any retention: its rows were journaled
		}
		e, err := r.Entry()
		if err != nil {
			return nil, nil, 0, err
		}
		entries = append(entries, e)
		raw = append(raw, backup.Entry{Seq: r.Seq, Salt: r.Salt[:], Body: string(r.Body)})
	}
	return entries, raw, to, nil
}

// JournalObject returns an object with all its rows.
func (f *LogFile) JournalObject(ctx context.Context, ref backup.Ref) (backup.Object, error) {
	out := backup.Object{Ref: ref}
	for _, t := range journaled[ref.Kind] {
		where, args := t.where(ref)
		rows, err := f.tableRows(ctx, t.table, where, args)
		if err != nil {
			return out, err
		}
		out.Tables = append(out.Tables, rows)
	}
	return out, nil
}

func (t journaledTable) where(ref backup.Ref) (string, []any) {
	if t.tenant == "" {
		return "", nil
	}
	return " WHERE " + t.tenant + " = ? AND " + t.id + " = ?", []any{string(ref.Tenant), ref.ID}
}

func (f *LogFile) tableRows(ctx context.Context, table, where string, args []any) (out backup.Table, err error) {
	out.Name = table
	order := ""
	if numbered[table] {
		order = " ORDER BY " + rowNumber
	}
	rs, err := f.conn.QueryContext(ctx, `SELECT * FROM `+table+where+order, args...)
	if err != nil {
		return out, unavailable(err)
	}
	defer rs.Close()
	names, err := rs.Columns()
	if err != nil {
		return out, unavailable(err)
	}
	number := -1
	if numbered[table] {
		number = slices.Index(names, rowNumber)
	}
	for i, n := range names {
		if i != number {
			out.Columns = append(out.Columns, n)
		}
	}
	values, into := make([]any, len(names)), make([]any, len(names))
	for i := range values {
		into[i] = &values[i]
	}
	for rs.Next() {
		if err := rs.Scan(into...); err != nil {
			return out, unavailable(err)
		}
		row := make(backup.Row, 0, len(values))
		for i, v := range values {
			if b, is := v.([]byte); is {
				v = append([]byte{}, b...) // an empty value is no NULL
			}
			if i != number {
				row = append(row, v)
			}
		}
		out.Rows = append(out.Rows, row)
	}
	return out, unavailable(rs.Err())
}

// ApplyJournal replaces the rows of objects by those of a journal's record, in one transaction. To apply the same record again
// changes nothing. No server may be running on the database: what it has in memory is not changed. Code: backup_invalid.
func (s *Store) ApplyJournal(ctx context.Context, objects []backup.Object) error {
	return s.w.do(ctx, func(t *tx) error {
		columns, err := t.journaledColumns()
		if err != nil {
			return err
		}
		for _, o := range objects {
			if err := o.CheckTables(columns); err != nil {
				return err
			}
			if err := t.applyObject(o); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *tx) journaledColumns() (map[string][]string, error) {
	out := map[string][]string{}
	for _, ts := range journaled {
		for _, j := range ts {
			names, err := queryAll(context.Background(), t, func(r scanner) (n string, err error) { return n, r.Scan(&n) }, `SELECT name FROM pragma_table_info(?)`, j.table)
			if err != nil {
				return nil, err
			}
			out[j.table] = names
		}
	}
	return out, nil
}

func (t *tx) applyObject(o backup.Object) error {
	return t.withSecureDelete(func() error { // private keys may be erased
		before, err := t.incarnation(o)
		if err != nil {
			return err
		}
		tables := journaled[o.Kind]
		for _, j := range slices.Backward(tables) { // the labels before their subject, by whose kind a trigger counts them
			where, args := j.where(o.Ref)
			if _, err := t.conn.ExecContext(context.Background(), `DELETE FROM `+j.table+where, args...); err != nil {
				return err
			}
		}
		for _, rows := range o.Tables {
			if !slices.ContainsFunc(tables, func(j journaledTable) bool { return j.table == rows.Name }) {
				continue // CheckTables knows the tables of all kinds
			}
			q := `INSERT INTO ` + rows.Name + ` (` + strings.Join(rows.Columns, ", ") + `) VALUES (?` + strings.Repeat(", ?", len(rows.Columns)-1) + `)`
			for _, r := range rows.Rows {
				if _, err := t.conn.ExecContext(context.Background(), q, r...); err != nil {
					return err
				}
			}
		}
		if o.Kind != backup.SubjectObject {
			return nil
		}
		after, err := t.incarnation(o)
		if err != nil {
			return err
		}
		// A subject that was revoked and enrolled again between two records is active in both, and of another incarnation.
		if after.ended || after.number != before.number {
			if err := t.endIncarnation(o.Tenant, watchword.SubjectID(o.ID), after.changed); err != nil {
				return err
			}
		}
		return t.restoreVersion(o)
	})
}

// incarnation is the incarnation of a subject that the store has, and whether it ended.
type incarnation struct {
	number  int64
	ended   bool
	changed time.Time
}

// incarnation returns that of a journaled subject; the zero one for another object, and for a subject that does not exist.
func (t *tx) incarnation(o backup.Object) (incarnation, error) {
	if o.Kind != backup.SubjectObject {
		return incarnation{}, nil
	}
	found, err := queryAll(context.Background(), t, func(r scanner) (is incarnation, err error) {
		var changed int64
		err = r.Scan(&is.number, &is.ended, &changed)
		is.changed = fromMillis(changed)
		return is, err
	}, `SELECT incarnation, state = 'revoked' OR deleted <> 0, changed FROM subjects WHERE tenant = ? AND id = ?`, string(o.Tenant), o.ID)
	if err != nil || len(found) == 0 {
		return incarnation{}, err
	}
	return found[0], nil
}

// restoreVersion writes the authority version of a subject again, which triggers raise with each of its keys.
func (t *tx) restoreVersion(o backup.Object) error {
	for _, rows := range o.Tables {
		at := slices.Index(rows.Columns, "authority_version")
		if rows.Name != "subjects" || at < 0 || len(rows.Rows) != 1 {
			continue
		}
		_, err := t.exec(`UPDATE subjects SET authority_version = ? WHERE tenant = ? AND id = ?`, rows.Rows[0][at], string(o.Tenant), o.ID)
		return err
	}
	return nil
}
