// Package backlog buffers the latest values of many sources within limits that the sources share
// fairly. Values with ascending numbers go in and come out in that order. When the buffer is full,
// the source that takes most loses its oldest value, so that a burst of one source costs the others
// nothing; lost values are reported with their source.
package backlog

// Bounds are the limits of a [Log]; all must be above zero.
type Bounds struct {
	Bytes, Values             int // of all sources together
	SourceBytes, SourceValues int // of one source
	LostBytes                 int // of the records of lost values
}

// Log buffers values of sources K. Make one with [New]. It is not safe for concurrent use.
type Log[K comparable, V any] struct {
	bounds Bounds

	all          []slot[K, V] // by number, from head on
	head         int
	removed      int // slots of all that are empty
	live         int
	bytes        int
	first        int // no buffered value before this index
	sources      map[K]*sourceState[K]
	heap         []heapEntry[K]    // sources with at least one grain, the largest first
	spareSources []*sourceState[K] // unused source structures, for reuse

	lostFirst int // no record of a lost value before this index
	lostBytes int
	forgotten uint64 // greatest number of a lost value without a record
}

// slot is a buffered value, the record of a lost value, or empty.
type slot[K comparable, V any] struct {
	number   uint64
	source   *sourceState[K] // nil: empty
	value    V
	tag      string
	bytes    int32
	buffered bool
}

// sourceState is a source with at least one buffered value or record.
type sourceState[K comparable] struct {
	key     K
	numbers []uint64 // numbers of its buffered values, oldest first, from head on
	head    int
	bytes   int
	lost    int // records of lost values
	at      int // index in the heap; -1: not in it
}

// heapEntry is a source in the heap with its sort key.
type heapEntry[K comparable] struct {
	grains int
	oldest uint64
	of     *sourceState[K]
}

func (s *sourceState[K]) len() int { return len(s.numbers) - s.head }

func (s *sourceState[K]) rank() heapEntry[K] {
	return heapEntry[K]{s.bytes / rankGrain, s.numbers[s.head], s}
}

// rankGrain is the unit in which sources are compared: sources with the same number of grains count
// as equal, and the one with the oldest value loses it. So the length of a name does not decide.
const rankGrain = 16 << 10

// before reports whether a loses a value before b.
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

// Add buffers v, which takes that many bytes, at most 1 GiB. number must be above all earlier ones.
// tag is recorded with the source if v is lost. It takes time logarithmic in the number of sources;
// sometimes linear in the number of values, when it searches for the oldest one or the first
// record.
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

// source adds a source.
func (l *Log[K, V]) source(k K) *sourceState[K] {
	s := &sourceState[K]{at: -1}
	if n := len(l.spareSources); n > 0 {
		s, l.spareSources[n-1], l.spareSources = l.spareSources[n-1], nil, l.spareSources[:n-1]
	}
	s.key = k
	l.sources[k] = s
	return s
}

// largestSource returns the source with the most grains, or, where no source has one, the source of
// the oldest value.
func (l *Log[K, V]) largestSource() *sourceState[K] {
	if len(l.heap) > 0 {
		return l.heap[0].of
	}
	return l.all[l.oldest()].source
}

// oldest returns the index of the oldest buffered value; there must be one.
func (l *Log[K, V]) oldest() int {
	l.first = max(l.first, l.head)
	for !l.all[l.first].buffered {
		l.first++
	}
	return l.first
}

// drop removes the oldest value of s and records the loss.
func (l *Log[K, V]) drop(s *sourceState[K]) {
	number := s.numbers[s.head]
	i := l.oldest() // usually
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

// lostMemory estimates the memory of a record beside its tag, sourceMemory that of a source without
// values.
const (
	lostMemory   = 128
	sourceMemory = 256
)

// forgetFirst removes the oldest record; there must be one.
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

// clear makes a slot empty.
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

// Forget removes all values and records of one source; its lost values are not reported any more.
// It takes time linear in the size of the log.
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
		l.lostBytes += sourceMemory // since it has no value now
	}
	l.remove(s)
	l.compact()
}

// compact removes empty slots when there are many.
func (l *Log[K, V]) compact() {
	for l.removed > 0 && l.all[l.head].source == nil { // most are at the front
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
	if rest := len(l.all) - l.head - l.removed; cap(l.all) > 4*rest+256 { // releases memory after a burst
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

// after returns the index of the first slot with a greater number.
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

// Value is a buffered value, or the record of a lost one: then only its number, source and tag are
// known.
type Value[K comparable, V any] struct {
	Number   uint64
	Source   K
	Tag      string
	Value    V    // the zero V of a lost value
	Buffered bool // false: lost
}

// After calls f with each value and record with a greater number, in ascending order, until f
// returns false.
func (l *Log[K, V]) After(number uint64, f func(Value[K, V]) bool) {
	for i := l.after(number); i < len(l.all); i++ {
		if e := &l.all[i]; e.source != nil && !f(Value[K, V]{e.number, e.source.key, e.tag, e.value, e.buffered}) {
			return
		}
	}
}

// Forgotten returns the greatest number of a lost value without a record, 0 for none.
func (l *Log[K, V]) Forgotten() uint64 { return l.forgotten }

// maxSpareSources limits the source structures kept for reuse.
const maxSpareSources = 64

// remove removes a source without values and records.
func (l *Log[K, V]) remove(s *sourceState[K]) {
	l.lostBytes -= sourceMemory
	delete(l.sources, s.key)
	l.leave(s)
	if len(l.spareSources) < maxSpareSources && cap(s.numbers) <= 64 {
		*s = sourceState[K]{numbers: s.numbers[:0], at: -1}
		l.spareSources = append(l.spareSources, s)
	}
}

// place moves a source to its place in the heap after a change.
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

// leave removes a source from the heap.
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
