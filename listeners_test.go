package watchword_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"testing"
)

// Every HTTP server of the product is made by server.newHTTPServer, which closes connections
// whose requests others may have cut in another way.
func TestHTTPServersAreMadeInOneWay(t *testing.T) {
	made := 0
	for _, s := range sources(t) {
		if s.test || s.pkg == "bench" || s.pkg == "attack" {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), s.path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if !ok || pkg.Name != "http" {
				return true
			}
			switch sel.Sel.Name {
			case "ListenAndServe", "ListenAndServeTLS", "Serve", "ServeTLS":
				t.Errorf("%s serves by http.%s", s.path, sel.Sel.Name)
			}
			return true
		})
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			if sel, ok := lit.Type.(*ast.SelectorExpr); ok && sel.Sel.Name == "Server" {
				if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "http" {
					made++
					if s.path != "server/http_framing.go" {
						t.Errorf("%s makes an http.Server: use server.newHTTPServer", s.path)
					}
				}
			}
			return true
		})
	}
	if made != 1 {
		t.Errorf("%d places make an http.Server", made)
	}
}
