package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Limits of one run of a mutant's tests, so that a mutant that loops or grows does no harm: bytes of address space and of
// one file, in KiB and blocks of 512 bytes.
const (
	maxMemory = 6 << 20
	maxFile   = 4 << 20
)

// suite is the tests of one package, with what each of them reaches in the package under
// mutation.
type suite struct {
	root, under, dir string // dir holds the tests, under is the package that they run
	work             string
	tests            []test
	switches         *switches // nil: every mutant is built alone
}

type test struct {
	name   string
	took   time.Duration
	covers map[string][]block // by base name of the file
}

// block is a stretch of code that coverage counts: from (line, column) up to another.
type block struct{ l0, c0, l1, c1 int }

func (b block) has(line, column int) bool {
	return (line > b.l0 || line == b.l0 && column >= b.c0) && (line < b.l1 || line == b.l1 && column <= b.c1)
}

// command is a program of a process group of its own, which is killed as one at the end of ctx.
func command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = 5 * time.Second
	return c
}

// binary runs a test binary within the bounds, with one of its mutants switched on or, for 0, none.
func (s *suite) binary(ctx context.Context, mutant int, name string, args ...string) ([]byte, error) {
	tmp, err := os.MkdirTemp(s.work, "tmp")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	c := command(ctx, filepath.Join(s.root, s.dir), "sh", append([]string{
		"-c", fmt.Sprintf(`ulimit -v %d; ulimit -f %d; exec "$0" "$@"`, maxMemory, maxFile), name,
	}, args...)...)
	c.Env = append(os.Environ(), "TMPDIR="+tmp, switchName+"="+strconv.Itoa(mutant))
	return c.CombinedOutput()
}

func (s *suite) build(ctx context.Context, out string, flags ...string) ([]byte, error) {
	c := command(ctx, s.root, "go", append(append([]string{"test", "-c", "-p=1", "-ldflags=-s -w", "-o", out}, flags...), "./"+s.dir)...)
	return c.CombinedOutput()
}

// source returns a mutant's file, which must be the one that it was drawn from.
func (s *suite) source(m mutant) ([]byte, error) {
	path := filepath.Join(s.root, m.Dir, m.File)
	src, err := os.ReadFile(path)
	if err == nil && digest(src) != m.Source {
		err = fmt.Errorf("%s has changed since the run began", path)
	}
	return src, err
}

// overlay writes what go reads in the place of some files.
func (s *suite) overlay(replace map[string]string) (string, error) {
	path := filepath.Join(s.work, "overlay.json")
	text, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		return "", err
	}
	return path, os.WriteFile(path, text, 0o600)
}

// alone builds the tests with one mutant; "" where that does not compile.
func (s *suite) alone(ctx context.Context, m mutant) (string, error) {
	src, err := s.source(m)
	if err != nil {
		return "", err
	}
	edited := filepath.Join(s.work, "mutant.go")
	if err := os.WriteFile(edited, slices.Concat(src[:m.Start], []byte(m.Now), src[m.End:]), 0o600); err != nil {
		return "", err
	}
	overlay, err := s.overlay(map[string]string{filepath.Join(s.root, m.Dir, m.File): edited})
	if err != nil {
		return "", err
	}
	bin := filepath.Join(s.work, "mutant.test")
	if _, err := s.build(ctx, bin, "-overlay="+overlay); err != nil {
		return "", ctx.Err()
	}
	return bin, nil
}

// prepare measures the tests and builds the switches, the first time.
func (s *suite) prepare(ctx context.Context, all []candidate) (err error) {
	if s.tests != nil {
		return nil
	}
	if err := s.measure(ctx); err != nil {
		return err
	}
	s.switches, err = s.switched(ctx, all)
	return err
}

