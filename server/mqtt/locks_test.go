package mqtt

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestLocksHaveRanks holds that every lock of the package is one of locks.go, so that its order is
// checked under the race detector.
func TestLocksHaveRanks(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok && x.Name == "sync" && (s.Sel.Name == "Mutex" || s.Sel.Name == "RWMutex") {
				t.Errorf("%s: sync.%s has no rank: use lockrank", fset.Position(s.Pos()), s.Sel.Name)
			}
			return true
		})
	}
}

// TestRanksAscend holds that locks.go lists the locks in the order in which they are taken.
func TestRanksAscend(t *testing.T) {
	b, err := os.ReadFile("locks.go")
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?m)^\t(\w+) +struct\{\}`).FindAllStringSubmatch(string(b), -1)
	ranked := regexp.MustCompile(`(?s)\((\w+)\) LockInfo.*?Rank: (\d+)`).FindAllStringSubmatch(string(b), -1)
	if len(declared) == 0 || len(declared) != len(ranked) {
		t.Fatalf("%d locks are declared, %d have a rank", len(declared), len(ranked))
	}
	var ranks []int
	for i, r := range ranked {
		if r[1] != declared[i][1] {
			t.Errorf("%s has its rank in the place of %s", r[1], declared[i][1])
		}
		n, err := strconv.Atoi(r[2])
		if err != nil {
			t.Fatal(err)
		}
		ranks = append(ranks, n)
	}
	if !slices.IsSorted(ranks) || len(slices.Compact(slices.Clone(ranks))) != len(ranks) {
		t.Errorf("ranks do not ascend: %v", ranks)
	}
}
