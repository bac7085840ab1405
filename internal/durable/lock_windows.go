package durable

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"github.com/watchword-iot/watchword"
)

// errorSharingViolation is what a file gives that another process has open for itself.
const errorSharingViolation = syscall.Errno(32)

// Lock takes the file at path for this process, without waiting, until the
// returned file is closed or the process ends. Code: folder_in_use.
func Lock(path string) (*os.File, error) {
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	const nobodyElse = 0 // the share mode
	h, err := syscall.CreateFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, nobodyElse, nil, syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if errors.Is(err, errorSharingViolation) {
		return nil, watchword.Because(err, watchword.FolderInUse, "%s is in use by another process", filepath.Dir(path))
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(h), path), nil
}
