package watchword_test

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
)

var updateTexts = flag.Bool("update-texts", false, "write testdata/refusals.txt anew")

const textsFile = "testdata/refusals.txt"

// refusal is one place of the code that makes a refusal. Parts that are not constant are written in angle brackets.
type refusal struct {
	dir, code, field, text string
	at                     string // file:line
}

func (r refusal) row() string { return strings.Join([]string{r.dir, r.code, r.field, r.text}, "\t") }

// constructor says which arguments of a function become the code, the field and the text of a refusal; -1: none. A code and
// a field that no argument decides are the function's own.
type constructor struct {
	codeAt, fieldAt, textAt int
	code, field             string
}

// Those of this package, from which those of the other packages are found: what passes a parameter on as the text of a
// refusal is a constructor itself.
var baseConstructors = map[string]constructor{
	"Refuse":      {codeAt: 0, fieldAt: -1, textAt: 1},
	"RefuseField": {codeAt: -1, fieldAt: 0, textAt: 1, code: "BadRequest"},
	"Wrap":        {codeAt: 1, fieldAt: -1, textAt: 2},
	"WrapRefusal": {codeAt: 1, fieldAt: -1, textAt: 2},
}

// furtherConstructors are those whose text does not become one of this package's errors.
var furtherConstructors = map[string]constructor{
	"cmd/watchword.usage":                 {codeAt: -1, fieldAt: -1, textAt: 0, code: "usage"},
	"server/policy.mistake":               {codeAt: -1, fieldAt: 0, textAt: 1, code: "PolicyInvalid"},
	"server/internal/ratelimit.NewBurst":  {codeAt: -1, fieldAt: -1, textAt: 2, code: "RateLimited"},
	"server/internal/ratelimit.NewShared": {codeAt: -1, fieldAt: -1, textAt: 1, code: "RateLimited"},
	"server/internal/ratelimit.New":       {codeAt: -1, fieldAt: -1, textAt: 1, code: "RateLimited"},
}

// refusals finds every place of the product that makes a refusal.
type refusals struct {
	files []parsedFile
	made  map[string]constructor // by folder and name
	rows  []refusal
}

type parsedFile struct {
	path, dir string
	set       *token.FileSet
	ast       *ast.File
}

func findRefusals(t *testing.T) *refusals {
	t.Helper()
	f := &refusals{made: map[string]constructor{}}
	for k, v := range furtherConstructors {
		f.made[k] = v
	}
	for _, s := range sources(t) {
		if dir := path.Dir(s.path); !s.test && s.pkg != "bench" && s.pkg != "attack" && s.pkg != "storetest" && s.pkg != "tools" {
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, filepath.FromSlash(s.path), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			f.files = append(f.files, parsedFile{s.path, dir, set, file})
		}
	}
	for n := -1; n != len(f.made); { // until no further function is found to pass a text on
		n = len(f.made)
		f.rows = nil
		for _, file := range f.files {
			f.read(file)
		}
	}
	return f
}

// scope is the parameters of the functions around a place, the innermost last.
type scope struct {
	name   string // "" where nothing can call it
	params []string
}

func (f *refusals) read(file parsedFile) {
	var walk func(n ast.Node, in []scope)
	walk = func(n ast.Node, in []scope) {
		ast.Inspect(n, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Body != nil {
					walk(n.Body, append(slices.Clip(in), scope{n.Name.Name, paramNames(n.Type)}))
				}
				return false
			case *ast.AssignStmt:
				if lit, name := assignedFunc(n); lit != nil {
					walk(lit.Body, append(slices.Clip(in), scope{name, paramNames(lit.Type)}))
					return false
				}
			case *ast.CallExpr:
				f.call(file, n, in)
			case *ast.CompositeLit:
				f.literal(file, n, in)
			}
			return true
		})
	}
	walk(file.ast, nil)
}

func assignedFunc(n *ast.AssignStmt) (lit *ast.FuncLit, name string) {
	if len(n.Lhs) == 1 && len(n.Rhs) == 1 {
		if lit, ok := n.Rhs[0].(*ast.FuncLit); ok {
			if id, ok := n.Lhs[0].(*ast.Ident); ok {
				return lit, id.Name
			}
		}
	}
	return nil, ""
}

func paramNames(t *ast.FuncType) (out []string) {
	for _, p := range t.Params.List {
		for _, n := range p.Names {
			out = append(out, n.Name)
		}
		if len(p.Names) == 0 {
			out = append(out, "_")
		}
	}
	return out
}

