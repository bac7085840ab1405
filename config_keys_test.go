package watchword_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// Each configuration key is read by the part that it sets: a key that nothing reads is refused with "not in this version"
// (absentKeys in server/config_load.go). A key is read where code outside of what reads, checks and prints the
// configuration names its section and its field (cfg.Limits.Sessions), or the field of a variable that is the section.
func TestEachConfigurationKeyIsRead(t *testing.T) {
	selected := map[string]bool{} // "Limits.Sessions"; "Sessions" of a plain variable
	for _, s := range sources(t) {
		if s.test || s.pkg != "server" && s.pkg != "cmd" || s.path == "server/config_load.go" {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.FromSlash(s.path), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || s.path == "server/config.go" && (strings.HasPrefix(strings.ToLower(fn.Name.Name), "check") || fn.Name.Name == "Defaults") {
				continue
			}
			sections := map[string]string{} // by the name of a variable or parameter
			for _, list := range []*ast.FieldList{fn.Recv, fn.Type.Params} {
				if list == nil {
					continue
				}
				for _, p := range list.List {
					for _, name := range p.Names {
						sections[name.Name] = typeName(p.Type)
					}
				}
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.AssignStmt: // l := cfg.Limits
					for i, left := range n.Lhs {
						if id, ok := left.(*ast.Ident); ok && len(n.Rhs) == len(n.Lhs) {
							if sel, ok := n.Rhs[i].(*ast.SelectorExpr); ok {
								sections[id.Name] = sel.Sel.Name + "Config"
							}
						}
					}
				case *ast.SelectorExpr:
					switch x := n.X.(type) {
					case *ast.SelectorExpr:
						selected[x.Sel.Name+"Config."+n.Sel.Name] = true
					case *ast.Ident:
						selected[sections[x.Name]+"."+n.Sel.Name] = true
					}
				}
				return true
			})
		}
	}
	structs := configStructs(t)
	keys := 0
	for _, section := range structs["Config"].Fields.List {
		of := typeName(section.Type)
		if structs[of] == nil {
			continue
		}
		for _, field := range structs[of].Fields.List {
			for _, n := range field.Names {
				name := of + "." + n.Name
				if name == "StoreConfig.URLFile" || name == "StoreConfig.URL" || name == "ServerConfig.AcmeEABKeyFile" || name == "MetricsConfig.TokenFile" { // read by Load; Check lets "sqlite" pass alone
					continue
				}
				if keys++; !selected[name] {
					t.Errorf("nothing reads %s.%s (%s): remove it and list it in absentKeys", section.Tag.Value, field.Tag.Value, name)
				}
			}
		}
	}
	if keys < 50 {
		t.Errorf("looked at %d keys", keys)
	}
}

// configStructs returns the structs of server/config.go by name. (The root module requires nothing of the server's.)
func configStructs(t *testing.T) map[string]*ast.StructType {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "server/config.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	structs := map[string]*ast.StructType{}
	for _, d := range f.Decls {
		if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.TYPE {
			for _, spec := range g.Specs {
				if st, ok := spec.(*ast.TypeSpec).Type.(*ast.StructType); ok {
					structs[spec.(*ast.TypeSpec).Name.Name] = st
				}
			}
		}
	}
	if structs["Config"] == nil {
		t.Fatal("server/config.go has no Config")
	}
	return structs
}

// typeName returns the name of a type without its package.
func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}
