package command

import (
	"context"
	"log/slog"
	"time"
)

const (
	// retentionEvery is the interval at which commands are looked for whose retention is over.
	retentionEvery = time.Minute
	// retentionBatch is how many commands are deleted in one transaction: with 32 versions of each, a few milliseconds, so that
	// other writes pass in between.
	retentionBatch = 100
)

// RunRetention deletes commands whose retention is over ([Options.Retain]) until ctx ends. Evidence of a command that is still
// needed must be exported before.
func (svc *Service) RunRetention(ctx context.Context) error {
	if svc.opts.Retain == 0 {
		return nil
	}
	tick := time.NewTicker(retentionEvery)
	defer tick.Stop()
	for {
		if _, err := svc.DeleteSettled(ctx); err != nil && ctx.Err() == nil {
			slog.ErrorContext(ctx, "commands not deleted after their retention", slog.Any("err", err))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// DeleteSettled deletes all commands whose retention is over, and returns how many. Between two transactions it waits as long as
// the last one took, so that it takes at most half of the store's time.
func (svc *Service) DeleteSettled(ctx context.Context) (deleted int, err error) {
	for {
		began := time.Now()
		n, err := svc.store.DeleteSettledCommands(ctx, svc.opts.Now().Add(-svc.opts.Retain), retentionBatch)
		deleted += n
		if err != nil || n < retentionBatch {
			return deleted, err
		}
		pause := time.NewTimer(time.Since(began))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return deleted, ctx.Err()
		}
	}
}
