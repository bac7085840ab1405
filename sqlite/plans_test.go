package sqlite

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// No statement looks at every row of a tenant to find those of one subject: each that
// names a subject, a device or a caller is found by an index that has it. Without
// this, adding the hundred thousandth device costs a look at all before it.
func TestStatementsFindASubjectByAnIndex(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	checked := 0
	for _, q := range statements(t) {
		one := ""
		for _, column := range []string{"subject = ?", "device = ?", "caller = ?"} {
			if strings.Contains(q, "tenant = ? AND "+column) {
				one = strings.TrimSuffix(column, " = ?")
			}
		}
		if one == "" || strings.Contains(q, "state IN (") { // that one has a partial index of few rows
			continue
		}
		checked++
		rs, err := s.db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+q, make([]any, strings.Count(q, "?"))...)
		if err != nil {
			t.Fatalf("%s: %v", q, err)
		}
		var plan []string
		for rs.Next() {
			var id, parent, none int
			var detail string
			if err := rs.Scan(&id, &parent, &none, &detail); err != nil {
				t.Fatal(err)
			}
			plan = append(plan, detail)
		}
		if err := rs.Err(); err != nil {
			t.Fatal(err)
		}
		if text := strings.Join(plan, "; "); !strings.Contains(text, one+"=?") {
			t.Errorf("%s\nlooks for %s by: %s", q, one, text)
		}
	}
	if checked < 8 {
		t.Errorf("only %d statements were looked at", checked)
	}
}

// statements is every constant text of the package that is one.
func statements(t *testing.T) (out []string) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
				text, err := strconv.Unquote(l.Value)
				for _, verb := range []string{"DELETE ", "UPDATE "} {
					if err == nil && strings.HasPrefix(text, verb) {
						out = append(out, text)
					}
				}
			}
			return true
		})
	}
	return out
}
