package mqtt

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/watchword-iot/watchword/server/mqttstore"
)

// A set of spans is what a set of numbers is, in as few spans as there can be.
func TestSequenceSet(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 1))
	for range 300 {
		var s sequenceSet
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
			var want []mqttstore.SeqRange
			for _, n := range slices.Sorted(maps.Keys(set)) {
				if last := len(want) - 1; last >= 0 && want[last].To == n-1 {
					want[last].To = n
				} else {
					want = append(want, mqttstore.SeqRange{From: n, To: n})
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
func TestShrunkListReleasesMemory(t *testing.T) {
	list := make([]backlogEntry, 10_000)
	for i := range list {
		list[i] = backlogEntry{stored: &storedMessage{}, seq: int64(i)}
	}
	encoded := list
	for done := range 10_000 {
		if len(list) == 0 || list[0].seq != int64(done) {
			t.Fatalf("%d are left after %d, from %d on", len(list), done, list[0].seq)
		}
		if cap(list) > 4*fetchMessages && cap(list) > 5*len(list) {
			t.Fatalf("%d that are left take as much as %d", len(list), cap(list))
		}
		list = trimFront(list, 1)
		if done == 99 {
			for _, e := range encoded[len(list):] {
				if e.stored != nil {
					t.Fatal("what is done is held")
				}
			}
		}
	}
	if list != nil {
		t.Errorf("%d are left", len(list))
	}
}
