package main

import (
	"bytes"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const sample = `package p

import "fmt"

func may(role string, n int, open bool) bool {
	fmt.Sprint(1)
	n = n + 2
	if open {
		return true
	}
	if !open && role == "owner" {
		n++
	}
	switch {
	case n < 3:
		return false
	}
	return "a"+role != "b"
}
`

func TestWhatIsMutated(t *testing.T) {
	ms, err := mutantsOf("p", "p.go", digest([]byte(sample)), []byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range ms {
		got = append(got, strings.Join(strings.Fields(m.Was), " ")+" → "+m.Now)
		src := sample[:m.Start] + m.Now + sample[m.End:]
		if _, err := parser.ParseFile(token.NewFileSet(), "p.go", src, 0); err != nil {
			t.Errorf("%s: %v", m, err)
		}
	}
	want := []string{
		"fmt.Sprint(1) → ", "n = n + 2 → ", "1 → 2", "+ → -", "2 → 3",
		"open → !open", "return true → ", "true → false",
		"&& → ||", "! → ", "== → !=", "n++ → ",
		"case n < 3: return false → ", "< → <=", "< → >=", "3 → 4", "false → true",
		"!= → ==",
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// Each package and file under mutation exists.
func TestTargetsExist(t *testing.T) {
	for _, x := range targets {
		for _, name := range append([]string{"*"}, x.files...) {
			found, err := filepath.Glob(filepath.Join("..", "..", x.dir, name+".go"))
			if err != nil || len(found) == 0 {
				t.Errorf("no %s.go in %s: %v", name, x.dir, err)
			}
		}
	}
}

// A module with one rule and a test that holds only half of it: the other half survives, and
// a further run judges nothing again.
func TestARunFindsWhatNoTestHolds(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module example.org/x\n\ngo 1.26\n")
	write("server/policy/p.go", "package policy\n\nfunc May(owner, open bool) bool { return owner && open }\n\nfunc Not(owner bool) bool { return owner != true }\n")
	write("server/policy/p_test.go", "package policy\n\nimport \"testing\"\n\nfunc TestMay(t *testing.T) {\n\tif !May(true, true) {\n\t\tt.Fatal()\n\t}\n}\n")
	state := filepath.Join(root, "state.jsonl")
	at := func(again bool) map[string]string {
		t.Helper()
		if err := run(t.Context(), root, state, "server/policy", 1, 200, again, false); err != nil {
			t.Fatal(err)
		}
		known, err := load(state)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for m, r := range known {
			out[m.Was+" → "+m.Now] = r.Outcome
		}
		return out
	}
	got := at(false)
	for change, want := range map[string]string{"&& → ||": survived, "!= → ==": uncovered, "true → false": uncovered} {
		if got[change] != want {
			t.Errorf("%s: %q, want %q", change, got[change], want)
		}
	}
	before, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	at(false)
	if after, err := os.ReadFile(state); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a further run judged again: %v\n%s", err, after[len(before):])
	}
	write("server/policy/p_test.go", "package policy\n\nimport \"testing\"\n\nfunc TestMay(t *testing.T) {\n\tif !May(true, true) || May(true, false) || May(false, true) {\n\t\tt.Fatal()\n\t}\n}\n")
	if got := at(true); got["&& → ||"] != killed {
		t.Errorf("with a test of the other half: %q", got["&& → ||"])
	}
	var text bytes.Buffer
	all, err := draw(root, targets[0], 1)
	if err != nil {
		t.Fatal(err)
	}
	known, err := load(state)
	if err != nil {
		t.Fatal(err)
	}
	report(&text, root, targets[0], all, known, 200)
	if want := "Of 3 judged 1 are killed (33.3 %), 0 of them by the limit; 2 survive."; !strings.Contains(text.String(), want) {
		t.Errorf("the report does not say %q:\n%s", want, &text)
	}
}

func TestTheFastestTestsComeFirstAndOnlyThoseThatReach(t *testing.T) {
	s := suite{tests: []test{
		{"TestFar", time.Second, map[string][]block{"all p.go": {{1, 1, 9, 9}}, "p.go": {{8, 1, 9, 9}}}},
		{"TestNear", time.Minute, map[string][]block{"all p.go": {{1, 1, 9, 9}}, "p.go": {{1, 1, 4, 9}}}},
	}}
	for line, want := range map[int][]string{3: {"TestNear"}, 8: {"TestFar"}, 6: nil, 20: {"TestFar", "TestNear"}} {
		var got []string
		for _, x := range s.reaching(mutant{File: "p.go", Line: line, Column: 2}) {
			got = append(got, x.name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("line %d: got %q, want %q", line, got, want)
		}
	}
}

// Switched on in the binary that has all of them, a mutant is what it is when it is built
// alone: the same tests fail. The sample has every kind of mutant that can be switched, one
// inside the other, and two that keep the rest from compiling.
func TestASwitchedMutantIsTheOneBuiltAlone(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module example.org/x\n\ngo 1.26\n",
		"server/policy/p.go": `package policy

const yes = true

func Rule(a, b, c bool, n int) (out int) {
	if a && (b || !c) && n < 3 {
		out = 1
	}
	if c {
		return 7
	}
	switch {
	case n <= 1, a && b:
		out += 2
	case n > 4:
		out -= 3
	}
	return out
}

func Last(a bool) int {
	if a {
		return 1
	} else {
		return 2
	}
}
`,
		"server/policy/p_test.go": `package policy

import "testing"

func TestRule(t *testing.T) {
	for _, x := range []struct {
		a, b, c bool
		n, want int
	}{{true, true, false, 2, 3}, {true, false, true, 0, 7}, {false, true, false, 1, 2}, {true, true, false, 3, 2}, {false, false, false, 5, -3}, {false, false, false, 4, 0}} {
		if got := Rule(x.a, x.b, x.c, x.n); got != x.want {
			t.Errorf("%+v: %d", x, got)
		}
	}
	if yes != true || Last(true) != 1 || Last(false) != 2 {
		t.Error("last")
	}
}
`,
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := draw(root, targets[0], 1)
	if err != nil {
		t.Fatal(err)
	}
	s := &suite{root: root, under: "server/policy", dir: "server/policy", work: t.TempDir()}
	if err := s.measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	on, err := s.switched(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	s.switches = on
	if out, err := s.binary(t.Context(), 0, on.binary); err != nil {
		t.Fatalf("with none switched on: %v\n%s", err, out)
	}
	compared, died := 0, 0
	seen := map[string]bool{}
	for _, c := range all {
		if kind := c.Was + " → " + c.Now; on.number[c.mutant] == 0 || seen[kind] {
			continue
		} else {
			seen[kind] = true // building each alone takes its time
		}
		s.switches = on
		got, _, err := s.try(t.Context(), c.mutant)
		if err != nil {
			t.Fatal(err)
		}
		s.switches = nil
		want, _, err := s.try(t.Context(), c.mutant)
		if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%s: switched on it is %s, alone %s", c, got, want)
		}
		compared++
		if got == killed {
			died++
		}
	}
	if compared < 12 || died < 8 || died == compared {
		t.Errorf("%d compared, %d killed: the test asks too little", compared, died)
	}
}
