package device

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestADetailIsCutBetweenCharacters(t *testing.T) {
	for n := range 5 {
		if got := clip(strings.Repeat("x", 1000-n) + "€€€"); !utf8.ValidString(got) || len(got) > 1003 || len(got) < 1000 {
			t.Errorf("%d: %d bytes, %q", n, len(got), got[990:])
		}
	}
	if got := clip(strings.Repeat("\x80", 1100)); len(got) > 1003 {
		t.Errorf("%d bytes", len(got))
	}
}
