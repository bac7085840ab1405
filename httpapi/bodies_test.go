package httpapi

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"strings"
	"testing"
)

// The bodies of requests and answers are types of package api, which clients compile too: no struct of this package
// has JSON members of its own, and no answer is a map, but for what no client reads by its members.
func TestBodiesAreTypesOfPackageAPI(t *testing.T) {
	free := map[string]string{
		"sessionPosition": "a page token, which clients do not read",
	}
	files := token.NewFileSet()
	pkgs, err := parser.ParseDir(files, ".", func(f fs.FileInfo) bool { return !strings.HasSuffix(f.Name(), "_test.go") }, 0)
	if err != nil {
		t.Fatal(err)
	}
	structs := 0
	for _, f := range pkgs["httpapi"].Files {
		var name string // of the type declaration around
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.TypeSpec:
				name = n.Name.Name
			case *ast.StructType:
				structs++
				for _, field := range n.Fields.List {
					if field.Tag != nil && strings.Contains(field.Tag.Value, "json:") && free[name] == "" {
						t.Errorf("%s: a body that clients read or write belongs to package api", files.Position(field.Pos()))
					}
				}
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.Ident); ok && (f.Name == "writeAnswer" || f.Name == "send") && hasMap(n.Args) {
					t.Errorf("%s: an answer that clients read belongs to package api", files.Position(n.Pos()))
				}
			}
			return true
		})
	}
	if structs < 40 {
		t.Errorf("looked at %d structs", structs)
	}
}

func hasMap(args []ast.Expr) bool {
	for _, a := range args {
		if c, ok := a.(*ast.CompositeLit); ok {
			if _, ok := c.Type.(*ast.MapType); ok {
				return true
			}
		}
	}
	return false
}
