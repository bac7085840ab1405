package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/server/keyring"
)

func (a *app) addressCommand() *cobra.Command {
	return commandGroup("address", "The address under which clients find the server", a.addressShow(), a.addressMove())
}

func printAddress(w *terminal.Writer, p api.Address) {
	w.Printf("url\t%s\nissuer\t%s\n", p.URL, p.Issuer)
	if p.MQTTS != "" {
		w.Printf("mqtts\t%s\n", p.MQTTS)
	}
	for _, f := range p.Former {
		state := "accepted until "
		if !time.Now().Before(f.AcceptedUntil) {
			state = "not accepted since "
		}
		w.Printf("former\t%s, %s%s, last used by %d devices\n", f.Issuer, state, formatTime(f.AcceptedUntil), f.Devices)
	}
	if d := p.Devices; d != nil {
		w.Printf("devices\t%d have followed, %d have not been here since the first move\n", d.Moved, d.Unseen)
	}
}

func (a *app) addressShow() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show the address, the former ones, and how many devices use each", Args: positional(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			p, err := cl.Address(c.Context())
			if err != nil {
				return err
			}
			return a.print(p, func(w *terminal.Writer) { printAddress(w, p) })
		},
	}
}

func (a *app) addressMove() *cobra.Command {
	c := &cobra.Command{
		Use: "move URL", Short: "Move the server to another public URL, and tell the devices", Args: positional(cobra.ExactArgs(1)),
		Long:    "From then on links, new tokens and the trust bundle name the new URL. What names the former issuer is accepted until the end of the overlap; devices that come later still follow, if they reach the server under either name. The new name must lead to this server before: devices try it, and the former one where it does not answer.",
		Example: "watchword address move https://new.example:8443 --overlap 720h",
	}
	overlap := c.Flags().Duration("overlap", keyring.DefaultOverlap, "how long the former issuer is accepted")
	yes := yesFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		if err := a.confirm(*yes, "move the server to "+args[0]+", and tell every device"); err != nil {
			return err
		}
		p, err := cl.MoveAddress(c.Context(), args[0], *overlap)
		if err != nil {
			return err
		}
		return a.print(p, func(w *terminal.Writer) { printAddress(w, p) })
	}
	return c
}
