package sqlite

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/backup"
)

// notJournaled are the other tables, and why a restore needs no rows of them that are newer than its backup.
var notJournaled = map[string]string{
	"audit_checkpoints":   "the log goes on under another name after a restore, and the journal has the entries of changes of authority",
	"audit_entries":       "likewise",
	"audit_pruned":        "likewise",
	"audit_terms":         "likewise",
	"audit_tiles":         "likewise",
	"clock_mark":          "the clock is checked again at the restore",
	"commands":            "commands of before a restore are of an older epoch",
	"consumed_jtis":       "assertions of before a restore are void",
	"functions":           "devices announce them again",
	"goose_db_version":    "the schema, which the journal names",
	"handovers":           "of commands",
	"idempotency":         "of commands",
	"issuer_use":          "counts of devices, which their next requests write",
	"mqtt_messages":       "messages are only in backups",
	"mqtt_retained":       "likewise",
	"mqtt_sessions":       "likewise",
	"mqtt_subscriptions":  "likewise",
	"mqtt_wills":          "likewise",
	"notices":             "the log has what they tell",
	"pairings":            "they wait for minutes",
	"policy_versions":     "triggers raise them where policies are applied; tokens of before a restore are void",
	"unfinished_commands": "of commands",
	"subject_counts":      "triggers count subjects where they are applied",
	"label_counts":        "likewise",
	"twins":               "devices report them again; configurations are only in backups",
}

// Each table is journaled, or there is a reason why a restore needs only the rows in its backup.
func TestEachTableIsJournaledOrNot(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	tables, err := queryAll(t.Context(), s, func(r scanner) (name string, err error) { return name, r.Scan(&name) },
		`SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'`)
	if err != nil {
		t.Fatal(err)
	}
	is := map[string]bool{}
	for _, ts := range journaled {
		for _, j := range ts {
			if is[j.table] {
				t.Errorf("%s is journaled twice", j.table)
			}
			is[j.table] = true
		}
	}
	for name := range notJournaled {
		if is[name] {
			t.Errorf("%s is journaled and is not", name)
		}
		is[name] = true
	}
	exists := map[string]bool{}
	for _, name := range tables {
		exists[name] = true
		if !is[name] {
			t.Errorf("%s: does it hold authority that changed after a backup and that a restore must not lose? Add it to journaled, or to notJournaled with the reason", name)
		}
	}
	for name := range is {
		if !exists[name] {
			t.Errorf("there is no table %s", name)
		}
	}
}

// What a device reported and what was configured for it belongs to its incarnation: a subject that was revoked and enrolled again
// between two records of a journal does not keep it, one that is the same does.
func TestAJournalEndsFormerIncarnations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := opened(t, path)
	t.Cleanup(func() { _ = s.Close() })
	exec := func(queries ...string) {
		t.Helper()
		err := s.w.do(t.Context(), func(t *tx) error {
			for _, q := range queries {
				if _, err := t.conn.ExecContext(context.Background(), q); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	count := func() (n int) {
		t.Helper()
		const q = `SELECT (SELECT count(*) FROM twins) + (SELECT count(*) FROM functions) + (SELECT count(*) FROM idempotency) + (SELECT count(*) FROM commands WHERE state = 'queued')`
		n, err := queryOne(t.Context(), s, func(r scanner) (n int, err error) { return n, r.Scan(&n) }, nil, q)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	const row = `INSERT INTO subjects (tenant, id, kind, state, labels, version, authority_version, incarnation, created, changed) VALUES ('default', 'lamp', 'device', '%s', '', 1, 1, %d, 1, 1)`
	for _, tc := range []struct {
		name, state string
		incarnation int
		kept        bool
	}{
		{"the same incarnation", "active", 1, true}, {"suspended", "suspended", 1, true}, {"revoked", "revoked", 1, false}, {"revoked and enrolled again", "active", 2, false},
	} {
		exec(`DELETE FROM subjects`, fmt.Sprintf(row, tc.state, tc.incarnation))
		snapshot, err := OpenSnapshot(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		o, err := snapshot.JournalObject(t.Context(), backup.Ref{Kind: backup.SubjectObject, Tenant: "default", ID: "lamp"})
		if err != nil {
			t.Fatal(err)
		}
		if err := snapshot.Close(); err != nil {
			t.Fatal(err)
		}
		exec(`DELETE FROM subjects`, fmt.Sprintf(row, "active", 1), `DELETE FROM twins`, `DELETE FROM functions`, `DELETE FROM idempotency`, `DELETE FROM commands`,
			`INSERT INTO twins (tenant, device, config) VALUES ('default', 'lamp', x'7b7d')`, `INSERT INTO functions (tenant, device, name) VALUES ('default', 'lamp', 'f')`,
			`INSERT INTO idempotency (tenant, caller, key, hash, command, expires) VALUES ('default', 'lamp', 'k', x'00', 'c', 1)`,
			`INSERT INTO commands (tenant, id, device, incarnation, epoch, seq, function, args, args_hash, signed_order, orderer, orderer_key, state, created, expires)
				VALUES ('default', 'c', 'lamp', 1, 1, 1, 'f', x'7b7d', '', '', 'op', 'k', 'queued', 1, 2)`)
		if n := count(); n != 4 {
			t.Fatalf("%s: %d rows before", tc.name, n)
		}
		if err := s.ApplyJournal(t.Context(), []backup.Object{o}); err != nil {
			t.Fatal(err)
		}
		if n := count(); (n == 4) != tc.kept || n != 0 && n != 4 {
			t.Errorf("%s: %d rows of the device are left, kept %t", tc.name, n, tc.kept)
		}
	}
}

// A database on a medium on which nothing can be written is read without its write-ahead log only where there is none: the last writes
// are in it.
func TestAWriteAheadLogIsNotPassedOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := opened(t, path)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// SQLite refuses a write-ahead log whose index it cannot make, as on a read-only medium; root can write everywhere.
	if err := os.Symlink(filepath.Join(t.TempDir(), "none", "shm"), path+"-shm"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		wal  []byte // nil: no file
		code watchword.Code
	}{{nil, ""}, {[]byte{}, ""}, {make([]byte, 32), watchword.Unavailable}} {
		if tc.wal != nil {
			if err := os.WriteFile(path+"-wal", tc.wal, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f, err := OpenLog(t.Context(), path)
		if watchword.CodeOf(err) != tc.code || err != nil && !strings.Contains(err.Error(), "write-ahead log") {
			t.Errorf("with a write-ahead log of %d bytes (nil: %t): %v, want %q", len(tc.wal), tc.wal == nil, err, tc.code)
		}
		if err == nil {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
