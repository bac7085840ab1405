package registry_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/registry"
)

// seenStore notes what is written.
type seenStore struct {
	steps []int
	at    map[watchword.SubjectID]time.Time
}

func (s *seenStore) SetLastSeen(_ context.Context, seen []registry.Seen) error {
	s.steps = append(s.steps, len(seen))
	for _, x := range seen {
		s.at[x.Subject] = x.At
	}
	return nil
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
		if len(st.steps) != 0 {
			t.Fatalf("after four minutes: %v", st.steps)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if !slices.Equal(st.steps, []int{500, 200}) || !st.at["lamp-699"].Equal(last) {
			t.Errorf("after six minutes: steps of %v, the last one at %s, want %s", st.steps, st.at["lamp-699"], last)
		}
		st.steps = nil
		note(0, 50_000)
		synctest.Wait()
		if len(st.steps) != 100 {
			t.Errorf("%d steps for 50,000 subjects at once, want 100", len(st.steps))
		}
		st.steps = nil
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
