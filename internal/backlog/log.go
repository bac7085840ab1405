// Package backlog keeps the last values of many sources within bounds that they share fairly. In come values with
// numbers that grow, out they come again in that order. When it is full the source that takes most loses its oldest, so
// that nobody's burst costs others theirs; what was lost is told, with its source.
package backlog

// Bounds are those of a [Log]. All are above zero.
type Bounds struct {
	Bytes, Values             int // of all sources together
	SourceBytes, SourceValues int // of each
	LostBytes                 int // of what is remembered of lost values
}

// Log keeps values of sources K. Make one with [New]. It is not safe for concurrent use: the owner holds a lock.
type Log[K comparable, V any] struct {
	bounds Bounds
	tag    func(V) string

	all   []entry[K, V] // by number; those that are gone stay until there are too many of them
	live  int
	bytes int
	first int // no entry before it is kept
	by    map[K]*source[K]
	heap  []rank[K]    // of those who take a grain or more, who takes most first
	spare []*source[K] // without values, for those that come

	lost      []Lost[K] // in the order in which they were lost
	lostHead  int
	lostAt    uint64 // the place of lost[lostHead] among all that ever were
	lostBytes int
	forgotten uint64 // the greatest number of those that are no longer among lost
}

// Lost is a value that is no longer kept.
type Lost[K comparable] struct {
	Number uint64
	Source K
	Tag    string
}

type entry[K comparable, V any] struct {
	number uint64
	of     *source[K] // nil: gone
	bytes  int
	value  V
}

// source is what the log has of one.
type source[K comparable] struct {
	key     K
	numbers []uint64 // of its values, oldest first, from head on
	head    int
	bytes   int
	at      int // in the heap; -1: not there
}

// rank is a source in the heap, with what it is compared by.
type rank[K comparable] struct {
	grains int
	oldest uint64
	of     *source[K]
}

func (s *source[K]) len() int { return len(s.numbers) - s.head }

func (s *source[K]) rank() rank[K] { return rank[K]{s.bytes / grain, s.numbers[s.head], s} }

// grain is how many bytes two sources may differ and count as equal: among equals the oldest value goes first, whatever
// the lengths of names do to its size.
const grain = 4 << 10

// before reports whether a loses a value before b does.
func (a *rank[K]) before(b *rank[K]) bool {
	if a.grains != b.grains {
		return a.grains > b.grains
	}
	return a.oldest < b.oldest
}

// New returns an empty log. tag is what is remembered of a lost value beside its source.
func New[K comparable, V any](b Bounds, tag func(V) string) *Log[K, V] {
	return &Log[K, V]{bounds: b, tag: tag, by: map[K]*source[K]{}}
}

// Add keeps v, which takes that many bytes. number is above those of all before. It takes time that grows with the
// logarithm of the number of sources.
func (l *Log[K, V]) Add(number uint64, k K, v V, bytes int) {
	s := l.by[k]
	if s == nil {
		s = l.source(k)
	}
	s.numbers = append(s.numbers, number)
	l.all = append(l.all, entry[K, V]{number, s, bytes, v})
	l.live++
	l.bytes += bytes
	s.bytes += bytes
	l.place(s)
	for s.len() > l.bounds.SourceValues || s.bytes > l.bounds.SourceBytes {
		l.drop(s)
	}
	for l.live > l.bounds.Values || l.bytes > l.bounds.Bytes {
		l.drop(l.most())
	}
	if len(l.all) > 2*l.live+64 {
		l.compact()
	}
}

// source begins another one.
func (l *Log[K, V]) source(k K) *source[K] {
	s := &source[K]{at: -1}
	if n := len(l.spare); n > 0 {
		s, l.spare[n-1], l.spare = l.spare[n-1], nil, l.spare[:n-1]
	}
	s.key = k
	l.by[k] = s
	return s
}

// most is the source that takes most, or, where none takes a grain, the one with the oldest value.
func (l *Log[K, V]) most() *source[K] {
	if len(l.heap) > 0 {
		return l.heap[0].of
	}
	for l.all[l.first].of == nil {
		l.first++
	}
	return l.all[l.first].of
}

// drop loses the oldest value of s.
func (l *Log[K, V]) drop(s *source[K]) {
	number := s.numbers[s.head]
	e := &l.all[l.after(number-1)]
	l.lose(Lost[K]{number, s.key, l.tag(e.value)})
	l.live--
	l.bytes -= e.bytes
	s.bytes -= e.bytes
	*e = entry[K, V]{number: number}
	if s.head++; s.len() == 0 {
		l.remove(s)
		return
	}
	if s.head > 32 && s.head > len(s.numbers)/2 {
		s.numbers = append(s.numbers[:0], s.numbers[s.head:]...)
		s.head = 0
	}
	l.place(s)
}

// Forget takes away all values of one source, and what is remembered of those that it lost: nothing of it is lost then.
// It takes time that grows with all that is kept and remembered.
func (l *Log[K, V]) Forget(k K) {
	for i := l.lostHead; i < len(l.lost); i++ { // their places stay: readers count them
		if one := &l.lost[i]; one.Source == k {
			l.lostBytes -= len(one.Tag)
			*one = Lost[K]{}
		}
	}
	s := l.by[k]
	if s == nil {
		return
	}
	for i := range l.all {
		if e := &l.all[i]; e.of == s {
			l.live--
			l.bytes -= e.bytes
			*e = entry[K, V]{number: e.number}
		}
	}
	l.remove(s)
	l.compact()
}

