// Package durable reads and writes small files that must be whole, private and
// still there after the power went. In come paths and bytes, out go files that
// are the old ones or the new ones and nothing between. It refuses to read what
// decides something and can be written by others, or is private and can be read by them.
package durable

import (
	"os"
	"path/filepath"
	"runtime"
)

// WriteFile puts data into path so that after a crash the file is the old one
// or the new one: a temporary file beside it, synced, renamed, folder synced.
func WriteFile(path string, data []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the write's error is the one that counts
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

// Create is WriteFile for a file that must not be there yet: what holds a secret
// that exists nowhere else is never written over. The error wraps [fs.ErrExist].
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
		_ = os.Remove(path) // the write's error is the one that counts
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a folder durable. On Windows it does nothing: a folder cannot
// be synced there.
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
