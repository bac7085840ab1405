package main

import (
	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/server"
)

func (a *app) operatorRecover() *cobra.Command {
	c := &cobra.Command{
		Use: "recover NAME", Short: "Make a one-time link for an owner, on the server's machine, after all owners lost their keys", Args: positional(cobra.ExactArgs(1)),
		Long: "NAME is an owner, who gets a further key with the link, or a new operator, who becomes an owner. The link is valid for 10 minutes.\n" +
			"The command asks the running server over the socket in the data folder, or opens the folder where none runs; it needs the rights\n" +
			"of the server's user and, in the folder, the key-encryption key. The log has an entry of it, and every operator is told with the\n" +
			"next command, for 7 days or until an owner acknowledges it.",
	}
	config := c.Flags().String("config", "", "configuration file")
	picture := c.Flags().Bool("qr", false, "also draw the link as a QR code")
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.withDataFolder(*config, func(cfg server.Config) error {
			r, err := server.RecoverOperator(c.Context(), cfg, watchword.SubjectID(args[0]), server.Options{})
			if err != nil {
				return err
			}
			if err := a.print(r, func(w *terminal.Writer) { w.Printf("%s\n", r.Link) }); err != nil {
				return err
			}
			if *picture {
				if err := drawQR(a.err, r.Link); err != nil {
					return err
				}
			}
			if a.format == "table" {
				a.err.Printf("%s is an owner with this link, valid for one use until %s; on their machine, run: watchword login 'LINK'\n", r.Operator, formatTime(r.Expires))
			}
			return nil
		})
	}
	return c
}
