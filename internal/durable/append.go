package durable

import (
	"errors"
	"io/fs"
	"os"
)

// OpenAppend opens a file for appending, and creates it with a mode where it does not exist. The file and its folder are checked
// as those of a trusted file, so that no other user can have this process write to another file. Codes: file_untrusted; otherwise
// the error of the system.
func OpenAppend(path string, mode fs.FileMode) (*os.File, error) {
	way := checkPath(path, writableByOthers)
	if way != nil && !errors.Is(way, fs.ErrNotExist) {
		return nil, way
	}
	flags := os.O_APPEND | os.O_CREATE | os.O_WRONLY
	if way != nil {
		flags |= os.O_EXCL // its folder was checked; a link that leads nowhere is not followed
	}
	f, err := os.OpenFile(path, flags, mode)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = checkEntry(path, info, writableByOthers)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
