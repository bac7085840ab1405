package server

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/server/backup"
)

// backupRecord is a backup that was made, as the file backups.json in the data folder has it.
type backupRecord struct {
	File      string     `json:"file"` // absolute path
	Size      int64      `json:"size"`
	SHA256    string     `json:"sha256"`
	Made      time.Time  `json:"made"`
	Scheduled bool       `json:"scheduled"` // made by schedule, so that the server may delete it
	Log       backup.Log `json:"log"`
	Schema    int64      `json:"schema,omitempty"` // of the database; 0 in records of builds that did not note it

	otherLog bool // the database does not continue the log of the backup: an older copy of it was put back
}

// backupRecords are the backups that a server knows, oldest first.
type backupRecords struct {
	Writing string         `json:"writing,omitempty"` // the file of a scheduled backup that is being written
	Made    []backupRecord `json:"made"`
	Marked  []string       `json:"marked,omitempty"` // the folders with a marker
}

// maxBackupRecords is the most bytes of the file.
const maxBackupRecords = 4 << 20

func readBackupRecords(dir string) (r backupRecords, err error) {
	b, err := durable.ReadTrusted(filepath.Join(dir, backupsFile), maxBackupRecords)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

func (r backupRecords) write(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, backupsFile), append(b, '\n'), 0o600)
}

// add returns the records with one more, without those manual ones that are older than the newest keep.
func (r backupRecords) add(n backupRecord, keep int) backupRecords {
	made := append(slices.Clone(r.Made), n)
	manual := 0
	for i, m := range slices.Backward(made) {
		if m.Scheduled {
			continue
		}
		if manual++; manual > keep {
			made = slices.Delete(made, i, i+1)
		}
	}
	return backupRecords{Made: made, Marked: r.Marked}
}

// last returns the newest record; scheduled says that only those count.
func (r backupRecords) last(scheduled bool) (backupRecord, bool) {
	for _, m := range slices.Backward(r.Made) {
		if m.Scheduled || !scheduled {
			return m, true
		}
	}
	return backupRecord{}, false
}

// newestOf returns the newest record of a backup that exists and whose schema is at most that one.
func (r backupRecords) newestOf(schema int64, exists func(backupRecord) bool) (backupRecord, bool) {
	for _, m := range slices.Backward(r.Made) {
		if m.Schema <= schema && exists(m) {
			return m, true
		}
	}
	return backupRecord{}, false
}

// exists reports whether the file is still there, as it was written.
func (m backupRecord) exists() bool {
	info, err := os.Lstat(m.File)
	return err == nil && info.Mode().IsRegular() && info.Size() == m.Size
}

// expired returns the scheduled backups that may be deleted: those older than keep newer ones that are still there, so the only good
// one is never among them.
func (r backupRecords) expired(keep int, exists func(backupRecord) bool) (out []backupRecord) {
	newer := 0
	for _, m := range slices.Backward(r.Made) {
		if !m.Scheduled {
			continue
		}
		if newer >= keep {
			out = append(out, m)
		} else if exists(m) {
			newer++
		}
	}
	return out
}

// recordBackup notes a backup that is complete. An error loses only the note.
func (s *Server) recordBackup(ctx context.Context, f BackupFile, scheduled bool) {
	m := f.Manifest
	s.backups.mu.Lock()
	defer s.backups.mu.Unlock()
	s.backups.records = s.backups.records.add(backupRecord{File: f.File, Size: f.Size, SHA256: f.SHA256, Made: m.Made, Scheduled: scheduled, Log: m.Log, Schema: m.Schema}, max(s.cfg.Backup.Keep, 2))
	if err := s.backups.records.write(s.cfg.Data); err != nil {
		s.o.Log.ErrorContext(ctx, "the list of backups was not written", slog.Any("err", err))
	}
}

// openBackupRecords reads the list at a start.
func (s *Server) openBackupRecords(ctx context.Context) {
	r, err := readBackupRecords(s.cfg.Data)
	if err != nil {
		s.o.Log.ErrorContext(ctx, "the list of backups cannot be read: no backup of before is deleted", slog.Any("err", err))
	}
	s.backups.records = r
}

// checkBackupRecords notes which backups are of another log than the one in the database. The store is open.
func (s *Server) checkBackupRecords(ctx context.Context) error {
	s.backups.mu.Lock()
	defer s.backups.mu.Unlock()
	for i, m := range s.backups.records.Made {
		if m.Log.Origin != s.keys.LogOrigin() {
			continue
		}
		has, err := s.hasLog(ctx, m.Log)
		if err != nil {
			return err
		}
		if s.backups.records.Made[i].otherLog = !has; !has {
			s.o.Log.WarnContext(ctx, "the log of a backup is not the one in the database: an older copy of the database was put back", slog.String("file", m.File), slog.Int64("log_size", m.Log.Size))
		}
	}
	return nil
}

// hasLog reports whether the server's log begins with another one. Without a hash, as in journals of format 1, the size alone counts.
func (s *Server) hasLog(ctx context.Context, l backup.Log) (bool, error) {
	tree, err := s.store.Tree(ctx)
	if err != nil || l.Size > tree.Size() {
		return false, err
	}
	if l.Hash == "" {
		return true, nil
	}
	root, err := s.logRoot(ctx, l.Size)
	return root == l.Hash, err
}

// logRoot returns the base64 of the root hash of the server's log at a size that it has or had.
func (s *Server) logRoot(ctx context.Context, size int64) (string, error) {
	tree, err := ledger.TreeAt(size, func(level int, n int64, width int) ([]byte, error) { return s.store.Tile(ctx, level, n, width) })
	if err != nil {
		return "", err
	}
	return backup.NewLog("", size, tree.Root()).Hash, nil
}

// ownBackups returns the records of backups of the server's log: those of before a restore are of another server, and those of
// before an older copy of the database was put back may be of another log.
func (s *Server) ownBackups() (own backupRecords) {
	s.backups.mu.Lock()
	defer s.backups.mu.Unlock()
	for _, m := range s.backups.records.Made {
		if m.Log.Origin == s.keys.LogOrigin() && !m.otherLog {
			own.Made = append(own.Made, m)
		}
	}
	return own
}
