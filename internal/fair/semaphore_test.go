package fair

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/watchword-iot/watchword"
)

func from(t testing.TB, i int) context.Context {
	return WithNetwork(t.Context(), netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32))
}

// queue fills the only slot, queues the given networks one after another, and returns the order in which they got the slot.
func queue(t *testing.T, most int, networks ...int) (order []int, refused []int) {
	t.Helper()
	r := newSemaphore(1, most)
	block, inside := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = r.Do(t.Context(), func() error { close(inside); <-block; return nil })
	})
	<-inside
	var mu sync.Mutex
	for _, n := range networks {
		wg.Go(func() {
			err := r.Do(from(t, n), func() error { order = append(order, n); return nil }) // alone in the room
			if watchword.CodeOf(err) == watchword.Busy {
				mu.Lock()
				defer mu.Unlock()
				refused = append(refused, n)
			}
		})
		synctest.Wait() // it is queued
	}
	close(block)
	wg.Wait()
	if r.free != 1 || r.waiting != 0 || len(r.queues) != 0 || r.next != nil {
		t.Errorf("the room is not as it was: %d free, %d waiting, %d lines", r.free, r.waiting, len(r.queues))
	}
	return order, refused
}

func TestNetworksAreServedRoundRobin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got, refused := queue(t, 100, 1, 1, 1, 1, 2, 2, 3)
		if fmt.Sprint(got) != "[1 2 3 1 2 1 1]" || len(refused) != 0 {
			t.Errorf("in came %v, not %v", got, refused)
		}
	})
}

func TestLongestQueueDropsItsLast(t *testing.T) {
	for _, tc := range []struct {
		in       []int
		got, out string
	}{
		{[]int{1, 1, 1, 1, 1}, "[1 1 1 1]", "[1]"},
		{[]int{1, 1, 1, 1, 2}, "[1 2 1 1]", "[1]"},
		{[]int{1, 1, 2, 2, 1}, "[1 2 1 2]", "[1]"},
		{[]int{1, 2, 3, 4, 5}, "[1 2 3 4]", "[5]"},
		{[]int{1, 1, 1, 2, 3, 3, 3}, "[1 2 3 1]", "[1 3 3]"},
	} {
		synctest.Test(t, func(t *testing.T) {
			got, refused := queue(t, 4, tc.in...)
			if fmt.Sprint(got) != tc.got || len(refused) != len(tc.in)-4 || fmt.Sprint(refused) != tc.out {
				t.Errorf("of %v came in %v, not %v; want %s, not %s", tc.in, got, refused, tc.got, tc.out)
			}
		})
	}
}

func TestCancelledWaiterLeavesQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newSemaphore(1, 10)
		block := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { _ = r.Do(t.Context(), func() error { <-block; return nil }) })
		synctest.Wait()
		ctx, cancel := context.WithCancel(from(t, 1))
		gone := make(chan error, 1)
		wg.Go(func() { gone <- r.Do(ctx, func() error { t.Error("it came in"); return nil }) })
		synctest.Wait()
		cancel()
		if err := <-gone; watchword.CodeOf(err) != watchword.Busy {
			t.Errorf("got %v", err)
		}
		close(block)
		wg.Wait()
		if r.free != 1 || r.waiting != 0 {
			t.Errorf("%d free, %d waiting", r.free, r.waiting)
		}
	})
}

func TestNoSlotIsLost(t *testing.T) {
	r := newSemaphore(2, 8)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for n := range 200 {
				ctx, cancel := context.WithCancel(from(t, i%5))
				if n%7 == 0 {
					go cancel()
				}
				err := r.Do(ctx, func() error { return nil })
				cancel()
				if err != nil && watchword.CodeOf(err) != watchword.Busy {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if r.free != 2 || r.waiting != 0 || len(r.queues) != 0 {
		t.Errorf("%d free, %d waiting, %d lines", r.free, r.waiting, len(r.queues))
	}
}

func TestFreeSlotDoesNotAllocate(t *testing.T) {
	r, ctx, n := NewSemaphore(), from(t, 1), 0
	if got := testing.AllocsPerRun(100, func() { _ = r.Do(ctx, func() error { n++; return nil }) }); got != 0 {
		t.Errorf("%v allocations", got)
	}
	if n == 0 {
		t.Error("nothing ran")
	}
}

func BenchmarkAFreePlace(b *testing.B) {
	r, ctx, n := NewSemaphore(), from(b, 1), 0
	for b.Loop() {
		_ = r.Do(ctx, func() error { n++; return nil })
	}
}
