package watchword_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"testing"
)

// A tenant is resolved once, at the door. Further in it comes with each call: no other code names the default one.
func TestTheDefaultTenantIsNamedAtTheDoorAlone(t *testing.T) {
	may := map[string]string{
		"id.go":                 "declares it",
		"httpapi/api.go":        "the door without a resolver",
		"mqtt/options.go":       "likewise",
		"keyring/initialize.go": "the first start of a server",
		"keyring/rotator.go":    "the server's own acts, which are of the first tenant's log",
	}
	rooms := map[string]bool{"server": true, "cmd": true, "bench": true, "attack": true, "storetest": true}
	found := map[string]bool{}
	for _, s := range sources(t) {
		if s.test || rooms[s.pkg] {
			continue
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, filepath.FromSlash(s.path), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && id.Name == "DefaultTenant" {
				if found[s.path] = true; may[s.path] == "" {
					t.Errorf("%s: the tenant comes from the door", fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
	for path := range may {
		if !found[path] {
			t.Errorf("%s does not name the default tenant any more: take it off the list", path)
		}
	}
}
