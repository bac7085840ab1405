package watchword_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The tables of bounds in docs/operations.md name the tests that hold them, by package and
// name; each of them exists.
func TestEachBoundNamesItsTests(t *testing.T) {
	doc, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	test := regexp.MustCompile("`([a-z/]+)(?:: (Test[A-Za-z0-9]+))?`")
	tables, rows := 0, 0
	in, before := false, false
	for line := range strings.Lines(string(doc)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "| what | per subject | in all | when full | test |":
			in, before = true, false
			tables++
			continue
		case !strings.HasPrefix(line, "|"):
			in = false
		}
		if !in || strings.HasPrefix(line, "|---") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 5 {
			t.Errorf("%d columns: %.80s", len(cells), line)
			continue
		}
		for n, what := range []string{"what", "per subject", "in all", "when full", "test"} {
			if empty := strings.TrimSpace(cells[n]) == ""; empty && (n == 0 || n > 2 || strings.TrimSpace(cells[3-n]) == "") {
				t.Errorf("nothing under %q: %.80s", what, line)
			}
		}
		if before && strings.TrimSpace(cells[4]) == "the same" {
			continue
		}
		names := test.FindAllStringSubmatch(cells[4], -1)
		before = len(names) > 0
		if !before {
			t.Errorf("no test: %.80s", line)
		}
		for _, n := range names {
			if !hasTest(t, n[1], n[2]) {
				t.Errorf("no test %q in %s: %.80s", n[2], n[1], line)
			}
		}
	}
	if tables < 2 || rows < 30 {
		t.Errorf("%d rows in %d tables", rows, tables)
	}
}

// hasTest reports whether a package has a test of that name; any test for "".
func hasTest(t *testing.T, folder, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(filepath.FromSlash(folder), "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	below, err := filepath.Glob(filepath.Join("server", filepath.FromSlash(folder), "*_test.go")) // written without server, as in docs/architecture.md
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, below...)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\nfunc "+name) && (name == "" || strings.Contains(string(b), "\nfunc "+name+"(")) {
			return true
		}
	}
	return false
}
