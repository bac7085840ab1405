package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/sdk/admin"
)

func (a *app) commandCommand() *cobra.Command {
	return commandGroup("command", "Send, list, show, cancel and verify commands",
		a.commandSend(), a.commandList(), a.commandShow(), a.commandVerify(), a.commandCancel())
}

func (a *app) commandSend() *cobra.Command {
	c := &cobra.Command{
		Use: "send DEVICE FUNCTION [k=text | k:=JSON]…", Short: "Order a device to run a function",
		Args: positional(cobra.MinimumNArgs(2)), ValidArgsFunction: a.deviceIDs,
		Example: "  watchword command send lamp-7 lamp.set level:=40 --wait 10s",
	}
	ttl := c.Flags().Duration("ttl", admin.DefaultTTL, "how long the device may start the command; at most 24h")
	wait := c.Flags().Duration("wait", 0, "wait for the receipt")
	c.RunE = func(c *cobra.Command, args []string) error {
		in, err := parseArguments(args[2:])
		if err != nil {
			return err
		}
		if *ttl < time.Second || *ttl > 24*time.Hour || *ttl%time.Second != 0 {
			return usage("--ttl must be whole seconds, at most 24h")
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		cmd, err := cl.Send(c.Context(), admin.CommandOrder{Device: watchword.SubjectID(args[0]), Function: args[1], Args: in, TTL: *ttl})
		if err != nil {
			return err
		}
		if *wait <= 0 {
			return a.print(cmd, func(w *terminal.Writer) { w.Printf("%s\n", cmd.ID) })
		}
		if a.format == "table" {
			a.out.Printf("%s  for %s, number %d, ordered and signed by %s\n", cmd.ID, cmd.Device, cmd.Seq, cl.Subject())
		}
		if cmd, err = cl.Await(c.Context(), cmd, *wait); err != nil {
			return err
		}
		if err := a.print(cmd, func(w *terminal.Writer) { printTimeline(w, cmd) }); err != nil {
			return err
		}
		return statusOfCommand(cmd.State)
	}
	return c
}

// printTimeline prints the states of a command, with times since it was stored.
func printTimeline(w *terminal.Writer, c api.Command) {
	since := func(t *time.Time) int64 { return t.Sub(c.CreatedAt).Milliseconds() }
	if c.SentAt != nil {
		w.Printf("sent\t+%d ms\tsealed to the device (ECDH-ES, A256GCM)\n", since(c.SentAt))
	}
	if c.DeliveredAt != nil {
		w.Printf("delivered\t+%d ms\n", since(c.DeliveredAt))
	}
	switch {
	case c.Receipt != nil && c.SettledAt != nil:
		w.Printf("%s\t+%d ms\treceipt verified, key %.8s…%s%s\n", c.State, since(c.SettledAt), c.Receipt.Key, logEntry(c.LogEntry), result(c.Receipt.Result))
	case c.Reason != nil && c.SettledAt != nil:
		w.Printf("%s\t+%d ms\t%s: %s\n", c.State, since(c.SettledAt), c.Reason.Code, c.Reason.Detail)
	case c.SettledAt != nil:
		w.Printf("%s\t+%d ms\n", c.State, since(c.SettledAt))
	default:
		w.Printf("%s\tno receipt yet; the device may start it until %s\n", c.State, formatTime(c.ExpiresAt))
	}
}

func logEntry(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", log entry %d", n)
}

func result(r json.RawMessage) string {
	if len(r) == 0 || string(r) == "null" {
		return ""
	}
	return ", result " + string(r)
}

// statusOfCommand returns the exit status for the final state of a command.
func statusOfCommand(s watchword.CommandState) error {
	switch s {
	case watchword.Done:
		return nil
	case watchword.Refused:
		return &exitError{6}
	case watchword.Failed, watchword.Interrupted, watchword.Cancelled, watchword.Undeliverable:
		return &exitError{1}
	default:
		return &exitError{7}
	}
}

func (a *app) commandList() *cobra.Command {
	c := &cobra.Command{Use: "list [DEVICE]", Short: "List commands, newest first", Args: positional(cobra.MaximumNArgs(1)), ValidArgsFunction: a.deviceIDs}
	state := c.Flags().String("state", "", "only commands in this state")
	by := c.Flags().String("by", "", "only commands that this subject ordered")
	limit := c.Flags().Int("limit", 50, "maximum number of commands")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		f := admin.Filter{State: watchword.CommandState(*state), By: watchword.SubjectID(*by)}
		if len(args) > 0 {
			f.Device = watchword.SubjectID(args[0])
		}
		cs, err := cl.Commands(c.Context(), f, *limit)
		if err != nil {
			return err
		}
		return printList(a, cs, "ID\tDEVICE\tSEQ\tFUNCTION\tSTATE\tBY\tCREATED", func(w *terminal.Writer, c api.Command) {
			w.Printf("%s\t%s\t%d\t%s\t%s\t%s\t%s\n", c.ID, c.Device, c.Seq, c.Function, c.State, c.By, formatTime(c.CreatedAt))
		})
	}
	return c
}

func (a *app) commandShow() *cobra.Command {
	c := &cobra.Command{Use: "show ID", Short: "Show a command with its timeline and receipt", Args: positional(cobra.ExactArgs(1))}
	evidence := c.Flags().String("evidence", "", "write evidence of the command to this file, which must not exist (- for standard output)")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		if *evidence != "" {
			return a.writeEvidence(c.Context(), cl, watchword.CommandID(args[0]), *evidence)
		}
		cmd, err := cl.Command(c.Context(), watchword.CommandID(args[0]), 0)
		if err != nil {
			return err
		}
		return a.print(cmd, func(w *terminal.Writer) {
			w.Printf("id\t%s\ndevice\t%s\nfunction\t%s %s\nnumber\t%d.%d\nby\t%s, key %.8s…\ncreated\t%s\nends\t%s\n",
				cmd.ID, cmd.Device, cmd.Function, cmd.Args, cmd.Epoch, cmd.Seq, cmd.By, cmd.ByKey, formatTime(cmd.CreatedAt), formatTime(cmd.ExpiresAt))
			printTimeline(w, cmd)
		})
	}
	return c
}

func (a *app) commandCancel() *cobra.Command {
	return &cobra.Command{Use: "cancel ID", Short: "Cancel a command that is still queued", Args: positional(cobra.ExactArgs(1)), RunE: func(c *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		cmd, err := cl.Cancel(c.Context(), watchword.CommandID(args[0]))
		if err != nil {
			return err
		}
		return a.print(cmd, func(w *terminal.Writer) { w.Printf("%s is %s\n", cmd.ID, cmd.State) })
	}}
}
