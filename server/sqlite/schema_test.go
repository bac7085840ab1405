package sqlite

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"testing"

	"github.com/watchword-iot/watchword"
)

// An upgrade that was cut off between two migrations goes on with the copy that it made; one that starts again makes a new copy.
func TestCopyOfUpgradeThatWasCutOff(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "watchword.db")
	to := func(version int64) {
		t.Helper()
		db, err := sql.Open("sqlite", dsn(path, "rwc", "journal_mode(WAL)"))
		if err != nil {
			t.Fatal(err)
		}
		p, err := provider(db)
		if err == nil {
			_, err = p.UpTo(ctx, version)
		}
		if err != nil || db.Close() != nil {
			t.Fatal(err)
		}
	}
	upgrade := func(want int64) *Upgrade {
		t.Helper()
		s, err := Open(ctx, path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		u := s.Upgrade()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if u == nil || u.From != want || u.Others != nil {
			t.Fatalf("the upgrade is %+v, want one from %d", u, want)
		}
		applied, err := migrationsOf(ctx, u.Copy)
		if err != nil || applied[len(applied)-1] != want {
			t.Fatalf("the copy has %v, %v; want up to %d", applied, err, want)
		}
		return u
	}
	to(15)
	u := upgrade(15)
	saved, err := os.ReadFile(u.Copy)
	if err != nil {
		t.Fatal(err)
	}
	restore := func() {
		t.Helper()
		for _, n := range []string{"-wal", "-shm"} {
			_ = os.Remove(path + n) // absent after a clean end
		}
		if err := os.WriteFile(path, saved, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	restore()
	to(16)
	upgrade(15) // 16 alone was applied: the copy of 15 remains

	restore()
	db, err := sql.Open("sqlite", dsn(path, "rw"))
	if err == nil {
		_, err = db.ExecContext(ctx, `CREATE TABLE later (one INTEGER) STRICT`)
	}
	if err != nil || db.Close() != nil {
		t.Fatal(err)
	}
	u = upgrade(15)
	if db, err = sql.Open("sqlite", dsn(u.Copy, "ro")+"&immutable=1"); err == nil {
		_, err = db.ExecContext(ctx, `SELECT one FROM later`)
	}
	if err != nil || db.Close() != nil {
		t.Errorf("the new copy lacks what was written after the database was put back: %v", err)
	}
}

// A copy that cannot be written stops the upgrade before it changes anything.
func TestUpgradeWithoutACopy(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "watchword.db")
	db, err := sql.Open("sqlite", dsn(path, "rwc"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := provider(db)
	if err == nil {
		_, err = p.UpTo(ctx, 15)
	}
	if err != nil || db.Close() != nil {
		t.Fatal(err)
	}
	known := knownMigrations(p)
	if err := os.MkdirAll(filepath.Join(copyPath(path, known[len(known)-1])+".tmp", "x"), 0o700); err != nil { // in the place of the copy
		t.Fatal(err)
	}
	if _, err := Open(ctx, path, Options{}); watchword.CodeOf(err) != watchword.Unavailable {
		t.Errorf("the upgrade: %v", err)
	}
	if applied, err := migrationsOf(ctx, path); err != nil || applied[len(applied)-1] != 15 {
		t.Errorf("the database has %v, %v", applied, err)
	}
}
