package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/backup"
	"github.com/watchword-iot/watchword/server/enroll"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/registry"
	"github.com/watchword-iot/watchword/server/sqlite"
)

// SourceKind is the kind of what a restore reads the changes after a backup from.
type SourceKind string

// The kinds of sources. A checkpoint or a mirror has only the number of entries.
const (
	NoSource         SourceKind = "none"
	FolderSource     SourceKind = "folder"
	JournalSource    SourceKind = "journal"
	ExportSource     SourceKind = "export"
	CheckpointSource SourceKind = "checkpoint"
)

// RestoreSource is what a source has of the log after a backup.
type RestoreSource struct {
	Kind    SourceKind
	Origin  string        // of the log that the source has
	To      int64         // the last entry that the source has or proves; the size of the backup's log without a source
	Missing int64         // entries after the backup that the source proves and whose content it does not have
	Damage  string        // why entries after To cannot be read; empty: there are none known
	Replay  []audit.Entry // changes of authority after the backup, to be applied again
	Journal []audit.Entry // likewise, whose rows were copied from journals, or from the old folder those of the server's keys and addresses
	Lost    []audit.Entry // changes of the server's root, TLS authority and addresses after the backup whose rows the source does not have
	Epoch   int64         // of the old data folder; 0: not known
	Omitted []backup.Ref  // objects that changed after the backup and were too large for the journal
	// Unproved are changes of authority after the last checkpoint that a log key of the newest trust bundle signed: a user who can write to the
	// old folder can have added them. Only those that take authority away from a subject are in Replay too.
	Unproved []audit.Entry
	// Until is when the last entry was made that the source has; what follows it is not known, unless Confirmed: then a signed checkpoint, from
	// elsewhere (Elsewhere) or in the old folder, is of exactly the last entry. That in the folder is as old as the copy of the folder.
	Until                time.Time
	Confirmed, Elsewhere bool
	// Notices are those of acts after the backup that were not acknowledged, as far as the source says so: a journal does not.
	Notices []watchword.Notice
	// Warnings are what was passed over and has nothing that could be lost.
	Warnings []string

	signed int64                 // entries that the checkpoint in the old folder counts
	proved bool                  // a log key of the newest bundle signed that checkpoint
	roots  map[int64]ledger.Hash // of the log in the source, at the sizes of the checkpoints that it must extend
}

// checkLoss returns an error if something is lost, or may be, and the operator did not accept that. Code: conflict.
func (f RestoreSource) checkLoss(accepted bool) error {
	if accepted {
		return nil
	}
	const how = "; find the old data folder or an export of its log and name it with --log, or accept the loss with --accept-loss"
	const what = "subjects that were revoked or suspended after the backup act again, keys that were replaced are valid again, and policies and labels are those of the backup"
	switch {
	case f.Kind == NoSource, f.Kind == CheckpointSource && f.Missing == 0: // an old checkpoint is not one of the end
		return watchword.Refuse(watchword.Conflict, "what was done after the backup is not known: %s%s", what, how)
	case len(f.Unproved) > 0:
		return watchword.Refuse(watchword.Conflict, "%d changes of authority at the end of the log are in no checkpoint that a log key of the newest trust bundle signed, so a user who can write to the old folder can have added them: %s; name the newest checkpoint from a mirror or a witness with --against, or accept with --accept-loss that only those of them that revoke, suspend or delete are applied", len(f.Unproved), listEntries(f.Unproved))
	case f.Damage != "":
		return watchword.Refuse(watchword.Conflict, "the log is readable up to entry %d (%s), and what was done after it is not known: %s%s", f.To, f.Damage, what, how)
	case len(f.Omitted) > 0:
		var list []string
		for _, ref := range f.Omitted[:min(len(f.Omitted), mostListed)] {
			list = append(list, fmt.Sprintf("%s %s", ref.Kind, ref.ID))
		}
		return watchword.Refuse(watchword.Conflict, "%d objects were changed after the backup and are too large for the journal, so they would be as in the backup: %s; find the old data folder, or accept the loss with --accept-loss", len(f.Omitted), strings.Join(list, "; "))
	case f.Missing > 0:
		return watchword.Refuse(watchword.Conflict, "%d entries of the log after the backup are known to be missing, and not what they are: %s%s", f.Missing, what, how)
	case len(f.Lost) > 0:
		return watchword.Refuse(watchword.Conflict, "%d changes of the server's own keys or addresses after the backup would be lost, so that a root or TLS authority that was revoked, or a former address, is the current one again: %s; name the old data folder or the journals with --log, which have them, or accept the loss with --accept-loss", len(f.Lost), listEntries(f.Lost))
	case !f.Confirmed && !f.proved && f.Kind != JournalSource: // a journal and the checkpoint of a folder are written until the end
		return watchword.Refuse(watchword.Conflict, "the %s ends with entry %d, of %s, and no checkpoint shows that it was the last one: what was done after it is not known: %s; name the newest checkpoint from a mirror or a witness with --against, or accept the loss with --accept-loss", f.Kind, f.To, f.Until.UTC().Format(time.RFC3339), what)
	}
	return nil
}