func (f *refusals) call(file parsedFile, n *ast.CallExpr, in []scope) {
	name, from := "", file.dir
	switch fun := n.Fun.(type) {
	case *ast.Ident:
		name = fun.Name
	case *ast.SelectorExpr:
		name = fun.Sel.Name
		if x, ok := fun.X.(*ast.Ident); ok {
			if p := importedDir(file.ast, x.Name); p != "" {
				from = p
			}
		}
	}
	c, ok := f.made[from+"."+name]
	if base, is := baseConstructors[name]; is && from == "." {
		c, ok = base, true
	}
	if !ok || c.textAt >= len(n.Args) {
		return
	}
	arg := func(i int) ast.Expr {
		if i < 0 {
			return nil
		}
		return n.Args[i]
	}
	f.add(file, n, in, c, arg(c.codeAt), arg(c.fieldAt), n.Args[c.textAt], n.Args[c.textAt+1:])
}

// literal reads &watchword.Error{…} and &packet.Error{…}.
func (f *refusals) literal(file parsedFile, n *ast.CompositeLit, in []scope) {
	name := ""
	switch x := n.Type.(type) {
	case *ast.Ident:
		name = x.Name
	case *ast.SelectorExpr:
		name = x.Sel.Name
	}
	if name != "Error" {
		return
	}
	var code, field, text ast.Expr
	for i, e := range n.Elts {
		kv, ok := e.(*ast.KeyValueExpr)
		if !ok { // packet.Error{reason, type, detail}
			if i == 0 {
				code = e
			} else if i == 2 {
				text = e
			}
			continue
		}
		switch kv.Key.(*ast.Ident).Name {
		case "Code", "Reason":
			code = kv.Value
		case "Field":
			field = kv.Value
		case "Detail":
			text = kv.Value
		}
	}
	if text != nil {
		f.add(file, n, in, constructor{}, code, field, text, nil)
	}
}

// add records a refusal. If its text is a parameter of a function around it, that function is a constructor instead.
func (f *refusals) add(file parsedFile, n ast.Node, in []scope, c constructor, code, field, text ast.Expr, args []ast.Expr) {
	passed := text
	if call, ok := text.(*ast.CallExpr); ok && isSprintf(call) {
		passed, args = call.Args[0], call.Args[1:]
	}
	format, constant := constantText(passed)
	for i := len(in) - 1; i >= 0; i-- {
		s := in[i]
		at := paramOf(s, passed)
		if at < 0 && constant {
			for _, a := range args { // a parameter that becomes a part of the text, as in Refuse(c, "%s; see …", why)
				if call, ok := a.(*ast.CallExpr); ok && isSprintf(call) {
					a = call.Args[0]
				}
				if p := paramOf(s, a); p >= 0 && textParams[s.params[p]] {
					at = p
				}
			}
		}
		if at < 0 || s.name == "" || baseConstructors[s.name] != (constructor{}) && file.dir == "." {
			continue
		}
		made := constructor{codeAt: -1, fieldAt: -1, textAt: at, code: nameOf(code, c.code), field: nameOf(field, c.field)}
		if code != nil {
			made.codeAt = paramOf(s, code)
		}
		if field != nil {
			made.fieldAt = paramOf(s, field)
		}
		if key := file.dir + "." + s.name; f.made[key] == (constructor{}) {
			f.made[key] = made
		}
		return
	}
	if !constant {
		var b bytes.Buffer
		_ = printer.Fprint(&b, file.set, passed) // a buffer
		format = "<" + b.String() + ">"
	}
	f.rows = append(f.rows, refusal{
		dir: file.dir, code: nameOf(code, c.code), field: nameOf(field, c.field), text: strings.ReplaceAll(format, "\n", `\n`),
		at: fmt.Sprintf("%s:%d", file.path, file.set.Position(n.Pos()).Line),
	})
}

// textParams are the names of parameters that become texts.
var textParams = map[string]bool{"format": true, "what": true, "why": true, "must": true, "detail": true, "reason": true}

func isSprintf(n *ast.CallExpr) bool {
	s, ok := n.Fun.(*ast.SelectorExpr)
	return ok && s.Sel.Name == "Sprintf" && len(n.Args) > 0
}

func paramOf(s scope, e ast.Expr) int {
	if id, ok := e.(*ast.Ident); ok {
		return slices.Index(s.params, id.Name)
	}
	return -1
}

// constantText returns the value of a string constant; parts that are not constant are written in angle brackets.
func constantText(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return s, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		a, okA := constantText(e.X)
		b, okB := constantText(e.Y)
		if !okA {
			a = "<>"
		}
		if !okB {
			b = "<>"
		}
		return a + b, okA || okB
	}
	return "", false
}

// nameOf returns a field's constant, or the last part of a name as watchword.BadRequest.
func nameOf(e ast.Expr, other string) string {
	switch e := e.(type) {
	case nil:
		return other
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.Ident:
		return e.Name
	}
	if s, ok := constantText(e); ok {
		return s
	}
	return "<>"
}

