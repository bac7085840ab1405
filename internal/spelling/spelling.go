// Package spelling finds the known word that an unknown one was probably meant to be.
package spelling

// maxWord is the most bytes of a word that is compared: the time grows with the product of the lengths.
const maxWord = 64

// Nearest returns the word of known with the smallest Levenshtein distance to s, counted in bytes,
// if the distance is at most limit; the first of several, and "" for none. For an s over 64 bytes it
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

// distance returns the Levenshtein distance of a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
