package registry_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/registry"
)

// seenStore notes what is written.
type seenStore struct {
	mu    sync.Mutex
	steps []int
	at    map[watchword.SubjectID]time.Time
}

func (s *seenStore) SetLastSeen(_ context.Context, seen []registry.Seen) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, len(seen))
	for _, x := range seen {
		s.at[x.Subject] = x.At
	}
	return nil
}

// take returns the sizes of the steps since the last call.
func (s *seenStore) take() (steps []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	steps, s.steps = s.steps, nil
	return steps
}

// last returns when a subject was last seen.
func (s *seenStore) last(id watchword.SubjectID) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at[id]
}

// What was seen is written each five minutes, each subject once with its last time, in transactions of at most 500, and once more at the
// end; a great many are written at once, and those beyond the bound of memory are left out.
func TestLastSeenIsWrittenInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &seenStore{at: map[watchword.SubjectID]time.Time{}}
		l := registry.NewLastSeen(st)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()
		note := func(from, n int) {
			for i := range n {
				l.Note(watchword.DefaultTenant, watchword.SubjectID(fmt.Sprint("lamp-", from+i)), time.Now())
			}
		}
		note(0, 700)
		time.Sleep(time.Minute)
		note(0, 700)
		last := time.Now()
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if steps := st.take(); len(steps) != 0 {
			t.Fatalf("after four minutes: %v", steps)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if steps := st.take(); !slices.Equal(steps, []int{500, 200}) || !st.last("lamp-699").Equal(last) {
			t.Errorf("after six minutes: steps of %v, the last one at %s, want %s", steps, st.last("lamp-699"), last)
		}
		note(0, 50_000)
		synctest.Wait()
		if steps := st.take(); len(steps) != 100 {
			t.Errorf("%d steps for 50,000 subjects at once, want 100", len(steps))
		}
		note(0, 3)
		stop()
		if err := <-ended; err != nil || !slices.Equal(st.steps, []int{3}) {
			t.Errorf("at the end: %v, %v", st.steps, err)
		}

		st = &seenStore{at: map[watchword.SubjectID]time.Time{}}
		l = registry.NewLastSeen(st) // it does not run yet
		note(0, 100_001)
		ctx, stop = context.WithCancel(t.Context())
		stop()
		if err := l.Run(ctx); err != nil || len(st.at) != 100_000 {
			t.Errorf("%d subjects written, %v", len(st.at), err)
		}
	})
}
