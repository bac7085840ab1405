package mqtt

import (
	"cmp"
	"slices"

	"github.com/watchword-iot/watchword/server/mqttstore"
)

// sequenceSet is a set of sequence numbers, stored as ranges; its memory is proportional to the
// number of gaps.
type sequenceSet []mqttstore.SeqRange

// search returns the index of the first range that ends at or after n.
func (s sequenceSet) search(n int64) int {
	at, _ := slices.BinarySearchFunc(s, n, func(x mqttstore.SeqRange, n int64) int { return cmp.Compare(x.To, n) })
	return at
}

func (s sequenceSet) has(n int64) bool {
	at := s.search(n)
	return at < len(s) && s[at].From <= n
}

func (s *sequenceSet) add(from, to int64) {
	first := s.search(from - 1)
	last := first
	for last < len(*s) && (*s)[last].From <= to+1 { // adjacent
		from, to = min(from, (*s)[last].From), max(to, (*s)[last].To)
		last++
	}
	*s = slices.Replace(*s, first, last, mqttstore.SeqRange{From: from, To: to})
}

// after removes numbers <= n.
func (s *sequenceSet) after(n int64) {
	*s = slices.Delete(*s, 0, s.search(n+1))
	switch {
	case len(*s) == 0:
		*s = nil
	case (*s)[0].From <= n:
		(*s)[0].From = n + 1
	}
}
