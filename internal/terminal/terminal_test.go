package terminal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/watchword-iot/watchword/internal/terminal"
)

func TestControlCharactersAreEscaped(t *testing.T) {
	for in, want := range map[string]string{
		"plain text, ümläut, 日本語, ✓ ❤\ufe0f": "plain text, ümläut, 日本語, ✓ ❤\ufe0f",
		"":                               "",
		`C:\dir\n`:                       `C:\dir\n`,
		"\x1b[2J":                        `\u001b[2J`,
		"a\nb\r\nc\td":                   `a\nb\r\nc\td`,
		"\x00\x07\x7f":                   `\u0000\u0007\u007f`,
		"\u009b31m":                      `\u009b31m`,
		"\x9b31m":                        `\x9b31m`,
		"\xff\xfe":                       `\xff\xfe`,
		"\xc2":                           `\xc2`,
		"\xed\xa0\x80":                   `\xed\xa0\x80`, // a surrogate
		"\u202e\u2066\u200e\u200f\u061c": `\u202e\u2066\u200e\u200f\u061c`,
		"\u2028\u2029\u0085":             `\u2028\u2029\u0085`,
		"\u200b\u200d\ufeff\u00ad\u2060": `\u200b\u200d\ufeff\u00ad\u2060`,
		"\u00a0\u3000\u3164\u115f\u034f": `\u00a0\u3000\u3164\u115f\u034f`,
		"\U000e0041\U000e0101":           `\udb40\udc41\udb40\udd01`, // tags, and selectors that show nothing
		"\ufffd":                         "\ufffd",
		"\uffff\ue000":                   `\uffff\ue000`,
	} {
		if got := terminal.Escape(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

// hostile is every character that a terminal may interpret or that is invisible, and bytes that are not UTF-8.
var hostile = func() []string {
	out := []string{"\r\n", "\x1b]0;title\a", "\x1b[2J\x1b[1;1H\x1b[32mverified", "\xc2\x9b31m"}
	for b := range 256 {
		out = append(out, string([]byte{byte(b)}))
	}
	for r := rune(0); r < 0xe0000; r++ {
		if utf8.ValidRune(r) && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Z, unicode.Other_Default_Ignorable_Code_Point) && r != ' ' {
			out = append(out, string(r))
		}
	}
	for _, r := range []rune{0xe000, 0xffff, 0xe0001, 0xe0020, 0xe007f, 0xe0100, 0xe01ef, 0xe0fff, 0xf0000, 0x10ffff} {
		out = append(out, string(r))
	}
	return out
}()

// harmless fails if anything but line breaks, and whatever more is given, would be obeyed.
func harmless(t *testing.T, what, printed, more string) {
	t.Helper()
	if !utf8.ValidString(printed) {
		t.Errorf("%s: %q is no UTF-8", what, printed)
	}
	for _, r := range printed {
		if r != '\n' && !unicode.IsPrint(r) && !strings.ContainsRune(more, r) {
			t.Errorf("%s: %q prints %q", what, printed, r)
		}
	}
}

type named string

func (n named) String() string { return string(n) }

func TestFieldsCannotControlTheTerminal(t *testing.T) {
	for _, h := range hostile {
		for what, f := range map[string]func(w *terminal.Writer){
			"a string":           func(w *terminal.Writer) { w.Printf("%s\n", h) },
			"bytes":              func(w *terminal.Writer) { w.Printf("%s\n", []byte(h)) },
			"raw JSON":           func(w *terminal.Writer) { w.Printf("%s\n", json.RawMessage(h)) },
			"an error":           func(w *terminal.Writer) { w.Printf("%v\n", errors.New(h)) },
			"one that formats":   func(w *terminal.Writer) { w.Printf("%s\n", named(h)) },
			"a list":             func(w *terminal.Writer) { w.Printf("%v\n", []string{h, h}) },
			"a map":              func(w *terminal.Writer) { w.Printf("%v\n", map[string]string{h: h}) },
			"a struct":           func(w *terminal.Writer) { w.Printf("%+v\n", struct{ A string }{h}) },
			"a width":            func(w *terminal.Writer) { w.Printf("%-9s\n", h) },
			"a precision":        func(w *terminal.Writer) { w.Printf("%.8s\n", h) },
			"a character":        func(w *terminal.Writer) { w.Printf("%c\n", []rune(h)[0]) },
			"a wrong verb":       func(w *terminal.Writer) { w.Printf("%d\n", h) },
			"one field too many": func(w *terminal.Writer) { w.Printf("x\n", h) },
			"a line":             func(w *terminal.Writer) { w.Line(h) },
		} {
			var out strings.Builder
			f(terminal.New(&out, false))
			if strings.Count(out.String(), "\n") != 1 && what != "one field too many" {
				t.Errorf("%s: %q breaks the line: %q", what, h, out.String())
			}
			harmless(t, what, out.String(), "")
		}
		var out strings.Builder
		w := terminal.New(&out, true)
		if err := w.Table(func(w *terminal.Writer) {
			w.Line("A", "B")
			w.Printf("%s\t%s\n", h, "b")
		}); err != nil {
			t.Fatal(err)
		}
		if strings.Count(out.String(), "\n") != 2 {
			t.Errorf("%q breaks the table: %q", h, out.String())
		}
		harmless(t, "a table", out.String(), "")
		out.Reset()
		w.Document(h)
		_, _ = io.WriteString(w, h)
		_, _ = w.Data().Write([]byte(h))
		slog.New(slog.NewTextHandler(w, nil)).Info(h, h, h)
		slog.New(slog.NewJSONHandler(w, nil)).Info(h, h, h)
		harmless(t, "a document", out.String(), "\t")
	}
}

func TestEscapedJSONIsTheSameJSON(t *testing.T) {
	for _, h := range hostile {
		h = strings.ToValidUTF8(h, "\ufffd")
		want := map[string]any{h: []any{h, "x" + h + "y"}}
		raw, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		for what, f := range map[string]func(w *terminal.Writer) error{
			"indented":    func(w *terminal.Writer) error { return w.JSON(want, true) },
			"in one line": func(w *terminal.Writer) error { return w.JSON(want, false) },
			"raw":         func(w *terminal.Writer) error { return w.JSON(json.RawMessage(raw), false) },
			"byte by byte": func(w *terminal.Writer) error {
				s := w.JSONStream()
				for _, b := range append(raw, '\n') {
					if _, err := s.Write([]byte{b}); err != nil {
						return err
					}
				}
				return s.Close()
			},
			"as a log": func(w *terminal.Writer) error {
				_, err := w.Write(raw)
				return err
			},
		} {
			var out bytes.Buffer
			if err := f(terminal.New(&out, false)); err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			if err := json.Unmarshal(out.Bytes(), &got); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %q became %q, %v", what, h, out.String(), err)
			}
			harmless(t, what, out.String(), "")
		}
	}
	// A value of type json.RawMessage that is no JSON is escaped too.
	var out bytes.Buffer
	s := terminal.New(&out, false).JSONStream()
	for _, h := range hostile {
		if _, err := s.Write([]byte(h)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	harmless(t, "a stream of anything", out.String(), "\t")
}

func TestDataIsAsItIsWhereNoTerminalShowsIt(t *testing.T) {
	all := strings.Join(hostile, "")
	var out strings.Builder
	if _, err := terminal.New(&out, false).Data().Write([]byte(all)); err != nil || out.String() != all {
		t.Errorf("the bytes changed: %v", err)
	}
	out.Reset()
	if _, err := terminal.New(&out, true).Data().Write([]byte(all)); err != nil {
		t.Error(err)
	}
	harmless(t, "data on a terminal", out.String(), "\t")
}

func TestFormatStringIsNotEscaped(t *testing.T) {
	var out strings.Builder
	terminal.New(&out, true).Printf("\x1b[32m%s\x1b[0m\t%5.1f %v %d%%\n", "ok", 1.25, true, 7)
	if got, want := out.String(), "\x1b[32mok\x1b[0m\t  1.2 true 7%\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// full is a stream that takes nothing.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestAnErrorOfTheStreamIsKept(t *testing.T) {
	for i, f := range []func(w *terminal.Writer) error{
		func(w *terminal.Writer) error { w.Printf("x"); return w.Err() },
		func(w *terminal.Writer) error { return w.JSON(1, false) },
		func(w *terminal.Writer) error { return w.Table(func(w *terminal.Writer) { w.Line("x") }) },
		func(w *terminal.Writer) error { _, err := fmt.Fprint(w, "x"); return err },
		func(w *terminal.Writer) error { _, err := w.Data().Write([]byte("x")); return err },
		func(w *terminal.Writer) error { _, err := w.JSONStream().Write([]byte("x")); return err },
	} {
		if err := f(terminal.New(full{}, false)); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("%d: %v", i, err)
		}
	}
}
