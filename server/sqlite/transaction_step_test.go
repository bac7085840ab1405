package sqlite

import (
	"errors"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"go/types"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/server/command"
	"github.com/watchword-iot/watchword/server/storetest"
)

// A store that serializes transactions has to run steps again. Here each runs twice, the first time for nothing, and the
// whole contract holds.
func TestStoreContractWithStepsRunTwice(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Store {
		s := opened(t, filepath.Join(t.TempDir(), "db"))
		s.w.runTwice = true
		return s
	})
}

func TestRunTwiceKeepsSecondRun(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	s.w.runTwice = true
	runs := 0
	err := s.w.do(t.Context(), func(t *tx) error {
		runs++
		_, err := t.exec(`INSERT INTO policy_versions (tenant, version) VALUES ('x', ?)`, runs)
		return err
	})
	v, verr := queryOne(t.Context(), s, func(r scanner) (n int64, err error) { return n, r.Scan(&n) }, errors.New("no row"), `SELECT version FROM policy_versions WHERE tenant = 'x'`)
	if err != nil || verr != nil || runs != 2 || v != 2 {
		t.Errorf("%d runs, of the run %d is what stands: %v, %v", runs, v, err, verr)
	}
}

// checked is the code of the package without its tests, with what its names mean. Imports are not resolved: names of this
// package and its functions are all that is looked for.
func checked(t *testing.T) (fset *gotoken.FileSet, files map[string]*ast.File, info *types.Info) {
	t.Helper()
	fset, files = gotoken.NewFileSet(), map[string]*ast.File{}
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = f
	}
	info = &types.Info{Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{Error: func(error) {}, Importer: nowhere{}}
	_, _ = conf.Check("sqlite", fset, slices.Collect(maps.Values(files)), info) // its errors are of imports
	return fset, files, info
}

// nowhere imports nothing.
type nowhere struct{}

func (nowhere) Import(string) (*types.Package, error) { return nil, errors.New("not resolved") }

// A step that runs again must find the variables around it as it found them the first time: it returns what it has to say.
func TestStepsAssignToNoVariableAroundThem(t *testing.T) {
	fset, files, info := checked(t)
	looked, unused := 0, slices.Clone(stepRunners)
	for name, f := range files {
		if name == "transaction_step.go" { // hands on what a step returns
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || !runsSteps(call.Fun) {
				return true
			}
			for _, arg := range call.Args {
				step, ok := arg.(*ast.FuncLit)
				if !ok {
					continue
				}
				looked++
				unused = slices.DeleteFunc(unused, func(runner string) bool { return runner == root(call.Fun).Name || isSelected(call.Fun, runner) })
				ast.Inspect(step.Body, func(n ast.Node) bool {
					var to []ast.Expr
					switch n := n.(type) {
					case *ast.AssignStmt:
						to = n.Lhs
					case *ast.IncDecStmt:
						to = []ast.Expr{n.X}
					case *ast.RangeStmt:
						to = []ast.Expr{n.Key, n.Value}
					case *ast.UnaryExpr:
						if n.Op == gotoken.AND { // written through a pointer
							to = []ast.Expr{n.X}
						}
					}
					for _, e := range to {
						if v, ok := info.Uses[root(e)].(*types.Var); ok && (v.Pos() < step.Pos() || v.Pos() > step.End()) {
							t.Errorf("%s: the step assigns to %s, which is of the method around it", fset.Position(e.Pos()), v.Name())
						}
					}
					return true
				})
			}
			return true
		})
	}
	if looked < 25 || len(unused) > 0 {
		t.Errorf("only %d steps were looked at; no step is run by %v", looked, unused)
	}
}

// stepRunners are the functions that run a function as a step, or as a part of one.
var stepRunners = []string{"write", "writeAuthorized", "writeAs", "do", "doWithoutSavepoint", "doAuthorized", "doWithVersions", "changeSubject", "changePolicy"}

// runsSteps reports whether a function runs the functions that it gets as steps of a transaction.
func runsSteps(fun ast.Expr) bool {
	switch f := fun.(type) {
	case *ast.Ident:
		return slices.Contains(stepRunners, f.Name)
	case *ast.SelectorExpr:
		return slices.Contains(stepRunners, f.Sel.Name)
	case *ast.IndexExpr:
		return runsSteps(f.X)
	}
	return false
}

// isSelected reports whether fun is a method of that name.
func isSelected(fun ast.Expr, name string) bool {
	sel, ok := fun.(*ast.SelectorExpr)
	return ok && sel.Sel.Name == name
}

