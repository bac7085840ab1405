// Package recent is a map with a bound that remembers what was asked for last.
// In come pairs, out they come again unless many others came between. It
// refuses nothing and forgets by itself.
package recent

import "maps"

// Map keeps at least size and at most twice size pairs: when the young
// generation is full it becomes the old one, and what was old and not asked for
// since is forgotten. Every step costs the same, however full it is. It is not
// safe for concurrent use: the owner holds a lock.
type Map[K comparable, V any] struct {
	size       int
	young, old map[K]V
}

// New returns a map that remembers at least the last size pairs.
func New[K comparable, V any](size int) *Map[K, V] {
	return &Map[K, V]{size: size, young: map[K]V{}}
}

// Get returns what is remembered for k, and makes it young.
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

// Put remembers v for k.
func (m *Map[K, V]) Put(k K, v V) {
	if _, ok := m.young[k]; !ok && len(m.young) >= m.size {
		m.old, m.young = m.young, make(map[K]V, m.size/4)
	}
	m.young[k] = v
}

// Delete forgets k.
func (m *Map[K, V]) Delete(k K) {
	delete(m.young, k)
	delete(m.old, k)
}

// DeleteFunc forgets every pair that is one to forget. It costs as much as there are pairs.
func (m *Map[K, V]) DeleteFunc(gone func(K, V) bool) {
	maps.DeleteFunc(m.young, gone)
	maps.DeleteFunc(m.old, gone)
}

// Len returns how many pairs are held, of which some may be held twice.
func (m *Map[K, V]) Len() int { return len(m.young) + len(m.old) }
