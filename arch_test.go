package watchword_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/watchword-iot/watchword"

// floors lists the rooms from the ground up. Code on one floor imports this
// module's packages only from the floors below it, or from its own room.
var floors = []string{
	".",
	"internal",
	"jose",
	"audit",
	"policy",
	"token session twin bus mqttstore",
	"keyring",
	"authn enroll command registry backup acme",
	"api",
	"sdk storetest sqlite",
	"httpapi mqtt",
	"server",
	"cmd attack bench deploy",
}

// allowed lists what may ship inside other people's programs.
var allowed = map[string][]string{
	"api": {module},
	"sdk/device": {
		module, module + "/api", module + "/jose", module + "/token", module + "/audit/ledger", module + "/internal/", "github.com/go-json-experiment/json",
		"github.com/eclipse/paho.golang", module + "/sdk/internal/tlstrust",
	},
	"sdk/internal/tlstrust": {module, module + "/token", module + "/internal/rest"},
	"sdk/verify": {
		module, module + "/api", module + "/jose", module + "/token", module + "/internal/truncate", module + "/internal/durable", module + "/internal/fair", module + "/internal/authz",
		module + "/internal/cache", module + "/internal/rest", "github.com/go-json-experiment/json",
	},
}

// source is one parsed file of the product.
type source struct {
	path string // with slashes, from the root
	pkg  string
	test bool
	ast  *ast.File
}

