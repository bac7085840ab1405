package truncate

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestText(t *testing.T) {
	for _, tc := range []struct {
		in    string
		limit int
		want  string
	}{
		{"", 0, ""},
		{"abc", 3, "abc"},
		{"abcd", 3, "abc…"},
		{"aé", 3, "aé"},
		{"aéb", 3, "aé…"},
		{"aéb", 2, "a…"},
		{"éb", 1, "…"},
		{"\x80\x80\x80", 2, "…"},                 // no start of a sequence anywhere
		{"\x80\x80\x80\x80\x80\x80", 5, "\x80…"}, // likewise; it loses four bytes
		{"a😀b", 4, "a…"},
	} {
		if got := Text(tc.in, tc.limit); got != tc.want {
			t.Errorf("Text(%q, %d) = %q, want %q", tc.in, tc.limit, got, tc.want)
		}
	}
}

func TestTextIsCutBetweenCharacters(t *testing.T) {
	for n := range 5 {
		if got := Text(strings.Repeat("x", 1000-n)+"€€€", 1000); !utf8.ValidString(got) || len(got) > 1003 || len(got) < 1000 {
			t.Errorf("%d: %d bytes, %q", n, len(got), got[990:])
		}
	}
}

func TestLogText(t *testing.T) {
	fits := strings.Repeat("x", 200)
	if got := LogText(fits); got != fits {
		t.Errorf("200 bytes became %d", len(got))
	}
	if got := LogText(fits + "y"); got != fits+"…" {
		t.Errorf("201 bytes became %q", got)
	}
}
