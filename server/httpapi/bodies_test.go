package httpapi

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
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
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	structs, answers := 0, 0
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.TypeSpec:
				return free[n.Name.Name] == ""
			case *ast.StructType:
				structs++
				for _, field := range n.Fields.List {
					if field.Tag != nil && strings.Contains(field.Tag.Value, "json:") {
						t.Errorf("%s: a body that clients read or write belongs to package api", files.Position(field.Pos()))
					}
				}
			case *ast.CallExpr:
				name := ""
				switch f := n.Fun.(type) {
				case *ast.Ident:
					name = f.Name
				case *ast.SelectorExpr:
					name = f.Sel.Name
				}
				if name == "writeAnswer" || name == "writeJSON" || name == "send" {
					answers++
					if slices.ContainsFunc(n.Args, isMap) {
						t.Errorf("%s: an answer that clients read belongs to package api", files.Position(n.Pos()))
					}
				}
			}
			return true
		})
	}
	if structs < 40 || answers < 15 {
		t.Errorf("looked at %d structs and %d answers", structs, answers)
	}
}

func isMap(e ast.Expr) bool {
	c, ok := e.(*ast.CompositeLit)
	if !ok {
		return false
	}
	_, ok = c.Type.(*ast.MapType)
	return ok
}
