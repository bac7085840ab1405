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

// waitingMost is how many wait at once. Beyond it the longest line loses its last.
const waitingMost = 1024

// Room is where few are at once. Make one with [NewRoom]; a nil one lets everybody
// in. It is safe for concurrent use.
type Room struct {
	most int

	mu      sync.Mutex
	free    int // never above zero while anybody waits
	waiting int
	lines   map[netip.Prefix]*line
	turn    *line // of the ring of lines, whose turn it is; nil when nobody waits
}

// line is who waits of one network. None is empty.
type line struct {
	of         netip.Prefix
	q          []*waiter
	prev, next *line
}

type waiter struct {
	line *line
	told chan error // one answer: nil to come in
}

// NewRoom returns a room for all processors but one. With a place for each, those
// who are let in would never be told from those whom the scheduler lets run, and
// that one asks for no address; and something must be left for whoever needs no check.
func NewRoom() *Room { return newRoom(max(1, runtime.GOMAXPROCS(0)-1), waitingMost) }

func newRoom(places, most int) *Room {
	return &Room{most: most, free: places, lines: map[netip.Prefix]*line{}}
}

type networkKey struct{}

// With says in whose line those stand who come with ctx.
func With(ctx context.Context, network netip.Prefix) context.Context {
	return context.WithValue(ctx, networkKey{}, network)
}

// Do runs f once there is a place, and returns its error. f must not wait for
// anything. Where nobody waits, Do allocates nothing. Code: busy, with RetryAfter,
// and then f did not run.
func (r *Room) Do(ctx context.Context, f func() error) error {
	if err := r.Enter(ctx); err != nil {
		return err
	}
	defer r.Leave()
	return f()
}

// Enter is the first half of Do, for who cannot say as one function what it does with its
// place: it must call [Room.Leave] once, and not wait for anything until then. Code: busy,
// with RetryAfter, and then there is no place.
func (r *Room) Enter(ctx context.Context) error {
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
	w, err := r.stand(network)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case err := <-w.told:
		return err
	case <-ctx.Done():
		return r.giveUp(w, ctx.Err())
	}
}

// Waiting returns how many wait.
func (r *Room) Waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting
}

// Leave gives the place of an [Room.Enter] to whose turn it is.
func (r *Room) Leave() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.turn
	if l == nil {
		r.free++
		return
	}
	r.turn = l.next
	r.remove(l, 0).told <- nil
}

// stand puts a newcomer at the end of its line. It is called with mu held, as all below.
func (r *Room) stand(of netip.Prefix) (*waiter, error) {
	l := r.lines[of]
	if r.waiting >= r.most {
		longest := r.longest()
		if l != nil && len(longest.q) <= len(l.q)+1 || len(longest.q) == 1 {
			return nil, busy(nil)
		}
		r.remove(longest, len(longest.q)-1).told <- busy(nil)
	}
	if l == nil {
		l = &line{of: of}
		r.lines[of] = l
		if r.turn == nil {
			l.prev, l.next, r.turn = l, l, l
		} else { // the last of this round
			l.prev, l.next = r.turn.prev, r.turn
			l.prev.next, l.next.prev = l, l
		}
	}
	w := &waiter{line: l, told: make(chan error, 1)}
	l.q = append(l.q, w)
	r.waiting++
	return w, nil
}

func (r *Room) longest() *line {
	longest := r.turn
	for l := r.turn.next; l != r.turn; l = l.next {
		if len(l.q) > len(longest.q) {
			longest = l
		}
	}
	return longest
}

// remove takes one out of its line, and an empty line out of the ring.
func (r *Room) remove(l *line, i int) *waiter {
	w := l.q[i]
	w.line = nil
	copy(l.q[i:], l.q[i+1:])
	l.q[len(l.q)-1] = nil
	l.q = l.q[:len(l.q)-1]
	r.waiting--
	if len(l.q) > 0 {
		return w
	}
	delete(r.lines, l.of)
	if l.next == l {
		r.turn = nil
		return w
	}
	if r.turn == l {
		r.turn = l.next
	}
	l.prev.next, l.next.prev = l.next, l.prev
	return w
}

// giveUp is for who no longer waits: the client has gone.
func (r *Room) giveUp(w *waiter, cause error) error {
	r.mu.Lock()
	l := w.line
	if l != nil {
		for i := range l.q {
			if l.q[i] == w {
				r.remove(l, i)
				break
			}
		}
	}
	r.mu.Unlock()
	if l == nil && <-w.told == nil { // its turn came at this moment
		r.Leave()
	}
	return busy(cause)
}

func busy(cause error) error {
	return &watchword.Error{Code: watchword.Busy, Detail: "too many handshakes and signatures wait to be checked", RetryAfter: time.Second, Err: cause}
}
