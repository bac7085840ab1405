package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/watchword-iot/watchword"
)

// A file is believed where its content decides what this process does: configuration, keys, trust anchors, memory. Whoever can
// write to it, or put another in its place, decides then. So each is read through this file, which wants of it that
//
//   - it belongs to the user of this process (the effective user id) or to root; where root runs, to root alone,
//   - no group but the user's own and nobody else may write to it, and where it is private, no group and nobody else read it,
//   - every folder on the way to it belongs to these too, and others may not write there, unless its sticky bit keeps them from
//     what is not theirs; in the folder of a file neither may a group,
//   - every symbolic link on the way belongs to these too.
//
// The way is checked from the root on and before the file is opened, and the file again by its descriptor: nobody who is not
// trusted can change a way that holds. On Windows nothing of this is checked: who may write is a matter of access control
// lists there, which Go does not read.

// Modes that a file or folder must not have.
const (
	writableByOthers   = 0o022
	accessibleByOthers = 0o077 // or write
)

// MaxPrivate is the longest private file, in bytes.
const MaxPrivate = 64 << 10

// ReadPrivate reads a believed file that nobody but its owner may read or write, up to [MaxPrivate]. Codes: key_exposed for
// its mode, file_untrusted, too_large; what else the system says, as that there is no such file.
func ReadPrivate(path string) ([]byte, error) { return read(path, accessibleByOthers, MaxPrivate) }

// ReadTrusted reads a believed file of at most so many bytes. Codes: file_untrusted, too_large; what else the system says.
func ReadTrusted(path string, limit int64) ([]byte, error) {
	return read(path, writableByOthers, limit)
}

// CheckFile checks a believed file that something else will open. Codes: file_untrusted; what else the system says.
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
		return nil, watchword.Refuse(watchword.TooLarge, "%s is over %d bytes", path, limit)
	}
	return b, err
}

// open opens a believed file. What is no file but a pipe, as a shell's <(…), has no place in a folder: only its owner counts.
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
		err = watchword.Refuse(watchword.FileUntrusted, "%s is a folder, not a file", path)
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

// EnsureFolder makes a folder (0700) whose files are believed, or checks it where it is there: as a believed file, and that it is a
// folder. If private, nobody else may enter it. Nothing is made where anything is wrong. Codes: key_exposed for the mode of a
// private one, file_untrusted; what else the system says.
func EnsureFolder(path string, private bool) error {
	err := CheckFolder(path, private)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if above := filepath.Dir(abs); above != abs { // what is above is made the same way, under a way that holds
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

// CheckFolder is [EnsureFolder] for a folder that must be there.
func CheckFolder(path string, private bool) error {
	if err := checkPath(path, 0o002); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return watchword.Refuse(watchword.FileUntrusted, "%s is no folder", path)
	}
	forbidden := fs.FileMode(writableByOthers)
	if private {
		forbidden = accessibleByOthers
	}
	return checkEntry(path, info, forbidden)
}
