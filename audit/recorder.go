package audit

import (
	"context"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
)

// Store is what a recorder needs of the cellar.
type Store interface {
	AddEntry(ctx context.Context, e Entry) error
}

// The bounds of a recorder: how many refusals wait to be written, and how many
// are written in one second. What is over is counted and the count is written.
const (
	recorderQueue  = 1024
	recorderBudget = 200
)

// Recorder writes the entries of refused acts. They must not wait for the disk,
// and a stranger who is refused a thousand times must not fill it: so they go
// through a bounded queue with a budget, and what was left out is an entry of
// its own (refusals.overflow). Make one with [NewRecorder], and run it.
type Recorder struct {
	store   Store
	queue   chan Entry
	dropped atomic.Int64
}

// NewRecorder returns a recorder that writes to st.
func NewRecorder(st Store) *Recorder {
	return &Recorder{store: st, queue: make(chan Entry, recorderQueue)}
}

// Refused hands over an entry. It never blocks and is safe for concurrent use.
func (r *Recorder) Refused(e Entry) {
	select {
	case r.queue <- e:
	default:
		r.dropped.Add(1)
	}
}

// Run writes until ctx ends, then writes what is left in the queue.
func (r *Recorder) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	budget := recorderBudget
	for {
		select {
		case e := <-r.queue:
			if budget--; budget < 0 {
				r.dropped.Add(1)
				continue
			}
			r.write(context.WithoutCancel(ctx), e)
		case now := <-tick.C:
			budget = recorderBudget
			r.overflow(context.WithoutCancel(ctx), now)
		case <-ctx.Done():
			return r.drain(context.WithoutCancel(ctx))
		}
	}
}

func (r *Recorder) drain(ctx context.Context) error {
	for {
		select {
		case e := <-r.queue:
			r.write(ctx, e)
		default:
			r.overflow(ctx, time.Now())
			return nil
		}
	}
}

func (r *Recorder) overflow(ctx context.Context, now time.Time) {
	if n := r.dropped.Swap(0); n > 0 {
		r.write(ctx, Entry{
			Tenant: watchword.DefaultTenant, At: now, Kind: RefusalsOverflow, Outcome: Refused, Code: watchword.RateLimited,
			Data: map[string]string{"left_out": strconv.FormatInt(n, 10)},
		})
	}
}

func (r *Recorder) write(ctx context.Context, e Entry) {
	if err := r.store.AddEntry(ctx, e); err != nil {
		r.dropped.Add(1)
		slog.ErrorContext(ctx, "audit entry not written", slog.String("kind", e.Kind), slog.Any("err", err))
	}
}
