package watchword_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"testing"
)

// No function has more than 8 parameters, besides its receiver: related parameters become a struct, whose members are named
// in the call. The argument of testing.F.Fuzz is exempt, since the fuzzing engine accepts only parameters of basic types.
func TestFunctionsHaveAtMostEightParameters(t *testing.T) {
	const limit = 8
	most, types := 0, 0
	for _, s := range sources(t) {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, filepath.FromSlash(s.path), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		fuzzed := map[*ast.FuncType]bool{}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				sel, ok := n.Fun.(*ast.SelectorExpr)
				if !ok || sel.Sel.Name != "Fuzz" || !s.test || len(n.Args) != 1 {
					break
				}
				if lit, ok := n.Args[0].(*ast.FuncLit); ok {
					fuzzed[lit.Type] = true
				}
			case *ast.FuncType:
				if fuzzed[n] {
					break
				}
				types++
				count := n.Params.NumFields()
				if most = max(most, count); count > limit {
					t.Errorf("%s has %d parameters, at most %d are allowed: use a struct", fset.Position(n.Pos()), count, limit)
				}
			}
			return true
		})
	}
	if types < 4000 || most < limit/2 {
		t.Errorf("looked at %d function types, the longest with %d parameters", types, most)
	}
}
