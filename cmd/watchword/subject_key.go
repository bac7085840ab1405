package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/sdk/admin"
)

// subjectKeys is the commands for the keys of operators or of services.
func (a *app) subjectKeys(k subjectKind) *cobra.Command {
	return commandGroup("key", "List and revoke the keys of one, and set their ends: one for each machine", a.subjectKeyList(k), a.subjectKeyRevoke(k), a.subjectKeySetEnd(k))
}

func (a *app) subjectKeyList(k subjectKind) *cobra.Command {
	return &cobra.Command{
		Use: "list [NAME]", Short: "List the keys of one, with the machines that they are on; without NAME, your own", Args: positional(cobra.MaximumNArgs(1)), ValidArgsFunction: a.subjectIDs(k),
		RunE: func(c *cobra.Command, args []string) error {
			cl, own, err := a.clientForKeys(args)
			if err != nil {
				return err
			}
			var keys []api.DeviceKey
			if own {
				keys, err = cl.OwnKeys(c.Context())
			} else {
				keys, err = k.of(cl).Keys(c.Context(), watchword.SubjectID(args[0]))
			}
			if err != nil {
				return err
			}
			return printKeys(a, keys)
		},
	}
}

func printKeys(a *app, keys []api.DeviceKey) error {
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
}

func (a *app) subjectKeySetEnd(k subjectKind) *cobra.Command {
	return &cobra.Command{
		Use: "set-end [NAME] KEY END", Short: "Set the end of one key of one, or make it earlier; without NAME, of your own", Args: positional(cobra.RangeArgs(2, 3)), ValidArgsFunction: a.subjectIDs(k),
		Long: "END is a time (2026-12-01T18:00:00Z) or a duration from now on (12h). From then on the key is not accepted, and its tokens and sessions\n" +
			"end with it. An end can only become earlier. KEY is the thumbprint of the key, as key list prints it; put -- before one that begins\n" +
			"with a dash.",
		RunE: func(c *cobra.Command, args []string) error {
			name, key := args[:len(args)-2], watchword.KeyID(args[len(args)-2])
			end, err := parseEnd(args[len(args)-1], time.Now())
			if err != nil {
				return err
			}
			cl, own, err := a.clientForKeys(name)
			if err != nil {
				return err
			}
			var keys []api.DeviceKey
			if own {
				keys, err = cl.SetOwnKeyEnd(c.Context(), key, end)
			} else {
				keys, err = k.of(cl).SetKeyEnd(c.Context(), watchword.SubjectID(name[0]), key, end)
			}
			if err != nil {
				return err
			}
			return printKeys(a, keys)
		},
	}
}

// parseEnd reads a time, or a duration from now on.
func parseEnd(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return now.Add(d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, usage("END must be a time (2026-12-01T18:00:00Z) or a duration from now on (12h)")
	}
	return t, nil
}

func (a *app) subjectKeyRevoke(k subjectKind) *cobra.Command {
	c := &cobra.Command{
		Use: "revoke [NAME] KEY", Short: "Revoke one key of one, and close its sessions; the other keys stay; without NAME, of your own", Args: positional(cobra.RangeArgs(1, 2)), ValidArgsFunction: a.subjectIDs(k),
		Long: "For a machine that was lost. KEY is the thumbprint of the key, as key list prints it; put -- before one that begins with a dash. The sessions and tokens of the key have ended when the command returns.",
	}
	yes := yesFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		name, key := args[:len(args)-1], watchword.KeyID(args[len(args)-1])
		question := fmt.Sprintf("revoke your own key %s permanently", key)
		if len(name) > 0 {
			question = fmt.Sprintf("revoke the key %s of the %s %s permanently", key, k.name, name[0])
		}
		return a.revoke(c.Context(), *yes, question, func(ctx context.Context) error {
			cl, own, err := a.clientForKeys(name)
			if err != nil {
				return err
			}
			if own {
				return cl.RevokeOwnKey(ctx, key)
			}
			return k.of(cl).RevokeKey(ctx, watchword.SubjectID(name[0]), key)
		})
	}
	return c
}

// clientForKeys returns a client for an act on the keys of the subject that name holds. own reports that the subject is the caller:
// name is empty or the caller's ID. Everyone may act on their own keys, below /v1/self, without a right on /v1/operators or
// /v1/services.
func (a *app) clientForKeys(name []string) (cl *admin.Client, own bool, err error) {
	o, _, err := a.options()
	if err != nil {
		return nil, false, err
	}
	cl, err = a.client()
	return cl, len(name) == 0 || watchword.SubjectID(name[0]) == o.Subject, err
}
