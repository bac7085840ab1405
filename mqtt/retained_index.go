package mqtt

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
	"sort"
)

// retainedRecord is one retained message, as it is kept in memory: the encoded packet that the
// store has too, and what is looked at without reading it. A topic of many levels takes
// no more than its bytes.
type retainedRecord struct {
	packet    []byte // see [message.encodeStored]; its capacity is what it takes
	expiresAt int64  // as in message
	number    int64  // in the order in which retained messages were set
	owner     *retainedOwner

	topicAt  uint8 // where the topic begins in packet
	topicLen uint16
	removed  bool // it is not retained any more; under retained.mu
	undone   bool // its publisher heard that it was refused; likewise
}

// recordBytes is what a record takes beside its packet: itself, and its place in the
// list, which is between half full and full.
const recordBytes = 64 + 16

func newRecord(m *message) *retainedRecord {
	return recordOf(m.encodeStored(), m.expiresAt)
}

// recordOf makes the record of an encoded PUBLISH, which it copies.
func recordOf(packet []byte, ends int64) *retainedRecord {
	r := &retainedRecord{packet: append([]byte(nil), packet...), expiresAt: ends}
	at := 2
	for packet[at-1] >= 128 { // the remaining length
		at++
	}
	r.topicAt, r.topicLen = uint8(at+2), binary.BigEndian.Uint16(packet[at:])
	return r
}

// topic returns the topic, which must not be changed.
func (r *retainedRecord) topic() []byte { return r.packet[r.topicAt:][:r.topicLen] }

// bytes is what the record takes of memory.
func (r *retainedRecord) bytes() int64 { return recordBytes + int64(cap(r.packet)) }

func (r *retainedRecord) expired(nano int64) bool { return r.expiresAt != 0 && nano >= r.expiresAt }

// message returns what is given of r.
func (r *retainedRecord) message() (*message, error) {
	qos := r.packet[0] >> 1 & 3
	after := r.packet[int(r.topicAt)+int(r.topicLen):]
	if qos > 0 {
		after = after[2:]
	}
	if after[0] == 0 { // no properties, as of most
		return &message{topic: string(r.topic()), payload: after[1:], qos: qos, retain: true, retained: true, expiresAt: r.expiresAt}, nil
	}
	m, err := decodeStored(r.packet, unixNano(r.expiresAt))
	if err == nil {
		m.retain, m.retained = true, true
	}
	return m, err
}

// retainedIndex is a list of records in the order of their topics, in chunks, so that one more
// or less moves few. The order is that of the topics' levels: a topic, then all below it,
// then the next one. It takes the same for every record, however long or deep its topic,
// and shares nothing between two.
type retainedIndex struct {
	chunks [][]*retainedRecord // none is empty
}

// maxChunk is how many records a chunk has at most.
const maxChunk = 256

// indexPosition is where a record is, or where it would be.
type indexPosition struct{ chunk, at int }

// compareTopics orders topics by their levels: / is below every character that a level
// may have.
func compareTopics(a, b []byte) int {
	n := min(len(a), len(b))
	i := 0
	for ; i+8 <= n; i += 8 {
		if x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); x != 0 {
			i += bits.TrailingZeros64(x) / 8
			return int(topicByteRank(a[i])) - int(topicByteRank(b[i]))
		}
	}
	for ; i < n; i++ {
		if a[i] != b[i] {
			return int(topicByteRank(a[i])) - int(topicByteRank(b[i]))
		}
	}
	return len(a) - len(b)
}

func topicByteRank(c byte) byte {
	if c == '/' {
		return 0 // NUL is in no topic (MQTT 5.0 §1.5.4)
	}
	return c
}

// seek returns the place of the first record whose topic is topic or comes after it, and
// whether it is topic itself.
func (l *retainedIndex) seek(topic []byte) (p indexPosition, found bool) {
	p.chunk = sort.Search(len(l.chunks), func(i int) bool {
		c := l.chunks[i]
		return compareTopics(c[len(c)-1].topic(), topic) >= 0
	})
	if p.chunk == len(l.chunks) {
		return p, false
	}
	p.at, found = l.searchChunk(l.chunks[p.chunk], topic)
	return p, found
}

func (l *retainedIndex) searchChunk(c []*retainedRecord, topic []byte) (at int, found bool) {
	at = sort.Search(len(c), func(i int) bool { return compareTopics(c[i].topic(), topic) >= 0 })
	return at, at < len(c) && bytes.Equal(c[at].topic(), topic)
}

// recordAt returns the record at a place, nil behind the last one.
func (l *retainedIndex) recordAt(p indexPosition) *retainedRecord {
	if p.chunk == len(l.chunks) {
		return nil
	}
	return l.chunks[p.chunk][p.at]
}

