package server

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
)

// runningFile is in the data folder while its database is open. If it is there at a start, the last end was not clean; then SQLite's
// write-ahead log must be there too, with the last writes.
const runningFile = "running"

// checkWriteAheadLog looks for the write-ahead log before the database is opened. A copy of the folder that was made while the server ran
// may lack it. If log.checkpoint is there, it says whether the audit log lost entries (startLogSigning refuses that), so at most what was
// written after the last checkpoint is lost: that is a warning. Without that file nothing is known of the loss. Code: log_invalid.
func (s *Server) checkWriteAheadLog(ctx context.Context) error {
	in := func(name string) string { return filepath.Join(s.cfg.Data, name) }
	if !lacksWriteAheadLog(s.cfg.Data) {
		return nil
	}
	s.walMissing = true
	if !exists(in(checkpointFile)) {
		return watchword.Refuse(watchword.LogInvalid, "the last server on %s did not end cleanly, and %s-wal, with its last writes, is missing, as is %s, which would show how much is lost: put them back, or restore a backup, or remove %s to start with what is there",
			s.cfg.Data, databaseFile, checkpointFile, in(runningFile))
	}
	s.o.Log.ErrorContext(ctx, "the last server did not end cleanly, and the write-ahead log with its last writes is missing: changes after the last checkpoint of the log may be lost, such as a revocation",
		slog.String("missing", in(databaseFile+"-wal")))
	return nil
}

// lacksWriteAheadLog reports whether the last end on a data folder was not clean, and the write-ahead log of then is not there.
func lacksWriteAheadLog(dir string) bool {
	in := func(name string) string { return filepath.Join(dir, name) }
	return exists(in(runningFile)) && exists(in(databaseFile)) && !exists(in(databaseFile+"-wal"))
}

// markRunning marks the folder as open.
func (s *Server) markRunning() error {
	text := strconv.Itoa(os.Getpid()) + " " + time.Now().UTC().Format(time.RFC3339) + "\n"
	err := durable.WriteFile(filepath.Join(s.cfg.Data, runningFile), []byte(text), 0o600)
	s.running = err == nil
	return err
}

// unmarkRunning removes the mark, once the database was closed.
func (s *Server) unmarkRunning() {
	if !s.running {
		return
	}
	s.running = false
	if err := os.Remove(filepath.Join(s.cfg.Data, runningFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.o.Log.Warn("the mark of a running server was not removed", slog.Any("err", err))
	}
}

// reportMissing says which other files of the folder are missing: the server works without them.
func (s *Server) reportMissing(ctx context.Context) error {
	last, err := s.store.LastCheckpoint(ctx)
	if err != nil {
		return err
	}
	if last.Size > 0 && !exists(filepath.Join(s.cfg.Data, checkpointFile)) {
		s.o.Log.WarnContext(ctx, "log.checkpoint is missing: nothing but the database itself shows whether the audit log lost entries; compare it with a checkpoint or a mirror from elsewhere (watchword audit verify --against)",
			slog.Int64("checkpoint", last.Size))
	}
	if !exists(filepath.Join(s.cfg.Data, operatorFile)) {
		s.o.Log.InfoContext(ctx, "operator.jwk is not in the data folder: commands on this machine have no key, unless it was moved to an operator's machine; if it is lost, watchword operator recover makes a link for a new owner")
	}
	return nil
}
