package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// tally counts the outcomes of a package's sample.
type tally struct {
	dir                               string
	possible, judged, dead, late, out int // out: does not compile
	left                              []result
}

func sum(t target, all []candidate, known map[mutant]result, n int) tally {
	y := tally{dir: t.dir, possible: len(all)}
	for _, c := range all {
		r, ok := known[c.mutant]
		if !ok || y.judged == n {
			continue
		}
		switch r.Outcome {
		case invalid:
			y.out++
			continue
		case killed:
			y.dead++
		case timeout:
			y.late++
		default:
			y.left = append(y.left, r)
		}
		y.judged++
	}
	return y
}

func (y tally) rate() float64 { return 100 * float64(y.dead+y.late) / float64(max(y.judged, 1)) }

func (y tally) String() string {
	return fmt.Sprintf("%s: %d of %d killed (%.1f %%), %d of them by the limit; %d do not compile; %d possible",
		y.dir, y.dead+y.late, y.judged, y.rate(), y.late, y.out, y.possible)
}

// report writes one row of the table and the survivors, in the order of the code.
func report(w io.Writer, root string, t target, all []candidate, known map[mutant]result, n int) {
	y := sum(t, all, known, n)
	fmt.Fprintf(w, "\n## %s\n\n%d mutants are possible. Of %d judged %d are killed (%.1f %%), %d of them by the limit; %d survive.\n\n",
		y.dir, y.possible, y.judged, y.dead+y.late, y.rate(), y.late, len(y.left))
	slices.SortFunc(y.left, func(a, b result) int {
		return cmp.Or(strings.Compare(a.File, b.File), a.Start-b.Start, strings.Compare(a.Now, b.Now))
	})
	for _, r := range y.left {
		line := ""
		if src, err := os.ReadFile(filepath.Join(root, r.Dir, r.File)); err == nil {
			if lines := bytes.Split(src, []byte("\n")); r.Line <= len(lines) {
				line = strings.TrimSpace(string(lines[r.Line-1]))
			}
		}
		fmt.Fprintf(w, "- %s, %s, in `%s`\n", r.mutant, r.Outcome, clip(line))
	}
}

// clip makes one short line of a text.
func clip(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 90 {
		s = strings.ToValidUTF8(s[:90], "") + "…"
	}
	return s
}