// after returns the place behind p.
func (l *retainedIndex) after(p indexPosition) indexPosition {
	if p.at++; p.at == len(l.chunks[p.chunk]) {
		return indexPosition{chunk: p.chunk + 1}
	}
	return p
}

// seekForward is seek for a topic that comes after p, and as a rule soon.
func (l *retainedIndex) seekForward(p indexPosition, topic []byte) indexPosition {
	c := l.chunks[p.chunk]
	if compareTopics(c[len(c)-1].topic(), topic) < 0 {
		p, _ = l.seek(topic)
		return p
	}
	at, _ := l.searchChunk(c[p.at:], topic)
	return indexPosition{p.chunk, p.at + at}
}

// find returns the record of a topic, nil for none.
func (l *retainedIndex) find(topic []byte) *retainedRecord {
	if p, found := l.seek(topic); found {
		return l.recordAt(p)
	}
	return nil
}

// put adds a record, or puts it in the place of the one of its topic.
func (l *retainedIndex) put(r *retainedRecord) {
	p, found := l.seek(r.topic())
	switch {
	case found:
		l.chunks[p.chunk][p.at] = r
		return
	case p.chunk == len(l.chunks): // behind all
		if n := len(l.chunks); n == 0 || len(l.chunks[n-1]) == maxChunk { // topics that come in order leave full chunks behind
			l.chunks = append(l.chunks, nil)
		}
		p.chunk = len(l.chunks) - 1
		p.at = len(l.chunks[p.chunk])
	case len(l.chunks[p.chunk]) == maxChunk:
		c := l.chunks[p.chunk]
		half := append(make([]*retainedRecord, 0, maxChunk), c[maxChunk/2:]...)
		clear(c[maxChunk/2:])
		l.chunks[p.chunk] = c[:maxChunk/2]
		l.chunks = slices.Insert(l.chunks, p.chunk+1, half)
		if p.at > maxChunk/2 {
			p.chunk, p.at = p.chunk+1, p.at-maxChunk/2
		}
	}
	l.chunks[p.chunk] = slices.Insert(l.chunks[p.chunk], p.at, r)
}

// remove takes a record out.
func (l *retainedIndex) remove(r *retainedRecord) {
	p, found := l.seek(r.topic())
	if !found {
		return
	}
	c := slices.Delete(l.chunks[p.chunk], p.at, p.at+1)
	l.chunks[p.chunk] = c
	if len(c) > maxChunk/4 {
		return
	}
	for _, with := range []int{p.chunk - 1, p.chunk} { // of two that are next to each other one is more than a quarter full
		if with < 0 || with+1 >= len(l.chunks) || len(l.chunks[with])+len(l.chunks[with+1]) > maxChunk/2 {
			continue
		}
		both := append(make([]*retainedRecord, 0, maxChunk), l.chunks[with]...)
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

// scan calls f with the records that a filter matches ("": with all), in order, from the first topic
// that comes after the one given, until f reports false; it looks at no more than most. It
// returns the topic that it came to, behind which it goes on, and nil where nothing more
// is. That topic is part of a record.
func (l *retainedIndex) scan(filter string, after []byte, limit int, f func(*retainedRecord) bool) (last []byte) {
	p, found := l.seek(after)
	if found {
		p = l.after(p)
	}
	s := newSeeker(filter)
	for range limit {
		r := l.recordAt(p)
		if r == nil {
			return nil
		}
		topic := r.topic()
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
			p = l.seekForward(p, next)
		}
		last = topic
	}
	return last
}

// filterSeeker says for each topic whether a filter matches it, and where not, which one may be
// the next that it does.
type filterSeeker struct {
	levels [][]byte
	next   []byte
}

func newSeeker(filter string) *filterSeeker {
	if filter == "" {
		return &filterSeeker{}
	}
	return &filterSeeker{levels: bytes.Split([]byte(filter), []byte{'/'})}
}

// match reports whether the filter matches topic, as [policy.Match] says. Where it does
// not, next is the least topic after it that it may match: nil where it matches none of
// those, empty for whatever comes next. It stands until the next call.
func (s *filterSeeker) match(topic []byte) (matched bool, next []byte) {
	if s.levels == nil {
		return true, nil
	}
	begin := 0
	plus := -1 // where the last level that a + stands for ends
	for i, level := range s.levels {
		if begin > len(topic) { // the topic is above what the filter asks for
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
	if begin <= len(topic) { // the topic goes on where the filter ends
		return false, s.past(topic[:begin-1])
	}
	return true, nil
}

// past returns what comes after a topic and all that is below it.
func (s *filterSeeker) past(topic []byte) []byte {
	s.next = append(append(s.next[:0], topic...), 1)
	return s.next
}
