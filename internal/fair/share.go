package fair

// Share reports whether an owner that has own entries of a bounded memory may have one more, where
// used of most entries are in use. It is for memories that must not drop one entry to make room for
// another.
//
// A single owner may have 1/part of all (part is 2 or more); the less is free, the less each owner
// may have, with the third power of what is free. So owners that take all that they can, at once or
// in turn, leave room for later ones: of half a million entries with part 4, 4 owners leave 23,000
// to the next one, 20 some 2,700, 200 some 80, and 1,000 still 8. An owner without entries is
// accepted as long as one entry is free.
func Share(own, used, most, part int) bool {
	if used >= most {
		return false
	}
	// own < most · c · (free/most)³; with c = part²/(part-1)³ a single owner ends at own =
	// most/part. The products are exact for small values.
	p, m, free := float64(part), float64(most), float64(most-used)
	return own == 0 || float64(own)*(p-1)*(p-1)*(p-1)*m*m < p*p*free*free*free
}
