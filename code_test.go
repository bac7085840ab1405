package watchword_test

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
)

// declared returns the value of every Code constant of code.go.
func declared(t *testing.T) []watchword.Code {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "code.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []watchword.Code
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			s, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, watchword.Code(s))
		}
	}
	return out
}

func TestCodesAreAClosedSet(t *testing.T) {
	all := declared(t)
	if len(all) < 40 {
		t.Fatalf("found %d codes in code.go", len(all))
	}
	if got, want := slices.Sorted(slices.Values(watchword.Codes)), slices.Sorted(slices.Values(all)); !slices.Equal(got, want) {
		t.Errorf("Codes lists %v\ncode.go declares %v", got, want)
	}
}

func TestErrorsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[watchword.Code]int{}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, `| <a id="`); ok { // the anchor that [watchword.Code.Page] names
			id, rest, _ := strings.Cut(rest, `"></a>`)
			code, _, _ := strings.Cut(strings.TrimPrefix(rest, "`"), "`")
			if id != code {
				t.Errorf("docs/errors.md: the anchor of %s is %s", code, id)
			}
			rows[watchword.Code(code)]++
		}
	}
	for _, c := range watchword.Codes {
		if rows[c] != 1 {
			t.Errorf("docs/errors.md has %d rows for %s, want 1", rows[c], c)
		}
		delete(rows, c)
	}
	for c := range rows {
		t.Errorf("docs/errors.md explains %s, which is no code", c)
	}
}

func TestErrorCauseIsPrintedOnce(t *testing.T) {
	cause := errors.New("connection refused")
	for want, err := range map[string]error{
		"unavailable: no answer: connection refused": watchword.Wrap(cause, watchword.Unavailable, "no answer: %s", cause),
		"unavailable: away: connection refused":      watchword.Wrap(cause, watchword.Unavailable, "away"),
	} {
		if got := err.Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestDetailOf(t *testing.T) {
	for want, err := range map[string]error{
		"the reason": watchword.Refuse(watchword.Denied, "the %s", "reason"),
		"the cause":  errors.New("the cause"),
	} {
		if got := watchword.DetailOf(err); got != want {
			t.Errorf("the detail of %v is %q, want %q", err, got, want)
		}
	}
}

// A refusal for the reason that another one gives says both, and what is about the server itself keeps its code.
func TestWrapRefusalKeepsTheReason(t *testing.T) {
	const what = "the signed order is not valid"
	for _, tc := range []struct {
		name  string
		err   error
		code  watchword.Code
		wants string // the text; "" where the error stays as it is
	}{
		{"nothing", nil, "", ""},
		{"another claim", watchword.Refuse(watchword.AudienceMismatch, `aud must be exactly "lamp-1"`), watchword.OrderInvalid, `order_invalid: the signed order is not valid: audience_mismatch: aud must be exactly "lamp-1"`},
		{"another member", watchword.RefuseField("args", "must be a JSON object"), watchword.OrderInvalid, "order_invalid: the signed order is not valid: bad_request: args: must be a JSON object"},
		{"no store", watchword.Refuse(watchword.Unavailable, "the store does not answer"), watchword.Unavailable, ""},
		{"no room", watchword.Refuse(watchword.Busy, "the store is busy"), watchword.Busy, ""},
		{"no time", watchword.Refuse(watchword.TimedOut, "it took too long"), watchword.TimedOut, ""},
		{"too often", watchword.Refuse(watchword.RateLimited, "too often"), watchword.RateLimited, ""},
		{"a fault", watchword.Refuse(watchword.Internal, "damaged"), watchword.Internal, ""},
		{"another package's error", os.ErrNotExist, watchword.Internal, ""},
	} {
		err := watchword.WrapRefusal(tc.err, watchword.OrderInvalid, what)
		if got := watchword.CodeOf(err); got != tc.code {
			t.Errorf("%s: got code %q, want %q", tc.name, got, tc.code)
		}
		if !errors.Is(err, tc.err) || (tc.wants == "") != (err == tc.err) || tc.wants != "" && err.Error() != tc.wants {
			t.Errorf("%s: got %v, want %s", tc.name, err, tc.wants)
		}
	}
	secret := watchword.Wrap(errors.New("a private cause"), watchword.KeyUnknown, "kid names no key")
	if detail := watchword.DetailOf(watchword.WrapRefusal(secret, watchword.OrderInvalid, what)); detail != what+": key_unknown: kid names no key" {
		t.Errorf("the detail is %q", detail)
	}
}
