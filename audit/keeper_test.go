package audit_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/audit"
)

// stalledLog is a log whose store does not answer.
type stalledLog struct{ audit.Log }

func (stalledLog) LastCheckpoint(context.Context) (audit.Signed, error) { return audit.Signed{}, nil }

func (stalledLog) Number(ctx context.Context) error {
	<-ctx.Done()
	return watchword.Because(ctx.Err(), watchword.Unavailable, "the store is busy")
}

func TestAStoreThatDoesNotAnswerHoldsUpNoStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, err := audit.NewKeeper(t.Context(), stalledLog{}, nil, audit.KeeperOptions{})
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
		if took := time.Since(began); took != audit.LastStep {
			t.Errorf("it ended after %v, want %v", took, audit.LastStep)
		}
	})
}
