package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
)

// A file from elsewhere has the tables, indexes and triggers that a build makes, and is not read otherwise: what follows runs without end, or
// would, at the first query of the table. The test ends because nothing is read.
func TestAHostileDatabaseIsNotRead(t *testing.T) {
	made := filepath.Join(t.TempDir(), "db")
	if err := opened(t, made).Close(); err != nil {
		t.Fatal(err)
	}
	readable(t, made)
	whole, err := os.ReadFile(made)
	if err != nil {
		t.Fatal(err)
	}
	const endless = `WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) AS size, '' AS note, 0 AS at FROM n`
	for name, queries := range map[string][]string{
		"a view in the place of a table":            {`DROP TABLE audit_checkpoints`, `CREATE VIEW audit_checkpoints AS ` + endless},
		"a view beside the tables":                  {`CREATE VIEW more AS ` + endless},
		"a view in the place of the versions":       {`DROP TABLE goose_db_version`, `CREATE VIEW goose_db_version AS SELECT size AS version_id, 1 AS is_applied FROM (` + endless + `)`},
		"a view named as a table of SQLite":         {`PRAGMA writable_schema = 1`, `INSERT INTO sqlite_schema VALUES ('view', 'sqlite_stat1', 'sqlite_stat1', 0, 'CREATE VIEW sqlite_stat1 AS ` + strings.ReplaceAll(endless, "'", "''") + `')`},
		"a generated column":                        {`DROP TABLE issuer_use`, `CREATE TABLE issuer_use (tenant TEXT, big TEXT AS (hex(zeroblob(1000000000))))`},
		"a column more":                             {`ALTER TABLE subjects ADD COLUMN big TEXT AS (hex(zeroblob(1000000000)))`},
		"a check":                                   {`DROP TABLE issuer_use`, `CREATE TABLE issuer_use (tenant TEXT CHECK (hex(zeroblob(1000000000)) != tenant))`},
		"a virtual table":                           {`CREATE VIRTUAL TABLE more USING fts5(x)`},
		"an index of an expression":                 {`CREATE INDEX more ON subjects (hex(zeroblob(1000000)))`},
		"a trigger more":                            {`CREATE TRIGGER more AFTER INSERT ON audit_entries BEGIN DELETE FROM subjects; END`},
		"a trigger with another text":               {`DROP TRIGGER basis_subject`, `CREATE TRIGGER basis_subject AFTER UPDATE ON subjects BEGIN SELECT 1; END`},
		"a trigger less":                            {`DROP TRIGGER basis_subject`},
		"a table less":                              {`DROP TABLE issuer_use`},
		"the tables of a migration that it lacks":   {`DELETE FROM goose_db_version WHERE version_id = 26`},
		"more objects than are read":                moreTables(maxObjects + 1),
		"a table of the versions with another text": {`ALTER TABLE goose_db_version ADD COLUMN more INT`},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "db")
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			change(t, path, queries...)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if f, err := OpenSnapshot(ctx, path); watchword.CodeOf(err) != watchword.LogInvalid {
				t.Errorf("a snapshot: %v", err)
				if err == nil {
					_ = f.Close()
				}
			}
			if f, err := OpenLog(ctx, path); watchword.CodeOf(err) != watchword.LogInvalid {
				t.Errorf("the log: %v", err)
				if err == nil {
					_ = f.Close()
				}
			}
		})
	}
}

func moreTables(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf(`CREATE TABLE more_%d (x)`, i))
	}
	return []string{`BEGIN;` + strings.Join(out, ";") + `; COMMIT`}
}

// change runs statements on a file, without a store.
func change(t *testing.T, path string, queries ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path, "rw", "synchronous(OFF)"))
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1) // pragmas are of a connection
	for _, q := range queries {
		if _, err := db.Exec(q); err != nil {
			t.Fatalf("%.100s: %v", q, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func readable(t *testing.T, path string) {
	t.Helper()
	t.Helper()
	f, err := OpenLog(t.Context(), path)
	if err != nil {
		t.Error(err)
		return
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// Each database that builds make is read: of each migration, with the one that came late, and after ANALYZE.
func TestEachSchemaIsRead(t *testing.T) {
	p, err := provider(new(sql.DB))
	if err != nil {
		t.Fatal(err)
	}
	known := knownMigrations(p)
	late := append(slices.DeleteFunc(slices.Clone(known), func(v int64) bool { return v == 15 || v > 19 }), append([]int64{15}, known[slices.Index(known, 20):]...)...)
	for name, order := range map[string][]int64{"in their order": known, "15 after 19": late} {
		path := filepath.Join(t.TempDir(), "db")
		db, err := sql.Open("sqlite", dsn(path, "rwc", "synchronous(OFF)"))
		if err != nil {
			t.Fatal(err)
		}
		p, err := provider(db)
		for i, v := range order {
			if err == nil {
				_, err = p.ApplyVersion(t.Context(), v, true)
			}
			if err != nil {
				t.Fatal(err)
			}
			if v >= 7 && (i == len(order)-1 || name == "in their order") { // before it there is no log
				readable(t, path)
			}
		}
		if _, err = db.Exec(`ANALYZE`); err == nil {
			err = db.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		readable(t, path)
	}
}
