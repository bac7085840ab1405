// Command fleet measures how each operation grows with the number of devices on one node: it makes data folders of 1,000,
// 10,000 and 100,000 devices, runs a server on each, and prints a table in Markdown with one row for each operation. The folder of
// 100,000 devices has 93,000 persistent MQTT sessions, 1,000,000 log entries and 500,000 commands; smaller ones have the same
// proportions. A folder is made once, below -folders, and used again by later runs: an operation leaves it as it was, but for
// entries of the log.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// options holds the flags.
type options struct {
	folders, sizes, only, out, profile string
	times                              int
	fill, list                         bool
}

func main() {
	var o options
	flag.StringVar(&o.folders, "folders", filepath.Join(os.TempDir(), "watchword-fleet"), "where the data folders are")
	flag.StringVar(&o.sizes, "devices", "1000,10000,100000", "numbers of devices")
	flag.StringVar(&o.only, "only", "", "regular expression for the names of the operations; empty: all")
	flag.IntVar(&o.times, "times", 5, "how often each operation runs; the median is printed")
	flag.StringVar(&o.out, "out", "", "also write the table to this file")
	flag.BoolVar(&o.fill, "fill", false, "only make the folders, and print their names")
	flag.BoolVar(&o.list, "list", false, "only print the names of the operations")
	flag.StringVar(&o.profile, "cpuprofile", "", "write a CPU profile of the measured operations to this file")
	flag.Parse()
	if err := run(context.Background(), o); err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	chosen, err := choose(o.only)
	if err != nil {
		return err
	}
	if o.list {
		for _, c := range chosen {
			fmt.Println(c.name)
		}
		return nil
	}
	var counts []int
	for text := range strings.SplitSeq(o.sizes, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 100 {
			return fmt.Errorf("-devices: %q must be a number of at least 100", text)
		}
		counts = append(counts, n)
	}
	table := newTable(chosen, counts)
	stop, err := startProfile(o.profile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, n := range counts {
		data, err := folder(ctx, o.folders, n)
		if err != nil {
			return err
		}
		if o.fill {
			fmt.Println(data)
			continue
		}
		if err := measureAll(ctx, data, n, o.times, chosen, table); err != nil {
			return err
		}
	}
	if o.fill {
		return nil
	}
	text := fmt.Sprintf("%s, %s/%s, %d cores, %s; the median of %d runs\n\n%s", time.Now().UTC().Format("2006-01-02"), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version(), o.times, table)
	if _, err := io.WriteString(os.Stdout, text); err != nil || o.out == "" {
		return err
	}
	return os.WriteFile(o.out, []byte(text), 0o644)
}

// choose returns the operations whose names match.
func choose(only string) ([]operation, error) {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return nil, err
	}
	chosen := slices.DeleteFunc(slices.Clone(operations), func(o operation) bool { return !pattern.MatchString(o.name) })
	if len(chosen) == 0 {
		return nil, fmt.Errorf("-only: no operation matches %q", only)
	}
	return chosen, nil
}
