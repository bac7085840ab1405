package server

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/backup"
	"github.com/watchword-iot/watchword/server/sqlite"
)

const (
	// journalEvery is how often the server looks for entries that the journal lacks.
	journalEvery = 100 * time.Millisecond
	// journalPage is the most entries of one record.
	journalPage = 256
	// journalIdle is how long entries that changed no authority wait for a record that covers them: by it a restore knows up to where
	// nothing is missing.
	journalIdle = 30 * time.Second

	journalLagWarning = 15 * time.Second
)

// journalRetry is how long the server waits after an error of the journal's disk. Tests shorten it.
var journalRetry = 5 * time.Second

// A journal that another process changes again and again is replaced at most journalsAtOnce times in journalPause, since each time makes
// a file. Tests shorten the pause.
const journalsAtOnce = 3

var journalPause = time.Minute

// journalRecordLimit is the most bytes of a record. Tests lower it.
var journalRecordLimit = backup.MaxRecord

// journalContext is the context of the key that authenticates journals ([keyring.Ring.DeriveSecret]).
const journalContext = "journal"

// journalKey returns the key of a server's journals, from the ring of its data folder or of one that was restored.
func journalKey(ring interface{ DeriveSecret(string) [32]byte }) []byte {
	k := ring.DeriveSecret(journalContext)
	return k[:]
}

// journalState is the journal of a running server. Only keepJournal changes it; the lock is for what others read.
type journalState struct {
	current *backup.Journal
	seen    int64     // the last entry that was looked at
	written time.Time // when a record was written last
	opened  bool      // the journals in the folder were looked at
	follows int64     // size of the log of the newest backup for which a journal was begun
	// restored and applied are what the journals of a restored server say of its log ([backup.JournalHead]); nil for another server.
	restored, applied *backup.Log
	forks             []backup.Fork // [backup.JournalHead]
	replaced          []time.Time   // when damaged journals were replaced, at most journalsAtOnce times

	mu       sync.Mutex
	complete time.Time // when the journal had all that it must have; zero: it is not kept, or did not begin
	faults   []string  // since the last backup, which an operator must know though the journal goes on
}

// fault notes what an operator must know of the journal, until the next backup.
func (j *journalState) fault(text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	const most = 8 // further ones are in the process log
	if len(j.faults) < most && !slices.Contains(j.faults, text) {
		j.faults = append(j.faults, text)
	}
}

func (j *journalState) clearFaults() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.faults = nil
}

// warnings returns the faults since the last backup.
func (j *journalState) warnings() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.faults)
}

// lag returns for how long the journal lacks what it must have; 0 where none is kept.
func (j *journalState) lag(now time.Time) time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.complete.IsZero() {
		return 0
	}
	return max(now.Sub(j.complete), 0)
}

func (j *journalState) setComplete(now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.complete = now
}

// keepJournal follows the log, and writes what changed authority since the last backup to the journal. It goes by the log and not by
// the acts, so that nothing is missing, and goes on at the journal's end after a crash. An error of its disk stops nothing else.
func (s *Server) keepJournal(ctx context.Context) error {
	if s.cfg.Backup.Journal == "" {
		return nil
	}
	s.journal.setComplete(s.o.Now())
	defer func() {
		if j := s.journal.current; j != nil {
			_ = j.Close() // each record was synced
		}
	}()
	tick := time.NewTicker(journalEvery)
	defer tick.Stop()
	var failed time.Time
	said := ""
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), journalRetry)
			defer cancel()
			if err := s.journalStep(last); err != nil {
				s.o.Log.ErrorContext(last, "the last entries are not in the journal before the next start", slog.Any("err", err))
			}
			return nil
		}
		if !failed.IsZero() && time.Since(failed) < journalRetry {
			continue
		}
		failed = time.Time{}
		err := s.journalStep(ctx)
		if err != nil && ctx.Err() == nil {
			failed = time.Now()
			if said != err.Error() { // once for each cause; /readyz and the metric go on saying it
				s.o.Log.ErrorContext(ctx, "the journal is not written: a restore would lose what changes from now on", slog.String("folder", s.cfg.Backup.Journal), slog.Any("err", err))
			}
			said = err.Error()
		} else if said != "" {
			s.o.Log.InfoContext(ctx, "the journal is written again")
			said = ""
		}
	}
}

