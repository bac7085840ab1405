package sorted_test

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/watchword-iot/watchword/server/internal/sorted"
)

// A set holds what a sorted slice holds after the same random additions and removals, and every page of it is the same.
func TestSetEqualsASortedSlice(t *testing.T) {
	for _, size := range []int{3, 600, 5000} {
		random := rand.New(rand.NewPCG(1, uint64(size)))
		set, want := sorted.NewSet(cmp.Compare[int]), []int{}
		for step := range 4 * size {
			v := random.IntN(size)
			at, has := slices.BinarySearch(want, v)
			if add := random.IntN(3) > 0 == (step < 3*size); add { // it grows first, and shrinks at the end
				if set.Add(v) == has {
					t.Fatalf("size %d, step %d: Add(%d) contradicts the slice", size, step, v)
				}
				if !has {
					want = slices.Insert(want, at, v)
				}
			} else {
				if set.Remove(v) != has {
					t.Fatalf("size %d, step %d: Remove(%d) contradicts the slice", size, step, v)
				}
				if has {
					want = slices.Delete(want, at, at+1)
				}
			}
			if set.Len() != len(want) {
				t.Fatalf("size %d, step %d: %d values, want %d", size, step, set.Len(), len(want))
			}
			if step%97 > 0 {
				continue
			}
			from, n := random.IntN(size+1), random.IntN(2000)
			at, _ = slices.BinarySearch(want, from)
			if got, want := set.Page(func(v int) bool { return v < from }, n), want[at:min(at+n, len(want))]; !slices.Equal(got, want) {
				t.Fatalf("size %d, step %d: page of %d from %d: %v, want %v", size, step, n, from, got, want)
			}
		}
	}
}

// Adding to or removing from a large set, and reading a page of it, compares with a few values only.
func TestSetComparesFewValues(t *testing.T) {
	compared := 0
	set := sorted.NewSet(func(a, b int) int { compared++; return cmp.Compare(a, b) })
	for v := range 100_000 {
		set.Add(v * 2)
	}
	for what, f := range map[string]func(){
		"Add":    func() { set.Add(77_777) },
		"Remove": func() { set.Remove(77_778) },
		"Page": func() {
			if got := set.Page(func(v int) bool { compared++; return v < 99_999 }, 100); len(got) != 100 || got[0] != 100_000 {
				t.Errorf("page: %v", got)
			}
		},
	} {
		compared = 0
		if f(); compared > 40 {
			t.Errorf("%s of a set of 100,000 compared %d values", what, compared)
		}
	}
}
