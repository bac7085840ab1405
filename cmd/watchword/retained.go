package main

import (
	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/sdk/admin"
)

func (a *app) retainedCommand() *cobra.Command {
	return commandGroup("retained", "Retained MQTT messages", a.retainedList(), a.retainedShow(), a.retainedDelete())
}

func (a *app) retainedList() *cobra.Command {
	c := &cobra.Command{
		Use: "list [FILTER]", Short: "List retained messages whose topics match an MQTT filter", Args: positional(cobra.MaximumNArgs(1)),
		Example: "watchword retained list 'site/+/temperature' --owner lamp-7",
	}
	owner := c.Flags().String("owner", "", "only messages that this subject published")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		q := admin.RetainedQuery{Owner: watchword.SubjectID(*owner)}
		if len(args) > 0 {
			q.Filter = args[0]
		}
		var all []api.Retained
		if err := cl.Retained(c.Context(), q, func(m api.Retained) error {
			all = append(all, m)
			return nil
		}); err != nil {
			return err
		}
		return printList(a, all, "TOPIC\tOWNER\tDELIVERED\tQOS\tBYTES\tEXPIRES", func(w *terminal.Writer, m api.Retained) {
			w.Printf("%s\t%s\t%s\t%d\t%d\t%s\n", m.Topic, ownerOf(m), deliveredText(m), m.QoS, m.Bytes, expiry(m))
		})
	}
	_ = c.RegisterFlagCompletionFunc("owner", a.deviceIDs) // fails only for a flag that does not exist
	return c
}

func ownerOf(m api.Retained) string {
	if m.Owner == "" {
		return "-"
	}
	return string(m.Owner)
}

func deliveredText(m api.Retained) string {
	if m.Deliverable {
		return "yes"
	}
	return "no"
}

func expiry(m api.Retained) string {
	if m.ExpiresAt == nil {
		return "never"
	}
	return formatTime(*m.ExpiresAt)
}

func (a *app) retainedShow() *cobra.Command {
	return &cobra.Command{
		Use: "show TOPIC", Short: "Print the payload of a retained message; --json adds its metadata", Args: positional(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			m, err := cl.RetainedMessage(c.Context(), args[0])
			if err != nil {
				return err
			}
			if a.format != "table" {
				return a.print(m, nil)
			}
			a.err.Printf("%s, from %s, delivered to new subscribers: %s, QoS %d, expires: %s\n", m.Topic, ownerOf(m.Retained), deliveredText(m.Retained), m.QoS, expiry(m.Retained))
			_, err = a.out.Data().Write(m.Payload)
			return err
		},
	}
}

func (a *app) retainedDelete() *cobra.Command {
	c := &cobra.Command{Use: "delete TOPIC", Short: "Delete the retained message of a topic", Args: positional(cobra.ExactArgs(1))}
	yes := yesFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		if err := a.confirmAtServer(*yes, "delete the retained message of "+args[0]); err != nil {
			return err
		}
		return cl.DeleteRetained(c.Context(), args[0])
	}
	return c
}
