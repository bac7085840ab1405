package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/sdk/device"
)

// rekeyShortest is the minimum interval of automatic key changes: the server accepts 32 new keys a day from one device.
const rekeyShortest = 2 * time.Hour

func (a *app) agentRekey() *cobra.Command {
	c := &cobra.Command{
		Use: "rekey --dir DIR", Short: "Make new keys and register them with the server", Args: positional(cobra.NoArgs),
		Long: "Generate new keys that replace the old ones, in the folder and at the server, which ends every session of the old keys.\n" +
			"Without --sign and --seal both change and keep their curves; with one of them the other key stays. If it is interrupted,\n" +
			"the next start, or running it again, completes it.",
	}
	dir := dirFlag(c)
	sign := c.Flags().String("sign", "", "make a new signing key on this curve: P-256 or Ed25519")
	seal := c.Flags().String("seal", "", "make a new sealing key on this curve: P-256 or X25519")
	noClock := clockFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) (err error) {
		if *sign != "" && *sign != "P-256" && *sign != "Ed25519" {
			return usage("--sign must be P-256 or Ed25519")
		}
		if *seal != "" && *seal != "P-256" && *seal != "X25519" {
			return usage("--seal must be P-256 or X25519")
		}
		if _, err := os.Stat(*dir); err != nil {
			return err
		}
		d, err := device.OpenWith(*dir, device.Options{NoClock: *noClock})
		if watchword.CodeOf(err) == watchword.FolderInUse {
			return watchword.Wrap(err, watchword.FolderInUse, "%s is in use by an agent: stop the agent first, or run it with --rekey-every", *dir)
		}
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.Close()) }()
		if err := d.Rekey(c.Context(), device.RekeyOptions{Sign: *sign, Seal: *seal}); err != nil {
			return err
		}
		return a.printStatus(d)
	}
	return c
}

// withRekey runs f, and changes the device's keys at intervals meanwhile if every is set.
func withRekey(ctx context.Context, d *device.Device, every time.Duration, f func(context.Context) error) error {
	if every == 0 {
		return f(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rekeyed := make(chan error, 1)
	go func() {
		err := d.RekeyEvery(ctx, every)
		if err != nil {
			cancel()
		}
		rekeyed <- err
	}()
	err := f(ctx)
	cancel()
	return errors.Join(err, <-rekeyed)
}
