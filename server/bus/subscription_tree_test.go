package bus

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/watchword-iot/watchword/server/policy"
)

func found(t *tree[int], topic string) []int {
	var out []int
	t.match(topic, func(l []int) { out = append(out, l...) })
	slices.Sort(out)
	return out
}

// Whatever was added and removed, the tree finds what matching one by one finds.
func TestTreeMatchesLikeLinearSearch(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 2))
	words := []string{"a", "b", "", "devices", "$SYS", "+", "+"}
	filter := func() string {
		for {
			var ls []string
			for range 1 + r.IntN(4) {
				ls = append(ls, words[r.IntN(len(words))])
			}
			if r.IntN(3) == 0 {
				ls = append(ls, "#")
			}
			if f := strings.Join(ls, "/"); policy.CheckFilter(f) == nil {
				return f
			}
		}
	}
	topics := []string{"a", "b", "a/b", "/a", "a/", "/", "a//b", "devices/a", "devices/a/b/b", "$SYS", "$SYS/a", "$SYS/a/b", "b/b/b/b/b"}
	type entry struct {
		filter string
		s      int
	}
	tr, have := &tree[int]{}, map[entry]bool{}
	for n := range 30_000 {
		e := entry{filter(), r.IntN(8)}
		if r.IntN(2) == 0 {
			if got := addFree(tr, e.filter, e.s); got == have[e] {
				t.Fatalf("step %d: adding %v again: %v", n, e, got)
			}
			have[e] = true
		} else {
			if got := removeFree(tr, e.filter, e.s); got != have[e] {
				t.Fatalf("step %d: removing %v: %v", n, e, got)
			}
			delete(have, e)
		}
		if n%50 != 0 {
			continue
		}
		for _, topic := range topics {
			var want []int
			for e := range have {
				if policy.Match(e.filter, topic) {
					want = append(want, e.s)
				}
			}
			slices.Sort(want)
			if got := found(tr, topic); !slices.Equal(got, want) {
				t.Fatalf("step %d: %s finds %v, want %v", n, topic, got, want)
			}
		}
	}
	for e := range have {
		removeFree(tr, e.filter, e.s)
	}
	if !tr.root.empty() {
		t.Error("what was removed left levels behind")
	}
}

func TestConcurrentMatchFindsStableSubscribers(t *testing.T) {
	tr := &tree[int]{}
	addFree(tr, "devices/lamp-1/events/#", -1)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := 0; !stop.Load(); i++ {
				f := fmt.Sprintf("devices/lamp-%d/events/%d", i%3, w)
				addFree(tr, f, w)
				removeFree(tr, f, w)
			}
		})
	}
	for range 50_000 {
		if got := found(tr, "devices/lamp-1/events/0"); !slices.Contains(got, -1) {
			t.Fatalf("found %v", got)
		}
	}
	stop.Store(true)
	wg.Wait()
}

func BenchmarkTree(b *testing.B) {
	tr := &tree[int]{}
	for i := range 100_000 {
		addFree(tr, fmt.Sprintf("devices/lamp-%d/commands", i), i)
	}
	addFree(tr, "devices/+/events/#", -1)
	b.Run("match", func(b *testing.B) {
		b.ReportAllocs()
		n := 0
		f := func(l []int) { n += len(l) }
		for b.Loop() {
			tr.match("devices/lamp-77777/events/lux", f)
		}
	})
	b.Run("add and remove", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			addFree(tr, "devices/lamp-100001/commands", 1)
			removeFree(tr, "devices/lamp-100001/commands", 1)
		}
	})
}

// addFree adds s to filter, whatever it takes.
func addFree[S comparable](t *tree[S], filter string, s S) bool {
	fresh, _ := t.add(filter, s, func(int64) error { return nil })
	return fresh
}

func removeFree[S comparable](t *tree[S], filter string, s S) bool {
	return t.remove(filter, s, func(int64, func() (S, bool)) {})
}
