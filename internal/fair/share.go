package fair

// Share reports whether who has own entries of a memory may have one more, where all have
// used of most. It is for memories that must not forget one entry to make room for another.
//
// One alone may have a part-th of all (part is 2 or more), and the less is free, the less each may
// have: with the third power of what is free. So those who take all that they can, at once or one after
// the other, leave something to those who come later, as the test of this function shows: of half
// a million entries with part 4, 4 leave 23,000 to the next one, 20 some 2,700, 200 some 80, and
// 1,000 still 8. Who has none is let in as long as there is one place.
func Share(own, used, most, part int) bool {
	if used >= most {
		return false
	}
	// own < most · c · (free/most)³, and c = part²/(part-1)³ makes own = most/part the end for
	// one alone. The products are exact where they are small.
	p, m, free := float64(part), float64(most), float64(most-used)
	return own == 0 || float64(own)*(p-1)*(p-1)*(p-1)*m*m < p*p*free*free*free
}
