package sqlite

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// ofAllTenants are the statements on rows of tenants that name no tenant, by a part of their text, and why.
var ofAllTenants = map[string]string{
	"AND expires <= ? ORDER BY expires LIMIT ?":                 "commands of all tenants expire",
	"AND expires > ? ORDER BY expires LIMIT ?":                  "likewise, where the clock went back",
	"SELECT coalesce(min(expires), 0) FROM commands":            "when the next of them does",
	"mqtt_sessions WHERE id = ?":                                "the number of a session is unique in the database, and is never a client's word",
	"mqtt_sessions SET progress = ? WHERE id = ?":               "likewise",
	"mqtt_wills WHERE id = ?":                                   "likewise",
	"FROM subject_keys INDEXED BY keys_ending":                  "keys of all tenants end",
	"DELETE FROM tokens WHERE max(expires":                      "records of all tenants expire",
	"FROM commands INDEXED BY commands_settled":                 "the retention of commands is that of all tenants",
	"FROM consumed_jtis":                                        "all are read at the start, each with its tenant",
	"assertion_expires FROM tokens":                             "likewise, the newest",
	"issued FROM tokens WHERE jti = (":                          "the newest of all",
	"FROM mqtt_sessions ORDER BY id":                            "likewise",
	"packet, subject, incarnation FROM mqtt_retained":           "likewise",
	"FROM mqtt_wills ORDER BY id":                               "likewise",
	"UPDATE commands SET settled_at = ?, state = ? WHERE state": "a restore from a backup concerns all tenants",
	"DELETE FROM codes WHERE sign = ''":                         "likewise",
	"DELETE FROM pairings WHERE true":                           "likewise",
	"DELETE FROM mqtt_sessions WHERE true":                      "likewise",
	"DELETE FROM mqtt_wills WHERE true":                         "likewise",
	"DELETE FROM tokens WHERE true":                             "likewise",
}

// Each statement on a table whose rows belong to tenants names the tenant: no row of another tenant is read, changed or counted.
func TestEachStatementNamesTheTenantOfItsRows(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	tables, err := queryAll(t.Context(), s, func(r scanner) (name string, err error) { return name, r.Scan(&name) },
		`SELECT m.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table' AND c.name = 'tenant'`)
	if err != nil {
		t.Fatal(err)
	}
	if len(tables) < 10 {
		t.Fatalf("only these tables have a tenant: %v", tables)
	}
	uses := regexp.MustCompile(`(?i)\b(FROM|JOIN|INTO|UPDATE)\s+(` + strings.Join(tables, "|") + `)\b`)
	where, column := regexp.MustCompile(`\btenant\s*=|\(tenant, [a-z, ]*\) IN\b|\.tenant IN \('', \?1\)`), regexp.MustCompile(`\btenant\b`)
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	fset, parsed, constants := token.NewFileSet(), []*ast.File{}, map[string]string{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, f)
		ast.Inspect(f, func(n ast.Node) bool {
			if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == len(v.Names) {
				for i, name := range v.Names {
					if text, ok := literal(v.Values[i], nil); ok {
						constants[name.Name] = text
					}
				}
			}
			return true
		})
	}
	seen, used := 0, map[string]bool{}
	for _, f := range parsed {
		ast.Inspect(f, func(n ast.Node) bool {
			e, ok := n.(ast.Expr)
			if !ok {
				return true
			}
			text, ok := literal(e, constants)
			if !ok || !uses.MatchString(text) {
				return true
			}
			seen++
			if where.MatchString(text) || strings.HasPrefix(text, "INSERT") && column.MatchString(text) {
				return false
			}
			for part := range ofAllTenants {
				if strings.Contains(text, part) {
					used[part] = true
					return false
				}
			}
			t.Errorf("%s: %s", fset.Position(n.Pos()), text)
			return false
		})
	}
	if seen < 50 {
		t.Errorf("only %d statements were found", seen)
	}
	for part := range ofAllTenants {
		if !used[part] {
			t.Errorf("no statement without a tenant has %q: take it off the list", part)
		}
	}
}

// literal returns the text of a string literal, of a constant, or of a sum with one in it.
func literal(e ast.Expr, constants map[string]string) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind != token.STRING {
			return "", false
		}
		text, err := strconv.Unquote(e.Value)
		return text, err == nil
	case *ast.Ident:
		text, ok := constants[e.Name]
		return text, ok
	case *ast.BinaryExpr:
		if e.Op != token.ADD {
			return "", false
		}
		left, ok1 := literal(e.X, constants)
		right, ok2 := literal(e.Y, constants)
		return left + right, ok1 || ok2
	}
	return "", false
}
