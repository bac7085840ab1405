package server_test

import (
	"bytes"
	"database/sql"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server"
)

// openDatabase opens a database file that no server uses.
func openDatabase(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath())
	check(t, err)
	return db
}

// schemaOf returns the newest migration in a database file.
func schemaOf(t *testing.T, path string) (n int) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?mode=ro&immutable=1")
	check(t, err)
	defer db.Close()
	check(t, db.QueryRowContext(t.Context(), `SELECT max(version_id) FROM goose_db_version WHERE is_applied`).Scan(&n))
	return n
}

// A folder whose schema another build made is refused by everything that opens it, and stays as it was.
func TestFolderOfNewerSchemaIsRefused(t *testing.T) {
	dir := t.TempDir()
	unpack(t, "testdata/upgrade/2026-11-28c.tar.gz", dir)
	data := filepath.Join(dir, "data")
	file := filepath.Join(data, "watchword.db")
	db := openDatabase(t, file)
	_, err := db.ExecContext(t.Context(), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)`)
	check(t, errors.Join(err, db.Close()))
	check(t, os.WriteFile(file+".before-9999", nil, 0o600))
	before, err := os.ReadFile(file)
	check(t, err)
	c := config(t, data)
	root := filepath.Join(dir, "root.jwk")
	check(t, os.WriteFile(root, []byte("{}"), 0o600))
	for name, open := range map[string]func() error{
		"serve": func() error {
			_, err := server.New(t.Context(), c, quiet)
			return err
		},
		"clock show": func() error {
			_, err := server.ReadClock(t.Context(), c, quiet)
			return err
		},
		"clock accept": func() error {
			_, err := server.AcceptClock(t.Context(), c, quiet)
			return err
		},
		"operator recover": func() error {
			_, err := server.RecoverOperator(t.Context(), c, "carla", quiet)
			return err
		},
		"key root offline": func() error { return server.TakeRootOffline(t.Context(), c, filepath.Join(dir, "out.jwk"), quiet) },
		"key root online":  func() error { return server.BringRootOnline(t.Context(), c, root, quiet) },
		"audit verify": func() error {
			_, err := server.VerifyLog(t.Context(), data, nil)
			return err
		},
		"audit keys": func() error {
			_, err := server.LogKeys(t.Context(), data)
			return err
		},
	} {
		err := open()
		if watchword.CodeOf(err) != watchword.FolderNewer || !strings.Contains(err.Error(), "schema 9999") || !strings.Contains(err.Error(), file+".before-9999") {
			t.Errorf("%s: %v", name, err)
		}
		if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s changed the database (%v)", name, err)
		}
	}
}

// An upgrade leaves a copy of the database, says so, and one can go back to it.
func TestUpgradeLeavesACopy(t *testing.T) {
	dir := t.TempDir()
	unpack(t, "testdata/upgrade/2026-11-28.tar.gz", dir)
	file := filepath.Join(dir, "data", "watchword.db")
	from := schemaOf(t, file)
	check(t, os.WriteFile(file+".before-0003", nil, 0o600)) // of an earlier upgrade
	var logged bytes.Buffer
	o := quiet
	o.Log = slog.New(slog.NewTextHandler(&logged, nil))
	c := config(t, filepath.Join(dir, "data"))
	c.Server.PublicURL = "https://localhost:28443"
	start := func() {
		t.Helper()
		_, err := server.ReadClock(t.Context(), c, o)
		check(t, err)
	}
	copies := func() []string {
		found, err := filepath.Glob(file + ".before-*")
		check(t, err)
		return found
	}
	start()
	to := schemaOf(t, file)
	made := copies()
	if len(made) != 1 || to <= from || schemaOf(t, made[0]) != from {
		t.Fatalf("schema %d became %d, copies: %v", from, to, made)
	}
	if info, err := os.Stat(made[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the copy: %v, %v", info, err)
	}
	if text := logged.String(); !strings.Contains(text, "the data folder was upgraded") || !strings.Contains(text, made[0]) {
		t.Errorf("the log says %s", text)
	}
	logged.Reset()
	start()
	if text := logged.String(); strings.Contains(text, "upgraded") {
		t.Errorf("the second start says %s", text)
	}
	for _, n := range []string{"watchword.db", "watchword.db-wal", "watchword.db-shm", "log.checkpoint"} {
		if err := os.Remove(filepath.Join(dir, "data", n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	check(t, os.Rename(made[0], file))
	if _, err := server.VerifyLog(t.Context(), filepath.Join(dir, "data"), nil); err != nil {
		t.Errorf("the log of the copy: %v", err)
	}
	start()
	if again := copies(); len(again) != 1 || schemaOf(t, file) != to || schemaOf(t, again[0]) != from {
		t.Errorf("the second upgrade left %v", again)
	}
}
