package server_test

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/backup"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/sqlite"
)

// startServer starts a server; stop ends it.
func startServer(t *testing.T, c server.Config, o server.Options) (s *server.Server, a *admin.Client, stop func()) {
	t.Helper()
	s, err := server.New(t.Context(), c, o)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	testwait.For(t, "the server", s.Ready())
	stop = sync.OnceFunc(func() {
		cancel()
		if err := testwait.For(t, "the end of the server", ended); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	a, err = admin.Local(c.Data)
	must(t, err)
	return s, a, stop
}

func journals(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*"+backup.JournalSuffix))
	must(t, err)
	return found
}

// covered waits until the newest journal covers an entry.
func covered(t *testing.T, s *server.Server, dir string, seq int64) {
	t.Helper()
	until(t, fmt.Sprintf("the journal of entry %d", seq), func() bool {
		found := journals(t, dir)
		if len(found) == 0 {
			return false
		}
		j, err := backup.ReadJournalFile(found[len(found)-1], s.JournalKey())
		return err == nil && j.To >= seq // it is being written
	})
}

// newest returns the number of the newest entry of a kind.
func newest(t *testing.T, a *admin.Client, kind string) int64 {
	t.Helper()
	es, err := a.FindEntries(t.Context(), admin.LogQuery{Kind: kind}, 1000)
	must(t, err)
	if len(es) == 0 {
		t.Fatalf("there is no entry %s", kind)
	}
	last := es[0].Seq
	for _, e := range es {
		last = max(last, e.Seq)
	}
	return last
}

// authority is the rows of the tables that hold authority, as text.
func authority(t *testing.T, dir string) (out []string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "watchword.db")+"?mode=ro")
	must(t, err)
	defer db.Close()
	for _, q := range []string{
		"SELECT * FROM subjects", "SELECT * FROM labels", "SELECT * FROM subject_keys", "SELECT * FROM codes", "SELECT * FROM policies", "SELECT * FROM server_keys",
		"SELECT * FROM bundles", "SELECT * FROM instance", "SELECT * FROM tokens WHERE revoked = 1", "SELECT device FROM twins WHERE device <> 'lamp-3'", "SELECT device, name FROM functions",
	} {
		rs, err := db.QueryContext(t.Context(), q)
		must(t, err)
		names, err := rs.Columns()
		must(t, err)
		var rows []string
		for rs.Next() {
			values, into := make([]any, len(names)), make([]any, len(names))
			for i := range values {
				into[i] = &values[i]
			}
			must(t, rs.Scan(into...))
			if names[0] == "n" {
				values[0] = nil
			}
			if i := slices.Index(names, "last_seen"); i >= 0 { // it is written now and then, and decides nothing
				values[i] = nil
			}
			rows = append(rows, fmt.Sprintf("%s: %q", q, values))
		}
		must(t, rs.Err())
		must(t, rs.Close())
		slices.Sort(rows)
		out = append(out, rows...)
	}
	return out
}

// applyJournals restores a backup with the journals after it, twice.
func applyJournals(t *testing.T, file, dir string, id age.Identity) (data string, read backup.JournalsRead) {
	t.Helper()
	data, m := restored(t, file, id)
	st, err := sqlite.Open(t.Context(), filepath.Join(data, "watchword.db"), sqlite.Options{})
	must(t, err)
	kek, err := keyring.OpenKEK(filepath.Join(data, "keys", "kek"), false)
	must(t, err)
	ring, err := keyring.Open(t.Context(), st, kek, nil)
	must(t, err)
	key := ring.DeriveSecret("journal")
	for range 2 {
		read, err = backup.ReadJournals(journals(t, dir), key[:], []age.Identity{id}, m.Log, func(size int64) (string, error) {
			tree, err := ledger.TreeAt(size, func(level int, n int64, width int) ([]byte, error) { return st.Tile(t.Context(), level, n, width) })
			return backup.NewLog("", size, tree.Root()).Hash, err
		}, func(r backup.Record) error {
			return st.ApplyJournal(t.Context(), r.Objects)
		})
		must(t, err)
	}
	must(t, st.Close())
	return data, read
}

