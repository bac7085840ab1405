package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword/internal/terminal"
)

func (a *app) contextCommand() *cobra.Command {
	return commandGroup("context", "List, choose and delete the servers that this user is logged in to", a.contextList(), a.contextUse(), a.contextDelete())
}

func (a *app) contextList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the contexts; the current one has a star", Args: positional(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			store, err := a.contexts()
			if err != nil {
				return err
			}
			f, err := store.Read()
			if err != nil {
				return err
			}
			var all []contextView
			for _, name := range f.Names() {
				all = append(all, viewContext(store, f, name))
			}
			return printList(a, all, "CURRENT\tNAME\tSUBJECT\tSERVER\tKEY", func(w *terminal.Writer, v contextView) {
				mark := " "
				if v.Current {
					mark = "*"
				}
				key := string(v.Key)
				if key == "" {
					key = "cannot be read"
				}
				w.Printf("%s\t%s\t%s\t%s\t%s\n", mark, v.Name, v.Subject, v.Server, key)
			})
		},
	}
}

func (a *app) contextUse() *cobra.Command {
	return &cobra.Command{
		Use: "use NAME", Short: "Make a context the current one", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.contextNames,
		RunE: func(c *cobra.Command, args []string) error {
			store, err := a.contexts()
			if err != nil {
				return err
			}
			return store.Use(c.Context(), args[0])
		},
	}
}

func (a *app) contextDelete() *cobra.Command {
	c := &cobra.Command{
		Use: "delete NAME", Short: "Remove a context from this machine, with its key; the server is not asked", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.contextNames,
		Long: "Removes the context, its private key, its trust bundle and its access token. The server still accepts the key where there is a copy of it: watchword logout revokes it there too.",
	}
	yes := yesFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		store, err := a.contexts()
		if err != nil {
			return err
		}
		f, err := store.Read()
		if err != nil {
			return err
		}
		if _, err := f.Get(args[0]); err != nil {
			return err
		}
		if err := a.confirm(*yes, "delete the context "+args[0]+" and its private key"); err != nil {
			return err
		}
		return store.Delete(c.Context(), args[0])
	}
	return c
}

// contextNames completes the names of contexts.
func (a *app) contextNames(_ *cobra.Command, have []string, start string) ([]string, cobra.ShellCompDirective) {
	store, err := a.contexts()
	if err != nil || len(have) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	f, err := store.Read()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var found []string
	for _, name := range f.Names() {
		if strings.HasPrefix(name, start) {
			found = append(found, name)
		}
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}
