// Package truncate shortens text of other parties before it is logged, stored or shown.
package truncate

import "unicode/utf8"

// maxLogText is the most bytes of a text that a client chose in one log attribute or entry.
const maxLogText = 200

// Text returns s, or where s is longer than limit its first bytes, at most limit, with "…" behind
// them. It does not cut inside a UTF-8 sequence.
func Text(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	end := limit
	for end > 0 && end > limit-utf8.UTFMax && !utf8.RuneStart(s[end]) { // text that is not UTF-8 loses a few bytes at most
		end--
	}
	return s[:end] + "…"
}

// LogText returns a text that a client chose with at most 200 bytes, as [Text] shortens it.
func LogText(s string) string { return Text(s, maxLogText) }
