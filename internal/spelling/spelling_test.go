package spelling

import (
	"strings"
	"testing"
)

func TestDistance(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"", "abc", 3},
		{"abc", "", 3},
		{"abc", "abc", 0},
		{"abc", "abd", 1},   // replaced
		{"abc", "ac", 1},    // deleted
		{"abc", "abxc", 1},  // inserted
		{"abcd", "abdc", 1}, // exchanged
		{"abcd", "bacd", 1}, // at the begin
		{"abcd", "badc", 2}, // twice
		{"ab", "ba", 1},
		{"lits", "list", 1},
		{"lits", "link", 2},
		{"kitten", "sitting", 3},
		{"saturday", "sunday", 3},
	} {
		if got := distance(tc.a, tc.b); got != tc.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tc.a, tc.b, got, tc.want)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"publish", "subscribe", "call"}
	for _, tc := range []struct {
		s     string
		limit int
		want  string
	}{
		{"publsh", 2, "publish"},
		{"pubish", 1, "publish"},
		{"pubsh", 2, "publish"},
		{"pubsh", 1, ""},
		{"calk", 2, "call"},
		{"xyz", 2, ""},
	} {
		if got := Nearest(tc.s, known, tc.limit); got != tc.want {
			t.Errorf("Nearest(%q, %d) = %q, want %q", tc.s, tc.limit, got, tc.want)
		}
	}
	if got := Nearest("aa", []string{"ab", "ac"}, 1); got != "ab" {
		t.Errorf("of two words at one distance it returned %q, want the first", got)
	}
	fits := strings.Repeat("x", maxWord)
	if got := Nearest(fits, []string{fits}, 0); got != fits {
		t.Errorf("a word of %d bytes was not found", maxWord)
	}
	if got := Nearest(fits+"x", []string{fits + "x"}, 0); got != "" {
		t.Errorf("a word of %d bytes was compared", maxWord+1)
	}
}
