// Package fair shares out what few can do at once: the checks of signatures, TLS
// handshakes, and the compilation of schemas. In
// come those who wait, by network; in each turn of the round one of each network
// is let in, so that a thousand requests of one make nobody else wait for more
// than one of them. It refuses, with busy, who waits longest in line when too many wait.
package fair

import (
	"context"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// maxWaitingTotal is how many wait at once. Beyond it the longest line loses its last.
const maxWaitingTotal = 1024

// Semaphore is where few are at once. Make one with [NewSemaphore]; a nil one lets everybody
// in. It is safe for concurrent use.
type Semaphore struct {
	maxWaiting int

	mu      sync.Mutex
	free    int // never above zero while anybody waits
	waiting int
	queues  map[netip.Prefix]*networkQueue
	next    *networkQueue // of the ring of lines, whose turn it is; nil when nobody waits
}

// networkQueue is who waits of one network. None is empty.
type networkQueue struct {
	network    netip.Prefix
	waiters    []*waiter
	prev, next *networkQueue
}

type waiter struct {
	queue  *networkQueue
	result chan error // one answer: nil to come in
}

// NewSemaphore returns a room for all processors but one. With a place for each, those
// who are let in would never be told from those whom the scheduler lets run, and
// that one asks for no address; and something must be left for whoever needs no check.
func NewSemaphore() *Semaphore { return newSemaphore(max(1, runtime.GOMAXPROCS(0)-1), maxWaitingTotal) }

func newSemaphore(places, most int) *Semaphore {
	return &Semaphore{maxWaiting: most, free: places, queues: map[netip.Prefix]*networkQueue{}}
}

type networkKey struct{}

// WithNetwork says in whose line those stand who come with ctx.
func WithNetwork(ctx context.Context, network netip.Prefix) context.Context {
	return context.WithValue(ctx, networkKey{}, network)
}

// Do runs f once there is a place, and returns its error. f must not wait for
// anything. Where nobody waits, Do allocates nothing. Code: busy, with RetryAfter,
// and then f did not run.
func (r *Semaphore) Do(ctx context.Context, f func() error) error {
	if err := r.Acquire(ctx); err != nil {
		return err
	}
	defer r.Release()
	return f()
}

// Acquire is the first half of Do, for who cannot say as one function what it does with its
// place: it must call [Semaphore.Release] once, and not wait for anything until then. Code: busy,
// with RetryAfter, and then there is no place.
func (r *Semaphore) Acquire(ctx context.Context) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	if r.free > 0 {
		r.free--
		r.mu.Unlock()
		return nil
	}
	network, _ := ctx.Value(networkKey{}).(netip.Prefix) // who says none stands in one line with all such
	w, err := r.enqueue(network)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case err := <-w.result:
		return err
	case <-ctx.Done():
		return r.giveUp(w, ctx.Err())
	}
}

// Waiting returns how many wait.
func (r *Semaphore) Waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting
}

// Release gives the place of an [Semaphore.Acquire] to whose turn it is.
func (r *Semaphore) Release() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.next
	if l == nil {
		r.free++
		return
	}
	r.next = l.next
	r.remove(l, 0).result <- nil
}

// enqueue puts a newcomer at the end of its line. It is called with mu held, as all below.
func (r *Semaphore) enqueue(of netip.Prefix) (*waiter, error) {
	l := r.queues[of]
	if r.waiting >= r.maxWaiting {
		longest := r.longestQueue()
		if l != nil && len(longest.waiters) <= len(l.waiters)+1 || len(longest.waiters) == 1 {
			return nil, busy(nil)
		}
		r.remove(longest, len(longest.waiters)-1).result <- busy(nil)
	}
	if l == nil {
		l = &networkQueue{network: of}
		r.queues[of] = l
		if r.next == nil {
			l.prev, l.next, r.next = l, l, l
		} else { // the last of this round
			l.prev, l.next = r.next.prev, r.next
			l.prev.next, l.next.prev = l, l
		}
	}
	w := &waiter{queue: l, result: make(chan error, 1)}
	l.waiters = append(l.waiters, w)
	r.waiting++
	return w, nil
}

func (r *Semaphore) longestQueue() *networkQueue {
	longest := r.next
	for l := r.next.next; l != r.next; l = l.next {
		if len(l.waiters) > len(longest.waiters) {
			longest = l
		}
	}
	return longest
}

// remove takes one out of its line, and an empty line out of the ring.
func (r *Semaphore) remove(l *networkQueue, i int) *waiter {
	w := l.waiters[i]
	w.queue = nil
	copy(l.waiters[i:], l.waiters[i+1:])
	l.waiters[len(l.waiters)-1] = nil
	l.waiters = l.waiters[:len(l.waiters)-1]
	r.waiting--
	if len(l.waiters) > 0 {
		return w
	}
	delete(r.queues, l.network)
	if l.next == l {
		r.next = nil
		return w
	}
	if r.next == l {
		r.next = l.next
	}
	l.prev.next, l.next.prev = l.next, l.prev
	return w
}

// giveUp is for who no longer waits: the client has gone.
func (r *Semaphore) giveUp(w *waiter, cause error) error {
	r.mu.Lock()
	l := w.queue
	if l != nil {
		for i := range l.waiters {
			if l.waiters[i] == w {
				r.remove(l, i)
				break
			}
		}
	}
	r.mu.Unlock()
	if l == nil && <-w.result == nil { // its turn came at this moment
		r.Release()
	}
	return busy(cause)
}

func busy(cause error) error {
	return &watchword.Error{Code: watchword.Busy, Detail: "too many handshakes and signatures wait to be checked", RetryAfter: time.Second, Err: cause}
}