// root is the variable that an expression is of; nil for none.
func root(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// refusals are the functions of this package that make an error of their own, with its code. All other refusals are made by
// the package whose rule it is.
var refusals = map[string]string{
	"notFound":             "NotFound",    // a row is missing
	"tombstone":            "NotFound",    // likewise
	"OpenLog":              "NotFound",    // the file is missing
	"unavailable":          "Unavailable", // SQLite fails
	"submit":               "Unavailable", // the store is closed, or the caller's context ends
	"migrate":              "Unavailable", // the copy before an upgrade cannot be written
	"checkNoWriteAheadLog": "Unavailable", // likewise, without its write-ahead log
	"checkSchema":          "FolderNewer", // the file has a migration of another build
	"add":                  "Busy",        // the index of spent assertions is full
	// The content of the file was changed from outside:
	"load": "LogInvalid", "checkSingleWriter": "LogInvalid", "checkObjects": "LogInvalid", "tile": "LogInvalid", "commitments": "LogInvalid", "scanRecord": "LogInvalid",
	"scanTerms": "LogInvalid", "buildLog": "LogInvalid", "FullTile": "LogInvalid",
}

// bounded are the bounds that a query needs.
var bounded = map[string]bool{"watchword.MaxKeysReturned": true}

// Package sqlite holds no rule: it makes no refusals but those above, and knows no state and no bound of anything.
func TestStoreContainsNoRules(t *testing.T) {
	fset, files, _ := checked(t)
	states := stateNames(t)
	seen := map[string]bool{}
	for _, f := range files {
		for _, d := range f.Decls {
			name := ""
			if fn, ok := d.(*ast.FuncDecl); ok {
				name = fn.Name.Name
			}
			ast.Inspect(d, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CallExpr:
					if sel, ok := n.Fun.(*ast.SelectorExpr); ok && pkg(sel) == "watchword" && slices.Contains([]string{"Refuse", "RefuseField", "Wrap"}, sel.Sel.Name) {
						ok := false
						for _, arg := range n.Args {
							if code, is := arg.(*ast.SelectorExpr); is && pkg(code) == "watchword" && refusals[name] == code.Sel.Name {
								ok, seen[name] = true, true
							}
						}
						if !ok {
							t.Errorf("%s: %s refuses: that is a rule of another package", fset.Position(n.Pos()), name)
						}
					}
				case *ast.CompositeLit:
					if sel, ok := n.Type.(*ast.SelectorExpr); ok && pkg(sel) == "watchword" && sel.Sel.Name == "Error" {
						if seen[name] = true; refusals[name] == "" {
							t.Errorf("%s: %s refuses: that is a rule of another package", fset.Position(n.Pos()), name)
						}
					}
				case *ast.SelectorExpr:
					name := pkg(n) + "." + n.Sel.Name
					if states[name] || strings.Contains(n.Sel.Name, "Max") && imported(f, pkg(n)) && !bounded[name] {
						t.Errorf("%s: %s: what a state or a bound means is a rule of its package", fset.Position(n.Pos()), name)
					}
				}
				return true
			})
		}
	}
	for name, code := range refusals {
		if code != "" && !seen[name] {
			t.Errorf("%s refuses nothing: take it from the list", name)
		}
	}
}

// imported reports whether a name is that of a package of this module that f imports.
func imported(f *ast.File, name string) bool {
	return slices.ContainsFunc(f.Imports, func(i *ast.ImportSpec) bool {
		return strings.Contains(i.Path.Value, "watchword") && strings.HasSuffix(strings.Trim(i.Path.Value, `"`), "/"+name)
	})
}

// pkg is the package that a qualified name is of.
func pkg(sel *ast.SelectorExpr) string {
	if id, ok := sel.X.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// stateNames are the constants of other packages that are states of something.
func stateNames(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for dir, name := range map[string]string{"../..": "watchword", "../enroll": "enroll", "../keyring": "keyring"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			f, err := parser.ParseFile(gotoken.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				g, ok := d.(*ast.GenDecl)
				if !ok || g.Tok != gotoken.CONST {
					continue
				}
				for _, spec := range g.Specs {
					v := spec.(*ast.ValueSpec)
					if id, ok := v.Type.(*ast.Ident); ok && (strings.HasSuffix(id.Name, "State") || strings.HasSuffix(id.Name, "Status")) {
						for _, n := range v.Names {
							out[name+"."+n.Name] = true
						}
					}
				}
			}
		}
	}
	if !out["watchword.Revoked"] || !out["watchword.Queued"] || !out["watchword.KeyActive"] || !out["enroll.PairingPending"] || !out["keyring.Active"] {
		t.Fatalf("states: %v", out)
	}
	return out
}

// What is unfinished is a word of the tables' indexes and triggers too.
func TestUnfinishedStatesInTables(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { _ = s.Close() })
	for name := range stateNames(t) {
		if !strings.HasPrefix(name, "watchword.") {
			continue
		}
		state := watchword.CommandState(strings.ToLower(strings.TrimPrefix(name, "watchword.")))
		var got bool
		if err := s.db.QueryRowContext(t.Context(), `SELECT `+unfinishedStates+` FROM (SELECT ? AS state)`, state).Scan(&got); err != nil {
			t.Fatal(err)
		}
		if got != slices.Contains(command.Unfinished, state) {
			t.Errorf("%s: %v", state, got)
		}
	}
}