// LeftOut returns the entries of Unproved that are not applied.
func (f RestoreSource) LeftOut() []audit.Entry {
	return slices.DeleteFunc(slices.Clone(f.Unproved), restrictsSubject)
}

func listEntries(es []audit.Entry) string {
	var list []string
	for _, e := range es[:min(len(es), mostListed)] {
		list = append(list, strings.Join(strings.Fields(fmt.Sprintf("%s %s %s (entry %d)", e.Kind, e.Data["role"], e.Object, e.Seq)), " "))
	}
	return strings.Join(list, "; ")
}

// mostListed is the most entries that an error lists.
const mostListed = 20

// outlastsRestore reports whether an act changed authority that a restore does not end anyway: it ends tokens and links, and signs
// a bundle.
func outlastsRestore(e audit.Entry) bool {
	refs, _ := backup.Changed(e)
	if len(refs) == 0 {
		return false
	}
	switch audit.KindOfDevice(e.Kind) {
	case audit.ServerStart, audit.BundleSign, audit.LogRestore, audit.TokenRevoke, audit.DeviceLink, audit.OperatorRecover:
		return false
	}
	return true
}

// lostWithoutRows reports whether an act is lost in a restore that has its entry and not the rows that it changed.
func lostWithoutRows(e audit.Entry) bool {
	if !outlastsRestore(e) || registry.Replayable(e) {
		return false
	}
	switch e.Kind {
	case audit.KeyCreate, audit.KeyActivate, audit.KeyRetire, audit.KeyErase, audit.KeyRevoke, audit.KeyMove:
		return !keyring.RestoreReplaces(keyring.Role(e.Data["role"]))
	}
	return true
}

// readSource reads what was done after the backup that is open in s, and compares it with the checkpoints of o.Against.
func (s *Server) readSource(ctx context.Context, o RestoreOptions, m backup.Manifest) (RestoreSource, error) {
	against, err := readKeptCheckpoints(o.Against)
	if err != nil {
		return RestoreSource{}, err
	}
	out, err := s.readChanges(ctx, o, m, against)
	if err != nil {
		return out, err
	}
	return out, s.checkAgainst(&out, m, against)
}

// readChanges reads o.Source. The result has the roots of its log at the sizes of the checkpoints, if it has all entries.
func (s *Server) readChanges(ctx context.Context, o RestoreOptions, m backup.Manifest, against []keptCheckpoint) (RestoreSource, error) {
	path := o.Source
	if path == "" {
		return RestoreSource{Kind: NoSource, Origin: m.Log.Origin, To: m.Log.Size, Until: m.Made}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return RestoreSource{}, watchword.Wrap(err, watchword.NotFound, "%s does not exist", path)
	}
	journals, err := filepath.Glob(filepath.Join(path, "*"+backup.JournalSuffix))
	if err != nil {
		return RestoreSource{}, err
	}
	switch {
	case info.IsDir() && IsData(path):
		return s.readOldFolder(ctx, path, m, against)
	case info.IsDir() && len(journals) > 0:
		return s.applyJournals(ctx, journals, o, m)
	case strings.HasSuffix(path, backup.JournalSuffix):
		return s.applyJournals(ctx, []string{path}, o, m)
	case info.IsDir():
		note, err := os.ReadFile(filepath.Join(path, "checkpoint"))
		if err != nil {
			return RestoreSource{}, watchword.Wrap(err, watchword.NotFound, "%s is neither a data folder, nor a folder of journals, nor a mirror of the log", path)
		}
		return s.readCheckpointSource(note, m)
	}
	head := make([]byte, ledger.MaxNote+1)
	f, err := os.Open(path)
	if err != nil {
		return RestoreSource{}, err
	}
	defer f.Close()
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return RestoreSource{}, watchword.Wrap(err, watchword.LogInvalid, "%s cannot be read", path)
	}
	if head[0] == '{' {
		return s.readExport(ctx, path, m, against)
	}
	return s.readCheckpointSource(head[:n], m)
}

