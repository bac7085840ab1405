package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteStream creates the file at path (mode 0600) with what write writes. Until write has returned and all is durable, the bytes are
// in path + ".tmp", which replaces one that a crash left, and is removed if anything fails. An existing file at path is refused with
// an error that wraps [fs.ErrExist], or replaced if force.
func WriteStream(path string, force bool, write func(io.Writer) error) (err error) {
	if err := mayCreate(path, force); err != nil {
		return err
	}
	beside := path + ".tmp"
	if err := os.Remove(beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(beside, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(beside) // the error of the write is returned
		}
	}()
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = mayCreate(path, force) // it may have been created meanwhile
	}
	if err == nil {
		err = os.Rename(beside, path)
	}
	if err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// mayCreate refuses a path that is not free, and with force one that is no regular file.
func mayCreate(path string, force bool) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !force:
		return &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", path)
	}
	return nil
}
