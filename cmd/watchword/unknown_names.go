package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/watchword-iot/watchword/internal/spelling"
)

// knownSubcommand refuses the name of a subcommand that does not exist, and names the nearest one.
func knownSubcommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	if !c.HasParent() {
		return usage("unknown command %q%s; see %s --help", args[0], didYouMean("", args[0], names), program())
	}
	return usage("%s has no subcommand %q%s; see %s --help", c.CommandPath(), args[0], didYouMean("", args[0], names), runnable(c.CommandPath()))
}

// flagNames returns the long names of the options of a command, without those that were renamed.
func flagNames(c *cobra.Command) (names []string) {
	add := func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	}
	c.Flags().VisitAll(add)
	c.InheritedFlags().VisitAll(add)
	return names
}

// didYouMean names the known name nearest to an unknown one; it is empty where none is near.
func didYouMean(prefix, name string, known []string) string {
	name, _, _ = strings.Cut(name, "=")
	near := spelling.Nearest(name, known, max(1, min(3, len(name)/2)))
	if near == "" {
		return ""
	}
	return "; did you mean " + prefix + near + "?"
}
