package authz_test

import (
	"testing"
	"unicode/utf8"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/authz"
)

// Printable is compared for every code point, and a path that is not printable is never allowed.
func TestPrintableByEveryCodePoint(t *testing.T) {
	g, err := authz.FromPermissions[struct{}]([]watchword.Permission{{Resource: "api:/#", Actions: []string{"get"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for r := rune(0); r <= utf8.MaxRune; r++ {
		if 0xd800 <= r && r <= 0xdfff {
			continue // no code point of UTF-8
		}
		control := r <= 0x1f || 0x7f <= r && r <= 0x9f
		none := 0xfdd0 <= r && r <= 0xfdef || r&0xffff == 0xfffe || r&0xffff == 0xffff
		s := "a" + string(r) + "b"
		if got := authz.Printable(s); got != (!control && !none) {
			t.Fatalf("U+%04X: %v", r, got)
		}
		if r > 0x200 && !none {
			continue // the path is checked the same way
		}
		if got := g.Request("GET", "/"+s).Allowed; got != (!control && !none) {
			t.Fatalf("a path with U+%04X: %v", r, got)
		}
	}
	for _, s := range []string{"\xff", "a\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe4\xb8", "ok\x80"} {
		if authz.Printable(s) || g.Request("GET", "/"+s).Allowed {
			t.Errorf("%q passes", s)
		}
	}
	if !authz.Printable("") || !authz.Printable("\ufffd") {
		t.Error("nothing, and the replacement character, are printable")
	}
}
