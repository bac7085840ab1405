package device

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
)

// Pauses of background tasks.
const (
	taskPause       = time.Second      // minimum between two runs of one task
	taskMax         = 10 * time.Minute // maximum after an error, unless the server requests more
	initialTaskWait = 2 * time.Second  // for the first runs before the first connection
)

// task is a background task: it has its own goroutine, its errors affect nothing else, and it is repeated after a pause
// that grows. Commands never wait for it.
type task struct {
	name  string
	every time.Duration // interval after a success; 0: only when triggered
	pause time.Duration // minimum pause after a success; after an error it is taskPause
	do    func(context.Context) error

	wake   chan struct{} // one token: run it soon
	first  chan struct{} // closed after the first run
	failed atomic.Bool   // the last run
}

func newTask(name string, every, pause time.Duration, do func(context.Context) error) *task {
	return &task{name: name, every: every, pause: pause, do: do, wake: make(chan struct{}, 1), first: make(chan struct{})}
}

// trigger makes the task run again, as soon as its pause allows. It does not block.
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

// wait waits until the task is triggered, or, if timed, for a pause. It returns false if ctx ended.
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

// sleep waits for d and returns false if ctx ended first. For d of 0 it creates no timer.
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