// applyJournals applies the journals that follow the backup: they have all rows of what changed authority, the server's own keys
// among them, which are read again.
func (s *Server) applyJournals(ctx context.Context, paths []string, o RestoreOptions, m backup.Manifest) (out RestoreSource, err error) {
	out = RestoreSource{Kind: JournalSource, Origin: m.Log.Origin, To: m.Log.Size, Until: m.Made}
	key := s.keys.DeriveSecret(journalContext)
	read, err := backup.ReadJournals(paths, key[:], o.Identities, m.Log, func(size int64) (string, error) { return s.logRoot(ctx, size) }, func(r backup.Record) error {
		out.Until = r.At
		for _, e := range r.Entries {
			entry, err := audit.Parse(e.Seq, []byte(e.Body))
			if err != nil {
				return watchword.Wrap(err, watchword.BackupInvalid, "entry %d of the journal is damaged", e.Seq)
			}
			if entry.Seq <= m.Log.Size {
				continue
			}
			out.Notices = enroll.NoticesAfter(out.Notices, entry)
			if outlastsRestore(entry) {
				out.Journal = append(out.Journal, entry)
			}
		}
		return s.store.ApplyJournal(ctx, r.Objects)
	})
	if err != nil {
		return out, err
	}
	out.To, out.Missing, out.Damage, out.Omitted = max(read.To, m.Log.Size), read.Missing, read.Damage, read.Omitted
	if read.Origin != "" {
		out.Origin = read.Origin
	}
	if out.Damage == "" && len(read.PassedOver) > 0 {
		out.Damage = "journals of several servers that were restored from each other are here, and those of " + out.Origin + " count; leave only those of the server that you mean in the folder: " + strings.Join(read.PassedOver, "; ")
	}
	if out.Damage == "" && len(read.Unreadable) > 0 {
		out.Damage = "not journals of this server, or damaged from their beginning; remove from the folder what is not of this server: " + strings.Join(read.Unreadable, "; ")
	}
	for _, path := range read.Empty {
		out.Warnings = append(out.Warnings, path+" is empty: a crash ended its creation; it has no record")
	}
	return out, s.openRing(ctx)
}

// readCheckpointSource takes a signed checkpoint, which proves how many entries the log had.
func (s *Server) readCheckpointSource(note []byte, m backup.Manifest) (out RestoreSource, err error) {
	c, err := ledger.VerifyCheckpoint(note, s.keys.LogKeys()...)
	if err != nil {
		return out, err
	}
	if c.Origin != m.Log.Origin {
		return out, watchword.Refuse(watchword.LogInvalid, "the checkpoint is of the log %s, and the backup is of %s", c.Origin, m.Log.Origin)
	}
	return RestoreSource{Kind: CheckpointSource, Origin: c.Origin, To: max(c.Size, m.Log.Size), Missing: max(c.Size-m.Log.Size, 0), Until: m.Made}, nil
}

