package sqlite

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write schema.sql")

// maxBehind limits how many migrations schema.sql may lack, which each new database then runs.
const maxBehind = 8

// schemaScript returns what makes the tables and rows of a database, without goose's, in the order in which they were made.
func schemaScript(t *testing.T, db *sql.DB, title string) string {
	t.Helper()
	script := title
	each := func(query string, f func(...string)) {
		t.Helper()
		rs, err := db.QueryContext(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		defer rs.Close()
		for rs.Next() {
			var a, b string
			if err := rs.Scan(&a, &b); err != nil {
				t.Fatal(err)
			}
			f(a, b)
		}
		if err := rs.Err(); err != nil {
			t.Fatal(err)
		}
	}
	var tables []string
	each(`SELECT type || ' ' || name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND tbl_name NOT LIKE 'goose%' AND name NOT LIKE 'sqlite_%' ORDER BY rowid`, func(x ...string) {
		script += "\n" + x[1] + ";\n"
		if name, ok := strings.CutPrefix(x[0], "table "); ok {
			tables = append(tables, name)
		}
	})
	slices.Sort(tables)
	for _, table := range tables {
		var columns []string
		each(fmt.Sprintf(`SELECT name, '' FROM pragma_table_info('%s')`, table), func(x ...string) { columns = append(columns, "quote("+x[0]+")") })
		each(fmt.Sprintf(`SELECT concat_ws(', ', %s), '' FROM %s`, strings.Join(columns, ", "), table), func(x ...string) {
			script += fmt.Sprintf("\nINSERT INTO %s VALUES (%s);\n", table, x[0])
		})
	}
	return script
}

func migrated(t *testing.T, to int64) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(filepath.Join(t.TempDir(), "db"), "rwc", "synchronous(OFF)"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	p, err := provider(db)
	if err == nil {
		_, err = p.UpTo(t.Context(), to)
	}
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// A new database gets what the migrations make, row by row and word by word.
func TestNewDatabaseIsWhatMigrationsMake(t *testing.T) {
	p, err := provider(new(sql.DB))
	if err != nil {
		t.Fatal(err)
	}
	known := knownMigrations(p)
	newest := known[len(known)-1]
	script := func(of int64) string {
		return schemaScript(t, migrated(t, of), fmt.Sprintf(newDatabaseTitle+"%d, for new databases. Written by: go test ./server/sqlite -run NewDatabase -update\n", of))
	}
	if *update {
		if err := os.WriteFile("schema.sql", []byte(script(newest)), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	of, err := newDatabaseVersion()
	if err != nil {
		t.Fatal(err)
	}
	if script(of) != newDatabase {
		t.Error("schema.sql differs from what the migrations make; run: go test ./server/sqlite -run NewDatabase -update")
	}
	if i := slices.Index(known, of); i < 0 || len(known)-i > maxBehind {
		t.Errorf("schema.sql is of migration %d, and the newest is %d; run: go test ./server/sqlite -run NewDatabase -update", of, newest)
	}

	// What Open makes, with the migrations that the script lacks.
	path := filepath.Join(t.TempDir(), "db")
	s := opened(t, path)
	if s.Upgrade() != nil {
		t.Errorf("a new database was upgraded: %+v", s.Upgrade())
	}
	if got, want := schemaScript(t, s.db, ""), schemaScript(t, migrated(t, newest), ""); got != want {
		t.Errorf("a new database is\n%s\nand the migrations make\n%s", got, want)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if applied, err := migrationsOf(context.Background(), path); err != nil || !slices.Equal(applied, known) {
		t.Errorf("a new database records the migrations %v (%v), want %v", applied, err, known)
	}
}
