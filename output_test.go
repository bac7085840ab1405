package watchword_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

// Nothing prints around internal/terminal, whose writers escape what others filled in: the streams are named in the command's
// main function alone, and nothing formats for a writer but these.
func TestOutputGoesThroughTerminalWriters(t *testing.T) {
	named := 0
	for _, s := range sources(t) {
		if s.test || s.pkg == "bench" || s.pkg == "attack" || strings.HasPrefix(s.path, "internal/terminal/") {
			continue
		}
		command := s.pkg == "cmd"
		f, err := parser.ParseFile(token.NewFileSet(), s.path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, _ := d.(*ast.FuncDecl)
			ast.Inspect(d, func(n ast.Node) bool {
				name := ""
				switch n := n.(type) {
				case *ast.CallExpr:
					if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "print" || id.Name == "println") {
						name = id.Name
					}
				case *ast.SelectorExpr:
					if id, ok := n.X.(*ast.Ident); ok {
						name = id.Name + "." + n.Sel.Name
					}
					switch n.Sel.Name { // of cobra's commands
					case "OutOrStdout", "OutOrStderr", "ErrOrStderr", "PrintErr", "PrintErrf", "PrintErrln":
						name = "a command's " + n.Sel.Name
					}
				}
				switch {
				case name == "os.Stdout", name == "os.Stderr":
					if s.path == "cmd/watchword/main.go" && fn != nil && fn.Name.Name == "main" {
						named++
						return true
					}
				case name == "print", name == "println", name == "os.NewFile", strings.HasPrefix(name, "fmt.Print"), strings.HasPrefix(name, "log.Print"), strings.HasPrefix(name, "log.Fatal"),
					strings.HasPrefix(name, "log.Panic"), name == "log.Default", name == "log.Writer",
					strings.HasPrefix(name, "a command's "), name == "syscall.Stdout", name == "syscall.Stderr":
				case command && (strings.HasPrefix(name, "fmt.Fprint") || strings.HasPrefix(name, "tabwriter.") || name == "io.WriteString" || name == "syscall.Write"):
				default:
					return true
				}
				t.Errorf("%s names %s: print through the command's terminal.Writer", s.path, name)
				return true
			})
		}
	}
	if named != 5 {
		t.Errorf("main names the streams %d times, want 5: each for its writer, and to ask whether it is a terminal and how wide it is", named)
	}
}