// sourceReader takes the entries of a source in their order, and verifies that they follow the backup.
type sourceReader struct {
	out  RestoreSource
	m    backup.Manifest
	tree ledger.Tree
	next int64
	// server are the changes of the server's keys and addresses after the backup that a restore does not end anyway.
	server []audit.Entry
	signed ledger.Checkpoint // of the source, if it has one beside its entries
	root   ledger.Hash       // of the tree of that size
	note   []byte            // signed, with its signatures

	chain   bundleChain        // of the old folder
	logKeys []ledger.Key       // of its newest bundle
	proofs  map[int64][][]byte // checkpoints by their size, whose signatures are not verified yet
	keyActs []audit.Entry      // on the server's keys, proved or not
	newest  time.Time          // latest time of an entry: one that was added can have an earlier time, and must not make an earlier bundle the current one
	pending []audit.Entry      // which no checkpoint before them proves
}

func newSourceReader(kind SourceKind, m backup.Manifest, against []keptCheckpoint) *sourceReader {
	r := &sourceReader{out: RestoreSource{Kind: kind, Origin: m.Log.Origin, Until: m.Made, roots: map[int64]ledger.Hash{}}, m: m, next: 1, newest: m.Made, proofs: map[int64][][]byte{}}
	for _, c := range against {
		r.out.roots[c.Size] = ledger.Hash{} // to be filled in
		r.addProof(c.Size, c.note)
	}
	return r
}

// take takes the next record. Code: log_invalid where the log does not begin with that of the backup.
func (r *sourceReader) take(rec audit.Record) error {
	if rec.Seq != r.next || !rec.MatchesHash() {
		return watchword.Refuse(watchword.LogInvalid, "entry %d is missing or was changed", r.next)
	}
	r.next++
	r.tree, _ = r.tree.Append(ledger.LeafHash(rec.Hash))
	if r.tree.Size() == r.signed.Size {
		r.root = r.tree.Root()
	}
	if _, wanted := r.out.roots[r.tree.Size()]; wanted {
		r.out.roots[r.tree.Size()] = r.tree.Root()
	}
	if r.tree.Size() == r.m.Log.Size {
		if err := r.checkBackup(); err != nil {
			return err
		}
	}
	if r.out.To = rec.Seq; rec.Seq <= r.m.Log.Size {
		return nil
	}
	if rec.Pruned() {
		r.out.Missing++
		return nil
	}
	e, err := rec.Entry()
	if err != nil {
		return err
	}
	r.out.Until = e.At
	if e.At.After(r.newest) {
		r.newest = e.At
	}
	switch e.Kind {
	case audit.KeyCreate, audit.KeyActivate, audit.KeyRetire, audit.KeyErase, audit.KeyRevoke, audit.KeyMove:
		r.keyActs = append(r.keyActs, e)
	}
	if outlastsRestore(e) || registry.Replayable(e) || e.Kind == audit.OperatorRecover || e.Kind == audit.NoticeAcknowledge {
		r.pending = append(r.pending, e)
	}
	if r.out.Kind != FolderSource || r.signedAtSize() { // an export was verified whole before
		r.takeProved()
	}
	return nil
}

// takeChange takes an entry of after the backup.
func (r *sourceReader) takeChange(e audit.Entry) {
	if outlastsRestore(e) && !registry.Replayable(e) {
		r.server = append(r.server, e)
	}
	r.out.Notices = enroll.NoticesAfter(r.out.Notices, e)
	if registry.Replayable(e) {
		r.out.Replay = append(r.out.Replay, e)
	}
}

func (r *sourceReader) checkBackup() error {
	if want := backup.NewLog(r.m.Log.Origin, r.tree.Size(), r.tree.Root()); want != r.m.Log {
		return watchword.Refuse(watchword.LogInvalid, "the log does not begin with the %d entries of the backup: it is of another server, or was rewritten", r.m.Log.Size)
	}
	return nil
}

// finish returns the result, which has at least the entries of the backup. rows says that the rows of the server's own keys and
// addresses were copied.
func (r *sourceReader) finish(rows bool) (RestoreSource, error) {
	for _, e := range r.server {
		if rows {
			r.out.Journal = append(r.out.Journal, e)
		} else if lostWithoutRows(e) {
			r.out.Lost = append(r.out.Lost, e)
		}
	}
	if r.tree.Size() < r.m.Log.Size {
		return r.out, watchword.Refuse(watchword.LogInvalid, "the log has %d entries, and the backup has %d: it is older than the backup, or damaged", r.tree.Size(), r.m.Log.Size)
	}
	return r.out, nil
}

