package server_test

import (
	"os"
	"path/filepath"
	"testing"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server"
)

// backedUp makes a backup of a new server.
func backedUp(t *testing.T) (file string, id age.Identity) {
	t.Helper()
	id, key := newIdentity(t)
	c := config(t, filepath.Join(t.TempDir(), "data"))
	c.Backup = server.BackupConfig{Recipients: key.Recipients}
	once(t, c)
	file = filepath.Join(t.TempDir(), "b")
	_, err := server.CreateBackup(t.Context(), c, quiet, file, false, server.BackupKey{})
	must(t, err)
	return file, id
}

// A restore neither replaces nor removes a file that is where its plan would go.
func TestARestoreLeavesAnExistingPlanFile(t *testing.T) {
	file, id := backedUp(t)
	for _, plan := range []string{"", filepath.Join(t.TempDir(), "mine")} {
		r := server.RestoreOptions{File: file, Identities: []age.Identity{id}, Data: filepath.Join(t.TempDir(), "restored"), AcceptLoss: true, Plan: plan}
		if plan == "" {
			plan = r.Data + ".plan.json"
		}
		must(t, os.WriteFile(plan, []byte("mine"), 0o600))
		if _, err := server.RestoreBackup(t.Context(), r, quiet); watchword.CodeOf(err) != watchword.Conflict {
			t.Errorf("%s exists: %v", plan, err)
		}
		if b, err := os.ReadFile(plan); err != nil || string(b) != "mine" {
			t.Errorf("%s has %q: %v", plan, b, err)
		}
		for _, path := range []string{r.Data, r.Data + ".tmp"} {
			if _, err := os.Lstat(path); err == nil {
				t.Errorf("%s is there", path)
			}
		}
	}
	path := filepath.Join(t.TempDir(), "meanwhile")
	must(t, os.WriteFile(path, []byte("mine"), 0o600))
	if err := server.WritePlan(path); err == nil {
		t.Error("a plan replaced a file that was made meanwhile")
	}
}
