package main

import (
	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword/internal/terminal"
)

func (a *app) tokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke JTI", Short: "Revoke an access token and close its sessions", Args: positional(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			if err := cl.RevokeToken(c.Context(), args[0]); err != nil {
				return err
			}
			return a.print(map[string]string{"jti": args[0], "state": "revoked"}, func(w *terminal.Writer) { w.Printf("%s is revoked\n", args[0]) })
		},
	}
}
