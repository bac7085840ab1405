package main

import (
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
)

// maxShownNotices is how many notices one command prints: a server has one of each kind.
const maxShownNotices = 8

// shownNotices is the notices that a command has printed, at most [maxShownNotices]. It is safe for concurrent use.
type shownNotices struct {
	mu  sync.Mutex
	all []api.Notice
}

// add reports whether a notice is to be printed: it was not yet, and there are not too many.
func (s *shownNotices) add(n api.Notice) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) == maxShownNotices || slices.Contains(s.all, n) {
		return false
	}
	s.all = append(s.all, n)
	return true
}

// showNotice prints a notice that came with an answer, once in a command.
func (a *app) showNotice(n api.Notice) {
	if a.notices.add(n) && !a.completes {
		a.err.Printf("notice: %s\n", noticeText(n))
	}
}

// acknowledgeCommand is the command that ends a notice.
func acknowledgeCommand(n api.Notice) string {
	return program() + " notice acknowledge " + string(n.Kind) + " " + string(n.Object) + " " + n.At.UTC().Format(time.RFC3339)
}

func noticeText(n api.Notice) string {
	if n.Kind != watchword.NoticeRecovery {
		return string(n.Kind) + " " + string(n.Object) + " " + formatTime(n.At)
	}
	return "on the server's machine a link for the owner " + strconv.Quote(string(n.Object)) + " was made at " + formatTime(n.At) +
		". If no colleague made it, another person has the rights of the server's user. Another owner ends this notice, with a key that is older: " + acknowledgeCommand(n)
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
					w.Printf("%s\t%s\t%s\t%s\t%s\n", n.Kind, n.Object, formatTime(n.At), formatTime(n.ExpiresAt), acknowledgeCommand(n))
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
		Use: "acknowledge KIND OBJECT TIME", Short: "End a notice: no operator is told of it any more", Args: positional(cobra.ExactArgs(3)),
		Long: "Ends the notice that notice list prints, with this command. It is refused if there is a newer notice, to the operator whom the notice\n" +
			"is about, and with a key that is not older than the notice: a person who got in by what the notice is about cannot hide it.",
		RunE: func(c *cobra.Command, args []string) error {
			at, err := time.Parse(time.RFC3339, args[2])
			if err != nil {
				return usage("TIME must be that of the notice, as notice list prints it: 2026-11-28T12:00:00Z")
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			return cl.AcknowledgeNotice(c.Context(), api.Notice{Kind: watchword.NoticeKind(args[0]), Object: watchword.SubjectID(args[1]), At: at})
		},
	}
}
