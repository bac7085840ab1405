package server

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"filippo.io/age"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/backup"
	"github.com/watchword-iot/watchword/server/keyring"
	"github.com/watchword-iot/watchword/server/sqlite"
)

// RestoreOptions say what is restored, and by what.
type RestoreOptions struct {
	File       string
	Identities []age.Identity
	Root       string // pin of a root of the backup, or of one that a trust bundle of Source introduces, which a root before it signed; empty: any
	Data       string // the folder to restore to, absent or empty
	// Source has what was done after the backup: the old data folder, the folder of its journals, an export of the log, or, for
	// their number alone, a mirror of the log or one of its checkpoints. Empty: none.
	Source string
	// Against are checkpoints of the log that were kept elsewhere, as files or mirrors: Source must have their entries.
	Against []string
	// Epoch is at least this one, and this one if it is not below the minutes since 2025; 0: any.
	Epoch int64
	// AcceptLoss says that the operator accepts that changes of authority after the backup are lost.
	AcceptLoss bool
	// AcceptClock vouches for the clock of this machine as it is.
	AcceptClock bool
	// Plan is the file for the trust bundle that an offline root must sign; empty: DATA.plan.json.
	Plan string
}

// RestoredBackup is what [RestoreBackup] did.
type RestoredBackup struct {
	Manifest backup.Manifest
	Warnings []string
	Data     string // absolute path of the restored folder
	Config   string // folder with the configuration in the backup, with its secrets; empty: none
	Epoch    int64
	Origin   string   // of the log from now on
	LogKey   string   // verifier key of the log from now on
	Roots    []string // pins of the roots of the restored server
	Found    RestoreSource
	Done     sqlite.Restored
	Plan     *keyring.PlannedBundle // for an offline root to sign; nil: none
	PlanFile string                 // which has the plan; empty: none
}

// nextEpoch returns the epoch of a restore at a time, above all that are known: least, if it is that and at least the minutes since
// 2025. Otherwise it is chosen so that restores of one backup, which do not know of each other, differ, and a later one has a
// higher epoch: 64 times the seconds since 2025, or the next one after the known one, and a random number.
func nextEpoch(known, least int64, now time.Time) int64 {
	if least > known && least >= int64(now.Sub(keyring.EpochsSince)/time.Minute) {
		return least
	}
	if n := keyring.EpochAt(now) + rand.Int64N(keyring.EpochsPerSecond); n > known {
		return n
	}
	return known + 1 + rand.Int64N(max(min(keyring.EpochsAfterKnown, keyring.MaxEpoch-known), 1))
}

// RestoreBackup restores a backup to a folder on which no server was, and makes it the server of its devices: it has a higher epoch,
// new keys and another log than the server of which the backup is, and whatever that signed or allowed for a time is void. Changes of
// authority after the backup are applied again as far as the source has them. All is written to the folder DATA.tmp
// first, so that nothing is there if it fails.
//
// Codes: conflict for a folder that is not empty or cannot be replaced, for an epoch that is not higher than that of the backup, and where something is or
// may be lost and AcceptLoss is not set; backup_invalid and the others of [VerifyBackup]; log_invalid for a source that does not follow the
// backup; clock_untrusted, unavailable.
func RestoreBackup(ctx context.Context, r RestoreOptions, o Options) (out RestoredBackup, err error) {
	if err := checkPin(r.Root); err != nil {
		return out, err
	}
	t, err := newRestoreTarget(r.Data, r.Plan)
	if err != nil {
		return out, err
	}
	dir := t.tmp
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	sum, err := r.extract(ctx, dir, &out)
	if err != nil {
		return out, err
	}
	var check BackupCheck
	check.Manifest = out.Manifest
	if err := checkRestored(ctx, dir, o, &check); err != nil {
		return out, err
	}
	out.Warnings = check.Warnings
	data := filepath.Join(dir, backup.DataFolder)
	if err := r.step(ctx, data, sum, o, &out); err != nil {
		return out, err
	}
	if err := checkStarts(ctx, data, o, &check); err != nil {
		return out, watchword.Wrap(err, watchword.CodeOf(err), "the restored folder would not start: %s", err)
	}
	if out.Config, out.PlanFile, err = t.finish(out.Plan); err != nil {
		return out, err
	}
	out.Data = t.data
	return out, durable.SyncDir(filepath.Dir(t.data))
}

// extract writes the members of the backup to dir, and returns the SHA-256 of the file.
func (r RestoreOptions) extract(ctx context.Context, dir string, out *RestoredBackup) (sum string, err error) {
	f, err := os.Open(r.File)
	if err != nil {
		return "", watchword.Wrap(err, watchword.NotFound, "the backup %s cannot be read", r.File)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	root := r.Root
	if r.Source != "" {
		root = "" // a bundle of the source may introduce it: step compares it
	}
	if out.Manifest, err = backup.Extract(io.TeeReader(&contextReader{ctx, f}, h), r.Identities, root, dir); err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)), nil
}

