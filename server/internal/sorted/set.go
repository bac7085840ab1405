// Package sorted holds values in sorted order in memory, so that a list can be read page by page from any position
// without sorting or copying all of it. Values come in one by one; pages go out.
package sorted

import (
	"slices"
	"sort"
)

// chunkSize is the largest number of values in one chunk: adding or removing one moves at most that many.
const chunkSize = 512

// Set is a set of values in the order of a comparison function. The order of a value must not change while it is in the
// set. It is not safe for concurrent use.
type Set[T any] struct {
	compare func(a, b T) int
	chunks  [][]T // none is empty; every value of a chunk is before those of the next
	length  int
}

// NewSet returns an empty set in the order of compare. Two values that compare as 0 are the same value.
func NewSet[T any](compare func(a, b T) int) *Set[T] { return &Set[T]{compare: compare} }

// Len returns the number of values.
func (s *Set[T]) Len() int { return s.length }

// find returns the place of v, or where it belongs.
func (s *Set[T]) find(v T) (chunk, at int, found bool) {
	chunk = sort.Search(len(s.chunks), func(i int) bool {
		c := s.chunks[i]
		return s.compare(c[len(c)-1], v) >= 0
	})
	if chunk == len(s.chunks) {
		return chunk, 0, false
	}
	at, found = slices.BinarySearchFunc(s.chunks[chunk], v, s.compare)
	return chunk, at, found
}

// Add adds v. It reports false if v is in the set already.
func (s *Set[T]) Add(v T) bool {
	chunk, at, found := s.find(v)
	if found {
		return false
	}
	s.length++
	if chunk == len(s.chunks) { // after all others
		if chunk == 0 || len(s.chunks[chunk-1]) >= chunkSize {
			s.chunks = append(s.chunks, []T{v})
			return true
		}
		s.chunks[chunk-1] = append(s.chunks[chunk-1], v)
		return true
	}
	c := slices.Insert(s.chunks[chunk], at, v)
	if len(c) > chunkSize {
		s.chunks = slices.Insert(s.chunks, chunk+1, slices.Clone(c[chunkSize/2:]))
		clear(c[chunkSize/2:])
		c = c[: chunkSize/2 : chunkSize/2]
	}
	s.chunks[chunk] = c
	return true
}

// Remove removes v. It reports false if v is not in the set.
func (s *Set[T]) Remove(v T) bool {
	chunk, at, found := s.find(v)
	if !found {
		return false
	}
	s.length--
	c := slices.Delete(s.chunks[chunk], at, at+1)
	switch {
	case len(c) == 0:
		s.chunks = slices.Delete(s.chunks, chunk, chunk+1)
		return true
	case chunk+1 < len(s.chunks) && len(c)+len(s.chunks[chunk+1]) <= chunkSize/2: // so that chunks do not become many and short
		c = append(c, s.chunks[chunk+1]...)
		s.chunks = slices.Delete(s.chunks, chunk+1, chunk+2)
	}
	s.chunks[chunk] = c
	return true
}

// Page returns at most n values, in order, from the first one on for which before is false. before must be true for all
// values up to a position and false for all after it.
func (s *Set[T]) Page(before func(v T) bool, n int) []T {
	chunk := sort.Search(len(s.chunks), func(i int) bool {
		c := s.chunks[i]
		return !before(c[len(c)-1])
	})
	if chunk == len(s.chunks) {
		return nil
	}
	at := sort.Search(len(s.chunks[chunk]), func(i int) bool { return !before(s.chunks[chunk][i]) })
	out := make([]T, 0, min(n, s.length))
	for ; chunk < len(s.chunks) && len(out) < n; chunk, at = chunk+1, 0 {
		c := s.chunks[chunk][at:]
		out = append(out, c[:min(len(c), n-len(out))]...)
	}
	return out
}
