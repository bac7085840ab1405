package cache

// Sized is a [Map] with a limit in bytes: it holds at most max bytes, half of them in the young
// generation. It is not safe for concurrent use.
type Sized[K comparable, V any] struct {
	max        int
	young, old map[K]sized[V]
	bytes      int // bytes of young
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

// Resize sets the limit. Above a smaller one the older generation goes, and the rest at the next Put.
func (m *Sized[K, V]) Resize(max int) {
	if m.max = max; m.bytes+m.oldBytes > max {
		m.old, m.oldBytes = nil, 0
	}
}

// Len returns the number of entries.
func (m *Sized[K, V]) Len() int { return len(m.young) + len(m.old) }

// Get returns the value of k and moves it to the young generation.
func (m *Sized[K, V]) Get(k K) (v V, ok bool) {
	s, ok := m.young[k]
	if !ok {
		if s, ok = m.old[k]; ok {
			m.Put(k, s.value, s.bytes)
		}
	}
	return s.value, ok
}

// Put sets the value of k, which takes that many bytes, key and map overhead included. A value of
// more than half the limit is not kept.
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

// Delete deletes k.
func (m *Sized[K, V]) Delete(k K) {
	m.bytes -= m.young[k].bytes
	m.oldBytes -= m.old[k].bytes
	delete(m.young, k)
	delete(m.old, k)
}

// DeleteFunc deletes the entries for which gone returns true, in linear time.
func (m *Sized[K, V]) DeleteFunc(gone func(K, V) bool) {
	for _, pairs := range []map[K]sized[V]{m.young, m.old} {
		for k, s := range pairs {
			if gone(k, s.value) {
				m.Delete(k)
			}
		}
	}
}

// Bytes returns the bytes of all entries.
func (m *Sized[K, V]) Bytes() int { return m.bytes + m.oldBytes }