// A backup with the journal after it has all authority that the server had: a subject that was revoked stays revoked.
func TestARestoreWithTheJournalLosesNoAuthority(t *testing.T) {
	id, key := newIdentity(t)
	c, dir, files := config(t, filepath.Join(t.TempDir(), "data")), t.TempDir(), t.TempDir()
	c.Backup = server.BackupConfig{Recipients: key.Recipients, Journal: dir, Keep: 3}
	s, a, stop := startServer(t, c, quiet)
	ctx := t.Context()
	for _, name := range []watchword.SubjectID{"lamp-1", "lamp-2", "lamp-3", "lamp-4"} {
		_, err := a.CreateDevice(ctx, name, watchword.Labels{"site": "a"}, time.Hour)
		must(t, err)
	}
	_, err := a.SetConfig(ctx, "lamp-4", []byte(`{"on":true}`), 0)
	must(t, err)
	create := func(name string) string {
		file := filepath.Join(files, name)
		_, err := server.CreateBackup(ctx, c, quiet, file, false, server.BackupKey{})
		must(t, err)
		return file
	}
	if got := journals(t, dir); len(got) > 0 {
		t.Errorf("before a backup there are journals: %v", got)
	}
	first := create("first")
	_, err = a.Revoke(ctx, "lamp-1", "stolen")
	must(t, err)
	must(t, a.DeleteDevice(ctx, "lamp-4"))
	_, err = a.SetLabels(ctx, "lamp-2", watchword.Labels{"site": "b"}, 0)
	must(t, err)
	_, err = a.Link(ctx, "lamp-3", time.Hour)
	must(t, err)
	_, err = a.CreateDevice(ctx, "lamp-5", nil, time.Hour)
	must(t, err)
	for range 2 {
		_, err = a.RotateKey(ctx, "issuer", true)
		must(t, err)
	}
	_, err = a.RotateKey(ctx, "ca", true)
	must(t, err)
	es, err := a.FindEntries(ctx, admin.LogQuery{Kind: audit.TokenIssue}, 1)
	must(t, err)
	must(t, a.RevokeToken(ctx, es[0].Object))
	covered(t, s, dir, newest(t, a, audit.TokenRevoke))
	stop()
	// The next start goes on at the journal's end.
	s, a, stop = startServer(t, c, quiet)
	_, err = a.Suspend(ctx, "lamp-2", "")
	must(t, err)
	covered(t, s, dir, newest(t, a, audit.DeviceSuspend))
	if got := journals(t, dir); len(got) != 1 {
		t.Errorf("one backup was made, and there are the journals %v", got)
	}
	_, err = a.SetConfig(ctx, "lamp-3", []byte(`{"on":true}`), 0) // an entry that changes no authority
	must(t, err)
	second := create("second")
	until(t, "the journal of the second backup", func() bool { return len(journals(t, dir)) == 2 })
	_, err = a.Resume(ctx, "lamp-2")
	must(t, err)
	covered(t, s, dir, newest(t, a, audit.DeviceResume))
	stop()
	want := authority(t, c.Data)
	for _, file := range []string{first, second} {
		data, read := applyJournals(t, file, dir, id)
		if got := authority(t, data); !reflect.DeepEqual(got, want) {
			for _, row := range want {
				if !slices.Contains(got, row) {
					t.Errorf("%s lacks %s", file, row)
				}
			}
			for _, row := range got {
				if !slices.Contains(want, row) {
					t.Errorf("%s still has %s", file, row)
				}
			}
		}
		if read.Records == 0 || read.Entries == 0 || read.Missing != 0 || read.Damage != "" {
			t.Errorf("%s: %+v", file, read)
		}
		once(t, config(t, data)) // a server starts on it
	}
}

// A journal that ends within a record is followed by another file, without a gap.
func TestAJournalThatWasCutOffIsFollowedByAnother(t *testing.T) {
	id, key := newIdentity(t)
	c, dir, files := config(t, filepath.Join(t.TempDir(), "data")), t.TempDir(), t.TempDir()
	c.Backup = server.BackupConfig{Recipients: key.Recipients, Journal: dir, Keep: 3}
	s, a, stop := startServer(t, c, quiet)
	file := filepath.Join(files, "b")
	_, err := server.CreateBackup(t.Context(), c, quiet, file, false, server.BackupKey{})
	must(t, err)
	_, err = a.CreateDevice(t.Context(), "lamp-1", nil, time.Hour)
	must(t, err)
	covered(t, s, dir, newest(t, a, audit.DeviceCreate))
	stop()
	path := journals(t, dir)[0]
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, b[:len(b)-7], 0o600))
	s, a, stop = startServer(t, c, quiet)
	_, err = a.CreateDevice(t.Context(), "lamp-2", nil, time.Hour)
	must(t, err)
	covered(t, s, dir, newest(t, a, audit.DeviceCreate))
	stop()
	want := authority(t, c.Data)
	if data, _ := applyJournals(t, file, dir, id); !reflect.DeepEqual(authority(t, data), want) {
		t.Error("the restored folder is not the one that was lost")
	}
	if len(journals(t, dir)) != 2 {
		t.Errorf("the journals are %v", journals(t, dir))
	}
}

// An error of the journal's disk stops nothing, is said, and is over once the disk is back.
func TestAJournalThatCannotBeWrittenStopsNothing(t *testing.T) {
	server.SetJournalRetry(t, 50*time.Millisecond)
	id, key := newIdentity(t)
	c, dir, files := config(t, filepath.Join(t.TempDir(), "data")), filepath.Join(t.TempDir(), "disk"), t.TempDir()
	c.Backup = server.BackupConfig{Recipients: key.Recipients, Journal: dir, Keep: 2}
	var log lockedBuffer
	m := &machine{}
	s, a, stop := startServer(t, c, m.options(&log, time.Time{}))
	file := filepath.Join(files, "b")
	_, err := server.CreateBackup(t.Context(), c, quiet, file, false, server.BackupKey{})
	must(t, err)
	_, err = a.CreateDevice(t.Context(), "lamp-1", nil, time.Hour)
	must(t, err)
	last := newest(t, a, audit.DeviceCreate)
	until(t, "a line of the process log", func() bool { return strings.Contains(log.String(), "the journal is not written") })
	m.set(30*time.Minute, true) // half an hour passes
	ready := func() (int, string) {
		status, body, err := fetch(t, http.MethodGet, "http://"+s.Info().Metrics+"/readyz", "")
		must(t, err)
		return status, body
	}
	until(t, "a warning of /readyz", func() bool {
		status, body := ready()
		if status != http.StatusOK {
			t.Fatalf("/readyz answers %d", status)
		}
		return strings.Contains(body, "warning: the journal")
	})
	if n := metric(t, s.Info().Metrics, "watchword_backup_journal_lag_seconds"); n < 1700 {
		t.Errorf("the lag is %d s", n)
	}
	must(t, os.Mkdir(dir, 0o700))
	covered(t, s, dir, last)
	until(t, "the end of the warning", func() bool { _, body := ready(); return !strings.Contains(body, "warning") })
	stop()
	want := authority(t, c.Data)
	if data, _ := applyJournals(t, file, dir, id); !reflect.DeepEqual(authority(t, data), want) {
		t.Error("the restored folder is not the one that was lost")
	}
}
