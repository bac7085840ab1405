package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
)

// subjectKeys is the commands for the keys of operators or of services.
func (a *app) subjectKeys(k subjectKind) *cobra.Command {
	return commandGroup("key", "List and revoke the keys of one: one for each machine", a.subjectKeyList(k), a.subjectKeyRevoke(k))
}

func (a *app) subjectKeyList(k subjectKind) *cobra.Command {
	return &cobra.Command{
		Use: "list [NAME]", Short: "List the keys of one, with the machines that they are on; without NAME, your own", Args: positional(cobra.MaximumNArgs(1)), ValidArgsFunction: a.subjectIDs(k),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			var keys []api.DeviceKey
			if len(args) == 0 {
				keys, err = cl.OwnKeys(c.Context())
			} else {
				keys, err = k.of(cl).Keys(c.Context(), watchword.SubjectID(args[0]))
			}
			if err != nil {
				return err
			}
			return printList(a, keys, "KEY\tMACHINE\tSTATE\tSINCE\tUNTIL", func(w *terminal.Writer, one api.DeviceKey) {
				until, name := "-", "-"
				switch {
				case one.Retired != nil:
					until = formatTime(*one.Retired)
				case one.EndsAt != nil:
					until = formatTime(*one.EndsAt)
				}
				if one.Name != "" {
					name = one.Name
				}
				w.Printf("%s\t%s\t%s\t%s\t%s\n", one.ID, name, one.State, formatTime(one.AddedAt), until)
			})
		},
	}
}

func (a *app) subjectKeyRevoke(k subjectKind) *cobra.Command {
	c := &cobra.Command{
		Use: "revoke NAME KEY", Short: "Revoke one key of one, and close its sessions; the other keys stay", Args: positional(cobra.ExactArgs(2)), ValidArgsFunction: a.subjectIDs(k),
		Long: "For a machine that was lost. KEY is the thumbprint of the key, as key list prints it; put -- before one that begins with a dash. The sessions and tokens of the key have ended when the command returns.",
	}
	yes := yesFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.revoke(c.Context(), *yes, fmt.Sprintf("revoke the key %s of the %s %s permanently", args[1], k.name, args[0]), func(ctx context.Context) error {
			all, err := a.subjects(k)
			if err != nil {
				return err
			}
			return all.RevokeKey(ctx, watchword.SubjectID(args[0]), watchword.KeyID(args[1]))
		})
	}
	return c
}
