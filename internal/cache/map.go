// Package cache provides bounded maps that keep the most recently used entries.
package cache

// Map keeps at least size and at most twice size entries, in two generations: when the young one is
// full it becomes the old one, and the former old one is dropped. Each operation takes constant
// time. It is not safe for concurrent use.
type Map[K comparable, V any] struct {
	size       int
	young, old map[K]V
}

// New returns a map that keeps at least the last size entries.
func New[K comparable, V any](size int) *Map[K, V] {
	return &Map[K, V]{size: size, young: map[K]V{}}
}

// Get returns the value of k and moves it to the young generation.
func (m *Map[K, V]) Get(k K) (V, bool) {
	v, ok := m.young[k]
	if ok {
		return v, true
	}
	if v, ok = m.old[k]; ok {
		m.Put(k, v)
	}
	return v, ok
}

// Put sets the value of k.
func (m *Map[K, V]) Put(k K, v V) {
	if _, ok := m.young[k]; !ok && len(m.young) >= m.size {
		m.old, m.young = m.young, make(map[K]V, m.size/4)
	}
	m.young[k] = v
}
