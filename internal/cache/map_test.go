package cache_test

import (
	"testing"

	"github.com/watchword-iot/watchword/internal/cache"
)

func TestMapKeepsAtMostTwiceItsSize(t *testing.T) {
	const size = 100
	m := cache.New[int, int](size)
	for i := range 10 * size {
		m.Put(i, i)
		if m.Len() > 2*size {
			t.Fatalf("holds %d after %d puts, bound %d", m.Len(), i, 2*size)
		}
		if j := i - size/4; j >= 0 { // since j was put, 2×size/4 keys were put or read
			if _, ok := m.Get(j); !ok {
				t.Fatalf("forgot %d after %d", j, i)
			}
		}
	}
	if _, ok := m.Get(0); ok {
		t.Error("still knows the first of many")
	}
}
