package backlog

// Len returns the number of buffered values.
func (l *Log[K, V]) Len() int { return l.live }

// Bytes returns the bytes of the buffered values.
func (l *Log[K, V]) Bytes() int { return l.bytes }

// Sources returns the number of sources with values or records.
func (l *Log[K, V]) Sources() int { return len(l.sources) }
