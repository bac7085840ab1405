package audit

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
)

// Store is the part of the store that a Recorder uses.
type Store interface {
	AddEntry(ctx context.Context, es ...Entry) error
}

// Limits of a recorder, for refusals and for session entries: entries that wait to be written, entries that may be written
// at once after a quiet time, and entries a second in a long flood. If less than half of the budget is left, one source (a
// subject, or the address of an unauthenticated client) may add only so many in a second, so that its flood does not hide
// the entries of others. Entries beyond the limits are counted, by kind and code, and the counts are written.
const (
	refusalsQueue, refusalsBurst, refusalsRate                      = 1024, 1000, 50 // of authenticated subjects
	unauthenticatedQueue, unauthenticatedBurst, unauthenticatedRate = 1024, 1000, 20
	sessionsQueue, sessionsBurst, sessionsRate                      = 8192, 20_000, 200
	maxPerSource                                                    = 20
	recorderBatch                                                   = 256
)

// Recorder writes the entries of refused acts and of sessions, which are written after the response. Their requests must
// not wait for the disk, and refusals of unauthenticated clients must not fill it. So they pass through bounded queues with
// a budget, and the number of entries that were left out is an entry of its own (refusals.overflow, sessions.overflow).
// Create it with [NewRecorder], and call Run.
type Recorder struct {
	store                               Store
	refusals, unauthenticated, sessions *boundedQueue
}

func (r *Recorder) queues() []*boundedQueue {
	return []*boundedQueue{r.refusals, r.unauthenticated, r.sessions}
}

// boundedQueue is one queue and its budget.
type boundedQueue struct {
	overflow string // kind of the entry with the counts of dropped entries
	queue    chan Entry
	burst    int
	rate     int         // a second
	budget   int         // used by Run only
	low      atomic.Bool // less than half of it is left

	mu      sync.Mutex
	dropped map[droppedKey]int64
	sources map[string]int // entries of each source in this second; at most maxSources sources
}

const maxSources = 10_000

// droppedKey is the key by which dropped entries are counted.
type droppedKey struct {
	tenant watchword.TenantID
	kind   string
	cause  string
}

func newBoundedQueue(overflow string, queue, burst, rate int) *boundedQueue {
	return &boundedQueue{overflow: overflow, queue: make(chan Entry, queue), burst: burst, rate: rate, budget: burst, dropped: map[droppedKey]int64{}, sources: map[string]int{}}
}

// NewRecorder returns a recorder that writes to st.
func NewRecorder(st Store) *Recorder {
	return &Recorder{
		store: st, refusals: newBoundedQueue(RefusalsOverflow, refusalsQueue, refusalsBurst, refusalsRate),
		unauthenticated: newBoundedQueue(RefusalsOverflow, unauthenticatedQueue, unauthenticatedBurst, unauthenticatedRate),
		sessions:        newBoundedQueue(SessionsOverflow, sessionsQueue, sessionsBurst, sessionsRate),
	}
}

// Refused adds the entry of a refused act, which is written if [ShouldRecord] returns true. It never blocks and is safe for
// concurrent use.
func (r *Recorder) Refused(e Entry) {
	if !ShouldRecord(e.Kind, e.Code, e.Actor != "") {
		return
	}
	if e.Actor == "" {
		r.unauthenticated.enqueue(e)
		return
	}
	r.refusals.enqueue(e)
}

// Session adds an entry about a session, under the same rules.
func (r *Recorder) Session(e Entry) { r.sessions.enqueue(e) }

func (q *boundedQueue) enqueue(e Entry) {
	if !q.admits(e) {
		q.drop(e)
		return
	}
	select {
	case q.queue <- e:
	default:
		q.drop(e)
	}
}

