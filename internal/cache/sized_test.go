package cache_test

import (
	"testing"

	"github.com/watchword-iot/watchword/internal/cache"
)

func TestASizedMapHoldsNoMoreThanItsBytes(t *testing.T) {
	const most = 1000
	m := cache.NewSized[int, int](most)
	for i := range 500 {
		m.Put(i, i, 1+i%100)
		if m.Bytes() > most {
			t.Fatalf("holds %d bytes after %d puts", m.Bytes(), i)
		}
		if v, ok := m.Get(i); !ok || v != i {
			t.Fatalf("forgot %d at once", i)
		}
	}
	if _, ok := m.Get(0); ok {
		t.Error("still knows the first of many")
	}
}

func TestASizedMapKeepsWhatIsAskedFor(t *testing.T) {
	m := cache.NewSized[int, string](100)
	m.Put(-1, "kept", 10)
	for i := range 200 {
		m.Put(i, "", 10)
		if v, ok := m.Get(-1); !ok || v != "kept" {
			t.Fatalf("forgot after %d", i)
		}
	}
}

func TestASizedMapCountsEachPairOnce(t *testing.T) {
	m := cache.NewSized[int, int](100)
	m.Put(1, 1, 20)
	m.Put(1, 2, 30) // in its place
	if v, _ := m.Get(1); v != 2 || m.Bytes() != 30 {
		t.Errorf("%d in %d bytes", v, m.Bytes())
	}
	m.Put(2, 2, 30) // 1 is old now
	m.Get(1)        // and young again, which makes 2 old
	if m.Bytes() != 60 {
		t.Errorf("%d bytes, of two pairs of 30", m.Bytes())
	}
	m.Delete(1)
	m.Delete(2)
	m.Delete(3)
	if m.Bytes() != 0 {
		t.Errorf("%d bytes of nothing", m.Bytes())
	}
	m.Put(4, 4, 51)
	if _, ok := m.Get(4); ok || m.Bytes() != 0 {
		t.Error("what takes more than half was taken")
	}
}

func TestASizedMapForgetsInBothGenerations(t *testing.T) {
	m := cache.NewSized[int, int](100)
	for i := range 8 {
		m.Put(i, i, 10)
	}
	m.DeleteFunc(func(k, _ int) bool { return k%2 == 1 })
	for i := range 8 {
		if _, ok := m.Get(i); ok != (i%2 == 0) {
			t.Errorf("%d: %v", i, ok)
		}
	}
	if m.Bytes() != 40 {
		t.Errorf("%d bytes of four pairs of 10", m.Bytes())
	}
}
