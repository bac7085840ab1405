package main

import (
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
)

func (a *app) policyDiff() *cobra.Command {
	c := &cobra.Command{
		Use: "diff FILE|-|--delete NAME", Short: "Show which subjects and live sessions an edit would change; nothing is applied", Args: positional(cobra.MaximumNArgs(1)),
		Example: "  watchword policy diff lamps.toml\n  watchword policy diff --delete lamps",
	}
	deleted := c.Flags().String("delete", "", "show what deleting the policy of this name would change")
	c.RunE = func(c *cobra.Command, args []string) error {
		if (len(args) == 1) == (*deleted != "") {
			return watchword.Refuse(watchword.BadRequest, "the argument must be a FILE, or - for standard input, and not given with --delete")
		}
		name, file := *deleted, ""
		var text []byte
		if len(args) == 1 {
			var err error
			file = args[0]
			if name, text, err = a.policyFile(file); err != nil {
				return err
			}
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		d, err := cl.DiffPolicy(c.Context(), name, text)
		if err != nil {
			return a.printRemoteMistakes(file, err)
		}
		return a.print(d, func(w *terminal.Writer) { printDiff(w, d, file) })
	}
	return c
}

func printDiff(w *terminal.Writer, d api.PolicyDiff, file string) {
	switch {
	case d.Version == 0:
		w.Printf("%s is a new policy; not applied\n", d.Name)
	case d.Delete:
		w.Printf("%s, version %d, would be deleted; not applied\n", d.Name, d.Version)
	default:
		w.Printf("%s, compared with version %d; not applied\n", d.Name, d.Version)
	}
	w.Printf("%d subject%s and %d live session%s gain or lose something\n", d.Subjects, plural(d.Subjects), d.Sessions, plural(d.Sessions))
	for _, g := range d.Groups {
		w.Printf("\n%d %s%s", g.Subjects, g.Kind, plural(g.Subjects))
		if g.Role != "" {
			w.Printf(" role=%s", g.Role)
		}
		for _, k := range slices.Sorted(maps.Keys(g.Labels)) {
			w.Printf(" %s=%s", k, g.Labels[k])
		}
		var ids []string
		for _, id := range g.Examples {
			ids = append(ids, string(id))
		}
		if w.Printf(": %s", strings.Join(ids, ", ")); g.Subjects > len(ids) {
			w.Printf(" and %d more", g.Subjects-len(ids))
		}
		w.Printf("; %d session%s\n", g.Sessions, plural(g.Sessions))
		printItems(w, "gain", g.Gained)
		printItems(w, "lose", g.Lost)
		printItems(w, "gain may_give", g.MayGiveGained)
		printItems(w, "lose may_give", g.MayGiveLost)
		switch g.Proof {
		case watchword.RequireProof:
			w.Printf("  lose\teverything without a proof of the key\n")
		case "not_required":
			w.Printf("  gain\teverything also without a proof of the key\n")
		}
		if g.Cut {
			w.Printf("  and more permissions\n")
		}
	}
	if d.MoreSubjects > 0 {
		w.Printf("\nand %d subjects in more groups\n", d.MoreSubjects)
	}
	if len(d.LiveSessions) > 0 {
		w.Printf("\nSESSION\tSUBJECT\tTRANSPORT\tCHANGE\n")
		for _, s := range d.LiveSessions {
			var change []string
			for _, x := range []struct {
				is   bool
				word string
			}{{s.Ends, "ends"}, {s.Gains, "gains"}, {s.Loses, "loses"}} {
				if x.is {
					change = append(change, x.word)
				}
			}
			w.Printf("%s\t%s\t%s\t%s\n", s.ID, s.Subject, s.Transport, strings.Join(change, ", "))
		}
		if more := d.Sessions - len(d.LiveSessions); more > 0 {
			w.Printf("and %d more\n", more)
		}
	}
	switch {
	case d.Refused != nil:
		w.Printf("\nyou would be refused (%s): %s\n", d.Refused.Code, d.Refused.Detail)
	case d.Delete:
		w.Printf("\ndelete it with: watchword policy delete %s\n", d.Name)
	default:
		w.Printf("\napply it with: watchword policy apply %s --if-match %d\n", file, d.Version)
	}
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

func printItems(w *terminal.Writer, what string, items []api.PolicyDiffItem) {
	for _, i := range items {
		w.Printf("  %s\t%s\t%s", what, strings.Join(i.Permission.Actions, ","), i.Permission.Resource)
		for _, k := range slices.Sorted(maps.Keys(i.Args)) {
			w.Printf(" %s=%s", k, string(i.Args[k]))
		}
		w.Printf("\t%s", i.Rule)
		if i.Deny != "" {
			w.Printf(", denied by %s", i.Deny)
		}
		w.Printf("\n")
	}
}