func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != "." || d.Name() == "tools" || file == "peers" || d.Name() == "node_modules" || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(file, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		file = filepath.ToSlash(file)
		out = append(out, source{file, roomOf(path.Dir(file)), strings.HasSuffix(file, "_test.go"), f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// roomOf returns the first part of a folder's path; in the module of the server, the part after server/. A package has one
// name on all floors, whichever module it is in.
func roomOf(folder string) string {
	room, _, _ := strings.Cut(strings.TrimPrefix(folder, "server/"), "/")
	return room
}

// moduleOf returns the folder of the module that a folder is in.
func moduleOf(folder string) string {
	if first, _, _ := strings.Cut(folder, "/"); first == "server" || first == "cmd" {
		return first
	}
	return "."
}

func (s source) imports() []string {
	var out []string
	for _, spec := range s.ast.Imports {
		out = append(out, strings.Trim(spec.Path.Value, `"`))
	}
	return out
}

func TestImportsGoDown(t *testing.T) {
	floor := map[string]int{}
	for i, names := range floors {
		for n := range strings.FieldsSeq(names) {
			floor[n] = i
		}
	}
	for _, s := range sources(t) {
		here, known := floor[s.pkg]
		if !known {
			t.Errorf("%s: room %q is on no floor; add it to floors", s.path, s.pkg)
		}
		if s.test {
			continue
		}
		for _, imp := range s.imports() {
			rel, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			other := "."
			if rel != "" {
				other = roomOf(strings.TrimPrefix(rel, "/"))
			}
			if other != s.pkg && floor[other] >= here {
				t.Errorf("%s imports %s, which is not on a lower floor", s.path, other)
			}
		}
	}
}

func TestSDKDependenciesAreListed(t *testing.T) {
	for _, s := range sources(t) {
		list, ships := allowed[path.Dir(s.path)]
		if !ships || s.test {
			continue
		}
	imports:
		for _, imp := range s.imports() {
			first, _, _ := strings.Cut(imp, "/")
			if !strings.Contains(first, ".") {
				continue // the standard library
			}
			for _, a := range list {
				if imp == a || strings.HasPrefix(imp, strings.TrimSuffix(a, "/")+"/") && a != module && a != module+"/token" {
					continue imports
				}
			}
			t.Errorf("%s imports %s, which is not on the allow-list of what ships in other people's programs", s.path, imp)
		}
	}
}

func TestSDKPackagesImportOnlyWhatIsAllowed(t *testing.T) {
	for _, s := range sources(t) {
		if s.pkg != "token" || s.test {
			continue
		}
		for _, imp := range s.imports() {
			if strings.HasPrefix(imp, module+"/") && imp != module+"/jose" && !strings.HasPrefix(imp, module+"/internal/") {
				t.Errorf("%s imports %s; token ships with the device and knows jose alone", s.path, imp)
			}
		}
	}
}

func TestEveryPackageHasADocComment(t *testing.T) {
	documented, seen := map[string]bool{}, map[string]string{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		dir := path.Dir(s.path)
		seen[dir] = s.path
		if s.ast.Doc != nil {
			if documented[dir] {
				t.Errorf("%s: a second package comment", s.path)
			}
			documented[dir] = true
		}
	}
	for dir, file := range seen {
		if !documented[dir] {
			t.Errorf("package of %s has no comment", file)
		}
	}
}

// A program that uses an SDK package has in its module graph what the root module requires. So that module requires nothing of
// the server's: not for a test either. The module of the server requires nothing of the command's.
func TestModulesRequireOnlyThoseBelow(t *testing.T) {
	level := map[string]int{".": 0, "server": 1, "cmd": 2}
	looked := map[string]int{}
	for _, s := range sources(t) {
		here := moduleOf(path.Dir(s.path))
		looked[here]++
		for _, imp := range s.imports() {
			if rel, ours := strings.CutPrefix(imp, module+"/"); ours && level[moduleOf(rel)] > level[here] {
				t.Errorf("%s imports %s, which is in a module above", s.path, imp)
			}
		}
	}
	for m := range level {
		if looked[m] < 40 {
			t.Errorf("looked at %d files of the module in %s", looked[m], m)
		}
	}
}

func TestNoReplace(t *testing.T) {
	for m := range goModsNeed {
		if strings.Contains(goMod(t, m), "replace") {
			t.Errorf("%s/go.mod has a replace: go install …@latest would fail", m)
		}
	}
}

// goModsNeed lists, by the folder of a module, what its go.mod requires for tests alone, and why.
var goModsNeed = map[string]map[string]string{
	".": {},
	"server": {
		"github.com/eclipse/paho.golang": "a client that tests connect with; the root module requires it anyway",
		"golang.org/x/mod":               "checkpoints that tests read; likewise",
	},
	"cmd": {
		"github.com/rogpeppe/go-internal": "testscript runs the CLI's main inside its test",
	},
}

func goMod(t *testing.T, folder string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(folder, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A requirement of go.mod is in every user's module graph, even if only tests need it. So each requirement of each module
// is imported by code of that module that is no test, except those in goModsNeed; libraries that tests use for comparison
// are in the module peers.
func TestGoModRequiresNothingForTestsAlone(t *testing.T) {
	product := map[string]map[string]bool{".": {}, "server": {}, "cmd": {}}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		for _, imp := range s.imports() {
			product[moduleOf(path.Dir(s.path))][imp] = true
			if imp == module+"/internal/peers" {
				t.Errorf("%s imports internal/peers, which is for tests alone", s.path)
			}
		}
	}
	all := 0
	for folder, needed := range goModsNeed {
		for _, m := range regexp.MustCompile(`(?m)^(?:require |\t)(\S+) v\S+$`).FindAllStringSubmatch(goMod(t, folder), -1) {
			all++
			used := false
			for imp := range product[folder] {
				used = used || imp == m[1] || strings.HasPrefix(imp, m[1]+"/")
			}
			if used == (needed[m[1]] != "") {
				t.Errorf("%s/go.mod requires %s, product uses it: %v, needed for tests: %q", folder, m[1], used, needed[m[1]])
			}
		}
	}
	if all < 20 {
		t.Errorf("found %d requirements", all)
	}
}

// docs/mqtt-conformance.md lists all statements of both standards, names only existing tests, and names above each table the
// files of its tests.
func TestConformanceTableNamesExistingTests(t *testing.T) {
	text, err := os.ReadFile("docs/mqtt-conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string][]string{} // the files of a test
	for _, s := range sources(t) {
		if !s.test {
			continue
		}
		code, err := os.ReadFile(s.path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllSubmatch(code, -1) {
			have[string(m[1])] = append(have[string(m[1])], s.path)
		}
	}
	sections := 0
	for section := range strings.SplitSeq(string(text), "\n#") {
		files := map[string]bool{}
		for _, m := range regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(section, -1) {
			if len(have[m[1]]) == 0 {
				t.Errorf("%s is no test", m[1])
			}
			for _, f := range have[m[1]] {
				files["["+f+"](../"+f+")"] = true
			}
		}
		if strings.Contains(section, "\n| MQTT-") {
			sections++
			if want := "Tests in " + strings.Join(slices.Sorted(maps.Keys(files)), ", ") + "."; !strings.Contains(section, "\n"+want+"\n") {
				t.Errorf("docs/mqtt-conformance.md, #%.40q: write\n%s", section, want)
			}
		}
	}
	if sections < 30 {
		t.Errorf("found %d tables", sections)
	}
	newer, older, _ := strings.Cut(string(text), "\n## MQTT 3.1.1")
	for name, x := range map[string]struct {
		part string
		want int
	}{"MQTT 5.0": {newer, 251}, "MQTT 3.1.1": {older, 141}} {
		if n := len(regexp.MustCompile(`(?m)^\| MQTT-`).FindAllString(x.part, -1)); n != x.want {
			t.Errorf("%s: %d statements, want %d", name, n, x.want)
		}
	}
}

// All log output of the server passes through one handler, which bounds it (internal/logbudget): no package creates a
// logger of its own.
func TestNoPackageMakesItsOwnLogger(t *testing.T) {
	makes := regexp.MustCompile(`(?m)\bs?log\.New\w*\(|\bslog\.SetDefault\(|^\s*"log"$`)
	free := map[string]bool{"cmd": true, "sdk": true, "attack": true, "bench": true, "server": true}
	for _, s := range sources(t) {
		if s.test || free[s.pkg] || strings.HasPrefix(s.path, "internal/logbudget/") {
			continue
		}
		b, err := os.ReadFile(s.path)
		if err != nil {
			t.Fatal(err)
		}
		if found := makes.Find(b); found != nil {
			t.Errorf("%s: %s: what is printed must go through the logger that the server gives", s.path, found)
		}
	}
}

// Requests are made by internal/rest, whose clients have deadlines and bounds: no other
// code of the product has an HTTP client or transport of its own.
func TestEveryRequestIsMadeByOneClient(t *testing.T) {
	// Tests and what loads and attacks servers make what they need.
	exempt := regexp.MustCompile(`(^|/)(internal/rest|attack|bench|tools)/|_test\.go$`)
	own := regexp.MustCompile(`\bhttp\.(Client|Transport)\{|\brest\.Client\{|\bhttp\.(Get|Head|Post|PostForm|DefaultClient|DefaultTransport)\b|\bnew\(http\.(Client|Transport)\)`)
	looked := 0
	for _, s := range sources(t) {
		if exempt.MatchString(s.path) {
			continue
		}
		looked++
		b, err := os.ReadFile(filepath.FromSlash(s.path))
		if err != nil {
			t.Fatal(err)
		}
		for n, line := range strings.Split(string(b), "\n") {
			if code, _, _ := strings.Cut(line, "//"); own.MatchString(code) {
				t.Errorf("%s:%d: %s: make it with internal/rest", s.path, n+1, strings.TrimSpace(line))
			}
		}
	}
	if looked < 100 {
		t.Errorf("looked at %d files", looked)
	}
}
