package mqtt

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/watchword-iot/watchword/shelf"
)

// A set of spans is what a set of numbers is, in as few spans as there can be.
func TestSpansAreASetOfNumbers(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 1))
	for range 300 {
		var s spans
		set := map[int64]bool{}
		for range r.IntN(80) {
			n := 1 + r.Int64N(60)
			if r.IntN(10) == 0 {
				s.after(n)
				maps.DeleteFunc(set, func(x int64, _ bool) bool { return x <= n })
			} else {
				to := n + r.Int64N(4)
				s.add(n, to)
				for ; n <= to; n++ {
					set[n] = true
				}
			}
			var want []shelf.Span
			for _, n := range slices.Sorted(maps.Keys(set)) {
				if last := len(want) - 1; last >= 0 && want[last].To == n-1 {
					want[last].To = n
				} else {
					want = append(want, shelf.Span{From: n, To: n})
				}
			}
			if !slices.Equal(s, want) {
				t.Fatalf("got %v, want %v", s, want)
			}
			for n := range int64(70) {
				if s.has(n) != set[n] {
					t.Fatalf("%v has %d: %v", s, n, s.has(n))
				}
			}
		}
	}
}

// A list that has become short takes little, and holds nothing of what is done.
func TestAListThatHasBecomeShortIsShort(t *testing.T) {
	list := make([]entry, 10_000)
	for i := range list {
		list[i] = entry{k: &kept{}, seq: int64(i)}
	}
	whole := list
	for done := range 10_000 {
		if len(list) == 0 || list[0].seq != int64(done) {
			t.Fatalf("%d are left after %d, from %d on", len(list), done, list[0].seq)
		}
		if cap(list) > 4*fetchMessages && cap(list) > 5*len(list) {
			t.Fatalf("%d that are left take as much as %d", len(list), cap(list))
		}
		list = shrunk(list, 1)
		if done == 99 {
			for _, e := range whole[len(list):] {
				if e.k != nil {
					t.Fatal("what is done is held")
				}
			}
		}
	}
	if list != nil {
		t.Errorf("%d are left", len(list))
	}
}
