package mqtt

import (
	"cmp"
	"slices"

	"github.com/watchword-iot/watchword/shelf"
)

// spans is a set of numbers of messages. It takes as much as it has gaps: of what is gone
// among what waits, no more than there is that waits.
type spans []shelf.Span

// search returns the place of the first span that ends at n or behind it.
func (s spans) search(n int64) int {
	at, _ := slices.BinarySearchFunc(s, n, func(x shelf.Span, n int64) int { return cmp.Compare(x.To, n) })
	return at
}

func (s spans) has(n int64) bool {
	at := s.search(n)
	return at < len(s) && s[at].From <= n
}

func (s *spans) add(from, to int64) {
	first := s.search(from - 1)
	last := first
	for last < len(*s) && (*s)[last].From <= to+1 { // it touches
		from, to = min(from, (*s)[last].From), max(to, (*s)[last].To)
		last++
	}
	*s = slices.Replace(*s, first, last, shelf.Span{From: from, To: to})
}

// after takes away what is not above n.
func (s *spans) after(n int64) {
	*s = slices.Delete(*s, 0, s.search(n+1))
	switch {
	case len(*s) == 0:
		*s = nil
	case (*s)[0].From <= n:
		(*s)[0].From = n + 1
	}
}
