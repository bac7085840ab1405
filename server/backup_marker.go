package server

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

// markerFile is a file that the server writes to the folders of its backups and of its journal. Where it was and is missing, the
// folder is the mount point of a disk that is not mounted, and what is written there is on the wrong disk.
const (
	markerFile = "watchword-disk.txt"
	markerText = "Watchword writes backups or a journal to this folder. Where this file is missing it does not: the disk may not be mounted.\n"
)

// checkMarked refuses a folder that had the marker and has none, and writes the marker to one that the server uses for the first time.
// Code: unavailable.
func (s *Server) checkMarked(setting, dir string) error {
	s.backups.mu.Lock()
	defer s.backups.mu.Unlock()
	r := &s.backups.records
	path := filepath.Join(dir, markerFile)
	_, err := os.Lstat(path)
	known := slices.Contains(r.Marked, dir)
	switch {
	case err == nil && known:
		return nil
	case errors.Is(err, fs.ErrNotExist) && known:
		return watchword.Wrap(err, watchword.Unavailable, "%s %s has no file %s, which this server wrote there: is its disk mounted? If it is, create that file", setting, dir, markerFile)
	case errors.Is(err, fs.ErrNotExist):
		err = durable.WriteFile(path, []byte(markerText), 0o600)
	}
	if err != nil {
		return fileError(err, path)
	}
	r.Marked = append(r.Marked, dir)
	return r.write(s.cfg.Data)
}
