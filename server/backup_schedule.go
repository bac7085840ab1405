package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/server/audit"
)

// backupRetry is how long the server waits after a scheduled backup that failed.
const backupRetry = 5 * time.Minute

// scheduleBackups makes backups by schedule until ctx ends.
func (s *Server) scheduleBackups(ctx context.Context) error {
	every := s.cfg.Backup.Every.Duration
	if every == 0 {
		return nil
	}
	tick := time.NewTicker(min(every, time.Minute)) // short, since the wall clock may step
	defer tick.Stop()
	var failed time.Time
	for {
		now := s.o.Now()
		last, made := s.ownBackups().last(true)
		due := !made || !now.Before(last.Made.Add(every)) || last.Made.After(now.Add(every))
		if due && (failed.IsZero() || now.Sub(failed).Abs() >= min(every, backupRetry)) {
			failed = time.Time{}
			if err := s.scheduledBackup(ctx); err != nil && ctx.Err() == nil {
				failed = now
				s.backups.failures.Add(1)
				s.o.Log.ErrorContext(ctx, "the scheduled backup was not made", slog.Time("last", last.Made), slog.Any("err", err))
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// backupName is the name of a scheduled backup.
func backupName(at time.Time) string {
	return "watchword-" + at.UTC().Format("20060102T150405.000Z") + ".backup"
}

// scheduledBackup makes one, and deletes those that are older than the newest backup.keep.
func (s *Server) scheduledBackup(ctx context.Context) (err error) {
	defer func() { s.backups.setScheduled(err) }()
	s.backups.busy.Lock()
	defer s.backups.busy.Unlock()
	recipients, err := BackupKey{}.recipients(s.cfg)
	if err != nil {
		return err
	}
	// It is not created: on the mount point of a disk that is not mounted, backups would be on this disk.
	if info, err := os.Stat(s.cfg.Backup.Dir); err != nil || !info.IsDir() {
		return watchword.Wrap(err, watchword.Unavailable, "backup.dir %s is not a folder that exists", s.cfg.Backup.Dir)
	}
	if err := s.checkMarked("backup.dir", s.cfg.Backup.Dir); err != nil {
		return err
	}
	out := BackupFile{File: filepath.Join(s.cfg.Backup.Dir, backupName(s.o.Now()))}
	if err := s.beginWriting(out.File); err != nil {
		return err
	}
	err = durable.WriteStream(out.File, false, func(w io.Writer) error {
		made, err := s.makeBackup(ctx, w, recipients)
		out.Size, out.SHA256, out.Manifest = made.Size, made.SHA256, made.Manifest
		if err != nil {
			return err
		}
		return s.store.AddEntry(ctx, s.backupEntry(audit.Actor{Tenant: watchword.DefaultTenant}, out))
	})
	if err != nil {
		return fileError(err, out.File)
	}
	s.recordBackup(ctx, out, true)
	s.o.Log.InfoContext(ctx, "backup made", slog.String("file", out.File), slog.Int64("size", out.Size), slog.Int64("log_size", out.Manifest.Log.Size))
	s.deleteExpiredBackups(ctx)
	return nil
}

// beginWriting notes which file is being written, and removes what a process that was killed left of the one before.
func (s *Server) beginWriting(file string) error {
	s.backups.mu.Lock()
	defer s.backups.mu.Unlock()
	if old := s.backups.records.Writing; old != "" {
		if err := os.Remove(old + ".tmp"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	s.backups.records.Writing = file
	return s.backups.records.write(s.cfg.Data)
}

// deleteExpiredBackups deletes only files that the server made by schedule and that are as it wrote them.
func (s *Server) deleteExpiredBackups(ctx context.Context) {
	s.backups.mu.Lock()
	defer s.backups.mu.Unlock()
	r := &s.backups.records
	expired := map[string]bool{}
	for _, m := range r.expired(s.cfg.Backup.Keep, backupRecord.exists) {
		if m.exists() {
			if err := os.Remove(m.File); err != nil {
				s.o.Log.WarnContext(ctx, "an old backup was not deleted", slog.String("file", m.File), slog.Any("err", err))
				continue // it is tried again after the next backup
			}
		} else if _, err := os.Lstat(m.File); err == nil {
			s.o.Log.WarnContext(ctx, "an old backup was changed, and is not deleted", slog.String("file", m.File))
		}
		expired[m.File] = true
	}
	if len(expired) == 0 {
		return
	}
	var left []backupRecord
	for _, m := range r.Made {
		if !m.Scheduled || !expired[m.File] {
			left = append(left, m)
		}
	}
	r.Made = left
	if err := r.write(s.cfg.Data); err != nil {
		s.o.Log.ErrorContext(ctx, "the list of backups was not written", slog.Any("err", err))
	}
}

// setScheduled notes how the last scheduled backup ended.
func (b *backups) setScheduled(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.scheduled = err
}

// backupAge returns how long ago the last backup was made that is complete; ok is false if none was.
func (s *Server) backupAge() (age time.Duration, ok bool) {
	last, ok := s.ownBackups().last(false)
	return s.o.Now().Sub(last.Made), ok
}

// backupWarnings says what is wrong with backups and journal, for /readyz: the server serves nevertheless.
func (s *Server) backupWarnings() (out []string) {
	s.backups.mu.Lock()
	err := s.backups.scheduled
	s.backups.mu.Unlock()
	if err != nil {
		out = append(out, "the last scheduled backup failed: "+publicText(err))
	}
	if every := s.cfg.Backup.Every.Duration; every > 0 {
		if age, ok := s.backupAge(); ok && age > 2*every {
			out = append(out, fmt.Sprintf("the last backup was made %s ago", age.Round(time.Second)))
		}
	}
	if _, ok := s.backupAge(); !ok && s.keys.Restored() {
		out = append(out, "this server was restored, and no backup of it was made since: make one now")
	}
	out = append(out, s.journal.warnings()...)
	if lag := s.journal.lag(s.o.Now()); lag > journalLagWarning {
		out = append(out, fmt.Sprintf("the journal of backup.journal was not written for %s", lag.Round(time.Second)))
	}
	return out
}
