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
	return lock(path, os.O_CREATE|os.O_RDWR, syscall.LOCK_EX)
}

// LockShared locks the file at path, which exists, as Lock does, but several processes may have such a lock at once: those that only read.
// Code: folder_in_use.
func LockShared(path string) (*os.File, error) { return lock(path, os.O_RDONLY, syscall.LOCK_SH) }

func lock(path string, flags, how int) (*os.File, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written on it
		return nil, watchword.Wrap(err, watchword.FolderInUse, "%s is in use by another process", filepath.Dir(path))
	}
	return f, nil
}