// journalStep brings the journal up to date.
func (s *Server) journalStep(ctx context.Context) error {
	j := &s.journal
	if err := s.openJournal(ctx); err != nil {
		return err
	}
	if err := s.checkJournal(ctx); err != nil {
		return err
	}
	last, made := s.ownBackups().last(false)
	switch {
	case made && (j.current == nil || last.Log.Size > j.follows):
		return s.nextJournal(ctx, last)
	case j.current == nil && j.restored != nil: // the backup from which it was restored can be restored again
		return s.createJournal(backup.Log{Origin: s.keys.LogOrigin(), Size: j.restored.Size, Hash: j.restored.Hash})
	case j.current == nil: // it begins with the first backup
		j.setComplete(s.o.Now())
		return nil
	}
	return s.followLog(ctx)
}

// openJournal opens the newest journal in the folder, once.
func (s *Server) openJournal(ctx context.Context) error {
	j := &s.journal
	if j.opened {
		return nil
	}
	recipients, err := BackupKey{}.recipients(s.cfg)
	if err != nil {
		return err
	}
	if err := s.readRestoredLog(ctx); err != nil {
		return err
	}
	files, err := journalFiles(s.cfg.Backup.Journal)
	if err != nil {
		return err
	}
	for _, path := range slices.Backward(files) {
		found, err := backup.OpenJournal(path, journalKey(s.keys), recipients)
		if err != nil { // of another server, or damaged: a restore says so
			s.o.Log.WarnContext(ctx, "a journal is not continued", slog.String("file", path), slog.Any("err", err))
			continue
		}
		if found.Start.Origin != s.keys.LogSigner().Name() {
			if err := found.Close(); err != nil {
				return err
			}
			continue
		}
		has, err := s.hasLog(ctx, backup.Log{Size: found.To(), Hash: found.Root()})
		if err != nil {
			return errors.Join(err, found.Close())
		}
		if !has {
			if err := errors.Join(s.replaceJournal(ctx, files, found), found.Close()); err != nil {
				return err
			}
			break
		}
		found.Limit = journalRecordLimit
		j.current, j.seen, j.follows, j.forks = found, found.To(), found.Start.Size, found.Forks
		break
	}
	j.opened = true
	s.warnOfForks(files)
	return nil
}

// replaceJournal begins another journal in the place of one that follows another log than the one in the database: an older copy of the
// database was put back. It begins with the newest backup of this log that is known; without one, the next backup begins it.
func (s *Server) replaceJournal(ctx context.Context, files []string, found *backup.Journal) error {
	fork, err := s.findFork(ctx, files, found)
	if err != nil {
		return err
	}
	s.journal.forks = append(slices.Clone(found.Forks), fork)
	s.o.Log.ErrorContext(ctx, "the journal follows another log than the one in the database, of which an older copy was put back: another journal begins, and what was done after that copy was made is only in the old one",
		slog.String("file", found.Path()), slog.Int64("journal", found.To()), slog.Int64("common", fork.Common))
	start := found.Start
	if last, made := s.ownBackups().last(false); made {
		start = last.Log
	} else if has, err := s.hasLog(ctx, start); err != nil || !has {
		return err
	}
	if err := s.createJournal(start); err != nil {
		return err
	}
	s.journal.follows = start.Size
	return nil
}

