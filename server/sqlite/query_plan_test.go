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
		if text := strings.Join(plan(t, s, q), "; "); !strings.Contains(text, one+"=?") {
			t.Errorf("%s\nlooks for %s by: %s", q, one, text)
		}
	}
	if checked < 8 {
		t.Errorf("only %d statements were looked at", checked)
	}
}

// What it costs to add a command does not grow with how many its orderer, or all, have
// unfinished: those are two rows, found by their key. Its device has few.
func TestAddingACommandCountsNoCommandsOfItsOrderer(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	checked := 0
	for _, q := range statements(t) {
		if !strings.Contains(q, "unfinished_commands") {
			continue
		}
		checked++
		want := map[string]int{
			"SEARCH u USING PRIMARY KEY (tenant=? AND orderer=?)":        2,
			"SEARCH c USING INDEX commands_live (tenant=? AND device=?)": 1,
			"SEARCH subjects USING PRIMARY KEY (tenant=? AND id=?)":      1,
		}
		for _, detail := range plan(t, s, q) {
			if strings.HasPrefix(detail, "SEARCH") || strings.HasPrefix(detail, "SCAN") {
				if want[detail]--; want[detail] < 0 {
					t.Errorf("%s", detail)
				}
			}
		}
		for detail, n := range want {
			if n > 0 {
				t.Errorf("not: %s", detail)
			}
		}
	}
	if checked != 1 {
		t.Errorf("%d statements ask how many commands are unfinished", checked)
	}
}

// plan is how SQLite looks for what a statement names.
func plan(t *testing.T, s *Store, q string) (out []string) {
	t.Helper()
	rs, err := s.db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+q, make([]any, strings.Count(q, "?"))...)
	if err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	defer rs.Close()
	for rs.Next() {
		var id, parent, none int
		var detail string
		if err := rs.Scan(&id, &parent, &none, &detail); err != nil {
			t.Fatal(err)
		}
		out = append(out, detail)
	}
	if err := rs.Err(); err != nil {
		t.Fatal(err)
	}
	return out
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
