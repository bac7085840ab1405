// Package fair limits concurrent work: signature checks, TLS handshakes, and schema compilation.
// Waiters queue by network, and free slots go to the networks in turn, so that many requests of one
// network delay a request of another by at most one of them. When too many wait, the last waiter of
// the longest queue is refused with busy.
package fair

import (
	"context"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// maxWaitingTotal limits how many wait. Beyond it the longest queue loses its last waiter.
const maxWaitingTotal = 1024

// Semaphore limits how many run at once. Make one with [NewSemaphore]; nil has no limit. It is safe
// for concurrent use.
type Semaphore struct {
	maxWaiting int

	mu      sync.Mutex
	free    int // zero while anyone waits
	waiting int
	queues  map[netip.Prefix]*networkQueue
	next    *networkQueue // the queue in the ring that is served next; nil when no one waits
}

// networkQueue holds the waiters of one network; it is never empty.
type networkQueue struct {
	network    netip.Prefix
	waiters    []*waiter
	prev, next *networkQueue
}

type waiter struct {
	queue  *networkQueue
	result chan error // receives one result: nil, or the refusal
}

// NewSemaphore returns a semaphore with a slot for all processors but one. With a slot for each, the operating system's
// scheduler would choose the work, which is not fair by network, and work that needs no slot would find no processor.
func NewSemaphore() *Semaphore { return newSemaphore(max(1, runtime.GOMAXPROCS(0)-1), maxWaitingTotal) }

func newSemaphore(places, most int) *Semaphore {
	return &Semaphore{maxWaiting: most, free: places, queues: map[netip.Prefix]*networkQueue{}}
}

type networkKey struct{}

// Network returns the network that an address is counted with: the address itself, for IPv6 its
// /64, since one customer has at least that many addresses.
func Network(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // an invalid address has the zero prefix
	return p
}

// WithNetwork sets the network in whose queue ctx waits.
func WithNetwork(ctx context.Context, network netip.Prefix) context.Context {
	return context.WithValue(ctx, networkKey{}, network)
}

// Do runs f in a slot and returns its error. f must not block. Where no one waits, Do does not
// allocate. Code: busy, with RetryAfter; then f did not run.
func (r *Semaphore) Do(ctx context.Context, f func() error) error {
	if err := r.Acquire(ctx); err != nil {
		return err
	}
	defer r.Release()
	return f()
}

// Acquire acquires a slot for callers whose work is not one function. They must call
// [Semaphore.Release] once, and must not block until then. Code: busy, with RetryAfter; then no
// slot is held.
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
	network, _ := ctx.Value(networkKey{}).(netip.Prefix) // all contexts without a network share one queue
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

// Waiting returns the number of waiters.
func (r *Semaphore) Waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting
}

// Release gives the slot of an [Semaphore.Acquire] to the next waiter.
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

// enqueue adds a waiter to its network's queue. It is called with mu held, as are the functions
// below.
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
		} else { // last in the current round
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

// remove removes a waiter from its queue, and an empty queue from the ring.
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

// giveUp removes a waiter whose context has ended.
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
	if l == nil && <-w.result == nil { // the slot was given at the same moment
		r.Release()
	}
	return busy(cause)
}

func busy(cause error) error {
	return &watchword.Error{Code: watchword.Busy, Detail: "too many handshakes and signatures wait for verification", RetryAfter: time.Second, Err: cause}
}
