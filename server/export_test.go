package server

import (
	"context"
	"io"
	"slices"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/keyring"
)

// Beside has part run beside the server's own parts, with a context that ends when the server stops. add writes an entry.
func (s *Server) Beside(part func(ctx context.Context, add func(audit.Entry) error) error) {
	s.background = append(s.background, func(ctx context.Context) error {
		return part(ctx, func(e audit.Entry) error { return s.store.AddEntry(context.WithoutCancel(ctx), e) })
	})
}

// MakeBackup writes a backup to w, as the control socket does.
func (s *Server) MakeBackup(ctx context.Context, w io.Writer, r age.Recipient) (BackupFile, error) {
	return s.makeBackup(ctx, w, []age.Recipient{r})
}

// SignLog signs a checkpoint now.
func (s *Server) SignLog(ctx context.Context) error {
	_, _, err := s.checkpoints.CheckpointNow(ctx)
	return err
}

// JournalKey returns the key of the server's journals.
func (s *Server) JournalKey() []byte { return journalKey(s.keys) }

// SetJournalRetry shortens a wait for one test.
func SetJournalRetry(t interface{ Cleanup(func()) }, d time.Duration) {
	before := journalRetry
	journalRetry = d
	t.Cleanup(func() { journalRetry = before })
}

// Expired returns the files of scheduled backups that may be deleted. Those that begin with "m" are manual, and those in gone do not
// exist.
func Expired(keep int, gone []string, files ...string) (out []string) {
	var r backupRecords
	for _, f := range files {
		r.Made = append(r.Made, backupRecord{File: f, Scheduled: f[0] != 'm'})
	}
	for _, m := range r.expired(keep, func(m backupRecord) bool { return !slices.Contains(gone, m.File) }) {
		out = append(out, m.File)
	}
	return out
}

// Close releases what New opened.
func (s *Server) Close() { s.close() }

// WatchAddress is what maintenance does about former addresses at a time. Maintenance begins a minute after the start.
func (s *Server) WatchAddress(ctx context.Context, now time.Time) error {
	return s.watchAddress(ctx, now)
}

// AskBackup has the server of a data folder write a backup to w.
func AskBackup(ctx context.Context, dir string, w io.Writer, key BackupKey) error {
	_, err := askBackup(ctx, dir, newHashed(w), "b", key)
	return fileError(err, "b")
}

// NextEpoch returns the epoch of a restore at a time.
func NextEpoch(known, least int64, now time.Time) int64 { return nextEpoch(known, least, now) }

// SetJournalPause shortens a wait for one test.
func SetJournalPause(t interface{ Cleanup(func()) }, d time.Duration) {
	before := journalPause
	journalPause = d
	t.Cleanup(func() { journalPause = before })
}

// SetJournalRecordLimit lowers the most bytes of a record for one test.
func SetJournalRecordLimit(t interface{ Cleanup(func()) }, n int) {
	before := journalRecordLimit
	journalRecordLimit = n
	t.Cleanup(func() { journalRecordLimit = before })
}

// WritePlan writes a plan for an offline root.
func WritePlan(path string) error { return writePlan(path, &keyring.PlannedBundle{}) }
