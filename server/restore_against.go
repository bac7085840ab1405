package server

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/server/backup"
)

// keptCheckpoint is a checkpoint of the old log that was kept elsewhere. Its signature is verified last: the source may have the key.
type keptCheckpoint struct {
	ledger.Checkpoint
	path string
	note []byte
}

// readKeptCheckpoints reads checkpoints: each path is a file with one, or a mirror of the log. Codes: not_found, log_invalid.
func readKeptCheckpoints(paths []string) (out []keptCheckpoint, err error) {
	for _, path := range paths {
		c := keptCheckpoint{path: path}
		if c.note, err = readKeptCheckpoint(path); err != nil {
			return nil, err
		}
		if c.Checkpoint, err = ledger.ReadCheckpoint(c.note); err != nil {
			return nil, watchword.Wrap(err, watchword.LogInvalid, "%s must be a checkpoint of the log, or a mirror of it: %s", path, err)
		}
		out = append(out, c)
	}
	return out, nil
}

func readKeptCheckpoint(path string) (note []byte, err error) {
	f, err := os.Open(filepath.Join(path, "checkpoint"))
	if errors.Is(err, syscall.ENOTDIR) { // not a mirror
		f, err = os.Open(path)
	}
	if err != nil {
		return nil, watchword.Wrap(err, watchword.NotFound, "%s cannot be read as a checkpoint or a mirror of the log", path)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(io.LimitReader(f, ledger.MaxNote+1))
}

// checkAgainst compares a source with checkpoints that were kept elsewhere: it must have the entries of each, and what a larger one proves
// is missing. Code: log_invalid for one that no log key signed which the backup or the source has, or that is of another log.
func (s *Server) checkAgainst(out *RestoreSource, m backup.Manifest, against []keptCheckpoint) error {
	known := max(out.To, out.signed)
	most := known
	for _, c := range against {
		if _, err := ledger.VerifyCheckpoint(c.note, s.keys.LogKeys()...); err != nil {
			return watchword.Wrap(err, watchword.LogInvalid, "the checkpoint %s is not signed by a log key that the backup or the source has", c.path)
		}
		if c.Origin != out.Origin { // of a server that was restored from the backup, it has another origin
			return watchword.Refuse(watchword.LogInvalid, "the checkpoint %s is of the log %s, and the source is of %s", c.path, c.Origin, out.Origin)
		}
		root, has := out.roots[c.Size]
		switch {
		case has && c.Size <= out.To && root != c.Root,
			c.Size == m.Log.Size && backup.NewLog(m.Log.Origin, c.Size, c.Root) != m.Log:
			return watchword.Refuse(watchword.LogInvalid, "the log does not have the %d entries of the checkpoint %s: it was rewritten, or is of another server", c.Size, c.path)
		}
		most = max(most, c.Size)
		out.Elsewhere = out.Elsewhere || out.Damage == "" && c.Size == out.To
		out.Confirmed = out.Confirmed || out.Elsewhere
	}
	out.Missing += most - known
	return nil
}
