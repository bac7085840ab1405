package terminal

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// textMode says what a text may contain beside printable characters.
type textMode int

const (
	modeField    textMode = iota // nothing: one line, or one cell of a table
	modeDocument                 // line breaks and tabs
	modeJSON                     // the same; escaped text stays the same JSON (RFC 8259 §7)
)

// Escape returns s as it may be printed within a line: control characters (C0, DEL, C1),
// bidirectional controls, format characters, spaces other than U+0020 and other invisible
// characters (Unicode categories C and Z, Default_Ignorable_Code_Point except variation selectors
// of emoji) are written as in JSON, \u001b, and invalid UTF-8 as \x9b. Backslashes are not escaped:
// the result is for reading, not for parsing.
func Escape(s string) string { return escape(s, modeField) }

func escape(s string, m textMode) string {
	clean := true
	for i := 0; i < len(s) && clean; {
		r, n := utf8.DecodeRuneInString(s[i:])
		clean, i = printable(r, n, m), i+n
	}
	if clean {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch part := s[i : i+n]; {
		case printable(r, n, m):
			out.WriteString(part)
		case r == utf8.RuneError && n == 1 && m == modeJSON:
			out.WriteString(`\ufffd`)
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&out, `\x%02x`, s[i])
		case r == '\r' && (m == modeJSON || m == modeDocument && strings.HasPrefix(s[i+1:], "\n")): // white space in JSON, and half of a line break
		case r == '\n' && m == modeField:
			out.WriteString(`\n`)
		case r == '\t' && m == modeField:
			out.WriteString(`\t`)
		case r == '\r':
			out.WriteString(`\r`)
		case r > 0xffff: // a surrogate pair
			fmt.Fprintf(&out, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
		i += n
	}
	return out.String()
}

// printable reports whether a rune of n bytes may be printed as it is.
func printable(r rune, n int, m textMode) bool {
	switch {
	case r >= 0x20 && r < 0x7f:
		return true
	case r == '\n', r == '\t':
		return m != modeField
	case r == utf8.RuneError && n == 1: // invalid UTF-8
		return false
	case r >= 0xfe00 && r <= 0xfe0f: // variation selector of emoji
		return true
	}
	return unicode.IsPrint(r) && !unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}
