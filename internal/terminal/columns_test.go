package terminal_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/watchword-iot/watchword/internal/terminal"
)

func TestTablesWrapByColumn(t *testing.T) {
	id, key := "ses_"+strings.Repeat("0123456789", 2)+"012345", strings.Repeat("k", 43)
	print := func(width int, shows bool, lines ...[]string) string {
		var out strings.Builder
		if err := terminal.New(&out, shows).SetWidth(width).Table(func(w *terminal.Writer) {
			for _, l := range lines {
				w.Line(l...)
			}
		}); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	rows := [][]string{
		{"ID", "SUBJECT", "KEY", "REMOTE", "EXPIRES"},
		{id, "lamp-7", key, "127.0.0.1:40000", "2026-11-25 12:00:00+01:00"},
		{"short", "é", "-", "-", "-"},
	}
	for _, width := range []int{20, 40, 60, 79, 80, 100, 1000} {
		got := print(width, true, rows...)
		lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
		for _, l := range lines {
			if n := utf8.RuneCountInString(l); n > max(width, 5*8+4*2) {
				t.Errorf("width %d: a line of %d characters: %q", width, n, l)
			}
		}
		for _, cell := range rows[1] {
			for _, c := range cell {
				if !strings.ContainsRune(got, c) {
					t.Errorf("width %d: %q is not printed: %q", width, c, got)
				}
			}
		}
		if width == 1000 && len(lines) != len(rows) {
			t.Errorf("lines that fit are not wrapped: %q", got)
		}
	}
	if got, want := print(20, true, []string{"DEVICE", "STATE"}, []string{"lamp-7", "active"}), "DEVICE  STATE\nlamp-7  active\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := print(24, true, []string{"a", "one two three four five"}), "a  one two three four\n   ↳five\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := print(20, true, []string{"0123456789abcdef", "x", "y"}), "0123456789abcd  x  y\n↳ef\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// What no terminal shows has each row in one line.
	if got := print(20, false, rows...); strings.Count(got, "\n") != len(rows) {
		t.Errorf("wrapped without a terminal: %q", got)
	}
}