// findFork returns where the log in the database parts from the one that a journal and those before it follow.
func (s *Server) findFork(ctx context.Context, files []string, found *backup.Journal) (fork backup.Fork, err error) {
	var marks []backup.Mark
	for _, path := range files {
		f, err := backup.ReadJournalFile(path, journalKey(s.keys))
		if err == nil && f.Start.Origin == found.Start.Origin && len(f.Forks) == len(found.Forks) { // others are not of this log
			marks = append(marks, f.Marks...)
		}
	}
	slices.SortFunc(marks, func(a, b backup.Mark) int { return cmp.Compare(a.Size, b.Size) })
	n := sort.Search(len(marks), func(i int) bool {
		has, herr := s.hasLog(ctx, backup.Log{Size: marks[i].Size, Hash: marks[i].Root})
		err = errors.Join(err, herr)
		return !has
	})
	fork.Parted = found.To()
	if n < len(marks) {
		fork.Parted = marks[n].Size
	}
	if n > 0 {
		fork.Common = marks[n-1].Size
	}
	return fork, err
}

// warnOfForks notes journals in the folder that go beyond where the log in the database parts from the one that they follow.
func (s *Server) warnOfForks(files []string) {
	if len(s.journal.forks) == 0 {
		return
	}
	for _, path := range files {
		if f, err := backup.ReadJournalFile(path, journalKey(s.keys)); err == nil { // others are not of this server
			s.warnOfFork(f)
		}
	}
}

func (s *Server) warnOfFork(f backup.JournalFile) {
	if f.Start.Origin == s.keys.LogOrigin() && f.To > backup.CommonAfter(s.journal.forks, len(f.Forks)) {
		s.journal.fault("the journal " + filepath.Base(f.Path) + " follows another log than the one in the database: an older copy of the database was put back, and what was done after that copy was made is only in that journal. A restore refuses it beside those of now: move it out of the folder of backup.journal, and make a backup")
	}
}

// readRestoredLog reads from the log of a restored server which log it continues.
func (s *Server) readRestoredLog(ctx context.Context) error {
	if !s.keys.Restored() {
		return nil
	}
	found, err := s.store.Find(ctx, audit.Query{Tenant: watchword.DefaultTenant, Kind: audit.LogRestore, Object: s.keys.LogOrigin()}, audit.Page{Newest: true, Limit: 1})
	if err != nil || len(found) == 0 || found[0].Pruned() {
		return err
	}
	e, err := found[0].Entry()
	if err != nil {
		return err
	}
	number := func(name string) int64 {
		n, _ := strconv.ParseInt(e.Data[name], 10, 64) // entries of earlier builds lack some
		return n
	}
	s.journal.restored = &backup.Log{Origin: e.Data["origin"], Size: number("size"), Hash: e.Data["root"]}
	if origin := e.Data["source_origin"]; origin != "" {
		s.journal.applied = &backup.Log{Origin: origin, Size: number("source_size")}
	}
	return nil
}

// checkJournal begins another journal in the place of one that is damaged: a crash cut off its last record, or another process
// removed, replaced or changed the file. It begins where that one began, since nothing in the file is certain, so that there is no gap.
// Code: unavailable where that happens too often, until a while later.
func (s *Server) checkJournal(ctx context.Context) error {
	j := s.journal.current
	if j == nil {
		return nil
	}
	err := j.Check()
	if err != nil && j.Damage == "" {
		return fileError(err, s.cfg.Backup.Journal)
	}
	if err == nil {
		return nil
	}
	now := time.Now()
	s.journal.replaced = slices.DeleteFunc(s.journal.replaced, func(at time.Time) bool { return now.Sub(at) >= journalPause })
	if len(s.journal.replaced) >= journalsAtOnce {
		return watchword.Wrap(err, watchword.Unavailable, "the journal %s was damaged (%s), and %d others within %s before: another one begins later; find out what changes files in the folder of backup.journal",
			j.Path(), j.Damage, journalsAtOnce, journalPause)
	}
	s.o.Log.ErrorContext(ctx, "the journal was damaged: another one begins where it began", slog.String("file", j.Path()), slog.String("damage", j.Damage))
	s.journal.fault("the journal " + filepath.Base(j.Path()) + " was damaged (" + j.Damage + "), and another one was begun: find out what changes files in the folder of backup.journal")
	if err := s.createJournal(j.Start); err != nil {
		return err
	}
	s.journal.replaced = append(s.journal.replaced, now)
	return nil
}

