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
	return group("enrollment", "Devices with no link, that wait for your word", a.enrollmentList(), a.enrollmentApprove(), a.enrollmentReject(), a.enrollmentPin())
}

func (a *app) enrollmentList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Devices that wait, and what was decided of late", Args: args(cobra.NoArgs),
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
			return printList(a, ps, "CODE\tSTATE\tID\tSIGN KEY\tFROM\tUNTIL", func(w *terminal.Writer, p api.Pairing) {
				w.Printf("%s\t%s\t%s\t%s\t%s\t%s\n", p.UserCode, p.State, whoOf(p), p.Sign, p.Remote, ago(p.ExpiresAt))
			})
		},
	}
}

// whoOf is who a pairing became, or would like to be.
func whoOf(p api.Pairing) watchword.SubjectID {
	switch {
	case p.Device != "":
		return p.Device
	case p.Wish != "":
		return p.Wish
	}
	return "-"
}

// userCodes completes the codes of devices that wait.
func (a *app) userCodes(c *cobra.Command, have []string, start string) ([]string, cobra.ShellCompDirective) {
	return a.complete(have, func(cl *admin.Client, add func(string)) error {
		return cl.Pairings(c.Context(), func(p api.Pairing) error {
			if strings.HasPrefix(p.UserCode, strings.ToUpper(start)) && p.State == "pending" {
				add(p.UserCode + "\t" + string(whoOf(p)))
			}
			return nil
		})
	})
}

func (a *app) enrollmentApprove() *cobra.Command {
	c := &cobra.Command{Use: "approve CODE", Short: "Let a device in, whose key you compared", Args: args(cobra.ExactArgs(1)), ValidArgsFunction: a.userCodes}
	id := c.Flags().String("id", "", "who the device shall be; needed for one that is there already (default: its own wish)")
	pairs := c.Flags().StringArrayP("label", "l", nil, "label as key=value; again for more")
	key := c.Flags().String("key", "", "the whole thumbprint of the signing key, as the device shows it; asked for on a terminal")
	c.RunE = func(c *cobra.Command, args []string) error {
		l, err := labels(*pairs)
		if err != nil {
			return err
		}
		if *key != "" && len(*key) != 43 {
			return usage("--key must be the whole thumbprint, 43 characters")
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		if *key == "" {
			if *key, err = a.compared(c, cl, args[0], *id); err != nil {
				return err
			}
		}
		d, err := cl.ApprovePairing(c.Context(), args[0], watchword.KeyID(*key), watchword.SubjectID(*id), l)
		return a.printDevice(d, err)
	}
	return c
}

// compared shows a person the keys behind a code, and returns the one that the
// answer was about. Nobody else's can slip under it: the server compares it again.
func (a *app) compared(c *cobra.Command, cl *admin.Client, code, id string) (string, error) {
	if !isTerminal(os.Stdin) || !a.err.Shows() {
		return "", usage("--key is needed where nobody can be asked: the whole thumbprint that the device shows")
	}
	p, err := cl.Pairing(c.Context(), code)
	if err != nil {
		return "", err
	}
	if id == "" {
		id = string(whoOf(p))
	}
	a.err.Printf("code      %s, from %s, at %s\nsign key  %s\nseal key  %s\n", p.UserCode, p.Remote, ago(p.CreatedAt), p.Sign, p.Seal)
	return string(p.Sign), a.sure(false, "does the device show these keys, and shall it become "+id)
}

func (a *app) enrollmentReject() *cobra.Command {
	return &cobra.Command{
		Use: "reject CODE", Short: "Turn a device down", Args: args(cobra.ExactArgs(1)), ValidArgsFunction: a.userCodes,
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

func (a *app) enrollmentPin() *cobra.Command {
	return &cobra.Command{
		Use: "pin", Short: "What a device checks this server by, where no public authority vouches for it", Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			pin, err := cl.Pin(c.Context())
			if err != nil {
				return err
			}
			if a.format == "table" {
				a.err.Printf("on the device: watchword agent pair %s --pin PIN --dir DIR\n", cl.URL())
			}
			return a.print(map[string]string{"url": cl.URL(), "pin": pin}, func(w *terminal.Writer) { w.Printf("%s\n", pin) })
		},
	}
}
