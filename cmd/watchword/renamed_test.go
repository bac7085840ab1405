package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/watchword-iot/watchword/internal/terminal"
)

// Each old command and option fails with exit status 2, names an existing one, and is in CHANGELOG.md's table of renamed
// things.
func TestRenamedCommandsAndOptionsNameTheNewOnes(t *testing.T) {
	changes, err := os.ReadFile("../../CHANGELOG.md")
	if err != nil {
		t.Fatal(err)
	}
	fails := func(args []string) string {
		var out, errs bytes.Buffer
		if status := run(t.Context(), args, terminal.New(&out, false), terminal.New(&errs, false)); status != 2 {
			t.Errorf("%v: exit status %d, want 2", args, status)
		}
		return errs.String()
	}
	var commands, options int
	var walk func(root, c *cobra.Command)
	walk = func(root, c *cobra.Command) {
		path := strings.Fields(c.CommandPath())[1:]
		if c.Hidden && c.DisableFlagParsing && c.RunE != nil && len(path) > 1 {
			commands++
			message := fails(append(path, "x", "--json"))
			_, now, ok := strings.Cut(message, "use watchword ")
			if !ok {
				t.Errorf("%v names no other command: %s", path, message)
			} else if f, _, err := root.Find(strings.Fields(now)); err != nil || f.Hidden || !f.Runnable() {
				t.Errorf("%v names %q, which does not exist", path, now)
			}
			if !strings.Contains(string(changes), "| `"+strings.Join(path, " ")) {
				t.Errorf("CHANGELOG.md does not list %v as renamed", path)
			}
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Value.Type() != "renamed" {
				return
			}
			options++
			message := fails(append(path, "x", "--"+f.Name, "y"))
			_, now, _ := strings.Cut(message, "use --")
			if c.Flags().Lookup(strings.TrimSpace(now)) == nil {
				t.Errorf("%v --%s names %q, which does not exist: %s", path, f.Name, now, message)
			}
			if !strings.Contains(string(changes), "| `"+strings.Join(path, " ")+" --"+f.Name) {
				t.Errorf("CHANGELOG.md does not list %v --%s as renamed", path, f.Name)
			}
		})
		for _, sub := range c.Commands() {
			walk(root, sub)
		}
	}
	root := (&app{out: terminal.New(&bytes.Buffer{}, false), err: terminal.New(&bytes.Buffer{}, false)}).root()
	walk(root, root)
	if commands < 2 || options < 2 {
		t.Errorf("%d commands and %d options were found, want at least 2 of each", commands, options)
	}
}
