package recent

// Sized is a [Map] whose bound is in bytes, for values whose sizes differ. It holds at most max bytes: when the young
// generation has half of them it becomes the old one. It is not safe for concurrent use: the owner holds a lock.
type Sized[K comparable, V any] struct {
	max        int
	young, old map[K]sized[V]
	bytes      int // of young
	oldBytes   int
}

type sized[V any] struct {
	value V
	bytes int
}

// NewSized returns a map that holds at most max bytes.
func NewSized[K comparable, V any](max int) *Sized[K, V] {
	return &Sized[K, V]{max: max, young: map[K]sized[V]{}}
}

// Get returns what is remembered for k, and makes it young.
func (m *Sized[K, V]) Get(k K) (v V, ok bool) {
	s, ok := m.young[k]
	if !ok {
		if s, ok = m.old[k]; ok {
			m.Put(k, s.value, s.bytes)
		}
	}
	return s.value, ok
}

// Put remembers v for k, which takes that many bytes, its key and the map's own share included. What takes more than
// half of the bound is not remembered.
func (m *Sized[K, V]) Put(k K, v V, bytes int) {
	m.Delete(k)
	if bytes > m.max/2 {
		return
	}
	if m.bytes+bytes > m.max/2 {
		m.old, m.oldBytes = m.young, m.bytes
		m.young, m.bytes = map[K]sized[V]{}, 0
	}
	m.young[k] = sized[V]{v, bytes}
	m.bytes += bytes
}

// Delete forgets k.
func (m *Sized[K, V]) Delete(k K) {
	m.bytes -= m.young[k].bytes
	m.oldBytes -= m.old[k].bytes
	delete(m.young, k)
	delete(m.old, k)
}

// DeleteFunc forgets every pair that is one to forget. It costs as much as there are pairs.
func (m *Sized[K, V]) DeleteFunc(gone func(K, V) bool) {
	for _, pairs := range []map[K]sized[V]{m.young, m.old} {
		for k, s := range pairs {
			if gone(k, s.value) {
				m.Delete(k)
			}
		}
	}
}

// Bytes returns how many bytes are held.
func (m *Sized[K, V]) Bytes() int { return m.bytes + m.oldBytes }
