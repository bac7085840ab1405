package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/sqlite"
)

// backupBefore returns the newest backup that is still where it was written and that a build of a schema can restore.
func (s *Server) backupBefore(ctx context.Context, schema int64) (backupRecord, bool) {
	r, err := readBackupRecords(s.cfg.Data)
	if err != nil {
		s.o.Log.ErrorContext(ctx, "the list of backups cannot be read", slog.Any("err", err))
		return backupRecord{}, false
	}
	return r.newestOf(schema, backupRecord.exists)
}

// logUpgrade says how one can go back to the earlier build.
func (s *Server) logUpgrade(ctx context.Context, u *sqlite.Upgrade) {
	attrs := []any{slog.Int64("from_schema", u.From), slog.Int64("schema", u.To), slog.String("copy", u.Copy)}
	if b, ok := s.backupBefore(ctx, u.From); ok {
		attrs = append(attrs, slog.String("backup", b.File), slog.Time("backup_made", b.Made.UTC()))
	} else {
		attrs = append(attrs, slog.String("backup", "none"))
	}
	s.o.Log.WarnContext(ctx, "the data folder was upgraded; to go back to the earlier build, use the copy or restore the backup (docs/operations.md, Upgrades)", attrs...)
	if u.Others != nil {
		s.o.Log.WarnContext(ctx, "copies from before earlier upgrades remain", slog.Any("err", u.Others))
	}
}

// withBackup adds to the refusal of a folder that another build upgraded the backup that this one can restore.
func (s *Server) withBackup(ctx context.Context, err error) error {
	ours, is := errors.AsType[*watchword.Error](err)
	if !is || ours.Code != watchword.FolderNewer {
		return err
	}
	own, verr := sqlite.SchemaVersion()
	if verr != nil {
		return errors.Join(err, verr)
	}
	b, ok := s.backupBefore(ctx, own)
	if !ok {
		return err
	}
	out := *ours
	out.Detail += fmt.Sprintf("; the newest backup that this build can restore is %s, made %s", b.File, b.Made.UTC().Format(time.RFC3339))
	return &out
}
