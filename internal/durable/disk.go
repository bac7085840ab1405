package durable

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// Disk is what a memory that must survive a power cut is kept on. [OS] is the
// machine's; tests give one that fails at any step.
type Disk interface {
	// Read returns a believed file of at most so many bytes, as [ReadTrusted] does.
	Read(path string, most int64) ([]byte, error)
	// Open opens a file to write; create makes an empty one in its place.
	Open(path string, create bool) (File, error)
	Rename(from, to string) error
	Remove(path string) error
	// SyncDir makes the names in a folder durable.
	SyncDir(dir string) error
}

// File is an open file of a [Disk].
type File interface {
	io.WriterAt
	io.Closer
	// Sync returns when all that was written is durable. After an error nobody knows what is.
	Sync() error
}

// OS is the machine's disk.
type OS struct{}

// Read is [ReadTrusted].
func (OS) Read(path string, limit int64) ([]byte, error) { return ReadTrusted(path, limit) }

// Open opens a file to write, of mode 0600 where it is made.
func (OS) Open(path string, create bool) (File, error) {
	flags := os.O_WRONLY
	if create {
		flags |= os.O_CREATE | os.O_TRUNC
	}
	return os.OpenFile(path, flags, 0o600)
}

// Rename is [os.Rename].
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Remove is [os.Remove].
func (OS) Remove(path string) error { return os.Remove(path) }

// SyncDir is [SyncDir].
func (OS) SyncDir(dir string) error { return SyncDir(dir) }

// Replace puts data into path so that after a crash the file is the old one or the
// new one. kept says that after an error the old one is there for certain, and what was
// open of it still writes to it. The file beside it, path and ".new", is one's own.
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
