package main

import (
	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/device"
)

func (a *app) agentPair() *cobra.Command {
	c := &cobra.Command{Use: "pair URL --dir DIR", Short: "Make keys, show a code and wait for an operator's approval", Args: positional(cobra.ExactArgs(1))}
	dir := dirFlag(c)
	id := c.Flags().String("id", "", "id that the device requests; the operator may choose another")
	pin := c.Flags().String("pin", "", "pin of the server's root, from watchword trust pin; not needed where the server has a public certificate and the URL is its public_url")
	sign := c.Flags().String("sign", "P-256", "curve of the signing key: P-256 or Ed25519")
	seal := c.Flags().String("seal", "P-256", "curve of the sealing key: P-256 or X25519")
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := curves(*sign, *seal); err != nil {
			return err
		}
		d, err := device.OpenWith(*dir, device.Options{SignCurve: *sign, SealCurve: *seal})
		if err != nil {
			return err
		}
		defer d.Close()
		if err := d.Pair(c.Context(), args[0], device.PairOptions{ID: watchword.SubjectID(*id), Pin: *pin, Show: a.showPairing}); err != nil {
			return err
		}
		return a.printStatus(d)
	}
	return c
}

// showPairing prints the code and the thumbprints for the person at the device.
func (a *app) showPairing(p device.Pairing) {
	a.err.Printf("code      %s\nsign key  %s\nseal key  %s\napprove   %s\n          or, on the server: watchword enrollment approve %s --key %s\nwaiting   until %s\n",
		p.UserCode, p.Sign, p.Seal, p.URIComplete, p.UserCode, p.Sign, formatTime(p.Expires))
}

// curves checks the curve names of --sign and --seal.
func curves(sign, seal string) error {
	if sign != "P-256" && sign != "Ed25519" {
		return usage("--sign must be P-256 or Ed25519")
	}
	if seal != "P-256" && seal != "X25519" {
		return usage("--seal must be P-256 or X25519")
	}
	return nil
}
