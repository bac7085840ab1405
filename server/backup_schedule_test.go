package server_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
)

func TestTheOnlyGoodBackupIsNeverDeleted(t *testing.T) {
	for _, tc := range []struct {
		name  string
		keep  int
		gone  []string
		files []string
		want  []string
	}{
		{"fewer than keep", 2, nil, []string{"1", "2"}, nil},
		{"more than keep", 2, nil, []string{"1", "2", "3", "4"}, []string{"2", "1"}},
		{"newer ones that were deleted do not count", 2, []string{"3", "4"}, []string{"1", "2", "3", "4"}, nil},
		{"one of the newer ones was deleted", 2, []string{"4"}, []string{"1", "2", "3", "4"}, []string{"1"}},
		{"manual ones do not count and are not deleted", 2, nil, []string{"m1", "1", "m2", "2", "m3", "m4", "3"}, []string{"1"}},
	} {
		if got := server.Expired(tc.keep, tc.gone, tc.files...); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func backupsIn(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "watchword-*.backup"))
	must(t, err)
	return found
}

func TestBackupsBySchedule(t *testing.T) {
	id, key := newIdentity(t)
	c, dir := config(t, filepath.Join(t.TempDir(), "data")), filepath.Join(t.TempDir(), "disk")
	c.Backup = server.BackupConfig{Recipients: key.Recipients, Dir: dir, Every: server.Duration{Duration: 100 * time.Millisecond}, Keep: 2}
	var log lockedBuffer
	s, a, stop := startServer(t, c, (&machine{}).options(&log, time.Time{}))
	// The folder does not exist, as where its disk is not mounted: it is not created, and the server says so and serves.
	until(t, "a line of the process log", func() bool { return strings.Contains(log.String(), "the scheduled backup was not made") })
	ready := func() string {
		status, body, err := fetch(t, http.MethodGet, "http://"+s.Info().Metrics+"/readyz", "")
		must(t, err)
		if status != http.StatusOK {
			t.Fatalf("/readyz answers %d", status)
		}
		return body
	}
	if body := ready(); !strings.Contains(body, "warning: the last scheduled backup failed: backup.dir") {
		t.Errorf("/readyz says %q", body)
	}
	if metric(t, s.Info().Metrics, "watchword_backup_failures_total") == 0 {
		t.Error("the failure is not counted")
	}
	must(t, os.Mkdir(dir, 0o700))
	foreign := filepath.Join(dir, "watchword-20200101T000000.000Z.backup")
	must(t, os.WriteFile(foreign, []byte("x"), 0o600))
	until(t, "two backups", func() bool { return len(backupsIn(t, dir)) >= 3 })
	first := backupsIn(t, dir)[1]
	until(t, "the deletion of the first", func() bool { _, err := os.Lstat(first); return os.IsNotExist(err) })
	changed := backupsIn(t, dir)[1]
	must(t, os.WriteFile(changed, []byte("y"), 0o600)) // it may be deleted at this moment, and is then a file of another
	until(t, "four backups in the log", func() bool {
		es, err := a.FindEntries(t.Context(), auditQuery(audit.BackupCreate), 100)
		must(t, err)
		return len(es) >= 6
	})
	stop()
	for _, file := range []string{foreign, changed} {
		if _, err := os.Lstat(file); err != nil {
			t.Errorf("a file that the server did not write was deleted: %v", err)
		}
	}
	good := slices.DeleteFunc(backupsIn(t, dir), func(f string) bool { return f == foreign || f == changed })
	if len(good) != 2 {
		t.Errorf("%d backups are kept: %v", len(good), good)
	}
	for _, file := range good {
		verifies(t, file, id)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*.tmp"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// A killed process leaves a temporary file, which the next backup removes.
	list := filepath.Join(c.Data, "backups.json")
	b, err := os.ReadFile(list)
	must(t, err)
	killed := filepath.Join(dir, "watchword-20260101T000000.000Z.backup")
	must(t, os.WriteFile(killed+".tmp", []byte("x"), 0o600))
	var records map[string]any
	must(t, json.Unmarshal(b, &records))
	records["writing"] = killed
	b, err = json.Marshal(records)
	must(t, err)
	must(t, os.WriteFile(list, b, 0o600))
	_, _, stop = startServer(t, c, quiet)
	until(t, "the removal of the temporary file", func() bool { _, err := os.Lstat(killed + ".tmp"); return os.IsNotExist(err) })
	stop()
}

func auditQuery(kind string) admin.LogQuery { return admin.LogQuery{Kind: kind} }
