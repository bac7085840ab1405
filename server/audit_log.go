package server

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit/ledger"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/session"
)

// startLogSigning starts signing the log, which must extend its last checkpoint.
func (s *Server) startLogSigning(ctx context.Context) (err error) {
	o := audit.CheckpointOptions{Every: s.cfg.Audit.CheckpointEvery.Duration, Now: s.o.Now, Log: s.o.Log}
	for _, line := range s.cfg.Audit.Witnesses {
		w, err := audit.ParseWitness(line)
		if err != nil {
			return err
		}
		s.witnesses = append(s.witnesses, w)
	}
	o.Witnesses, o.Quorum, o.OnCheckpoint = s.witnesses, s.quorum(), s.checkpointSigned
	if o.Saved, err = durable.ReadTrusted(filepath.Join(s.cfg.Data, checkpointFile), ledger.MaxNote); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.checkpoints, err = audit.NewCheckpointSigner(ctx, s.store, s.keys, o)
	if s.walMissing && watchword.CodeOf(err) == watchword.LogInvalid {
		err = watchword.Wrap(err, watchword.LogInvalid, "the last server did not end cleanly, and %s-wal, with its last writes, is missing, so entries of the log are lost: put that file back, or restore a backup", databaseFile)
	}
	return err
}

// checkpointSigned also writes the checkpoint to a file outside the database, and notifies those
// that wait for it.
func (s *Server) checkpointSigned(note []byte) {
	if err := durable.WriteFile(filepath.Join(s.cfg.Data, checkpointFile), note, 0o600); err != nil {
		s.o.Log.Warn("the log's checkpoint was not written beside the store", slog.Any("err", err))
	}
	s.commands.CheckpointPublished()
}

// auditSessionOpened and [Server.auditSessionEnded] write audit entries of connections. Requests
// are not logged here: a device that only sends requests is in the log by its tokens.
func (s *Server) auditSessionOpened(x *session.Session) {
	s.noteSeen(x)
	if !x.IsConnection() {
		return
	}
	a := x.Authority()
	s.recorder.Session(actor(a).DoneEntry(audit.SessionOpen, string(x.ID()), s.o.Now(), map[string]string{
		"transport": x.Transport(), "remote": x.Remote(), "token": a.JTI(),
	}))
}

func (s *Server) auditSessionEnded(x *session.Session, cause error) {
	s.noteSeen(x)
	reason := "closed" // closed by its transport
	if cause != nil {
		reason = string(watchword.CodeOf(cause))
	}
	if !x.IsConnection() || reason == string(watchword.SessionClosed) { // the act that closed it has an entry of its own
		return
	}
	s.recorder.Session(actor(x.Authority()).DoneEntry(audit.SessionClose, string(x.ID()), s.o.Now(), map[string]string{
		"transport": x.Transport(), "cause": reason,
	}))
}

// noteSeen notes that the subject of a session was seen.
func (s *Server) noteSeen(x *session.Session) {
	a := x.Authority()
	s.lastSeen.Note(a.Tenant(), a.Subject(), s.o.Now())
}

func actor(a *session.Authority) audit.Actor {
	return audit.Actor{Tenant: a.Tenant(), Subject: a.Subject(), Key: a.Key()}
}

// pruneLog removes the bodies of old entries, a few tiles in one transaction, so that other writers
// do not wait long. A signed audit entry announces it before.
func (s *Server) pruneLog(ctx context.Context) error {
	const tiles = 4
	now, keep := s.o.Now(), s.cfg.Audit.RetainBodies.Duration
	if keep == 0 {
		return nil
	}
	for {
		is, shall, err := s.store.PlanPrune(ctx, now.Add(-keep), tiles)
		if err != nil || shall == is {
			return err
		}
		e := audit.Actor{Tenant: watchword.DefaultTenant}.DoneEntry(audit.LogPrune, "", now, map[string]string{"before": now.Add(-keep).UTC().Format(time.RFC3339)})
		if err := s.store.AddEntry(ctx, shall.AddTo(e)); err != nil {
			return err
		}
		if _, _, err := s.checkpoints.CheckpointNow(ctx); err != nil {
			return err
		}
		began := time.Now()
		if _, err := s.store.PruneLog(ctx, shall); err != nil {
			return err
		}
		pauseAfter(ctx, time.Since(began))
	}
}
