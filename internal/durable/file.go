// Package durable reads and writes small files that must be complete, private and durable across
// power failures. Writes replace a file atomically. Reads refuse a file whose content is trusted
// but that other users can write, or that is private but that other users can read.
package durable

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
)

// WriteFile replaces the file at path atomically: it writes a temporary file beside it, syncs it,
// renames it, and syncs the folder.
func WriteFile(path string, data []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the error of the write is returned
		}
	}()
	if err = f.Chmod(mode); err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

var temporaryName = regexp.MustCompile(`^\..+-[0-9]+$`)

// IsTemporary reports whether a file has a name that [WriteFile] gives the file which it writes; a crash can leave one.
func IsTemporary(path string) bool { return temporaryName.MatchString(filepath.Base(path)) }

// Create is WriteFile for a file that must not exist yet, so that a secret without a copy is never
// overwritten. The error wraps [fs.ErrExist].
func Create(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(path) // the error of the write is returned
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the directory entries of a folder durable. It does nothing on Windows, where
// folders cannot be synced.
func SyncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}
