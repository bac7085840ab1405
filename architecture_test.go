package watchword_test

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestArchitecturePageNamesExistingSymbols holds docs/architecture.md to the code: each name in backticks exists, each step of a tour
// names a symbol of the file beside it, the picture has the floors of arch_test.go, and the table of locks has the ranks
// that the locks are declared with.
func TestArchitecturePageNamesExistingSymbols(t *testing.T) {
	page := readArchitecture(t)
	for _, mistake := range page.mistakes(page.text) {
		t.Error(mistake)
	}
}

// TestArchitecturePageMistakesAreFound misspells each name in backticks, changes the file of each step, and changes each
// rank of a lock and each floor in the picture: each of these mistakes is found.
func TestArchitecturePageMistakesAreFound(t *testing.T) {
	page := readArchitecture(t)
	replace := func(pattern *regexp.Regexp, least int, by func(found string) (now, mistake string)) {
		t.Helper()
		want := map[string]bool{}
		text := pattern.ReplaceAllStringFunc(page.text, func(found string) string {
			now, mistake := by(found)
			want[mistake] = true
			return now
		})
		all := strings.Join(page.mistakes(text), "\n")
		for mistake := range want {
			if !strings.Contains(all, mistake) {
				t.Errorf("not found: %s", mistake)
			}
		}
		if len(want) < least {
			t.Errorf("made %d mistakes with %s, want %d or more", len(want), pattern, least)
		}
	}
	replace(pageName, 150, func(found string) (now, mistake string) {
		name := "x" + strings.Trim(found, "`/")
		return "`" + name + "`", strconv.Quote(name)
	})
	replace(pageName, 150, func(found string) (now, mistake string) {
		name := strings.Trim(found, "`/")
		end := strings.TrimSuffix(strings.TrimSuffix(name, ".md"), ".go")
		name = end + "x" + name[len(end):]
		return "`" + name + "`", strconv.Quote(name)
	})
	replace(regexp.MustCompile("(?m)^[0-9]+\\. `[^`\n]+` → `[^`\n]+`"), 40, func(found string) (now, mistake string) {
		m := pageName.FindAllStringSubmatch(found, -1)
		return strings.Replace(found, m[0][1], "doc.go", 1), strconv.Quote(m[1][1]) + " is not in doc.go" // which declares nothing
	})

	try := func(from, to int, now string) {
		t.Helper()
		if text := page.text[:from] + now + page.text[to:]; len(page.mistakes(text)) == 0 {
			t.Errorf("%q goes unnoticed in %q", now, page.text[max(0, from-40):min(len(page.text), to+40)])
		}
	}
	for _, number := range []string{`(?m)^\| ([0-9]+) \|`, `(?m)^ +([0-9]+) +[a-z/]+ `} { // of a lock, of a floor
		found := regexp.MustCompile(number).FindAllStringSubmatchIndex(page.text, -1)
		if len(found) < 10 {
			t.Errorf("found %d of %s", len(found), number)
		}
		for _, at := range found {
			n, err := strconv.Atoi(page.text[at[2]:at[3]])
			if err != nil {
				t.Fatal(err)
			}
			try(at[2], at[3], strconv.Itoa(n+1))
		}
	}
	for _, line := range regexp.MustCompile(`(?m)^ +[0-9]+ +[a-z/]+ .*\n`).FindAllStringIndex(page.text, -1) {
		try(line[0], line[1], "") // a package that is missing in the picture
	}
}

// architecture is the page, and what it is held to.
type architecture struct {
	text    string
	symbols map[string][]string // the files that declare a symbol
	paths   map[string]bool     // of files and folders; folders without a slash at the end
	locks   []string            // rows of the table of locks
}

