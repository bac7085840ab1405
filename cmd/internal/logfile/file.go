// Package logfile writes the process log to a file that logrotate may rename while the process runs: [File.Use] opens it again.
package logfile

import (
	"io"
	"os"
	"sync"

	"github.com/watchword-iot/watchword/internal/durable"
)

// mode is that of a new log file: the group may read it.
const mode = 0o640

// File is an [io.Writer]. Where no file is in use, and where the file cannot be written, lines go to the fallback. It is safe for
// concurrent use.
type File struct {
	fallback io.Writer

	mu   sync.Mutex
	path string
	f    *os.File // nil: the fallback is in use
}

// New returns a File without a file: lines go to the fallback.
func New(fallback io.Writer) *File { return &File{fallback: fallback} }

// Use opens a file for appending, creates it where it does not exist, and closes the one that was in use. The same path opens the
// file again. An empty path means the fallback. On an error what was in use stays in use. Codes: those of [durable.OpenAppend].
func (l *File) Use(path string) error {
	var f *os.File
	if path != "" {
		var err error
		if f, err = durable.OpenAppend(path, mode); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.f
	l.path, l.f = path, f
	if old != nil {
		return old.Close()
	}
	return nil
}

// Path returns the path of the file in use; empty for none.
func (l *File) Path() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.path
}

// Write appends p. If the file does not take all of it, as on a full disk, all of it goes to the fallback.
func (l *File) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return l.fallback.Write(p)
	}
	if n, err := l.f.Write(p); err == nil {
		return n, nil
	}
	return l.fallback.Write(p)
}
