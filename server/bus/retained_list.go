package bus

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
	"sort"
)

// records is a list of records in the order of their topics, in chunks, so that one more
// or less moves few. The order is that of the topics' levels: a topic, then all below it,
// then the next one. It takes the same for every record, however long or deep its topic,
// and shares nothing between two.
type records struct {
	chunks [][]*Retained // none is empty
}

// maxChunk is how many records a chunk has at most.
const maxChunk = 256

// place is where a record is, or where it would be.
type place struct{ chunk, at int }

// compareTopics compares topics level by level: / sorts before every other character.
func compareTopics(a, b []byte) int {
	n := min(len(a), len(b))
	i := 0
	for ; i+8 <= n; i += 8 {
		if x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); x != 0 {
			i += bits.TrailingZeros64(x) / 8
			return int(rank(a[i])) - int(rank(b[i]))
		}
	}
	for ; i < n; i++ {
		if a[i] != b[i] {
			return int(rank(a[i])) - int(rank(b[i]))
		}
	}
	return len(a) - len(b)
}

func rank(c byte) byte {
	if c == '/' {
		return 0 // NUL is in no topic (MQTT 5.0 §1.5.4)
	}
	return c
}

// seek returns the position of the first record with a topic >= topic, and whether it is equal.
func (l *records) seek(topic []byte) (p place, found bool) {
	p.chunk = sort.Search(len(l.chunks), func(i int) bool {
		c := l.chunks[i]
		return compareTopics(c[len(c)-1].Topic(), topic) >= 0
	})
	if p.chunk == len(l.chunks) {
		return p, false
	}
	p.at, found = l.in(l.chunks[p.chunk], topic)
	return p, found
}

func (l *records) in(c []*Retained, topic []byte) (at int, found bool) {
	at = sort.Search(len(c), func(i int) bool { return compareTopics(c[i].Topic(), topic) >= 0 })
	return at, at < len(c) && bytes.Equal(c[at].Topic(), topic)
}

// at returns the record at a place, nil behind the last one.
func (l *records) at(p place) *Retained {
	if p.chunk == len(l.chunks) {
		return nil
	}
	return l.chunks[p.chunk][p.at]
}

// after returns the next position.
func (l *records) after(p place) place {
	if p.at++; p.at == len(l.chunks[p.chunk]) {
		return place{chunk: p.chunk + 1}
	}
	return p
}

// forward is seek for a topic after p, which is usually near.
func (l *records) forward(p place, topic []byte) place {
	c := l.chunks[p.chunk]
	if compareTopics(c[len(c)-1].Topic(), topic) < 0 {
		p, _ = l.seek(topic)
		return p
	}
	at, _ := l.in(c[p.at:], topic)
	return place{p.chunk, p.at + at}
}

// find returns the record of a topic, nil for none.
func (l *records) find(topic []byte) *Retained {
	if p, found := l.seek(topic); found {
		return l.at(p)
	}
	return nil
}

// put inserts a record, or replaces the one of the same topic.
func (l *records) put(r *Retained) {
	p, found := l.seek(r.Topic())
	switch {
	case found:
		l.chunks[p.chunk][p.at] = r
		return
	case p.chunk == len(l.chunks): // at the end
		if n := len(l.chunks); n == 0 || len(l.chunks[n-1]) == maxChunk { // ascending inserts leave full chunks
			l.chunks = append(l.chunks, nil)
		}
		p.chunk = len(l.chunks) - 1
		p.at = len(l.chunks[p.chunk])
	case len(l.chunks[p.chunk]) == maxChunk:
		c := l.chunks[p.chunk]
		half := append(make([]*Retained, 0, maxChunk), c[maxChunk/2:]...)
		clear(c[maxChunk/2:])
		l.chunks[p.chunk] = c[:maxChunk/2]
		l.chunks = slices.Insert(l.chunks, p.chunk+1, half)
		if p.at > maxChunk/2 {
			p.chunk, p.at = p.chunk+1, p.at-maxChunk/2
		}
	}
	l.chunks[p.chunk] = slices.Insert(l.chunks[p.chunk], p.at, r)
}