// admits reports whether there is budget for all sources, or e's source has not used its share of this second.
func (q *boundedQueue) admits(e Entry) bool {
	if !q.low.Load() {
		return true
	}
	source := string(e.Tenant) + "/" + string(e.Actor)
	if e.Actor == "" {
		source = e.Data["remote"]
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	n, known := q.sources[source]
	if !known && len(q.sources) >= maxSources {
		return true // the length of the queue is bounded too
	}
	q.sources[source] = n + 1
	return n < maxPerSource
}

// drop counts entries that are not written.
func (q *boundedQueue) drop(es ...Entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, e := range es {
		cause := string(e.Code)
		if cause == "" {
			cause = e.Data["cause"]
		}
		q.dropped[droppedKey{e.Tenant, e.Kind, cause}]++
	}
}

// Run writes entries until ctx ends, and then those that are left in the queues.
func (r *Recorder) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	write := context.WithoutCancel(ctx)
	for {
		select {
		case e := <-r.refusals.queue:
			r.write(write, r.refusals, e)
		case e := <-r.unauthenticated.queue:
			r.write(write, r.unauthenticated, e)
		case e := <-r.sessions.queue:
			r.write(write, r.sessions, e)
		case now := <-tick.C:
			r.nextSecond(write, now)
		case <-ctx.Done():
			for _, l := range r.queues() {
				l.budget = cap(l.queue)
				r.writeAll(write, l)
			}
			r.nextSecond(write, time.Now())
			return nil
		}
	}
}

// nextSecond renews the budgets for the next second.
func (r *Recorder) nextSecond(ctx context.Context, now time.Time) {
	for _, l := range r.queues() {
		l.budget = min(l.budget+l.rate, l.burst)
		l.low.Store(l.budget < l.burst/2)
		l.mu.Lock()
		clear(l.sources)
		l.mu.Unlock()
		r.overflow(ctx, l, now)
	}
}

func (r *Recorder) writeAll(ctx context.Context, l *boundedQueue) {
	for {
		select {
		case e := <-l.queue:
			r.write(ctx, l, e)
		default:
			return
		}
	}
}

// write writes first, and the further entries of its queue, in one transaction.
func (r *Recorder) write(ctx context.Context, l *boundedQueue, first Entry) {
	batch := []Entry{first}
	for len(batch) < recorderBatch {
		select {
		case e := <-l.queue:
			batch = append(batch, e)
			continue
		default:
		}
		break
	}
	fits := min(len(batch), max(l.budget, 0))
	l.budget -= fits
	l.low.Store(l.budget < l.burst/2)
	l.drop(batch[fits:]...)
	if fits > 0 {
		r.add(ctx, l, batch[:fits])
	}
}

func (r *Recorder) add(ctx context.Context, l *boundedQueue, es []Entry) {
	if err := r.store.AddEntry(ctx, es...); err != nil {
		l.drop(es...) // they are counted, and the count is written when the store can write again
		slog.ErrorContext(ctx, "audit entries not written", slog.Int("entries", len(es)), slog.Any("err", err))
	}
}

// overflow writes the counts of dropped entries, one entry for each tenant. Counts that cannot be written are kept.
func (r *Recorder) overflow(ctx context.Context, l *boundedQueue, now time.Time) {
	l.mu.Lock()
	counted := l.dropped
	l.dropped = map[droppedKey]int64{}
	l.mu.Unlock()
	all := map[watchword.TenantID]Entry{}
	totals := map[watchword.TenantID]int64{}
	for k, n := range counted {
		e, ok := all[k.tenant]
		if !ok {
			e = Entry{Tenant: k.tenant, At: now, Kind: l.overflow, Outcome: Refused, Code: watchword.RateLimited, Data: map[string]string{}}
		}
		e.Data[k.kind+" "+k.cause] = strconv.FormatInt(n, 10)
		totals[k.tenant] += n
		all[k.tenant] = e
	}
	for t, e := range all {
		e.Data["left_out"] = strconv.FormatInt(totals[t], 10)
		if err := r.store.AddEntry(ctx, e); err != nil {
			slog.ErrorContext(ctx, "audit entry not written", slog.String("kind", e.Kind), slog.Any("err", err))
			l.mu.Lock()
			for k, n := range counted {
				if k.tenant == t {
					l.dropped[k] += n
				}
			}
			l.mu.Unlock()
		}
	}
}
