package main

import (
	"context"
	"fmt"
	"os"
	"runtime/pprof"
	"slices"
	"strings"
	"time"
)

// operation is one row of the table.
type operation struct {
	name string // as printed
	goal string // what is promised with 100,000 devices; empty: nothing
	// run does the operation once on a running server, and leaves the data as they were. What it does within m.time is measured,
	// everything else is not.
	run func(ctx context.Context, f *fleet, m *meter) error
}

// operations lists all operations, in the order of the table. A file of this package holds those of one subject.
var operations = slices.Concat(startOperations, policyOperations)

// meter measures one run.
type meter struct {
	fleet *fleet
	took  time.Duration
	rows  float64 // rows that the store read; statements likewise
	stmts float64
}

// time measures f: its duration, and what the server reads from its store meanwhile.
func (m *meter) time(f func() error) error {
	before, err := m.fleet.reads()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := f(); err != nil {
		return err
	}
	m.took += time.Since(began)
	after, err := m.fleet.reads()
	m.rows, m.stmts = m.rows+after.rows-before.rows, m.stmts+after.statements-before.statements
	return err
}

// measureAll runs each operation on one data folder, and writes its column of the table.
func measureAll(ctx context.Context, data string, devices, times int, chosen []operation, t *table) (err error) {
	f := &fleet{data: data, devices: devices}
	if err := f.start(ctx); err != nil {
		return err
	}
	defer func() {
		if serr := f.stop(); err == nil {
			err = serr
		}
	}()
	for _, o := range chosen {
		var runs []meter
		for range times {
			m := meter{fleet: f}
			if err := o.run(ctx, f, &m); err != nil {
				return fmt.Errorf("%s, %d devices: %w", o.name, devices, err)
			}
			runs = append(runs, m)
		}
		slices.SortFunc(runs, func(a, b meter) int { return int(a.took - b.took) })
		m := runs[len(runs)/2]
		fmt.Fprintf(os.Stderr, "%7d devices: %s: %s (%s to %s), %.0f statements, %.0f rows\n", devices, o.name, m.took, runs[0].took, runs[len(runs)-1].took, m.stmts, m.rows)
		t.set(o.name, devices, m)
	}
	return nil
}

// table is the growth table.
type table struct {
	operations []operation
	counts     []int
	cells      map[string]map[int]meter
}

func newTable(operations []operation, counts []int) *table {
	return &table{operations, counts, map[string]map[int]meter{}}
}

func (t *table) set(name string, devices int, m meter) {
	if t.cells[name] == nil {
		t.cells[name] = map[int]meter{}
	}
	t.cells[name][devices] = m
}

// String returns the table in Markdown. A cell is the time, and the statements and rows that were read.
func (t *table) String() string {
	var b strings.Builder
	b.WriteString("| operation | goal |")
	for _, n := range t.counts {
		fmt.Fprintf(&b, " %d devices | statements, rows read |", n)
	}
	b.WriteString("\n|---|---|" + strings.Repeat("---|---|", len(t.counts)) + "\n")
	for _, o := range t.operations {
		fmt.Fprintf(&b, "| %s | %s |", o.name, o.goal)
		for _, n := range t.counts {
			m := t.cells[o.name][n]
			fmt.Fprintf(&b, " %s | %.0f, %.0f |", rounded(m.took), m.stmts, m.rows)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func rounded(d time.Duration) time.Duration {
	switch {
	case d > time.Second:
		return d.Round(10 * time.Millisecond)
	case d > 10*time.Millisecond:
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(10 * time.Microsecond)
}

// startProfile starts a CPU profile; stop ends it. An empty path is no profile.
func startProfile(path string) (stop func() error, err error) {
	if path == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}
