// Package spelling finds the known word that an unknown one was probably meant to be.
package spelling

// maxWord is the most bytes of a word that is compared: the time grows with the product of the lengths.
const maxWord = 64

// Nearest returns the word of known with the smallest distance to s, if the distance is at most limit. The distance is that of optimal
// string alignment, in bytes: the Levenshtein distance, in which two neighbours that were exchanged count 1; the first of several, and "" for none. For an s over 64 bytes it
// returns "".
func Nearest(s string, known []string, limit int) string {
	if len(s) > maxWord {
		return ""
	}
	best, word := limit+1, ""
	for _, k := range known {
		if d := distance(s, k); d < best {
			best, word = d, k
		}
	}
	return word
}

// distance returns the distance of optimal string alignment of a and b.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1) // of a[:i-1], a[:i] and a[:i+1]
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, last, row = last, row, before
		row[0] = i + 1
		for j := range len(b) {
			cost := last[j]
			if a[i] != b[j] {
				cost = 1 + min(last[j], last[j+1], row[j])
			}
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				cost = min(cost, before[j-1]+1)
			}
			row[j+1] = cost
		}
	}
	return row[len(b)]
}
