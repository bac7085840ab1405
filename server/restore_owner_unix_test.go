//go:build unix

package server_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"filippo.io/age"

	"github.com/watchword-iot/watchword/server"
)

// A folder that was prepared for the user of the service has its owner, group and mode after the restore, and so has all in it.
func TestARestoredFolderHasTheOwnerOfThePreparedOne(t *testing.T) {
	file, id := backedUp(t)
	uid, gid := os.Geteuid(), os.Getegid()
	if uid == 0 {
		uid, gid = 65534, 65533
	}
	r := server.RestoreOptions{File: file, Identities: []age.Identity{id}, Data: filepath.Join(t.TempDir(), "restored"), AcceptLoss: true}
	must(t, os.Mkdir(r.Data, 0o700))
	must(t, os.Chown(r.Data, uid, gid))
	must(t, os.Chmod(r.Data, 0o750)) //nolint:gosec // as it was prepared
	_, err := server.RestoreBackup(t.Context(), r, quiet)
	must(t, err)
	info, err := os.Stat(r.Data)
	must(t, err)
	if got := info.Mode().Perm(); got != 0o750 {
		t.Errorf("the folder has mode %o", got)
	}
	must(t, filepath.WalkDir(r.Data, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != uid || int(st.Gid) != gid {
			t.Errorf("%s belongs to %d:%d, want %d:%d", path, st.Uid, st.Gid, uid, gid)
		}
		return nil
	}))
}
