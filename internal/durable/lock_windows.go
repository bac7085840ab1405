package durable

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"

	"github.com/watchword-iot/watchword"
)

var lockFileEx = syscall.NewLazyDLL("kernel32.dll").NewProc("LockFileEx")

// Flags and errors of LockFileEx.
const (
	lockFailImmediately = 1
	lockExclusive       = 2
	errorLockViolation  = syscall.Errno(33) // locked by another process
)

// Lock locks the file at path for this process, without waiting, until the returned file is closed
// or the process ends. Code: folder_in_use.
func Lock(path string) (*os.File, error) { return lock(path, os.O_CREATE|os.O_RDWR, lockExclusive) }

// LockShared locks the file at path, which exists, as Lock does, but several processes may have such a lock at once: those that only read.
// Code: folder_in_use.
func LockShared(path string) (*os.File, error) { return lock(path, os.O_RDONLY, 0) }

func lock(path string, open int, how uintptr) (*os.File, error) {
	f, err := os.OpenFile(path, open, 0o600)
	if err != nil {
		return nil, err
	}
	var at syscall.Overlapped // from the first byte
	ok, _, err := lockFileEx.Call(f.Fd(), how|lockFailImmediately, 0, 1, 0, uintptr(unsafe.Pointer(&at)))
	if ok != 0 {
		return f, nil
	}
	_ = f.Close() // nothing was written on it
	if errors.Is(err, errorLockViolation) {
		return nil, watchword.Wrap(err, watchword.FolderInUse, "%s is in use by another process", filepath.Dir(path))
	}
	return nil, &os.PathError{Op: "lock", Path: path, Err: err}
}
