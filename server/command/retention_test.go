package command_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword/server/command"
)

// settledStore has commands whose retention is over, and notes how they are deleted.
type settledStore struct {
	command.Store
	mu     sync.Mutex
	due    int
	steps  []int
	before time.Time
}

func (s *settledStore) DeleteSettledCommands(_ context.Context, before time.Time, limit int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(s.due, limit)
	s.due -= n
	s.steps, s.before = append(s.steps, n), before
	return n, nil
}

// Commands are deleted in transactions of at most 100, those that ended before the retention, at once and then each minute; without a
// retention none is.
func TestRetentionDeletesInSmallSteps(t *testing.T) {
	for name, x := range map[string]struct {
		retain time.Duration
		steps  []int
	}{
		"30 days": {30 * 24 * time.Hour, []int{100, 100, 50, 7}},
		"forever": {0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := &settledStore{due: 250}
				svc := command.New(st, nil, nil, nil, command.Options{Retain: x.retain})
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- svc.RunRetention(ctx) }()
				time.Sleep(30 * time.Second)
				st.mu.Lock()
				st.due += 7
				st.mu.Unlock()
				time.Sleep(time.Minute)
				stop()
				if err := <-ended; err != nil {
					t.Fatal(err)
				}
				if len(st.steps) != len(x.steps) {
					t.Fatalf("steps of %v, want %v", st.steps, x.steps)
				}
				for i, n := range x.steps {
					if st.steps[i] != n {
						t.Errorf("steps of %v, want %v", st.steps, x.steps)
					}
				}
				if x.retain > 0 && !st.before.Equal(time.Now().Add(-x.retain-30*time.Second)) {
					t.Errorf("deleted what ended before %s, at %s", st.before, time.Now())
				}
			})
		})
	}
}
