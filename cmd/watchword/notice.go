package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
)

// showNotice prints a notice that came with an answer, once in a command.
func (a *app) showNotice(n api.Notice) {
	if _, shown := a.notices.LoadOrStore(n, true); !shown && !a.completes {
		a.err.Printf("notice: %s\n", noticeText(n))
	}
}

func noticeText(n api.Notice) string {
	if n.Kind != watchword.NoticeRecovery {
		return string(n.Kind) + " " + string(n.Object) + " " + formatTime(n.At)
	}
	return "on the server's machine a link for the owner " + strconv.Quote(string(n.Object)) + " was made at " + formatTime(n.At) +
		". If no colleague made it, another person has the rights of the server's user. An owner ends this notice: " + program() + " notice acknowledge " + string(n.Kind)
}

func (a *app) noticeCommand() *cobra.Command {
	return commandGroup("notice", "List and acknowledge what every operator is told", a.noticeList(), a.noticeAcknowledge())
}

func (a *app) noticeList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List what every operator is told with each command, and what ends within a week", Args: positional(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			all, err := cl.Notices(c.Context())
			if err != nil {
				return err
			}
			return a.print(all, func(w *terminal.Writer) {
				w.Line("KIND", "OBJECT", "TIME", "ENDS", "ACTION")
				for _, n := range all.Notices {
					w.Printf("%s\t%s\t%s\t%s\t%s notice acknowledge %s\n", n.Kind, n.Object, formatTime(n.At), formatTime(n.ExpiresAt), program(), n.Kind)
				}
				for _, e := range all.Endings {
					w.Printf("%s\t%s\t-\t%s\t%s\n", e.Kind, e.Name, formatTime(e.EndsAt), e.Action)
				}
			})
		},
	}
}

func (a *app) noticeAcknowledge() *cobra.Command {
	return &cobra.Command{
		Use: "acknowledge KIND", Short: "End a notice: no operator is told of it any more", Args: positional(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			return cl.AcknowledgeNotice(c.Context(), watchword.NoticeKind(args[0]))
		},
	}
}
