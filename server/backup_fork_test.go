package server_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
)

// After an older copy of the database was put back, the server does not go on in the journal of the other log, also where its own log is
// longer by then, and a restore does not join the two.
func TestAJournalOfAnotherLogIsNotContinued(t *testing.T) {
	for name, longer := range map[string]bool{"the log is shorter than the journal": false, "the log is longer than the journal": true} {
		t.Run(name, func(t *testing.T) {
			id, key := newIdentity(t)
			c, dir, away := config(t, filepath.Join(t.TempDir(), "data")), t.TempDir(), t.TempDir()
			c.Backup = server.BackupConfig{Recipients: key.Recipients, Journal: dir, Keep: 2}
			file, database, old := filepath.Join(t.TempDir(), "b"), filepath.Join(c.Data, "watchword.db"), filepath.Join(t.TempDir(), "copy")
			ready := func(s *server.Server) string {
				_, body, err := fetch(t, http.MethodGet, "http://"+s.Info().Metrics+"/readyz", "")
				must(t, err)
				return body
			}
			restore := func() (string, error) {
				r := server.RestoreOptions{File: file, Identities: []age.Identity{id}, Data: filepath.Join(t.TempDir(), "restored"), Source: dir}
				_, err := server.RestoreBackup(t.Context(), r, quiet)
				return r.Data, err
			}
			s, a, stop := startServer(t, c, quiet)
			_, err := server.CreateBackup(t.Context(), c, quiet, file, false, server.BackupKey{})
			must(t, err)
			_, err = a.CreateDevice(t.Context(), "lamp-1", nil, time.Hour)
			must(t, err)
			covered(t, s, dir, newest(t, a, audit.DeviceCreate))
			stop()
			b, err := os.ReadFile(database)
			must(t, err)
			must(t, os.WriteFile(old, b, 0o600))
			s, a, stop = startServer(t, c, quiet)
			_, err = a.Revoke(t.Context(), "lamp-1", "stolen")
			must(t, err)
			covered(t, s, dir, newest(t, a, audit.DeviceRevoke))
			later := filepath.Join(t.TempDir(), "later") // a backup of the log that is given up
			_, err = server.CreateBackup(t.Context(), c, quiet, later, false, server.BackupKey{})
			must(t, err)
			until(t, "the journal of the second backup", func() bool { return len(journals(t, dir)) == 2 })
			stop()
			before := journals(t, dir)
			must(t, os.Rename(old, database))
			must(t, os.Remove(filepath.Join(c.Data, "log.checkpoint")))
			if longer {
				without := c
				without.Backup.Journal = ""
				_, a, stop = startServer(t, without, quiet)
				for _, name := range []watchword.SubjectID{"lamp-5", "lamp-6", "lamp-7", "lamp-8", "lamp-9"} {
					_, err = a.CreateDevice(t.Context(), name, nil, time.Hour)
					must(t, err)
				}
				stop()
			}
			for range 2 { // it is noticed once, and said at each start
				s, _, stop = startServer(t, c, quiet)
				until(t, "another journal", func() bool { return len(journals(t, dir)) == 3 })
				until(t, "a warning of /readyz", func() bool {
					body := ready(s)
					return strings.Contains(body, filepath.Base(before[1])+" follows another log than the one in the database") && strings.Contains(body, "warning: the journal "+filepath.Base(before[0]))
				})
				stop()
			}
			s, a, stop = startServer(t, c, quiet)
			_, err = a.CreateDevice(t.Context(), "lamp-3", nil, time.Hour)
			must(t, err)
			covered(t, s, dir, newest(t, a, audit.DeviceCreate))
			stop()
			if _, err := restore(); watchword.CodeOf(err) != watchword.BackupInvalid || !strings.Contains(err.Error(), filepath.Base(before[0])) {
				t.Errorf("journals of two logs: %v", err)
			}
			for _, path := range before {
				must(t, os.Rename(path, filepath.Join(away, filepath.Base(path))))
			}
			data, err := restore()
			must(t, err)
			if got := states(t, data, "lamp-1", "lamp-3"); got != "new new" {
				t.Errorf("from the journal of now: the devices are %s", got)
			}
			file = later
			if _, err := restore(); watchword.CodeOf(err) != watchword.BackupInvalid {
				t.Errorf("a backup of the other log with the journal of now: %v", err)
			}
			s, _, stop = startServer(t, c, quiet)
			until(t, "the journal without a warning", func() bool { return !strings.Contains(ready(s), "warning") })
			if got := len(journals(t, dir)); got != 1 {
				t.Errorf("there are %d journals", got)
			}
			stop()
		})
	}
}
