package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/sdk/admin"
)

func (a *app) twinCommand() *cobra.Command {
	show := &cobra.Command{Use: "show DEVICE", Short: "Show the wanted configuration and the reported state", Args: positional(cobra.ExactArgs(1)), ValidArgsFunction: a.deviceIDs}
	show.RunE = func(c *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		t, err := cl.Twin(c.Context(), watchword.SubjectID(args[0]))
		return a.printTwin(t, err)
	}
	set := &cobra.Command{Use: "set DEVICE k=text | k:=JSON | k-", Short: "Change the wanted configuration", Args: positional(cobra.MinimumNArgs(2)), ValidArgsFunction: a.deviceIDs}
	match := set.Flags().Int64("if-match", -1, "only if the current version is this one")
	set.RunE = func(c *cobra.Command, args []string) error { return a.setTwin(c.Context(), args, *match) }
	return commandGroup("twin", "Wanted configuration and reported state of a device", show, set)
}

func (a *app) printTwin(t api.Twin, err error) error {
	if err != nil {
		return err
	}
	return a.print(t, func(w *terminal.Writer) {
		w.Printf("wanted\tversion %d\t%s\n", t.ConfigVersion, t.Config)
		w.Printf("reported\t\t%s\n", t.State)
	})
}

// setTwin changes single members and keeps the others.
func (a *app) setTwin(ctx context.Context, args []string, match int64) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	id := watchword.SubjectID(args[0])
	t, err := cl.Twin(ctx, id)
	if err != nil {
		return err
	}
	doc := map[string]json.RawMessage{}
	if len(t.Config) > 0 {
		if err := json.Unmarshal(t.Config, &doc); err != nil {
			return err
		}
	}
	if doc == nil {
		doc = map[string]json.RawMessage{}
	}
	var set []string
	for _, p := range args[1:] {
		if k, gone := strings.CutSuffix(p, "-"); gone && !strings.Contains(p, "=") {
			delete(doc, k)
		} else {
			set = append(set, p)
		}
	}
	in, err := parseArguments(set)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(in, &doc); err != nil {
		return err
	}
	whole, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	if match < 0 {
		match = t.ConfigVersion // so that a concurrent change is not overwritten
	}
	t, err = cl.SetConfig(ctx, id, whole, match)
	return a.printTwin(t, err)
}

func (a *app) eventCommand() *cobra.Command {
	watch := &cobra.Command{
		Use: "watch [DEVICE]", Short: "Print events as they arrive, until interrupted",
		Long: "Print events as they arrive, until interrupted or refused. A lost connection is opened again, after the last event that\n" +
			"was printed; events that the server no longer has by then are reported as missed.", Args: positional(cobra.MaximumNArgs(1)), ValidArgsFunction: a.deviceIDs,
	}
	stream := watch.Flags().String("stream", "", "only this stream")
	after := watch.Flags().String("after", "", "begin after the event with this `ID`, as far as the server still has what followed")
	count := watch.Flags().Int("count", 0, "end after this many events (0: never)")
	watch.RunE = func(c *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		var id watchword.SubjectID
		if len(args) > 0 {
			id = watchword.SubjectID(args[0])
		}
		if a.format == "json" {
			a.format = "jsonl"
		}
		n := 0
		q := admin.EventQuery{Device: id, Stream: *stream, After: *after}
		err = cl.WatchEvents(c.Context(), q, func() { a.err.Printf("watching\n") }, func(g api.EventGap) { a.err.Printf("%s\n", gapLine(g)) }, func(e api.Event) error {
			if err := a.print(e, func(w *terminal.Writer) {
				data := string(e.Data)
				if data == "" {
					data = "base64:" + e.DataBase64
				}
				w.Printf("%s  %s/%s  %s\n", e.At.Local().Format("15:04:05Z07:00"), e.Device, e.Stream, data)
			}); err != nil {
				return err
			}
			if n++; n == *count {
				return errStop
			}
			return nil
		})
		if err == errStop {
			return nil
		}
		return err
	}
	return commandGroup("event", "Events that devices report", watch)
}

// gapLine describes missed events, devices with the most first.
func gapLine(g api.EventGap) string {
	devices := slices.SortedFunc(maps.Keys(g.Devices), func(a, b watchword.SubjectID) int {
		return cmp.Or(cmp.Compare(g.Devices[b], g.Devices[a]), cmp.Compare(a, b))
	})
	line := fmt.Sprintf("missed %d events", g.Missed)
	switch {
	case g.More && g.Missed == 0:
		return "events may have been missed: the server does not know how many"
	case g.More:
		line += ", or more"
	}
	for i, d := range devices {
		if i == 8 {
			line += ", …"
			break
		}
		line += fmt.Sprintf(", %d of %s", g.Devices[d], d)
	}
	return line
}

