package watchword_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"testing"
)

// Live authority has one path for changes: a change is in the store, session.Live passes it to every receiver, and no other
// code calls a receiver. A receiver that is not registered where the server is assembled would miss every change.
func TestChangesGoThroughLiveAlone(t *testing.T) {
	const live = "server/session/live.go"
	declared, registered := map[string]bool{}, 0
	for _, s := range sources(t) {
		if s.test || s.pkg == "bench" || s.pkg == "attack" {
			continue
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, filepath.FromSlash(s.path), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Name.Name == "HandleChange" && n.Recv != nil {
					declared[s.path] = true
				}
			case *ast.SelectorExpr: // a call, or a method value that is called later
				if n.Sel.Name == "HandleChange" && s.path != live {
					t.Errorf("%s: only %s calls a receiver of changes", fset.Position(n.Pos()), live)
				}
				if n.Sel.Name == "Register" && s.path == "server/server.go" {
					registered++
				}
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "Register" && s.path == "server/server.go" {
					registered += len(n.Args) - 1
				}
			}
			return true
		})
	}
	if len(declared) < 8 || registered != len(declared) {
		t.Errorf("%d parts of the server receive changes (%v), and %d are registered", len(declared), declared, registered)
	}
}