// measure runs each test alone and notes what it reaches and how long it takes.
func (s *suite) measure(ctx context.Context) error {
	bin := filepath.Join(s.work, "cover.test")
	if out, err := s.build(ctx, bin, "-cover", "-covermode=set", "-coverpkg=./"+s.under); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	defer os.Remove(bin)
	list, err := s.binary(ctx, 0, bin, "-test.list=^(Test|Fuzz)")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, list)
	}
	profile := filepath.Join(s.work, "profile")
	defer os.Remove(profile)
	for name := range strings.FieldsSeq(string(list)) {
		begun := time.Now()
		out, err := s.binary(ctx, 0, bin, "-test.run=^"+name+"$", "-test.coverprofile="+profile, "-test.timeout=120s")
		if err != nil {
			return fmt.Errorf("%s fails without a mutation: %w\n%s", name, err, out)
		}
		covers, err := read(profile)
		if err != nil {
			return err
		}
		s.tests = append(s.tests, test{name, time.Since(begun), covers})
	}
	slices.SortStableFunc(s.tests, func(a, b test) int { return int(a.took - b.took) })
	return nil
}

// read returns what a profile says was reached, and under "" everything that it speaks of.
func read(profile string) (map[string][]block, error) {
	raw, err := os.ReadFile(profile)
	if err != nil {
		return nil, err
	}
	out := map[string][]block{}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		path, rest, ok := strings.Cut(lines.Text(), ":")
		if !ok || path == "mode" {
			continue
		}
		var b block
		var statements, count int
		if _, err := fmt.Sscanf(rest, "%d.%d,%d.%d %d %d", &b.l0, &b.c0, &b.l1, &b.c1, &statements, &count); err != nil {
			return nil, fmt.Errorf("%s: %w", lines.Text(), err)
		}
		name := filepath.Base(path)
		out["all "+name] = append(out["all "+name], b)
		if count > 0 {
			out[name] = append(out[name], b)
		}
	}
	return out, lines.Err()
}

// reaching returns the tests that reach a mutant, fastest first. A position in no block, such as a constant or a loop's
// head, counts as reached by all.
func (s *suite) reaching(m mutant) (out []test) {
	has := func(bs []block) bool {
		return slices.ContainsFunc(bs, func(b block) bool { return b.has(m.Line, m.Column) })
	}
	for _, t := range s.tests {
		if has(t.covers[m.File]) || !has(t.covers["all "+m.File]) {
			out = append(out, t)
		}
	}
	return out
}

// The outcomes of a mutant.
const (
	killed    = "killed"
	timeout   = "timeout" // killed by the limit: it looped, or waited without end
	survived  = "survived"
	uncovered = "uncovered" // survived: no test reaches it
	invalid   = "invalid"   // does not compile
)

// try runs the tests that reach m against it, and returns the outcome and what killed it.
func (s *suite) try(ctx context.Context, m mutant) (outcome, by string, err error) {
	tests := s.reaching(m)
	if len(tests) == 0 {
		return uncovered, "", nil
	}
	bin, number := "", 0
	if s.switches != nil && s.switches.number[m] > 0 {
		bin, number = s.switches.binary, s.switches.number[m]
	} else {
		if bin, err = s.alone(ctx, m); err != nil || bin == "" {
			return invalid, "", err
		}
		defer os.Remove(bin)
	}
	// The fast ones first: most mutants die of them.
	const quick = 2 * time.Second
	var some []string
	var sum time.Duration
	run := func() (string, error) {
		limit := 5*sum + 10*time.Second
		wait, cancel := context.WithTimeout(ctx, limit+10*time.Second)
		defer cancel()
		out, err := s.binary(wait, number, bin, "-test.run=^("+strings.Join(some, "|")+")$", "-test.failfast", "-test.timeout="+limit.String())
		switch {
		case err == nil:
			return "", nil
		case ctx.Err() != nil:
			return "", ctx.Err()
		case wait.Err() != nil || bytes.Contains(out, []byte("panic: test timed out")):
			return timeout, nil
		}
		by = failed(out)
		return killed, nil
	}
	first := true
	for i, t := range tests {
		some, sum = append(some, t.name), sum+t.took
		if i < len(tests)-1 && (sum < quick || !first) {
			continue
		}
		if outcome, err = run(); outcome != "" || err != nil {
			return outcome, by, err
		}
		some, sum, first = nil, 0, false
	}
	return survived, "", nil
}

// failed returns the first test that a run says has failed, or else its first line of a panic.
func failed(out []byte) string {
	first := ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "--- FAIL: "); ok {
			name, _, _ = strings.Cut(name, " ")
			return name
		}
		if first == "" && (strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:")) {
			first = clip(line)
		}
	}
	return first
}
