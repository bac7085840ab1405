package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/server"
)

// The disks of the backups and of the journal are not mounted at a start: their mount points are empty folders. The server says so,
// and writes neither there; with the disks it goes on.
func TestFoldersOfDisksThatAreNotMounted(t *testing.T) {
	server.SetJournalRetry(t, 50*time.Millisecond)
	_, key := newIdentity(t)
	top := t.TempDir()
	c := config(t, filepath.Join(top, "data"))
	c.Backup = server.BackupConfig{Recipients: key.Recipients, Dir: filepath.Join(top, "disk1"), Journal: filepath.Join(top, "disk2"), Every: server.Duration{Duration: 100 * time.Millisecond}, Keep: 2}
	folders := []string{c.Backup.Dir, c.Backup.Journal}
	for _, dir := range folders {
		must(t, os.Mkdir(dir, 0o700))
	}
	_, _, stop := startServer(t, c, quiet)
	until(t, "a backup and a journal", func() bool { return len(backupsIn(t, c.Backup.Dir)) > 0 && len(journals(t, c.Backup.Journal)) > 0 })
	stop()
	for _, dir := range folders {
		must(t, os.Rename(dir, dir+".away"))
		must(t, os.Mkdir(dir, 0o700))
	}
	var log lockedBuffer
	_, _, stop = startServer(t, c, (&machine{}).options(&log, time.Time{}))
	until(t, "two lines of the process log", func() bool {
		text := log.String()
		return strings.Contains(text, "backup.dir "+c.Backup.Dir+" has no file") && strings.Contains(text, "backup.journal "+c.Backup.Journal+" has no file")
	})
	stop()
	for _, dir := range folders {
		if es, err := os.ReadDir(dir); err != nil || len(es) > 0 {
			t.Errorf("%s has %v, %v", dir, es, err)
		}
		must(t, os.Remove(dir))
		must(t, os.Rename(dir+".away", dir))
	}
	_, _, stop = startServer(t, c, quiet)
	first := backupsIn(t, c.Backup.Dir)[0]
	until(t, "the deletion of the first backup, after others", func() bool { _, err := os.Lstat(first); return os.IsNotExist(err) })
	stop()
}