func readArchitecture(t *testing.T) architecture {
	t.Helper()
	b, err := os.ReadFile("docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	a := architecture{text: string(b), symbols: map[string][]string{}, paths: map[string]bool{}}
	for _, s := range sources(t) {
		if !s.test {
			a.addSymbols(t, s.path)
		}
	}
	err = filepath.WalkDir(".", func(name string, d os.DirEntry, err error) error {
		a.paths[filepath.ToSlash(name)] = true
		if d != nil && d.IsDir() {
			a.paths[strings.TrimPrefix(filepath.ToSlash(name), "server/")] = true
		}
		if name == ".git" && d.IsDir() {
			return filepath.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	a.locks = declaredLocks(t, "server/mqtt/locks.go", "server/bus/locks.go")
	return a
}

// addSymbols adds the package-level names of a file, with their methods and fields: folder.Name and folder.Type.Member.
// The folder of the root package is written watchword; folders below server are written without it, as on the page.
func (a *architecture) addSymbols(t *testing.T, file string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), filepath.FromSlash(file), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	folder := strings.TrimPrefix(path.Dir(file), "server/")
	if folder == "." {
		folder = "watchword"
	}
	eachDeclared(f, func(name string) { a.symbols[folder+"."+name] = append(a.symbols[folder+"."+name], file) })
}

// eachDeclared calls add with each package-level name of a file, and with those of methods and fields as Type.Member.
func eachDeclared(f *ast.File, add func(name string)) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				add(d.Name.Name)
			} else {
				add(receiverName(d) + "." + d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.ValueSpec:
					for _, n := range spec.Names {
						add(n.Name)
					}
				case *ast.TypeSpec:
					add(spec.Name.Name)
					for _, m := range memberNames(spec.Type) {
						add(spec.Name.Name + "." + m)
					}
				}
			}
		}
	}
}

// receiverName is the name of a method's type, without pointer and type parameters.
func receiverName(d *ast.FuncDecl) (name string) {
	ast.Inspect(d.Recv.List[0].Type, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok && name == "" {
			name = id.Name
		}
		return name == ""
	})
	return name
}

// memberNames lists the fields of a struct and the methods of an interface.
func memberNames(x ast.Expr) (names []string) {
	var l *ast.FieldList
	switch x := x.(type) {
	case *ast.StructType:
		l = x.Fields
	case *ast.InterfaceType:
		l = x.Methods
	default:
		return nil
	}
	for _, f := range l.List {
		for _, n := range f.Names {
			names = append(names, n.Name)
		}
	}
	return names
}

