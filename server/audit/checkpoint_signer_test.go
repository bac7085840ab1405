package audit_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/audit"
)

// stalledLog is a log whose store does not answer.
type stalledLog struct{ audit.Log }

func (stalledLog) LastCheckpoint(context.Context) (audit.SignedCheckpoint, error) {
	return audit.SignedCheckpoint{}, nil
}

func (stalledLog) Sequence(ctx context.Context) error {
	<-ctx.Done()
	return watchword.Wrap(ctx.Err(), watchword.Unavailable, "the store is busy")
}

func TestAStalledStoreDoesNotBlockShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, err := audit.NewCheckpointSigner(t.Context(), stalledLog{}, nil, audit.CheckpointOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Run(ctx) }()
		synctest.Wait()
		cancel()
		began := time.Now()
		if err := <-ended; watchword.CodeOf(err) != watchword.Unavailable {
			t.Errorf("the last entries are not signed, and it says %v", err)
		}
		if took := time.Since(began); took != audit.FinalCheckpointTimeout {
			t.Errorf("it ended after %v, want %v", took, audit.FinalCheckpointTimeout)
		}
	})
}