// journalFiles returns the journals in a folder, sorted by name, which is by time. It must exist.
func journalFiles(dir string) ([]string, error) {
	found, err := os.ReadDir(dir)
	if err != nil {
		return nil, watchword.Wrap(err, watchword.Unavailable, "backup.journal %s cannot be read", dir)
	}
	var out []string
	for _, e := range found {
		if e.Type().IsRegular() && filepath.Ext(e.Name()) == backup.JournalSuffix {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, nil
}

// createJournal begins a journal and closes the one before.
func (s *Server) createJournal(start backup.Log) error {
	recipients, err := BackupKey{}.recipients(s.cfg)
	if err != nil {
		return err
	}
	if err := s.checkMarked("backup.journal", s.cfg.Backup.Journal); err != nil {
		return err
	}
	now := s.o.Now()
	path := filepath.Join(s.cfg.Backup.Journal, "watchword-"+now.UTC().Format("20060102T150405.000Z")+backup.JournalSuffix)
	next, err := backup.CreateJournal(path, journalKey(s.keys), recipients, backup.JournalHead{
		Issuer: s.keys.Issuer(), Start: start, Made: now, Epoch: s.keys.Epoch(), Restored: s.journal.restored, Applied: s.journal.applied, Forks: s.journal.forks,
	})
	if err != nil {
		return fileError(err, path)
	}
	next.Limit = journalRecordLimit
	old := s.journal.current
	s.journal.current, s.journal.seen, s.journal.written = next, start.Size, now
	if old != nil {
		return old.Close()
	}
	return nil
}

// nextJournal begins the journal that follows a backup. The one before is completed first, so that an older backup can be restored with
// both. If that fails, the next one begins where that one ends, so that nothing is missing between them.
func (s *Server) nextJournal(ctx context.Context, b backupRecord) error {
	start := b.Log
	if old := s.journal.current; old != nil {
		err := s.followLog(ctx)
		if err == nil {
			err = s.coverSeen(ctx)
		}
		if err != nil {
			s.o.Log.WarnContext(ctx, "the journal before the backup cannot be completed: the next one begins where it ends", slog.String("file", old.Path()), slog.Any("err", err))
			if old.To() < start.Size {
				start = backup.Log{Origin: b.Log.Origin, Size: old.To()}
				if start.Hash, err = s.logRoot(ctx, start.Size); err != nil {
					return err
				}
			}
		}
	}
	if err := s.createJournal(start); err != nil {
		return err
	}
	s.journal.follows = b.Log.Size
	s.journal.clearFaults()
	if err := s.followLog(ctx); err != nil {
		return err
	}
	return s.deleteOldJournals(ctx)
}

// followLog writes records of all entries that were not looked at yet. Entries and rows are read in one transaction.
func (s *Server) followLog(ctx context.Context) (err error) {
	j := &s.journal
	tree, err := s.store.Tree(ctx)
	if err != nil {
		return err
	}
	now := s.o.Now()
	if tree.Size() > j.seen {
		if err := s.followSnapshot(ctx); err != nil {
			return err
		}
	}
	if now.Sub(j.written).Abs() >= journalIdle { // also in a log that never stops growing
		if err := s.coverSeen(ctx); err != nil {
			return err
		}
	}
	j.setComplete(now)
	return nil
}

// coverSeen writes a record of entries that changed no authority, if there are any.
func (s *Server) coverSeen(ctx context.Context) error {
	j := &s.journal
	if j.current.To() >= j.seen {
		return nil
	}
	return s.appendRecord(ctx, backup.Record{To: j.seen, At: s.o.Now()})
}

func (s *Server) appendRecord(ctx context.Context, r backup.Record) (err error) {
	if r.Root, err = s.logRoot(ctx, r.To); err != nil {
		return err
	}
	if err := s.journal.current.Append(r); err != nil {
		return fileError(err, s.cfg.Backup.Journal)
	}
	s.journal.written = r.At
	return nil
}

func (s *Server) followSnapshot(ctx context.Context) (err error) {
	j := &s.journal
	db, err := sqlite.OpenSnapshot(ctx, filepath.Join(s.cfg.Data, databaseFile))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	schema, err := db.Schema(ctx)
	if err != nil {
		return err
	}
	for page := journalPage; ; {
		r, err := journalRecord(ctx, db, j.seen, page)
		if err != nil {
			return err
		}
		if r.To == j.seen {
			return nil
		}
		r.Schema, r.At = schema, s.o.Now()
		if len(r.Objects) > 0 {
			err := s.appendRecord(ctx, r)
			if watchword.CodeOf(err) == watchword.TooLarge {
				if page > 1 {
					page /= 2
					continue
				}
				err = s.omitObjects(ctx, r, err)
			}
			if err != nil {
				return err
			}
		}
		j.seen, page = r.To, journalPage
	}
}

// omitObjects writes the record of one entry whose objects are too large, without them: a restore names them, and what follows is
// journaled.
func (s *Server) omitObjects(ctx context.Context, r backup.Record, why error) error {
	r = r.Omit()
	for _, ref := range r.Omitted {
		name := strings.TrimSpace(string(ref.Kind) + " " + ref.ID)
		s.o.Log.ErrorContext(ctx, "an object is too large for the journal: only a backup has its change", slog.String("object", name), slog.Int64("entry", r.To), slog.Any("err", why))
		s.journal.fault("the journal lacks a change of " + name + ", which is too large for it: make a backup")
	}
	return s.appendRecord(ctx, r)
}

// journalRecord makes the record of the next entries, at most page.
func journalRecord(ctx context.Context, db *sqlite.Snapshot, after int64, page int) (r backup.Record, err error) {
	entries, raw, to, err := db.JournalPage(ctx, after, page)
	if err != nil {
		return r, err
	}
	r.To = to
	done := map[backup.Ref]bool{}
	for i, e := range entries {
		refs, _ := backup.Changed(e) // a test holds that all kinds are known
		if len(refs) > 0 {
			r.Entries = append(r.Entries, raw[i])
		}
		for _, ref := range refs {
			if done[ref] {
				continue
			}
			done[ref] = true
			o, err := db.JournalObject(ctx, ref)
			if err != nil {
				return r, err
			}
			r.Objects = append(r.Objects, o)
		}
	}
	return r, nil
}

// deleteOldJournals deletes those that no backup needs which the server knows, and empty files. Of the others only files that
// this server wrote are deleted.
func (s *Server) deleteOldJournals(ctx context.Context) error {
	oldest := s.journal.current.Start.Size
	for _, m := range s.ownBackups().Made {
		oldest = min(oldest, m.Log.Size)
	}
	files, err := journalFiles(s.cfg.Backup.Journal)
	if err != nil {
		return err
	}
	for i := 0; i+1 < len(files); i++ {
		if filepath.Base(files[i]) >= filepath.Base(s.journal.current.Path()) {
			break
		}
		if info, err := os.Stat(files[i]); err == nil && info.Size() == 0 { // a crash ended its creation
			s.removeJournal(ctx, files[i])
			continue
		}
		old, err := backup.ReadJournalFile(files[i], journalKey(s.keys))
		if err != nil {
			continue // it was not written by this server
		}
		if old.To <= oldest && old.Start.Origin == s.journal.current.Start.Origin {
			s.removeJournal(ctx, files[i])
			continue
		}
		s.warnOfFork(old)
	}
	return nil
}

func (s *Server) removeJournal(ctx context.Context, path string) {
	if err := os.Remove(path); err != nil {
		s.o.Log.WarnContext(ctx, "an old journal was not deleted", slog.String("file", path), slog.Any("err", err))
	}
}