var errStop = fmt.Errorf("enough")

// sessionRow is a live session or an offline one (of an MQTT client that is not connected): State says which.
type sessionRow struct {
	api.Session
	State string `json:"state"` // live, offline
}

func offlineRow(s api.OfflineSession) sessionRow {
	return sessionRow{api.Session{ID: s.ID, Subject: s.Subject, Transport: "mqtt", Remote: "-", OpenedAt: s.DisconnectedAt, ExpiresAt: s.ExpiresAt, MQTT: &s.MQTT}, "offline"}
}

// queued describes the messages that are queued for an MQTT client.
func (s sessionRow) queued() string {
	switch m := s.MQTT; {
	case m == nil:
		return ""
	case m.Dropped > 0:
		return fmt.Sprintf("%d messages, %d dropped", m.Messages, m.Dropped)
	case m.Messages > 0:
		return fmt.Sprintf("%d messages", m.Messages)
	}
	return ""
}

// listSessions prints the sessions that f selects. Rows of a table are kept without their subscriptions, which it does not show; with
// jsonl none is kept.
func (a *app) listSessions(ctx context.Context, f admin.SessionFilter) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	var rows []sessionRow
	add := func(r sessionRow) error {
		switch {
		case a.format == "jsonl":
			return a.print(r, nil)
		case a.format == "table" && r.MQTT != nil:
			r.MQTT.Subscriptions = nil
		}
		rows = append(rows, r)
		return nil
	}
	if err := cl.EachSession(ctx, f, func(s api.Session) error { return add(sessionRow{s, "live"}) }, func(s api.OfflineSession) error { return add(offlineRow(s)) }); err != nil {
		return err
	}
	return printList(a, rows, "ID\tSUBJECT\tTRANSPORT\tREMOTE\tSTATE\tOPENED\tEXPIRES\tQUEUED", func(w *terminal.Writer, s sessionRow) {
		w.Printf("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.ID, s.Subject, s.Transport, s.Remote, s.State, formatTime(s.OpenedAt), formatTime(s.ExpiresAt), s.queued())
	})
}

func (a *app) sessionCommand() *cobra.Command {
	list := &cobra.Command{Use: "list [SUBJECT]", Short: "List live sessions, and offline MQTT sessions", Args: positional(cobra.MaximumNArgs(1)), ValidArgsFunction: a.deviceIDs}
	live := list.Flags().Bool("live", false, "live sessions only")
	offline := list.Flags().Bool("offline", false, "offline MQTT sessions only")
	transport := list.Flags().String("transport", "", "only this transport: mqtt, sse, poll, wait or request")
	list.MarkFlagsMutuallyExclusive("live", "offline")
	list.RunE = func(c *cobra.Command, args []string) error {
		f := admin.SessionFilter{OnlyLive: *live, OnlyOffline: *offline, Transport: *transport}
		if len(args) > 0 {
			f.Subject = watchword.SubjectID(args[0])
		}
		return a.listSessions(c.Context(), f)
	}
	end := &cobra.Command{Use: "close ID", Short: "Close a live session, or end an offline one", Args: positional(cobra.ExactArgs(1)), RunE: func(c *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		return cl.CloseSession(c.Context(), watchword.SessionID(args[0]))
	}}
	return commandGroup("session", "List and close sessions", list, end)
}

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{Use: "whoami", Short: "Show the subject that this tool acts as, and its permissions", Args: positional(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		s, err := cl.Self(c.Context())
		if err != nil {
			return err
		}
		if to, store, err := a.chosenTarget(); err != nil {
			return err
		} else if to.context != "" {
			if err := store.SetKeyEnds(c.Context(), to.context, s.Token.KeyEndsAt); err != nil {
				return err
			}
		}
		return a.print(s, func(w *terminal.Writer) {
			w.Printf("%s\t%s, %s  %s\n", s.ID, s.Kind, s.State, s.Labels)
			if s.Role != "" {
				w.Printf("role\t%s\n", s.Role)
			}
			w.Printf("server\t%s\nkey\t%s%s\n", cl.URL(), s.Token.Key, keyEndText(s.Token.KeyEndsAt))
			for _, p := range s.Permissions.Perm {
				w.Printf("may\t%s\n", p)
			}
			for _, p := range s.Permissions.Deny {
				w.Printf("may not\t%s\n", p)
			}
		})
	}}
}
