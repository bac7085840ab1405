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
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/sqlite"
)

// states returns the states of devices in a folder, "-" for one that it does not have.
func states(t *testing.T, dir string, ids ...watchword.SubjectID) string {
	t.Helper()
	st, err := sqlite.Open(t.Context(), filepath.Join(dir, "watchword.db"), sqlite.Options{})
	must(t, err)
	defer st.Close()
	var out []string
	for _, id := range ids {
		s, err := st.Subject(t.Context(), watchword.DefaultTenant, id)
		switch {
		case watchword.CodeOf(err) == watchword.NotFound:
			out = append(out, "-")
			continue
		case err != nil:
			t.Fatal(err)
		}
		out = append(out, string(s.State))
	}
	return strings.Join(out, " ")
}

// A restored server can be lost before its first own backup: its folder and its journals lead on from the backup from which it was
// restored. Journals of servers that part from each other are not mixed without a word.
func TestARestoredServerCanBeLostBeforeItsFirstBackup(t *testing.T) {
	id, key := newIdentity(t)
	c, dir, files := config(t, filepath.Join(t.TempDir(), "data")), t.TempDir(), t.TempDir()
	c.Backup = server.BackupConfig{Recipients: key.Recipients, Journal: dir, Keep: 2}
	file := filepath.Join(files, "b")
	restore := func(source string, accept bool) (server.RestoredBackup, string, error) {
		r := server.RestoreOptions{File: file, Identities: []age.Identity{id}, Data: filepath.Join(t.TempDir(), "restored"), Source: source, AcceptLoss: accept}
		done, err := server.RestoreBackup(t.Context(), r, quiet)
		return done, r.Data, err
	}
	create := func(s *server.Server, name watchword.SubjectID) {
		a, err := admin.Local(c.Data)
		must(t, err)
		_, err = a.CreateDevice(t.Context(), name, nil, time.Hour)
		must(t, err)
		covered(t, s, dir, newest(t, a, audit.DeviceCreate))
	}
	s, _, stop := startServer(t, c, quiet)
	_, err := server.CreateBackup(t.Context(), c, quiet, file, false, server.BackupKey{})
	must(t, err)
	create(s, "lamp-1")
	stop()

	second, data, err := restore(dir, false)
	must(t, err)
	c.Data = data
	s, a, stop := startServer(t, c, quiet)
	until(t, "a warning of /readyz", func() bool {
		_, body, err := fetch(t, http.MethodGet, "http://"+s.Info().Metrics+"/readyz", "")
		must(t, err)
		return strings.Contains(body, "no backup of it was made since")
	})
	_, err = a.Revoke(t.Context(), "lamp-1", "stolen")
	must(t, err)
	create(s, "lamp-2")
	stop()
	for what, source := range map[string]string{"its folder": data, "its journals": dir} {
		third, data, err := restore(source, false)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if got := states(t, data, "lamp-1", "lamp-2"); got != "revoked new" || third.Epoch <= second.Epoch || third.Found.Origin != second.Origin {
			t.Errorf("%s: the devices are %s; epoch %d after %d; read %s, want %s", what, got, third.Epoch, second.Epoch, third.Found.Origin, second.Origin)
		}
		once(t, config(t, data))
	}

	// Another one, which has nothing of that.
	other, data, err := restore("", true)
	must(t, err)
	c.Data = data
	s, _, stop = startServer(t, c, quiet)
	create(s, "lamp-9")
	stop()
	_, _, err = restore(dir, false)
	if watchword.CodeOf(err) != watchword.Conflict || !strings.Contains(err.Error(), "several servers") {
		t.Errorf("journals of two lines: %v", err)
	}
	third, data, err := restore(dir, true)
	must(t, err)
	if got := states(t, data, "lamp-1", "lamp-2", "lamp-9"); got != "- - new" || third.Found.Origin != other.Origin {
		t.Errorf("accepted: the devices are %s, of %s", got, third.Found.Origin)
	}
	found := journals(t, dir)
	if _, data, err = restore(found[len(found)-1], false); err != nil {
		t.Errorf("its journal alone: %v", err)
	} else if got := states(t, data, "lamp-9"); got != "new" {
		t.Errorf("its journal alone: the device is %s", got)
	}
}

// A server that was restored makes a backup by schedule at once, whatever the list of backups says of the server before.
func TestARestoredServerMakesABackupAtOnce(t *testing.T) {
	id, key := newIdentity(t)
	c, dir := config(t, filepath.Join(t.TempDir(), "data")), t.TempDir()
	c.Backup = server.BackupConfig{Recipients: key.Recipients, Dir: dir, Keep: 2}
	c.Backup.Every.Duration = time.Hour
	made := func() []string {
		found, err := filepath.Glob(filepath.Join(dir, "*.backup"))
		must(t, err)
		return found
	}
	list := func(dir string) string { return filepath.Join(dir, "backups.json") }
	_, _, stop := startServer(t, c, quiet)
	until(t, "the first backup", func() bool {
		b, err := os.ReadFile(list(c.Data))
		return err == nil && strings.Contains(string(b), `"sha256"`)
	})
	stop()
	r := server.RestoreOptions{File: made()[0], Identities: []age.Identity{id}, Data: filepath.Join(t.TempDir(), "restored"), AcceptLoss: true}
	_, err := server.RestoreBackup(t.Context(), r, quiet)
	must(t, err)
	b, err := os.ReadFile(list(c.Data))
	must(t, err)
	must(t, os.WriteFile(list(r.Data), b, 0o600))
	c.Data = r.Data
	_, _, stop = startServer(t, c, quiet)
	until(t, "the backup of the restored server", func() bool { return len(made()) == 2 })
	stop()
}
