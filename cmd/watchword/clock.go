package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/server"
)

func (a *app) clockCommand() *cobra.Command {
	return commandGroup("clock", "Show or accept the clock of the server's machine", a.clockShow(), a.clockAccept())
}

// clockAct calls f with the configuration of the data folder, and prints the state that it returns.
func (a *app) clockAct(c *cobra.Command, config string, f func(context.Context, server.Config, server.Options) (server.ClockStatus, error)) error {
	return a.withDataFolder(config, func(cfg server.Config) error {
		st, err := f(c.Context(), cfg, server.Options{})
		if err != nil {
			return err
		}
		return a.print(st, func(w *terminal.Writer) {
			state := "trusted"
			if !st.Trusted {
				state = "not trusted: " + st.Why
			}
			w.Printf("clock   %s\nstate   %s\nserver  %s\n", formatTime(st.Wall), state, formatTime(st.Time))
			if !st.Mark.IsZero() {
				w.Printf("mark    %s\n", formatTime(st.Mark))
			}
		})
	})
}

func (a *app) clockShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show", Short: "Show whether the server trusts the clock of this machine", Args: positional(cobra.NoArgs),
		Long: "clock is what the clock says, server the time that the server goes by, and mark a time that has certainly passed: the clock is not trusted before it. Where no server runs on the data folder, it shows what a start would find.",
	}
	config := c.Flags().String("config", "", "configuration file")
	c.RunE = func(c *cobra.Command, _ []string) error { return a.clockAct(c, *config, server.ReadClock) }
	return c
}

func (a *app) clockAccept() *cobra.Command {
	c := &cobra.Command{
		Use: "accept", Short: "Vouch for the clock of this machine as it is now", Args: positional(cobra.NoArgs),
		Long: "For a clock that is right and that the server does not trust: after a machine was off for more than 30 days, or after its clock had been ahead for a day. It asks the running server over the socket in the data folder, or opens the folder where none runs, and needs the rights of the server's user. The log has an entry of it.",
	}
	config := c.Flags().String("config", "", "configuration file")
	yes := yesFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg := *config
		err := a.withDataFolder(cfg, func(cfg server.Config) error {
			st, err := server.ReadClock(c.Context(), cfg, server.Options{})
			if err != nil {
				return err
			}
			return a.confirm(*yes, "accept that it is "+formatTime(st.Wall)+" now")
		})
		if err != nil {
			return err
		}
		return a.clockAct(c, cfg, server.AcceptClock)
	}
	return c
}
