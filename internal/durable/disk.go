package durable

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// Disk stores files that must survive a power failure. [OS] is the real one; tests use one that
// fails at a chosen step.
type Disk interface {
	// Read returns a trusted file of at most so many bytes; see [ReadTrusted].
	Read(path string, most int64) ([]byte, error)
	// Open opens a file for writing; create replaces it by an empty one.
	Open(path string, create bool) (File, error)
	Rename(from, to string) error
	Remove(path string) error
	// SyncDir makes the directory entries of a folder durable.
	SyncDir(dir string) error
}

// File is an open file of a [Disk].
type File interface {
	io.WriterAt
	io.Closer
	// Sync returns when everything written is durable. After an error the state on disk is unknown.
	Sync() error
}

// OS is the file system of the machine.
type OS struct{}

// Read calls [ReadTrusted].
func (OS) Read(path string, limit int64) ([]byte, error) { return ReadTrusted(path, limit) }

// Open opens a file for writing and creates it with mode 0600.
func (OS) Open(path string, create bool) (File, error) {
	flags := os.O_WRONLY
	if create {
		flags |= os.O_CREATE | os.O_TRUNC
	}
	return os.OpenFile(path, flags, 0o600)
}

// Rename calls [os.Rename].
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Remove calls [os.Remove].
func (OS) Remove(path string) error { return os.Remove(path) }

// SyncDir calls the function [SyncDir].
func (OS) SyncDir(dir string) error { return SyncDir(dir) }

// Replace writes data to path so that after a crash the file is the old one or the new one. If it
// fails, kept says that the old file is certainly still in place, and that an open descriptor still
// refers to it. It uses the file path + ".new".
func Replace(d Disk, path string, data []byte) (kept bool, err error) {
	beside := path + ".new"
	f, err := d.Open(beside, true)
	if err != nil {
		return true, err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return true, errors.Join(err, d.Remove(beside))
	}
	if err := d.Rename(beside, path); err != nil {
		return false, err
	}
	return false, d.SyncDir(filepath.Dir(path))
}