// importedDir returns the folder in this module of an imported package, "" for any other.
func importedDir(f *ast.File, name string) string {
	for _, i := range f.Imports {
		p, _ := strconv.Unquote(i.Path.Value)
		rest, ours := strings.CutPrefix(p, module)
		if ours && (i.Name != nil && i.Name.Name == name || i.Name == nil && path.Base(p) == name) {
			if rest == "" {
				return "."
			}
			return strings.TrimPrefix(rest, "/")
		}
	}
	return ""
}

// Every refusal of the product is in testdata/refusals.txt: folder, code, field and text. A new one without a row fails,
// and so does a row without its refusal; `go test . -run Refusal -update-texts` writes the file again, and a reviewer reads
// the difference.
func TestEveryRefusalHasItsText(t *testing.T) {
	var rows []string
	at := map[string]string{}
	for _, r := range findRefusals(t).rows {
		rows = append(rows, r.row())
		at[r.row()] = r.at
	}
	slices.Sort(rows)
	rows = slices.Compact(rows)
	if len(rows) < 600 {
		t.Fatalf("only %d refusals were found", len(rows))
	}
	if *updateTexts {
		if err := os.WriteFile(textsFile, []byte(strings.Join(rows, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(textsFile)
	if err != nil {
		t.Fatal(err)
	}
	listed := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	for _, r := range rows {
		if _, ok := slices.BinarySearch(listed, r); !ok {
			t.Errorf("%s: %s does not list %q", at[r], textsFile, r)
		}
	}
	for _, r := range listed {
		if _, ok := at[r]; !ok {
			t.Errorf("%s lists %q, which nothing refuses with", textsFile, r)
		}
	}
}

// unclear is what the texts of refusals do not say: words for things that have a usual name, and forms that leave out what was
// expected.
var unclear = regexp.MustCompile(`\b(is no|are no|is none|is gone|is over|are over|who answers|nobody|somebody|anew|obey(ed|s)?|wish(es)?|turned? down|handed|hand-overs?|` +
	`took the place|no more|is there already|are there already|stands? (twice|in)|of ours|as it must be|say whom|say who|does not hold|do not hold|may (have|be) [%0-9<]|lives|not taken|sealed to|no one|` +
	`(says|speaks?) (no|of|that|something|nothing)|looked? for)\b`)

// expects is what the text about a member of a request says: what was expected.
var expects = regexp.MustCompile(`\b(must|is required|is not supported|at most|at least|only|cannot|limit)\b`)

// memberless are the folders whose refusals of a request may name no field: they do not know which member of the request their
// input was, or it is no request. server/httpapi/operations.go takes the field from the library.
var memberless = []string{"jose", "token", "audit/ledger", "server/policy", "internal/rest", "cmd/watchword", "sdk/device", "sdk/verify", "sdk/admin", "server", "server/httpapi/operations.go"}

// The texts say what was expected, in the usual words, and each code has at least one.
func TestRefusalsSayWhatWasExpected(t *testing.T) {
	codes := map[string]bool{}
	for _, r := range findRefusals(t).rows {
		codes[r.code] = true
		text := strings.ReplaceAll(r.text, "%s", "<>")
		switch {
		case unclear.MatchString(text):
			t.Errorf("%s: %q has %q: use the usual words, and say what was expected", r.at, r.text, unclear.FindString(text))
		case strings.HasSuffix(text, ".") || strings.HasPrefix(text, " ") || strings.Contains(text, "  "):
			t.Errorf("%s: %q is no phrase that can follow a code", r.at, r.text)
		case r.code != "BadRequest", text == "<>", strings.HasPrefix(text, "<"): // a text that is made elsewhere
		case r.field == "" && !slices.Contains(memberless, r.dir) && !slices.Contains(memberless, strings.Split(r.at, ":")[0]):
			t.Errorf("%s: %q names no field", r.at, r.text)
		case !expects.MatchString(text):
			t.Errorf("%s: %q does not say what was expected", r.at, r.text)
		}
	}
	for name := range codesByName(t) {
		if !codes[name] && name != "CommandRefused" { // a device's signed answer says it, and the CLI's exit status
			t.Errorf("no refusal has the code %s", name)
		}
	}
}

// codesByName returns the codes by the names of their constants.
func codesByName(t *testing.T) map[string]watchword.Code {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "code.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]watchword.Code{}
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == 1 {
			if id, ok := v.Type.(*ast.Ident); ok && id.Name == "Code" {
				if s, ok := constantText(v.Values[0]); ok {
					out[v.Names[0].Name] = watchword.Code(s)
				}
			}
		}
		return true
	})
	if len(out) != len(watchword.Codes) {
		t.Fatalf("%d constants for %d codes", len(out), len(watchword.Codes))
	}
	return out
}