// remove removes a record.
func (l *records) remove(r *Retained) {
	p, found := l.seek(r.Topic())
	if !found {
		return
	}
	c := slices.Delete(l.chunks[p.chunk], p.at, p.at+1)
	l.chunks[p.chunk] = c
	if len(c) > maxChunk/4 {
		return
	}
	for _, with := range []int{p.chunk - 1, p.chunk} { // of two neighbours one is more than a quarter full
		if with < 0 || with+1 >= len(l.chunks) || len(l.chunks[with])+len(l.chunks[with+1]) > maxChunk/2 {
			continue
		}
		both := append(make([]*Retained, 0, maxChunk), l.chunks[with]...)
		l.chunks[with] = append(both, l.chunks[with+1]...)
		l.chunks = slices.Delete(l.chunks, with+1, with+2)
		return
	}
	if len(c) == 0 {
		l.chunks = slices.Delete(l.chunks, p.chunk, p.chunk+1)
	}
	if len(l.chunks) == 0 {
		l.chunks = nil
	}
}

// scan calls f with the records that a filter matches ("": all), in order, after a topic, until f
// returns false; it examines at most that many. It returns the last examined topic, from which to
// continue, and nil at the end. That topic aliases a record.
func (l *records) scan(filter string, after []byte, most int, f func(*Retained) bool) (last []byte) {
	p, found := l.seek(after)
	if found {
		p = l.after(p)
	}
	s := newSeeker(filter)
	for range most {
		r := l.at(p)
		if r == nil {
			return nil
		}
		topic := r.Topic()
		matched, next := s.match(topic)
		switch {
		case matched:
			if !f(r) {
				return topic
			}
			p = l.after(p)
		case next == nil:
			return nil
		case len(next) == 0:
			p = l.after(p)
		default:
			p = l.forward(p, next)
		}
		last = topic
	}
	return last
}

// seeker says for each topic whether a filter matches it, and where not, which one may be
// the next that it does.
type seeker struct {
	levels [][]byte
	next   []byte
}

func newSeeker(filter string) *seeker {
	if filter == "" {
		return &seeker{}
	}
	return &seeker{levels: bytes.Split([]byte(filter), []byte{'/'})}
}

// match reports whether the filter matches topic, as [policy.Match]. If not, next is the least
// later topic that it may match: nil if there is none, empty for the immediate successor. It is
// valid until the next call.
func (s *seeker) match(topic []byte) (matched bool, next []byte) {
	if s.levels == nil {
		return true, nil
	}
	begin := 0
	plus := -1 // end of the last level matched by +
	for i, level := range s.levels {
		if begin > len(topic) { // the topic has fewer levels than the filter
			if len(level) == 1 && level[0] == '#' { // a/# matches a
				return true, nil
			}
			return false, topic[:0]
		}
		end := len(topic)
		if n := bytes.IndexByte(topic[begin:], '/'); n >= 0 {
			end = begin + n
		}
		wild := len(level) == 1 && (level[0] == '+' || level[0] == '#')
		switch {
		case wild && i == 0 && topic[0] == '$': // MQTT 5.0 §4.7.2
			return false, s.past(topic[:end])
		case wild && level[0] == '#':
			return true, nil
		case wild:
			plus = end
		default:
			switch c := bytes.Compare(topic[begin:end], level); {
			case c < 0:
				s.next = append(append(s.next[:0], topic[:begin]...), level...)
				return false, s.next
			case c > 0 && plus < 0:
				return false, nil
			case c > 0:
				return false, s.past(topic[:plus])
			}
		}
		begin = end + 1
	}
	if begin <= len(topic) { // the topic has more levels than the filter
		return false, s.past(topic[:begin-1])
	}
	return true, nil
}

// past returns the least topic after a topic and all below it.
func (s *seeker) past(topic []byte) []byte {
	s.next = append(append(s.next[:0], topic...), 1)
	return s.next
}
