// Command mutate changes the code of the packages that decide about authority, one small edit at a time, and runs the
// package's own tests against each: a change that no test notices is a survivor, and is either harmless or needs a test.
//
// The tree is not modified: mutants are compiled through go's overlay, as many as possible into one binary in which each
// can be switched on, the rest separately. The sample is drawn by a seed. Each outcome is written to a state file at once;
// a further run continues where the last one stopped, and tests a mutant again only when its file has changed. Only the
// tests that reach the edited place are run, by the coverage of each test alone.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// target is a package under mutation.
type target struct {
	dir   string
	files []string // of the package, without .go; nil: all
	tests []string // the packages whose tests are run, in turn; nil: its own
}

// targets is the packages that decide about authority, in the order of a run.
var targets = []target{
	{dir: "server/policy"},
	{dir: "internal/authz", tests: []string{"internal/authz", "server/policy"}},
	{dir: "server/session"},
	{dir: "server/command"},
	{dir: "token"},
	{dir: "server/enroll"},
	{dir: "jose"},
	{dir: "server/mqtt", files: []string{"command_pump", "connect", "enhanced_auth", "notices", "publish", "shared_subscription", "subscribe", "takeover", "will"}},
}

// result is a line of the state file.
type result struct {
	mutant
	Outcome string  `json:"outcome"`
	By      string  `json:"by,omitempty"` // the first test that failed
	Seconds float64 `json:"seconds"`
}

func main() {
	root := flag.String("root", ".", "the module's folder")
	seed := flag.Uint64("seed", 1, "of the sample")
	n := flag.Int("n", 200, "mutants that compile, of each package")
	most := flag.Duration("for", time.Hour, "stop after this long; a further run goes on")
	state := flag.String("state", "bin/mutants.jsonl", "what is known")
	again := flag.Bool("again", false, "judge survivors again: after tests were added")
	only := flag.String("only", "", "packages, with commas between; empty: all")
	show := flag.Bool("report", false, "run nothing, print what is known as Markdown")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *most)
	defer cancel()
	if err := run(ctx, *root, *state, *only, *seed, *n, *again, *show); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root, state, only string, seed uint64, n int, again, show bool) (err error) {
	root, err = filepath.Abs(root)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(state) {
		state = filepath.Join(root, state)
	}
	known, err := load(state)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(state), 0o755); err != nil {
		return err
	}
	notes, err := os.OpenFile(state, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, notes.Close()) }()
	for _, t := range targets {
		if only != "" && !slices.Contains(strings.Split(only, ","), t.dir) {
			continue
		}
		all, err := draw(root, t, seed)
		if err != nil {
			return err
		}
		if show {
			report(os.Stdout, root, t, all, known, n)
			continue
		}
		if err := over(ctx, root, t, all, known, notes, n, again); err != nil {
			if ctx.Err() != nil {
				fmt.Printf("%s: stopped: %v\n", t.dir, context.Cause(ctx))
				return nil
			}
			return fmt.Errorf("%s: %w", t.dir, err)
		}
	}
	return nil
}

// load reads a state file: of each mutant what was found last.
func load(state string) (map[mutant]result, error) {
	known := map[mutant]result{}
	raw, err := os.ReadFile(state)
	if errors.Is(err, os.ErrNotExist) {
		return known, nil
	}
	for line := range strings.Lines(string(raw)) {
		var r result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, fmt.Errorf("%s: %w", state, err)
		}
		known[r.mutant] = r
	}
	return known, err
}

// draw returns all mutants of a package in an order that the seed and their text give: an
// edit elsewhere leaves the sample as it is.
func draw(root string, t target, seed uint64) (all []candidate, err error) {
	files, err := filepath.Glob(filepath.Join(root, t.dir, "*.go"))
	if err != nil {
		return nil, err
	}
	place := map[mutant]uint64{}
	for _, path := range files {
		name := filepath.Base(path)
		if strings.HasSuffix(name, "_test.go") || t.files != nil && !slices.Contains(t.files, strings.TrimSuffix(name, ".go")) {
			continue
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		ms, err := mutantsOf(t.dir, name, digest(src), src)
		if err != nil {
			return nil, err
		}
		lines := bytes.Split(src, []byte("\n"))
		for _, m := range ms {
			h := fnv.New64a()
			fmt.Fprintf(h, "%d %q %q %q %q %d", seed, m.File, lines[m.Line-1], m.Was, m.Now, m.Column)
			place[m.mutant] = h.Sum64()
		}
		all = append(all, ms...)
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return cmp.Compare(place[a.mutant], place[b.mutant]) })
	return all, nil
}

func digest(src []byte) string {
	sum := sha256.Sum256(src)
	return hex.EncodeToString(sum[:8])
}

// over judges the first n mutants that compile.
func over(ctx context.Context, root string, t target, all []candidate, known map[mutant]result, notes *os.File, n int, again bool) error {
	work, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	var suites []*suite
	tests := t.tests
	if tests == nil {
		tests = []string{t.dir}
	}
	for _, dir := range tests {
		s := &suite{root: root, under: t.dir, dir: dir, work: filepath.Join(work, strings.ReplaceAll(dir, "/", "_"))}
		if err := os.Mkdir(s.work, 0o700); err != nil {
			return err
		}
		suites = append(suites, s)
	}
	judged := 0
	for _, c := range all {
		if judged == n {
			break
		}
		m := c.mutant
		r, ok := known[m]
		if !ok || again && (r.Outcome == survived || r.Outcome == uncovered) {
			begun := time.Now()
			outcome, by := uncovered, ""
			for _, s := range suites {
				if err := s.prepare(ctx, all); err != nil {
					return err
				}
				o, who, err := s.try(ctx, m)
				if err != nil {
					return err
				}
				if o != uncovered {
					outcome, by = o, who
				}
				if o != uncovered && o != survived {
					break
				}
			}
			r = result{m, outcome, by, time.Since(begun).Seconds()}
			line, err := json.Marshal(r)
			if err != nil {
				return err
			}
			if _, err := notes.Write(append(line, '\n')); err != nil {
				return err
			}
			known[m] = r
			if outcome == survived || outcome == uncovered {
				fmt.Println(outcome, m)
			}
		}
		if r.Outcome != invalid {
			judged++
		}
	}
	fmt.Println(sum(t, all, known, n))
	return nil
}
