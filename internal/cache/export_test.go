package cache

// Len returns the number of entries; an entry may count twice.
func (m *Map[K, V]) Len() int { return len(m.young) + len(m.old) }
