package server

import (
	"context"
	"io"

	"filippo.io/age"

	"github.com/watchword-iot/watchword/server/audit"
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
