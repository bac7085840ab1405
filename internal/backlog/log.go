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

	all          []slot[K, V] // by number, from head on
	head         int
	removed      int // of all, neither kept nor remembered
	live         int
	bytes        int
	first        int // no entry before it is kept
	sources      map[K]*sourceState[K]
	heap         []heapEntry[K]    // of those who take a grain or more, who takes most first
	spareSources []*sourceState[K] // without values, for those that come

	lostFirst int // no entry before it is remembered as lost
	lostBytes int
	forgotten uint64 // the greatest number of those that were lost and are not remembered
}

// slot is a value that is kept, or what is remembered of one that was lost, or neither.
type slot[K comparable, V any] struct {
	number   uint64
	source   *sourceState[K] // nil: neither
	value    V
	tag      string
	bytes    int32
	buffered bool
}

// sourceState is what the log has of one, while there is a value of it, or a lost one is remembered.
type sourceState[K comparable] struct {
	key     K
	numbers []uint64 // of its values, oldest first, from head on
	head    int
	bytes   int
	lost    int // values that are remembered
	at      int // in the heap; -1: not there
}

// heapEntry is a source in the heap, with what it is compared by.
type heapEntry[K comparable] struct {
	grains int
	oldest uint64
	of     *sourceState[K]
}

func (s *sourceState[K]) len() int { return len(s.numbers) - s.head }

func (s *sourceState[K]) rank() heapEntry[K] {
	return heapEntry[K]{s.bytes / rankGrain, s.numbers[s.head], s}
}

// rankGrain is how many bytes two sources may differ and count as equal: among equals the oldest value goes first, whatever
// the lengths of names do to its size.
const rankGrain = 16 << 10

// before reports whether a loses a value before b does.
func (a *heapEntry[K]) before(b *heapEntry[K]) bool {
	if a.grains != b.grains {
		return a.grains > b.grains
	}
	return a.oldest < b.oldest
}

// New returns an empty log.
func New[K comparable, V any](b Bounds) *Log[K, V] {
	return &Log[K, V]{bounds: b, sources: map[K]*sourceState[K]{}}
}

// Add keeps v, which takes that many bytes, at most 1 GiB. number is above those of all before. tag is what is remembered
// of it beside its source when it is lost. It takes time that grows with the logarithm of the number of sources, and now
// and then with the number of values that are kept, when it looks for the oldest one or the first that was lost.
func (l *Log[K, V]) Add(number uint64, k K, v V, tag string, bytes int) {
	s := l.sources[k]
	switch {
	case s == nil:
		s = l.source(k)
	case s.len() == 0:
		l.lostBytes -= sourceMemory
	}
	s.numbers = append(s.numbers, number)
	l.all = append(l.all, slot[K, V]{number: number, source: s, value: v, tag: tag, bytes: int32(bytes), buffered: true})
	l.live++
	l.bytes += bytes
	s.bytes += bytes
	l.place(s)
	for s.len() > l.bounds.SourceValues || s.bytes > l.bounds.SourceBytes {
		l.drop(s)
	}
	for l.live > l.bounds.Values || l.bytes > l.bounds.Bytes {
		l.drop(l.largestSource())
	}
	l.compact()
}

// source begins another one.
func (l *Log[K, V]) source(k K) *sourceState[K] {
	s := &sourceState[K]{at: -1}
	if n := len(l.spareSources); n > 0 {
		s, l.spareSources[n-1], l.spareSources = l.spareSources[n-1], nil, l.spareSources[:n-1]
	}
	s.key = k
	l.sources[k] = s
	return s
}

// largestSource is the source that takes most, or, where none takes a grain, the one with the oldest value.
func (l *Log[K, V]) largestSource() *sourceState[K] {
	if len(l.heap) > 0 {
		return l.heap[0].of
	}
	return l.all[l.oldest()].source
}

// oldest is where the oldest value is that is kept. There is one.
func (l *Log[K, V]) oldest() int {
	l.first = max(l.first, l.head)
	for !l.all[l.first].buffered {
		l.first++
	}
	return l.first
}

// drop loses the oldest value of s.
func (l *Log[K, V]) drop(s *sourceState[K]) {
	number := s.numbers[s.head]
	i := l.oldest() // as a rule
	if l.all[i].number != number {
		i = l.after(number - 1)
	}
	e := &l.all[i]
	l.live--
	l.bytes -= int(e.bytes)
	s.bytes -= int(e.bytes)
	var none V
	e.value, e.buffered = none, false
	s.lost++
	l.lostBytes += lostMemory + len(e.tag)
	l.lostFirst = min(l.lostFirst, i)
	if s.head++; s.head > 32 && s.head > len(s.numbers)/2 {
		s.numbers = append(s.numbers[:0], s.numbers[s.head:]...)
		s.head = 0
	}
	if s.len() == 0 {
		l.leave(s)
		s.numbers, s.head = s.numbers[:0], 0
		l.lostBytes += sourceMemory
	} else {
		l.place(s)
	}
	for l.lostBytes > l.bounds.LostBytes {
		l.forgetFirst()
	}
}