// readOldFolder reads the log in the data folder of the old server, which may be damaged: then up to the first entry that cannot be
// read. It changes nothing there. Code: folder_in_use while a server runs on it, which would go on changing what was read.
func (s *Server) readOldFolder(ctx context.Context, dir string, m backup.Manifest, against []keptCheckpoint) (_ RestoreSource, err error) {
	r := newSourceReader(FolderSource, m, against)
	lock, err := lockOldFolder(dir)
	if err != nil {
		return r.out, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	lacks := lacksWriteAheadLog(dir) // before SQLite makes files there
	f, err := sqlite.OpenLog(ctx, filepath.Join(dir, databaseFile))
	if err != nil {
		return r.out, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if is, err := f.Instance(ctx); err == nil {
		if is.Issuer != m.Issuer { // a server that was restored from the backup has another origin and the same entries
			return r.out, watchword.Refuse(watchword.LogInvalid, "%s is of the server %s, and the backup is of %s", dir, is.Issuer, m.Issuer)
		}
		r.out.Origin = is.Origin()
		r.out.Epoch = max(is.Epoch, is.SupersededBy)
	}
	if err := r.readOldCheckpoint(dir); err != nil {
		return r.out, err
	}
	if err := r.readFolderTrust(ctx, f, s.o.Now()); err != nil {
		return r.out, err
	}
	if err := f.Each(ctx, r.take); err != nil {
		if r.out.To < m.Log.Size || ctx.Err() != nil {
			return r.out, err
		}
		r.out.Damage = err.Error()
	} else if lacks {
		r.out.Damage = "its last server did not end cleanly, and " + databaseFile + "-wal, with its last writes, is missing"
	}
	r.takeUnproved()
	if err := r.checkSigned(dir); err != nil {
		return r.out, err
	}
	if r.tree.Size() < m.Log.Size {
		return r.finish(false)
	}
	err = s.copyServerState(ctx, f, r)
	if watchword.CodeOf(err) == watchword.Unavailable || ctx.Err() != nil {
		return r.out, err
	}
	if err != nil {
		r.out.Warnings = append(r.out.Warnings, "the server's own keys and addresses are those of the backup, since those in "+dir+" cannot be used: "+err.Error())
	}
	return r.finish(err == nil)
}

// copyServerState replaces the rows of the server's keys, trust bundles and addresses by those of an old data folder: they were encrypted
// with the same key-encryption key. The store is as before if they do not fit together. Codes: conflict for a database of
// another schema; those of opening the keys; key_damaged, also for keys and addresses that no trust bundle of the chain from the backup names;
// unavailable.
func (s *Server) copyServerState(ctx context.Context, f *sqlite.LogFile, r *sourceReader) error {
	own, err := sqlite.SchemaVersion()
	if err != nil {
		return err
	}
	if schema, err := f.Schema(ctx); err != nil || schema != own {
		return watchword.Wrap(err, watchword.Conflict, "its schema is %d, and this build has %d", schema, own)
	}
	if err := s.checkFolderKeys(ctx, f, r); err != nil {
		return err
	}
	ref := backup.Ref{Kind: backup.ServerObject}
	rows, err := f.JournalObject(ctx, ref)
	if err != nil {
		return watchword.Wrap(err, watchword.KeyDamaged, "they cannot be read")
	}
	before, err := s.serverState(ctx, ref)
	if err != nil {
		return err
	}
	if err = s.store.ApplyJournal(ctx, []backup.Object{rows}); err == nil {
		err = s.openRing(ctx)
	}
	if err == nil {
		_, err = s.verifyBundles(ctx)
	}
	if err == nil {
		err = s.checkFolderAddress(ctx, r)
	}
	if err == nil {
		return nil
	}
	if undo := s.store.ApplyJournal(ctx, []backup.Object{before}); undo != nil {
		return watchword.Wrap(errors.Join(undo, err), watchword.Unavailable, "the server's keys cannot be restored")
	}
	if undo := s.openRing(ctx); undo != nil {
		return watchword.Wrap(errors.Join(undo, err), watchword.Unavailable, "the server's keys cannot be restored")
	}
	return err
}

// serverState returns the server's own rows.
func (s *Server) serverState(ctx context.Context, ref backup.Ref) (_ backup.Object, err error) {
	f, err := sqlite.OpenSnapshot(ctx, filepath.Join(s.cfg.Data, databaseFile))
	if err != nil {
		return backup.Object{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return f.JournalObject(ctx, ref)
}

// lockOldFolder locks a data folder that is only read. A folder without a lock file was never opened by a server since it is where it
// is, and no server runs on one in which nothing can be written. Code: folder_in_use.
func lockOldFolder(dir string) (io.Closer, error) {
	path := filepath.Join(dir, lockFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return io.NopCloser(nil), nil
	}
	lock, err := durable.LockShared(path)
	if errors.Is(err, fs.ErrPermission) {
		return io.NopCloser(nil), nil
	}
	if watchword.CodeOf(err) == watchword.FolderInUse {
		return nil, watchword.Wrap(err, watchword.FolderInUse, "a server runs on %s: stop it first, since it goes on changing what the restore reads", dir)
	}
	if err != nil {
		return nil, err
	}
	return lock, nil
}

// readOldCheckpoint reads the checkpoint in an old folder, if there is one. Its signature is verified later, by the bundles of the folder.
func (r *sourceReader) readOldCheckpoint(dir string) (err error) {
	r.note, err = durable.ReadTrusted(filepath.Join(dir, checkpointFile), ledger.MaxNote)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	r.signed, err = ledger.ReadCheckpoint(r.note)
	r.addProof(r.signed.Size, r.note)
	return err
}

// checkSigned compares the entries that were taken with the checkpoint beside them. Code: log_invalid.
func (r *sourceReader) checkSigned(dir string) error {
	c := r.signed
	r.out.signed = c.Size
	if c.Size > 0 {
		if _, err := ledger.VerifyCheckpoint(r.note, r.logKeys...); err == nil {
			r.out.proved = r.out.Damage == "" && c.Size >= r.m.Log.Size
		} else {
			r.out.Warnings = append(r.out.Warnings, checkpointFile+" in "+dir+" proves nothing: no log key of the newest trust bundle that the root of the backup leads to signed it")
		}
	}
	r.out.Confirmed = r.out.proved && c.Size == r.tree.Size()
	switch {
	case c.Size > r.tree.Size():
		r.out.Missing += c.Size - r.tree.Size()
		if r.out.Damage == "" {
			r.out.Damage = fmt.Sprintf("its checkpoint was signed for %d entries", c.Size)
		}
	case c.Size > 0 && c.Root != r.root:
		return watchword.Refuse(watchword.LogInvalid, "the log in %s does not match its checkpoint of %d entries: entries were changed", dir, c.Size)
	}
	return nil
}

// readExport reads an export of the log. It is verified whole before any entry of it counts.
func (s *Server) readExport(ctx context.Context, path string, m backup.Manifest, against []keptCheckpoint) (_ RestoreSource, err error) {
	r := newSourceReader(ExportSource, m, against)
	f, err := os.Open(path)
	if err != nil {
		return r.out, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := audit.VerifyExport(&contextReader{ctx, f}, s.keys.LogKeys()); err != nil {
		return r.out, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return r.out, err
	}
	const most = 1 << 20 // as VerifyExport
	for lines := bufio.NewReaderSize(&contextReader{ctx, f}, most); ; {
		raw, err := lines.ReadSlice('\n')
		if err != nil {
			return r.out, watchword.Wrap(err, watchword.LogInvalid, "%s changed while it was read", path)
		}
		var l audit.ExportLine
		if err := json.Unmarshal(bytes.TrimSpace(raw), &l); err != nil {
			return r.out, watchword.Wrap(err, watchword.LogInvalid, "%s changed while it was read", path)
		}
		if l.Checkpoint != "" {
			return r.finish(false)
		}
		rec, err := l.Record()
		if err != nil {
			return r.out, err
		}
		if err := r.take(rec); err != nil {
			return r.out, err
		}
	}
}
