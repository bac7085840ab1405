package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/sdk/admin"
)

func (a *app) enrollmentCommand() *cobra.Command {
	return commandGroup("enrollment", "Approve or reject devices that ask to be paired", a.enrollmentList(), a.enrollmentApprove(), a.enrollmentReject(),
		renamed("pin", "watchword trust pin"))
}

func (a *app) enrollmentList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List devices that wait for approval, and recent decisions", Args: positional(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			var ps []api.Pairing
			if err := cl.Pairings(c.Context(), func(p api.Pairing) error {
				ps = append(ps, p)
				return nil
			}); err != nil {
				return err
			}
			return printList(a, ps, "CODE\tSTATE\tID\tSIGN KEY\tADDRESS\tEXPIRES", func(w *terminal.Writer, p api.Pairing) {
				w.Printf("%s\t%s\t%s\t%s\t%s\t%s\n", p.UserCode, p.State, pairingID(p), p.Sign, p.Remote, formatTime(p.ExpiresAt))
			})
		},
	}
}

// pairingID returns the ID of the device that the pairing enrolled, else the ID that it requested, else "-".
func pairingID(p api.Pairing) watchword.SubjectID {
	switch {
	case p.Device != "":
		return p.Device
	case p.RequestedID != "":
		return p.RequestedID
	}
	return "-"
}

// userCodes completes the codes of pending pairings.
func (a *app) userCodes(c *cobra.Command, have []string, start string) ([]string, cobra.ShellCompDirective) {
	return a.complete(have, func(cl *admin.Client, add func(string)) error {
		return cl.Pairings(c.Context(), func(p api.Pairing) error {
			if strings.HasPrefix(p.UserCode, strings.ToUpper(start)) && p.State == "pending" {
				add(p.UserCode + "\t" + string(pairingID(p)))
			}
			return nil
		})
	})
}

func (a *app) enrollmentApprove() *cobra.Command {
	c := &cobra.Command{Use: "approve CODE", Short: "Approve a device whose key thumbprint you compared", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.userCodes}
	id := c.Flags().String("id", "", "id of the device; required where the device exists already (default: the id that it requested)")
	pairs := c.Flags().StringArrayP("label", "l", nil, "label as key=value; again for more")
	key := c.Flags().String("key", "", "complete thumbprint of the signing key, as the device shows it (on a terminal you are asked to compare it)")
	c.RunE = func(c *cobra.Command, args []string) error {
		l, err := parseLabels(*pairs)
		if err != nil {
			return err
		}
		if *key != "" && len(*key) != 43 {
			return usage("--key must be the complete thumbprint, 43 characters")
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		if *key == "" {
			if *key, err = a.confirmThumbprint(c, cl, args[0], *id); err != nil {
				return err
			}
		}
		d, err := cl.ApprovePairing(c.Context(), args[0], watchword.KeyID(*key), watchword.SubjectID(*id), l)
		return a.printDevice(d, err)
	}
	return c
}

// confirmThumbprint prints the keys of a pairing, asks whether the device shows the same, and returns the signing key's
// thumbprint. The server compares the thumbprint again, so a key that is replaced meanwhile is refused.
func (a *app) confirmThumbprint(c *cobra.Command, cl *admin.Client, code, id string) (string, error) {
	if !isTerminal(os.Stdin) || !a.err.IsTerminal() {
		return "", usage("--key is required without a terminal: the complete thumbprint that the device shows")
	}
	p, err := cl.Pairing(c.Context(), code)
	if err != nil {
		return "", err
	}
	if id == "" {
		id = string(pairingID(p))
	}
	a.err.Printf("code      %s, from %s, at %s\nsign key  %s\nseal key  %s\n", p.UserCode, p.Remote, formatTime(p.CreatedAt), p.Sign, p.Seal)
	return string(p.Sign), a.confirm(false, "does the device show the same keys? approve it as "+id)
}

func (a *app) enrollmentReject() *cobra.Command {
	return &cobra.Command{
		Use: "reject CODE", Short: "Reject a device", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.userCodes,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			p, err := cl.RejectPairing(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(p, func(w *terminal.Writer) { w.Printf("%s is %s\n", p.UserCode, p.State) })
		},
	}
}
