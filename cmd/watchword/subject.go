package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/sdk/admin"
)

// The commands of this file are those of operators and of services.

// subjects returns the subjects of a kind of the server.
func (a *app) subjects(k subjectKind) (admin.Subjects, error) {
	cl, err := a.client()
	if err != nil {
		return admin.Subjects{}, err
	}
	return k.of(cl), nil
}

// subjectIDs completes the IDs of subjects of a kind.
func (a *app) subjectIDs(k subjectKind) cobra.CompletionFunc {
	return func(c *cobra.Command, have []string, start string) ([]string, cobra.ShellCompDirective) {
		return a.complete(have, func(cl *admin.Client, add func(string)) error {
			return k.of(cl).List(c.Context(), nil, "", func(s api.Subject) error {
				if strings.HasPrefix(string(s.ID), start) {
					add(string(s.ID))
				}
				return nil
			})
		})
	}
}

func (a *app) subjectLink(k subjectKind) *cobra.Command {
	c := &cobra.Command{Use: "link [NAME]", Short: "Make a new one-time link, for the first key or a further one, without NAME one of your own; the previous link becomes invalid", Args: positional(cobra.MaximumNArgs(1)), ValidArgsFunction: a.subjectIDs(k)}
	ttl := c.Flags().Duration("ttl", 0, "how long the link is valid (default 24h)")
	keyTTL := keyTTLFlag(c)
	picture := c.Flags().Bool("qr", false, "also draw the link as a QR code")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, own, err := a.clientForKeys(args)
		if err != nil {
			return err
		}
		var e api.Enrollment
		if own {
			e, err = cl.OwnLink(c.Context(), *ttl, *keyTTL)
		} else {
			e, err = k.of(cl).Link(c.Context(), watchword.SubjectID(args[0]), *ttl, *keyTTL)
		}
		if err != nil {
			return err
		}
		return a.printLoginLink(e, &e, *picture, k)
	}
	return c
}

func (a *app) subjectList(k subjectKind) *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List " + k.plural + " by label and state", Args: positional(cobra.NoArgs)}
	pairs := c.Flags().StringArrayP("label", "l", nil, "label as key=value; may be repeated")
	state := c.Flags().String("state", "", "new, active, suspended or revoked")
	c.RunE = func(c *cobra.Command, _ []string) error {
		l, err := parseLabels(*pairs)
		if err != nil {
			return err
		}
		all, err := a.subjects(k)
		if err != nil {
			return err
		}
		var found []api.Subject
		if err := all.List(c.Context(), l, watchword.State(*state), func(s api.Subject) error {
			found = append(found, s)
			return nil
		}); err != nil {
			return err
		}
		return printList(a, found, "ID\tROLE\tSTATE\tLABELS\tCHANGED", func(w *terminal.Writer, s api.Subject) {
			role := s.Role
			if role == "" {
				role = "-"
			}
			w.Printf("%s\t%s\t%s\t%s\t%s\n", s.ID, role, s.State, s.Labels, formatTime(s.ChangedAt))
		})
	}
	return c
}

func (a *app) subjectShow(k subjectKind) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show one: role, keys, live sessions", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.subjectIDs(k),
		RunE: func(c *cobra.Command, args []string) error {
			all, err := a.subjects(k)
			if err != nil {
				return err
			}
			s, err := all.Get(c.Context(), watchword.SubjectID(args[0]))
			if err != nil {
				return err
			}
			return a.print(s, func(w *terminal.Writer) {
				w.Printf("id\t%s\nstate\t%s\n", s.ID, s.State)
				if s.Role != "" {
					w.Printf("role\t%s\n", s.Role)
				}
				w.Printf("labels\t%s\nversion\t%d\ncreated\t%s\nchanged\t%s\n", s.Labels, s.Version, formatTime(s.CreatedAt), formatTime(s.ChangedAt))
				showKeys(w, s.Keys)
				showPendingLink(w, s.PendingLink)
				showSessions(w, s.Sessions)
			})
		},
	}
}

