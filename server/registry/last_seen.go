package registry

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

const (
	// SeenPrecision is how far the stored time of a subject that was seen may be behind: so one that asks each second is written
	// once in this time.
	SeenPrecision = 10 * time.Minute
	// seenEvery is how often what was seen is written.
	seenEvery = 5 * time.Minute
	// seenBatch is how many subjects one transaction writes, so that other writes pass in between.
	seenBatch = 500
	// seenMax limits the subjects in memory, of about 150 bytes each, between two writes. Of a subject beyond it, nothing is noted until
	// then; at half of it they are written at once.
	seenMax = 100_000
	// seenStop is how long the last write may take when the server stops.
	seenStop = 5 * time.Second
)

// Seen is when a subject last began or ended a session or a request.
type Seen struct {
	Tenant  watchword.TenantID
	Subject watchword.SubjectID
	At      time.Time
}

// SeenStore stores when subjects were seen.
type SeenStore interface {
	// SetLastSeen writes each time that is more than SeenPrecision after the stored one; a subject that does not exist is left out.
	SetLastSeen(ctx context.Context, seen []Seen) error
}

// LastSeen collects when subjects were seen, and writes it in batches: noting it takes no more than an entry in memory. After a
// crash what was not written is lost. It is safe for concurrent use.
type LastSeen struct {
	store SeenStore

	mu   sync.Mutex
	seen map[subjectRef]time.Time
	full chan struct{}
}

// NewLastSeen returns an empty LastSeen. Run writes.
func NewLastSeen(st SeenStore) *LastSeen {
	return &LastSeen{store: st, seen: map[subjectRef]time.Time{}, full: make(chan struct{}, 1)}
}

// Note notes that a subject was seen now. It does not wait.
func (l *LastSeen) Note(t watchword.TenantID, id watchword.SubjectID, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := subjectRef{t, id}
	if _, known := l.seen[k]; !known && len(l.seen) >= seenMax {
		return
	}
	if l.seen[k] = now; len(l.seen) == seenMax/2 {
		select {
		case l.full <- struct{}{}:
		default:
		}
	}
}

// Run writes what was seen, until ctx ends, and then once more.
func (l *LastSeen) Run(ctx context.Context) error {
	tick := time.NewTicker(seenEvery)
	defer tick.Stop()
	for {
		stopping := false
		select {
		case <-tick.C:
		case <-l.full:
		case <-ctx.Done():
			stopping = true
		}
		if stopping {
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), seenStop)
			defer cancel()
			ctx = last
		}
		if err := l.write(ctx); err != nil {
			slog.WarnContext(ctx, "not written when subjects were last seen", slog.Any("err", err))
		}
		if stopping {
			return nil
		}
	}
}

// write writes what was seen. After an error the rest is lost: it is noted again when the subjects come back.
func (l *LastSeen) write(ctx context.Context) error {
	l.mu.Lock()
	seen := l.seen
	l.seen = map[subjectRef]time.Time{}
	l.mu.Unlock()
	batch := make([]Seen, 0, min(seenBatch, len(seen)))
	for k, at := range seen {
		if batch = append(batch, Seen{k.tenant, k.id, at}); len(batch) == seenBatch {
			if err := l.store.SetLastSeen(ctx, batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	if len(batch) == 0 {
		return nil
	}
	return l.store.SetLastSeen(ctx, batch)
}