// step makes the extracted data folder the server of its devices.
func (r RestoreOptions) step(ctx context.Context, data, sum string, o Options, out *RestoredBackup) (err error) {
	s := forFolder(Config{Data: data}, o)
	defer s.close()
	if s.lock, err = openData(data); err != nil {
		return err
	}
	if err := s.openStore(ctx); err != nil {
		return err
	}
	if r.AcceptClock {
		if err := s.clock.Accept().Err(); err != nil {
			return err
		}
	}
	if err := s.clock.Check(); err != nil {
		return err
	}
	if err := s.openRing(ctx); err != nil {
		return err
	}
	before := out.Manifest.Epoch
	now := s.o.Now()
	if out.Found, err = s.readSource(ctx, r, out.Manifest); err != nil {
		return err
	}
	if out.Roots, err = s.checkRestoredRoot(ctx, out.Manifest, r.Root); err != nil {
		return err
	}
	newest := max(before, out.Found.Epoch, s.keys.NewestEpoch())
	if r.Epoch != 0 && r.Epoch <= newest {
		return watchword.RefuseField("--epoch", "must be higher than %d, the highest epoch that the backup or the source knows", newest)
	}
	if highest := keyring.HighestEpoch(newest, now); r.Epoch > highest {
		return watchword.RefuseField("--epoch", "must be at most %d now: higher ones are left for later restores", highest)
	}
	if err := out.Found.checkLoss(r.AcceptLoss); err != nil {
		return err
	}
	state, err := s.keys.RestoredState(audit.Actor{Tenant: watchword.DefaultTenant}, nextEpoch(newest, r.Epoch, now), now)
	if err != nil {
		return err
	}
	last, err := s.store.LastCheckpoint(ctx)
	if err != nil {
		return err
	}
	applied := out.Found.To // up to here nothing was lost
	if out.Found.Damage != "" || out.Found.Missing > 0 || len(out.Found.Omitted)+len(out.Found.Lost)+len(out.Found.Unproved) > 0 {
		applied = 0
	}
	step := sqlite.Restore{RestoredState: state, Replay: out.Found.Replay, Journal: out.Found.Journal, Notices: out.Found.Notices, Now: now, AcceptLoss: r.AcceptLoss, First: audit.Actor{Tenant: watchword.DefaultTenant}.DoneEntry(audit.LogRestore, state.Instance.LogOrigin, now, map[string]string{
		"origin": out.Manifest.Log.Origin, "size": strconv.FormatInt(out.Manifest.Log.Size, 10), "root": out.Manifest.Log.Hash, "checkpoint": string(last.Note),
		"epoch": strconv.FormatInt(state.Instance.Epoch, 10), "epoch_before": strconv.FormatInt(before, 10), "backup": sum, "made": out.Manifest.Made.UTC().Format(time.RFC3339),
		"source": string(out.Found.Kind), "source_origin": out.Found.Origin, "source_size": strconv.FormatInt(applied, 10), "accept_loss": strconv.FormatBool(r.AcceptLoss),
	})}
	if out.Done, err = s.store.Restore(ctx, step); err != nil {
		return err
	}
	s.keepMark(ctx, 0)
	if err := s.openRing(ctx); err != nil {
		return err
	}
	out.Epoch, out.Origin, out.LogKey, out.Plan = s.keys.Epoch(), s.keys.LogOrigin(), s.keys.LogSigner().Key.String(), state.Plan
	if err := s.signRestoredLog(ctx); err != nil {
		return err
	}
	// Assertions state whole seconds, and those of the second of the restore are refused: a client that asked at once would fail.
	end := time.NewTimer(state.Instance.RestoredAt.Sub(now))
	defer end.Stop()
	select {
	case <-end.C:
		return nil
	case <-ctx.Done():
		return watchword.Wrap(ctx.Err(), watchword.Unavailable, "interrupted")
	}
}

// signStoppedLog signs the entries of an act in a data folder without a server, so that a restore from the folder can tell them from entries
// that were added by someone else. If that fails, the next start signs them.
func (s *Server) signStoppedLog(ctx context.Context) {
	if err := s.signRestoredLog(ctx); err != nil {
		s.o.Log.WarnContext(ctx, "the last entries of the log are not signed before the next start", slog.Any("err", err))
	}
}

// signRestoredLog signs a checkpoint of all entries of the log without a server, and writes it beside the database. It must extend the last
// one.
func (s *Server) signRestoredLog(ctx context.Context) error {
	path := filepath.Join(s.cfg.Data, checkpointFile)
	saved, err := durable.ReadTrusted(path, ledger.MaxNote)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	signer, err := audit.NewCheckpointSigner(ctx, s.store, s.keys, audit.CheckpointOptions{Saved: saved, Now: s.o.Now, Log: s.o.Log})
	if err != nil {
		return err
	}
	note, err := signer.Sign(ctx)
	if err != nil {
		return err
	}
	if len(note) > ledger.MaxNote {
		return watchword.Refuse(watchword.Internal, "the checkpoint has %d bytes", len(note))
	}
	return durable.WriteFile(path, note, 0o600)
}