// lostMemory is about what one lost value takes beside its tag, and sourceMemory what a source takes of which no value is
// kept.
const (
	lostMemory   = 128
	sourceMemory = 256
)

// forgetFirst forgets the oldest of the values that were lost and are remembered. There is one.
func (l *Log[K, V]) forgetFirst() {
	l.lostFirst = max(l.lostFirst, l.head)
	for e := &l.all[l.lostFirst]; e.buffered || e.source == nil; e = &l.all[l.lostFirst] {
		l.lostFirst++
	}
	e := &l.all[l.lostFirst]
	l.forgotten = max(l.forgotten, e.number)
	s := e.source
	l.clear(e)
	if s.lost == 0 && s.len() == 0 {
		l.remove(s)
	}
}

// clear makes an entry one that is neither kept nor remembered.
func (l *Log[K, V]) clear(e *slot[K, V]) {
	if e.buffered {
		l.live--
		l.bytes -= int(e.bytes)
	} else {
		l.lostBytes -= lostMemory + len(e.tag)
		e.source.lost--
	}
	*e = slot[K, V]{number: e.number}
	l.removed++
}

// Forget takes away all values of one source, and what is remembered of those that it lost: nothing of it is lost then.
// It takes time that grows with all that is kept and remembered.
func (l *Log[K, V]) Forget(k K) {
	s := l.sources[k]
	if s == nil {
		return
	}
	for i := l.head; i < len(l.all); i++ {
		if e := &l.all[i]; e.source == s {
			l.clear(e)
		}
	}
	if s.len() > 0 {
		l.lostBytes += sourceMemory // as it has no value now
	}
	l.remove(s)
	l.compact()
}

// compact takes out what is gone, when that is much.
func (l *Log[K, V]) compact() {
	for l.removed > 0 && l.all[l.head].source == nil { // as a rule they are at the front
		l.head++
		l.removed--
	}
	if l.head > 64 && l.head > len(l.all)/2 {
		n := copy(l.all, l.all[l.head:])
		clear(l.all[n:])
		l.all, l.first, l.lostFirst, l.head = l.all[:n], max(0, l.first-l.head), max(0, l.lostFirst-l.head), 0
	}
	if l.removed <= 64+(len(l.all)-l.head)/2 {
		return
	}
	stay := l.all[:0]
	if rest := len(l.all) - l.head - l.removed; cap(l.all) > 4*rest+256 { // a burst is over
		stay = make([]slot[K, V], 0, rest)
	}
	for _, e := range l.all[l.head:] {
		if e.source != nil {
			stay = append(stay, e)
		}
	}
	clear(l.all[min(len(stay), len(l.all)):])
	l.all, l.head, l.removed, l.first, l.lostFirst = stay, 0, 0, 0, 0
}

// after is the index of the first entry with a greater number.
func (l *Log[K, V]) after(number uint64) int {
	low, high := l.head, len(l.all)
	for low < high {
		if mid := (low + high) / 2; l.all[mid].number > number {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low
}

// Value is one that is kept, or that was lost: only its number, source and tag are known then.
type Value[K comparable, V any] struct {
	Number   uint64
	Source   K
	Tag      string
	Value    V    // the zero V where it was lost
	Buffered bool // false: it was lost
}

// After calls f for each value with a greater number that is kept, or was lost and is remembered, in the order of their
// numbers, until f returns false.
func (l *Log[K, V]) After(number uint64, f func(Value[K, V]) bool) {
	for i := l.after(number); i < len(l.all); i++ {
		if e := &l.all[i]; e.source != nil && !f(Value[K, V]{e.number, e.source.key, e.tag, e.value, e.buffered}) {
			return
		}
	}
}

// Forgotten is the greatest number of the values that were lost and are not remembered any more, 0 for none.
func (l *Log[K, V]) Forgotten() uint64 { return l.forgotten }

// Len returns how many values are kept.
func (l *Log[K, V]) Len() int { return l.live }

// Bytes returns the bytes of the values that are kept.
func (l *Log[K, V]) Bytes() int { return l.bytes }

// Sources returns of how many sources a value is kept, or remembered as lost.
func (l *Log[K, V]) Sources() int { return len(l.sources) }

// maxSpareSources is how many sources without values wait to be used again.
const maxSpareSources = 64

// remove forgets a source of which no value is kept, and none remembered.
func (l *Log[K, V]) remove(s *sourceState[K]) {
	l.lostBytes -= sourceMemory
	delete(l.sources, s.key)
	l.leave(s)
	if len(l.spareSources) < maxSpareSources && cap(s.numbers) <= 64 {
		*s = sourceState[K]{numbers: s.numbers[:0], at: -1}
		l.spareSources = append(l.spareSources, s)
	}
}

// place puts a source where it belongs in the heap, after it changed.
func (l *Log[K, V]) place(s *sourceState[K]) {
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
func (l *Log[K, V]) leave(s *sourceState[K]) {
	i, last := s.at, len(l.heap)-1
	if i < 0 {
		return
	}
	l.swap(i, last)
	l.heap[last] = heapEntry[K]{}
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
