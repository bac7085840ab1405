package device

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
)

// How the tasks beside the commands wait.
const (
	taskPause       = time.Second      // between two runs of one task at least, whoever asks
	taskMax         = 10 * time.Minute // the longest pause after an error, unless the server asks for more
	initialTaskWait = 2 * time.Second  // of the first runs before the first connection
)

// task is work that goes on beside the commands: it has one goroutine, fails by itself, and
// is tried again after a pause that grows. Commands never wait for it.
type task struct {
	name  string
	every time.Duration // after a success; 0 runs it when asked alone
	pause time.Duration // after a success at least, whoever asks; after an error it is taskPause
	do    func(context.Context) error

	wake   chan struct{} // one token: run it soon
	first  chan struct{} // closed after the first run
	failed atomic.Bool   // the last run
}

func newTask(name string, every, pause time.Duration, do func(context.Context) error) *task {
	return &task{name: name, every: every, pause: pause, do: do, wake: make(chan struct{}, 1), first: make(chan struct{})}
}

// trigger makes the task run again, as soon as its pause allows. It never waits.
func (t *task) trigger() { signal(t.wake) }

// run runs the task until ctx ends.
func (t *task) run(ctx context.Context, log *slog.Logger) {
	first := sync.OnceFunc(func() { close(t.first) })
	defer first()
	for b := (backoff{most: taskMax}); ctx.Err() == nil; {
		err := t.do(ctx)
		if ctx.Err() != nil {
			return
		}
		t.failed.Store(err != nil)
		first()
		least, limit := t.pause, t.every
		if err == nil {
			b.last = 0
		} else {
			least, limit = taskPause, max(b.next(err), taskPause)
			log.Warn("task failed, and is tried again", slog.String("task", t.name), slog.String("code", string(watchword.CodeOf(err))),
				slog.Duration("pause", limit), slog.Any("err", err))
		}
		if !sleep(ctx, least) || !t.wait(ctx, limit-least, limit > 0) {
			return
		}
	}
}

// wait waits until somebody asks for the task, or, if timed, for a pause. It reports false
// where ctx ended.
func (t *task) wait(ctx context.Context, pause time.Duration, timed bool) bool {
	var over <-chan time.Time
	if timed {
		timer := time.NewTimer(pause)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-over:
	case <-t.wake:
	case <-ctx.Done():
		return false
	}
	return true
}

// sleep reports false where ctx ended first. Where there is nothing to wait for no timer is made.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
