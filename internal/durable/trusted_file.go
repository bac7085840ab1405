package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/watchword-iot/watchword"
)

// A trusted file is one whose content decides what this process does: configuration, keys, trust anchors, state. A user
// that can write to it or replace it controls the process. All such files are read by the functions of this file, which
// require that
//
//   - the file belongs to the effective user of this process or to root; where root runs, to root alone,
//   - no other user and no group but the user's own can write to it, and none can read it if it is private,
//   - every folder on its path belongs to these users too and is not writable by others, unless it has the sticky bit; the
//     folder of the file is not writable by a group either,
//   - every symbolic link on the path belongs to these users too.
//
// The path is checked from the root before the file is opened, and the file again by its
// descriptor; users that are not
// trusted cannot change a path that passed. On Windows nothing of this is checked, since access
// control lists decide there,
// which the Go standard library does not read.

// Permission bits that a file or folder must not have.
const (
	writableByOthers   = 0o022
	accessibleByOthers = 0o077 // or writable
)

// MaxPrivate is the largest private file, in bytes.
const MaxPrivate = 64 << 10

// ReadPrivate reads a trusted file that only its owner may read or write, of at most [MaxPrivate]
// bytes. Codes: key_exposed for its mode, file_untrusted, too_large; otherwise the error of the
// system, such as [fs.ErrNotExist].
func ReadPrivate(path string) ([]byte, error) { return read(path, accessibleByOthers, MaxPrivate) }

// ReadTrusted reads a trusted file of at most so many bytes. Codes: file_untrusted, too_large;
// otherwise the error of the system.
func ReadTrusted(path string, limit int64) ([]byte, error) {
	return read(path, writableByOthers, limit)
}

// CheckPrivate is [CheckFile] for a private file. Codes: key_exposed for its mode, file_untrusted; otherwise the error of the system.
func CheckPrivate(path string) error {
	f, err := open(path, accessibleByOthers)
	if err != nil {
		return err
	}
	return f.Close()
}

// CheckFile checks a trusted file that other code will open. Codes: file_untrusted; otherwise the
// error of the system.
func CheckFile(path string) error {
	f, err := open(path, writableByOthers)
	if err != nil {
		return err
	}
	return f.Close()
}

func read(path string, forbidden fs.FileMode, limit int64) (_ []byte, err error) {
	f, err := open(path, forbidden)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		return nil, watchword.Refuse(watchword.TooLarge, "%s must have at most %d bytes", path, limit)
	}
	return b, err
}

// open opens a trusted file. A pipe, such as a shell's <(…), is in no folder: only its owner is
// checked.
func open(path string, forbidden fs.FileMode) (*os.File, error) {
	way := checkPath(path, writableByOthers)
	if watchword.CodeOf(way) == watchword.FileUntrusted {
		return nil, way
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.IsDir():
		err = watchword.Refuse(watchword.FileUntrusted, "%s is a directory, not a file", path)
	case info.Mode().IsRegular() && way != nil:
		err = way
	default:
		err = checkEntry(path, info, forbidden)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// EnsureFolder creates a folder (mode 0700) for trusted files, or checks an existing one in the
// same way as a trusted file. If private, no other user may enter it. Nothing is created if a check
// fails. Codes: key_exposed for the mode of a private folder, file_untrusted; otherwise the error
// of the system.
func EnsureFolder(path string, private bool) error {
	err := CheckFolder(path, private)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if above := filepath.Dir(abs); above != abs { // parent folders are created the same way
		if _, err := os.Stat(above); errors.Is(err, fs.ErrNotExist) {
			if err := EnsureFolder(above, false); err != nil {
				return err
			}
		}
	}
	if err := os.Mkdir(abs, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return CheckFolder(path, private)
}

// CheckFolder is [EnsureFolder] for a folder that must exist.
func CheckFolder(path string, private bool) error {
	if err := checkPath(path, 0o002); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return watchword.Refuse(watchword.FileUntrusted, "%s is not a directory", path)
	}
	forbidden := fs.FileMode(writableByOthers)
	if private {
		forbidden = accessibleByOthers
	}
	return checkEntry(path, info, forbidden)
}