// declaredLocks returns the rows of the table of locks that some files declare, in the order of their ranks.
func declaredLocks(t *testing.T, files ...string) (rows []string) {
	t.Helper()
	declared := regexp.MustCompile(`lockrank\.Info\{Name: "([a-z]+) ([^"]+)", Rank: (\d+)`)
	ranks := map[string]int{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range declared.FindAllStringSubmatch(string(b), -1) {
			row := fmt.Sprintf("| %s | `%s.%s` |", m[3], m[1], m[2])
			if ranks[row], err = strconv.Atoi(m[3]); err != nil {
				t.Fatal(err)
			}
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(x, y string) int { return ranks[x] - ranks[y] })
	return rows
}

var (
	pageName   = regexp.MustCompile("`([^`\n]+)`")
	pageFile   = regexp.MustCompile(`^[A-Za-z0-9_/-]+\.(go|md|sql|json|toml)$`)
	pageSymbol = regexp.MustCompile(`^[a-z][a-z0-9/]*(\.[A-Za-z][A-Za-z0-9]*){1,2}$`)
	pageFolder = regexp.MustCompile(`^[a-z][a-z0-9]*(/[a-z0-9]+)*/?$`)
	pageStep   = regexp.MustCompile("^[0-9]+\\. `([^`]+)` → (`[^:]+`): ")
	pageFloor  = regexp.MustCompile(`^ +([0-9]+) +([a-z][a-z/]*) `)
	pageLock   = regexp.MustCompile("^\\| [0-9]+ \\| `[^`]+` \\|")
)

// publishFiles is how many files the tour of a PUBLISH may have.
const publishFiles = 6

// mistakes returns what is not true of a text of the page.
func (a architecture) mistakes(text string) (out []string) {
	wrong := func(format string, x ...any) { out = append(out, fmt.Sprintf(format, x...)) }
	for _, m := range pageName.FindAllStringSubmatch(text, -1) {
		switch s := strings.TrimSuffix(m[1], "/"); {
		case pageFile.MatchString(s), pageFolder.MatchString(s):
			if !a.paths[s] {
				wrong("no file or folder %q: write what is neither that nor a symbol in quotation marks", s)
			}
		case pageSymbol.MatchString(s):
			if a.symbols[s] == nil {
				wrong("no symbol %q", s)
			}
		default:
			wrong("%q is no folder, file or symbol of the code: write it in quotation marks", s)
		}
	}

	tour, steps, tours := "", 0, map[string]map[string]bool{}
	floor, picture := map[string]int{}, 0
	for i, names := range floors {
		for n := range strings.FieldsSeq(names) {
			if n == "." {
				n = "watchword"
			}
			floor[n] = i
		}
	}
	var drawn, locks []string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "#"):
			tour = strings.TrimLeft(line, "# ")
		case strings.HasPrefix(line, "```"):
			picture++
		case picture == 1 && pageFloor.MatchString(line):
			m := pageFloor.FindStringSubmatch(line)
			drawn = append(drawn, m[2])
			if at, known := floor[m[2]]; !known || m[1] != strconv.Itoa(at) {
				wrong("the picture has %q on floor %s, arch_test.go on floor %d", m[2], m[1], at)
			}
		case pageLock.MatchString(line):
			locks = append(locks, pageLock.FindString(line))
		case pageStep.MatchString(line):
			m := pageStep.FindStringSubmatch(line)
			steps++
			if tours[tour] == nil {
				tours[tour] = map[string]bool{}
			}
			tours[tour][m[1]] = true
			for _, s := range pageName.FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains(a.symbols[s[1]], m[1]) {
					wrong("%s: %q is not in %s, but in %v", tour, s[1], m[1], a.symbols[s[1]])
				}
			}
		}
	}
	slices.Sort(drawn)
	if want := slices.Sorted(maps.Keys(floor)); !slices.Equal(drawn, want) {
		wrong("the picture has the packages %v, arch_test.go %v", drawn, want)
	}
	if !slices.Equal(locks, a.locks) {
		wrong("the table of locks is\n%s\nthe code declares\n%s", strings.Join(locks, "\n"), strings.Join(a.locks, "\n"))
	}
	if len(tours) != 5 || steps < 25 {
		wrong("%d steps in %d tours, want 5 tours", steps, len(tours))
	}
	for name, files := range tours {
		if strings.Contains(name, "PUBLISH") && len(files) > publishFiles {
			wrong("%s: %d files, want %d or fewer", name, len(files), publishFiles)
		}
	}
	_, questions, _ := strings.Cut(text, "\n## Ten tasks\n")
	questions, answers, _ := strings.Cut(questions, "\n## Answers\n")
	item := regexp.MustCompile(`(?m)^[0-9]+\. `)
	if q, n := len(item.FindAllString(questions, -1)), len(item.FindAllString(answers, -1)); q != 10 || n != 10 {
		wrong("%d tasks with %d answers, want ten of each", q, n)
	}
	return out
}

// docs/renamed-names.md translates old names of the code; each new one exists.
func TestRenamedNamesExist(t *testing.T) {
	doc, err := os.ReadFile("docs/renamed-names.md")
	if err != nil {
		t.Fatal(err)
	}
	symbols := readArchitecture(t).symbols
	heading := regexp.MustCompile(`^## ([a-z/]+)(?:, now ([a-z/]+))?$`)
	row := regexp.MustCompile(`^\| ([A-Za-z0-9.]+) \| ([A-Za-z0-9.]+) \|$`)
	folder, rows := "", 0
	for line := range strings.Lines(string(doc)) {
		line = strings.TrimSpace(line)
		if m := heading.FindStringSubmatch(line); m != nil {
			folder = cmp.Or(m[2], m[1])
			continue
		}
		m := row.FindStringSubmatch(line)
		if m == nil || m[1] == "old" {
			continue
		}
		rows++
		if len(symbols[folder+"."+m[2]]) == 0 {
			t.Errorf("%s has no %s, which %s is said to be now", folder, m[2], m[1])
		}
	}
	if rows < 300 {
		t.Errorf("%d names: the test reads too few", rows)
	}
}
