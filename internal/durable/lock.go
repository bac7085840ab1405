//go:build unix

package durable

import (
	"os"
	"path/filepath"
	"syscall"

	"github.com/watchword-iot/watchword"
)

// Lock locks the file at path for this process, without waiting, until the returned file is closed
// or the process ends. Code: folder_in_use.
func Lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written on it
		return nil, watchword.Wrap(err, watchword.FolderInUse, "%s is in use by another process", filepath.Dir(path))
	}
	return f, nil
}
