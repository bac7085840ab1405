package main

import (
	"github.com/spf13/cobra"
)

// renamed is a hidden command under an old name. It fails with exit status 2 and names the command that replaced it.
func renamed(old, now string) *cobra.Command {
	return &cobra.Command{
		Use: old, Hidden: true, DisableFlagParsing: true,
		RunE: func(c *cobra.Command, _ []string) error {
			return usage("%s was renamed: use %s", c.CommandPath(), now)
		},
	}
}

// renamedFlag adds a hidden option under an old name, whose use is an error that names the option that replaced it.
func renamedFlag(c *cobra.Command, old, now string) {
	f := c.Flags().VarPF(&oldFlag{now}, old, "", "renamed to "+now)
	f.Hidden = true
	f.NoOptDefVal = "-" // so that the error is the same with a value and without one
}

// oldFlag is the value of an option that was renamed. It cannot be set.
type oldFlag struct{ now string }

func (f *oldFlag) String() string   { return "" }
func (f *oldFlag) Type() string     { return "renamed" }
func (f *oldFlag) Set(string) error { return usage("the option was renamed: use %s", f.now) }
