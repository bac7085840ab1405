package main

import (
	"io"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/watchword-iot/watchword/internal/terminal"
)

// freeOptions are options of type string whose value is a text that only the user knows.
var freeOptions = []string{
	"as", "cause", "from", "id", "lossy", "machine", "name", "object", "pin", "reason", "recipient", "resource", "root", "search", "server", "stdin", "stream", "thumbprint", "to",
}

// Each argument and each option of each command has a completer, or is stated to be a text; each completer is of a command or an option
// that exists.
func TestEveryArgumentAndOptionIsCompleted(t *testing.T) {
	a := &app{out: terminal.New(io.Discard, false), err: terminal.New(io.Discard, false)}
	used := map[string]bool{}
	arguments, options := 0, 0
	option := func(c *cobra.Command, path string, f *pflag.Flag) {
		if f.Hidden || f.Value.Type() != "string" && f.Value.Type() != "stringArray" {
			return
		}
		options++
		_, own := c.GetFlagCompletionFunc(f.Name)
		special, general := optionCompleters[path+" --"+f.Name], optionCompleters[f.Name]
		switch {
		case own:
		case special != nil:
			used[path+" --"+f.Name] = true
		case general != nil:
			used[f.Name] = true
		case !slices.Contains(freeOptions, f.Name):
			t.Errorf("%s --%s is not completed", path, f.Name)
		}
	}
	root := a.commandTree()
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) { option(root, "", f) })
	eachCommand(root, "", func(path string, c *cobra.Command) {
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) { option(c, path, f) })
		list := argumentCompleters[path]
		used[path] = true
		for n := range placeholders(c.Use) {
			arguments++
			if !(n < len(list) && list[n] != nil) && !(n == 0 && c.ValidArgsFunction != nil) {
				t.Errorf("argument %d of %q is not completed", n+1, path)
			}
		}
		if len(list) > 0 && list[0] != nil && c.ValidArgsFunction != nil {
			t.Errorf("the first argument of %q has two completers", path)
		}
	})
	for path := range argumentCompleters {
		if !used[path] {
			t.Errorf("there is no command %q", path)
		}
	}
	for name := range optionCompleters {
		if !used[name] {
			t.Errorf("no option uses the completer of %q", name)
		}
	}
	if arguments < 60 || options < 80 {
		t.Errorf("looked at %d arguments and %d options", arguments, options)
	}
}

// placeholders returns how many arguments the line of use of a command has, without those of the kind k=v.
func placeholders(use string) (n int) {
	for _, word := range strings.Fields(use)[1:] {
		word, _, option := strings.Cut(strings.Trim(word, "[]…"), "--")
		if word != "" && (unicode.IsUpper(rune(word[0])) || word == "yes|no") {
			n++
		}
		if option {
			break
		}
	}
	return n
}
