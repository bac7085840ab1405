package backup_test

import (
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"syscall"
	"testing"

	"github.com/watchword-iot/watchword/server/backup"
)

// Journals are read by a process that cannot write to them, such as from a medium on which nothing can be written.
func TestJournalsAreReadWithoutTheRightToWrite(t *testing.T) {
	id, dir := identity(t), t.TempDir()
	path := filepath.Join(dir, "1")
	journal(t, path, id.Recipient(), head(10), 12, 15)
	must(t, os.Chmod(path, 0o444))              //nolint:gosec // another user must be able to read it
	must(t, os.Chmod(filepath.Dir(dir), 0o755)) //nolint:gosec // likewise
	if os.Geteuid() == 0 {                      // root may write to any file; as another user of the file system it may not
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		must(t, syscall.Setfsuid(65534))
		defer func() { must(t, syscall.Setfsuid(0)) }()
	}
	if f, err := os.Open(path); err != nil {
		t.Skip("the folder of the test cannot be read by another user")
	} else {
		must(t, f.Close())
	}
	if j, err := backup.OpenJournal(path, journalKey, nil); err == nil {
		must(t, j.Close())
		t.Fatal("the journal can be written, so this test shows nothing")
	}
	to, out, err := readJournals(10, id, path)
	must(t, err)
	if !reflect.DeepEqual(to, []int64{12, 15}) || len(out.Unreadable) > 0 {
		t.Errorf("records %v, unreadable %v", to, out.Unreadable)
	}
}
