package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// switches is one test binary that has many mutants, each of which the environment turns on.
type switches struct {
	binary string
	number map[mutant]int
}

// switchName is the variable that says which mutant is on.
const switchName = "WATCHWORD_MUTANT"

// switchFile is put into the package under mutation.
const switchFile = `package %s

import (
	"os"
	"strconv"
)

// switchedOn is the mutant that is on; 0: none. The tool sets no other text than a number.
var switchedOn = func() int { n, _ := strconv.Atoi(os.Getenv(%q)); return n }()
`

// switched builds the binary with every mutant of all that can be switched. Mutants that do not compile, such as a constant
// that is no longer constant, are left out.
func (s *suite) switched(ctx context.Context, all []candidate) (*switches, error) {
	var use []candidate
	for _, c := range all {
		if len(c.inserts) > 0 {
			use = append(use, c)
		}
	}
	slices.SortStableFunc(use, func(a, b candidate) int { return strings.Compare(a.File, b.File)*4 + sign(a.order-b.order) })
	out := &switches{binary: filepath.Join(s.work, "switched.test")}
	for range 50 {
		out.number = map[mutant]int{}
		overlay := map[string]string{}
		pkg := ""
		for i := 0; i < len(use); {
			j := i
			for j < len(use) && use[j].File == use[i].File {
				out.number[use[j].mutant] = j + 1
				j++
			}
			src, err := s.source(use[i].mutant)
			if err != nil {
				return nil, err
			}
			if pkg == "" {
				pkg = regexp.MustCompile(`(?m)^package (\w+)`).FindStringSubmatch(string(src))[1]
			}
			edited := filepath.Join(s.work, "switched_"+use[i].File)
			if err := os.WriteFile(edited, weave(src, use[i:j], i+1), 0o600); err != nil {
				return nil, err
			}
			overlay[filepath.Join(s.root, s.under, use[i].File)] = edited
			i = j
		}
		if len(use) == 0 {
			return out, nil
		}
		file := filepath.Join(s.work, "switch.go")
		if err := os.WriteFile(file, fmt.Appendf(nil, switchFile, pkg, switchName), 0o600); err != nil {
			return nil, err
		}
		overlay[filepath.Join(s.root, s.under, "zz_switch.go")] = file
		path, err := s.overlay(overlay)
		if err != nil {
			return nil, err
		}
		said, err := s.build(ctx, out.binary, "-gcflags=-e", "-overlay="+path)
		if err == nil {
			return out, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		before := len(use)
		use = slices.DeleteFunc(use, func(c candidate) bool { return blamed(said, c) })
		if len(use) == before {
			return nil, fmt.Errorf("with its switches the package does not compile: %w\n%s", err, said)
		}
	}
	return nil, fmt.Errorf("%s does not compile with any switches", s.under)
}

// blamed reports whether the compiler complains of the line that a mutant begins in, or, of one
// that leaves a return out, of the end of its function.
func blamed(said []byte, c candidate) bool {
	for line := range strings.Lines(string(said)) {
		m := regexp.MustCompile(`switched_([^:]+):(\d+):`).FindStringSubmatch(line)
		if m == nil || m[1] != c.File {
			continue
		}
		n, err := strconv.Atoi(m[2])
		if err == nil && (n == c.Line || strings.Contains(line, "missing return") && n == c.end && strings.HasPrefix(c.Was, "return")) {
			return true
		}
	}
	return false
}

// weave puts the switches of mutants, which are outer ones first, into a file.
func weave(src []byte, cs []candidate, first int) []byte {
	type put struct {
		insert
		order int
	}
	var puts []put
	for i, c := range cs {
		for k, in := range c.inserts {
			in.text = strings.ReplaceAll(in.text, "%s", fmt.Sprintf("switchedOn == %d", first+i))
			puts = append(puts, put{in, i*100 + k})
		}
	}
	slices.SortStableFunc(puts, func(a, b put) int {
		switch {
		case a.at != b.at:
			return a.at - b.at
		case a.closes != b.closes: // what ends here ends before what begins here
			if a.closes {
				return -1
			}
			return 1
		case a.closes:
			return b.order - a.order
		}
		return a.order - b.order
	})
	var out bytes.Buffer
	at := 0
	for _, p := range puts {
		out.Write(src[at:p.at])
		out.WriteString(p.text)
		at = p.at
	}
	out.Write(src[at:])
	return out.Bytes()
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}
