package main

import (
	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword/internal/terminal"
)

func (a *app) trustCommand() *cobra.Command {
	return commandGroup("trust", "What devices check the server by", a.trustPin())
}

func (a *app) trustPin() *cobra.Command {
	return &cobra.Command{
		Use: "pin", Short: "Print the pin of the server's root key, which devices check the server by", Args: positional(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			pin, err := cl.TrustPin(c.Context())
			if err != nil {
				return err
			}
			if a.format == "table" {
				a.err.Printf("on the device, run: watchword agent pair %s --pin PIN --dir DIR\n", cl.URL())
			}
			return a.print(map[string]string{"url": cl.URL(), "pin": pin}, func(w *terminal.Writer) { w.Printf("%s\n", pin) })
		},
	}
}