func showKeys(w *terminal.Writer, keys []api.DeviceKey) {
	for _, k := range keys {
		w.Printf("key\t%s  %s, %s, since %s", k.ID, k.Purpose, k.State, formatTime(k.AddedAt))
		if k.EndsAt != nil {
			w.Printf(", until %s", formatTime(*k.EndsAt))
		}
		if k.Retired != nil {
			w.Printf(", replaced %s", formatTime(*k.Retired))
		}
		if k.Name != "" {
			w.Printf(", on %s", k.Name)
		}
		w.Printf("\n")
	}
}

func showPendingLink(w *terminal.Writer, l *api.PendingLink) {
	if l == nil {
		return
	}
	w.Printf("link\tnot used yet, until %s", formatTime(l.ExpiresAt))
	if l.CreatedBy == "" {
		w.Printf(", made on the server's machine")
	} else {
		w.Printf(", made by %s", l.CreatedBy)
	}
	if l.KeyEndsAt != nil {
		w.Printf(", for a key until %s", formatTime(*l.KeyEndsAt))
	}
	w.Printf("\n")
}

func showSessions(w *terminal.Writer, sessions []api.Session) {
	for _, s := range sessions {
		w.Printf("session\t%s  %s from %s, until %s\n", s.ID, s.Transport, s.Remote, formatTime(s.ExpiresAt))
	}
}

func (a *app) subjectSuspend(k subjectKind) *cobra.Command {
	c := &cobra.Command{Use: "suspend NAME", Short: "Refuse everything of one until it is resumed", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.subjectIDs(k)}
	reason := c.Flags().String("reason", "", "reason, recorded in the audit log")
	c.RunE = func(c *cobra.Command, args []string) error {
		all, err := a.subjects(k)
		if err != nil {
			return err
		}
		return a.printSubject(all.Suspend(c.Context(), watchword.SubjectID(args[0]), *reason))
	}
	return c
}

func (a *app) subjectResume(k subjectKind) *cobra.Command {
	return &cobra.Command{
		Use: "resume NAME", Short: "Accept a suspended one again, with its keys", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.subjectIDs(k),
		RunE: func(c *cobra.Command, args []string) error {
			all, err := a.subjects(k)
			if err != nil {
				return err
			}
			return a.printSubject(all.Resume(c.Context(), watchword.SubjectID(args[0])))
		},
	}
}

func (a *app) subjectRevoke(k subjectKind) *cobra.Command {
	c := &cobra.Command{Use: "revoke NAME --reason R", Short: "Revoke all keys of one permanently and close its sessions", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.subjectIDs(k)}
	reason := c.Flags().String("reason", "", "reason, recorded in the audit log; required")
	yes := yesFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := requireReason(*reason); err != nil {
			return err
		}
		return a.revoke(c.Context(), *yes, fmt.Sprintf("revoke the %s %s permanently, with all its keys", k.name, args[0]), func(ctx context.Context) error {
			all, err := a.subjects(k)
			if err != nil {
				return err
			}
			return a.printSubject(all.Revoke(ctx, watchword.SubjectID(args[0]), *reason))
		})
	}
	return c
}

// requireReason refuses to revoke without a reason.
func requireReason(reason string) error {
	if reason == "" {
		return usage("revoke requires --reason; it is recorded in the audit log")
	}
	return nil
}

// revoke asks the question and does the act, which is effective for live sessions when it returns.
func (a *app) revoke(ctx context.Context, yes bool, question string, act func(context.Context) error) error {
	if err := a.confirmAtServer(yes, question); err != nil {
		return err
	}
	start := time.Now()
	err := act(ctx)
	if err == nil && a.format == "table" {
		a.err.Printf("all live sessions are closed, after %d ms\n", time.Since(start).Milliseconds())
	}
	return err
}