// lostMemory is about what one lost value takes beside its tag and source.
const lostMemory = 128

func (l *Log[K, V]) lose(one Lost[K]) {
	l.lost = append(l.lost, one)
	l.lostBytes += lostMemory + len(one.Tag)
	for l.lostBytes > l.bounds.LostBytes {
		first := &l.lost[l.lostHead]
		l.forgotten = max(l.forgotten, first.Number)
		l.lostBytes -= lostMemory + len(first.Tag)
		*first = Lost[K]{}
		l.lostHead++
		l.lostAt++
	}
	if l.lostHead > 64 && l.lostHead > len(l.lost)/2 {
		n := copy(l.lost, l.lost[l.lostHead:])
		clear(l.lost[n:])
		l.lost, l.lostHead = l.lost[:n], 0
	}
}

// compact takes out what is gone.
func (l *Log[K, V]) compact() {
	kept := l.all[:0]
	for _, e := range l.all {
		if e.of != nil {
			kept = append(kept, e)
		}
	}
	clear(l.all[len(kept):])
	l.all, l.first = kept, 0
}

// after is the index of the first entry with a greater number.
func (l *Log[K, V]) after(number uint64) int {
	low, high := 0, len(l.all)
	for low < high {
		if mid := (low + high) / 2; l.all[mid].number > number {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low
}

// After calls f for each value with a greater number, oldest first, until f returns false.
func (l *Log[K, V]) After(number uint64, f func(number uint64, v V) bool) {
	for i := l.after(number); i < len(l.all); i++ {
		if e := &l.all[i]; e.of != nil && !f(e.number, e.value) {
			return
		}
	}
}

// LostSince calls f for each value that was lost at or after that place among all lost ones, 0 for the first. It returns
// the place of the next that will be lost, and whether one with a number above the given one was lost there that is no
// longer remembered.
func (l *Log[K, V]) LostSince(place, number uint64, f func(Lost[K])) (next uint64, more bool) {
	next = l.lostAt + uint64(len(l.lost)-l.lostHead)
	if place < l.lostAt {
		place, more = l.lostAt, l.forgotten > number
	}
	for _, one := range l.lost[l.lostHead+int(place-l.lostAt):] {
		if one.Number > number { // 0: it was forgotten
			f(one)
		}
	}
	return next, more
}

// NextLost is the place of the next value that will be lost.
func (l *Log[K, V]) NextLost() uint64 { return l.lostAt + uint64(len(l.lost)-l.lostHead) }

// Len and Bytes are what is kept.
func (l *Log[K, V]) Len() int { return l.live }

// Bytes returns the bytes of the values that are kept.
func (l *Log[K, V]) Bytes() int { return l.bytes }

// Sources returns of how many sources there is a value.
func (l *Log[K, V]) Sources() int { return len(l.by) }

// spareSources is how many sources without values wait to be used again.
const spareSources = 64

// remove forgets a source without values.
func (l *Log[K, V]) remove(s *source[K]) {
	delete(l.by, s.key)
	l.leave(s)
	if len(l.spare) < spareSources && cap(s.numbers) <= 64 {
		*s = source[K]{numbers: s.numbers[:0], at: -1}
		l.spare = append(l.spare, s)
	}
}

// place puts a source where it belongs in the heap, after it changed.
func (l *Log[K, V]) place(s *source[K]) {
	r := s.rank()
	switch {
	case r.grains == 0:
		l.leave(s)
		return
	case s.at < 0:
		s.at = len(l.heap)
		l.heap = append(l.heap, r)
	case l.heap[s.at] == r:
		return
	default:
		l.heap[s.at] = r
	}
	if !l.up(s.at) {
		l.down(s.at)
	}
}

// leave takes a source out of the heap.
func (l *Log[K, V]) leave(s *source[K]) {
	i, last := s.at, len(l.heap)-1
	if i < 0 {
		return
	}
	l.swap(i, last)
	l.heap[last] = rank[K]{}
	l.heap = l.heap[:last]
	s.at = -1
	if i < last && !l.up(i) {
		l.down(i)
	}
}

func (l *Log[K, V]) swap(i, j int) {
	l.heap[i], l.heap[j] = l.heap[j], l.heap[i]
	l.heap[i].of.at, l.heap[j].of.at = i, j
}

func (l *Log[K, V]) up(i int) (moved bool) {
	for i > 0 {
		parent := (i - 1) / 2
		if !l.heap[i].before(&l.heap[parent]) {
			break
		}
		l.swap(i, parent)
		i, moved = parent, true
	}
	return moved
}

func (l *Log[K, V]) down(i int) {
	for {
		first := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(l.heap); child++ {
			if l.heap[child].before(&l.heap[first]) {
				first = child
			}
		}
		if first == i {
			return
		}
		l.swap(i, first)
		i = first
	}
}
