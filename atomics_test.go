package watchword_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"testing"
)

// On 32-bit systems the functions of sync/atomic want their 64-bit argument to be aligned, which
// nothing checks and a field that is added before it can break. The types of sync/atomic align
// themselves, so they alone are used.
func TestAtomicsAreTypes(t *testing.T) {
	for _, s := range sources(t) {
		f, err := parser.ParseFile(token.NewFileSet(), s.path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range plainAtomics(f) {
			t.Errorf("%s calls atomic.%s: use a type of sync/atomic", s.path, call)
		}
	}
	f, err := parser.ParseFile(token.NewFileSet(), "x.go", `package x
import at "sync/atomic"
var n int64
func f() { at.AddInt64(&n, 1); var m at.Int64; m.Add(1) }`, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := plainAtomics(f); !slices.Equal(got, []string{"AddInt64"}) {
		t.Errorf("found %v", got)
	}
}

// plainAtomics returns the functions of sync/atomic that a file names.
func plainAtomics(f *ast.File) (out []string) {
	name := ""
	for _, i := range f.Imports {
		if i.Path.Value == `"sync/atomic"` {
			if name = "atomic"; i.Name != nil {
				name = i.Name.Name
			}
		}
	}
	types := []string{"Bool", "Int32", "Int64", "Uint32", "Uint64", "Uintptr", "Pointer", "Value"}
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && name != "" {
			if id, ok := s.X.(*ast.Ident); ok && id.Name == name && !slices.Contains(types, s.Sel.Name) {
				out = append(out, s.Sel.Name)
			}
		}
		return true
	})
	return out
}
