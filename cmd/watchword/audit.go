package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/sdk/admin"
)

func (a *app) auditCommand() *cobra.Command {
	return commandGroup("audit", "Read, export and verify the audit log", a.auditList(), a.auditShow(), a.auditExport(), a.auditVerify(), a.auditCheckpoint(), a.auditProve(), a.auditKey(), a.auditMirror())
}

// logQuery adds the flags that select entries.
func logQuery(c *cobra.Command) func() (admin.LogQuery, error) {
	f := c.Flags()
	var q admin.LogQuery
	f.StringVar((*string)(&q.Subject), "subject", "", "subject that acted or was acted upon")
	f.StringVar(&q.Object, "object", "", "id of a subject, policy, command, key, session or token")
	f.StringVar(&q.Kind, "kind", "", "one kind, or a group such as device.*")
	f.StringVar(&q.Cause, "cause", "", "code of a refusal, or cause of a session's end")
	from := f.String("from", "", "only entries from this time on: 2026-11-25T12:00:00Z, or an age such as 24h")
	to := f.String("to", "", "only entries before this time, in the same form")
	return func() (_ admin.LogQuery, err error) {
		if q.From, err = parseTime("--from", *from); err != nil {
			return q, err
		}
		q.To, err = parseTime("--to", *to)
		return q, err
	}
}

func parseTime(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, usage("%s %s: must be a time such as 2026-11-25T12:00:00Z, or an age such as 24h", flag, s)
	}
	return t, nil
}

func (a *app) auditList() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List entries of the audit log, oldest first", Args: positional(cobra.NoArgs)}
	query := logQuery(list)
	after := list.Flags().Int64("after", 0, "only entries after this number")
	before := list.Flags().Int64("before", 0, "only entries before this number")
	limit := list.Flags().Int("limit", 100, "maximum number of entries")
	newest := list.Flags().Bool("newest", false, "newest first")
	follow := list.Flags().Bool("follow", false, "keep printing new entries, until interrupted")
	list.RunE = func(c *cobra.Command, _ []string) error {
		q, err := query()
		if err != nil {
			return err
		}
		if *limit < 1 || *after < 0 || *before < 0 {
			return usage("--limit must be at least 1, --after and --before not negative")
		}
		if *follow && (*newest || *before > 0) {
			return usage("--follow cannot be used with --newest or --before")
		}
		q.After, q.Before, q.Newest = *after, *before, *newest
		cl, err := a.client()
		if err != nil {
			return err
		}
		if *follow {
			return a.followLog(c.Context(), cl, q)
		}
		es, err := cl.FindEntries(c.Context(), q, *limit)
		if err != nil {
			return err
		}
		return printList(a, es, "SEQ\tAT\tKIND\tACTOR\tOBJECT\tOUTCOME\tCODE", entryRow)
	}
	return list
}

func entryRow(w *terminal.Writer, e api.Entry) {
	if e.Pruned {
		w.Printf("%d\t\t(pruned)\n", e.Seq)
		return
	}
	why, at := string(e.Code), ""
	if why == "" {
		why = e.Data["cause"]
	}
	if e.At != nil {
		at = formatTime(*e.At)
	}
	w.Printf("%d\t%s\t%s\t%s\t%s\t%s\t%s\n", e.Seq, at, e.Kind, e.Actor, e.Object, e.Outcome, why)
}

func (a *app) followLog(ctx context.Context, cl *admin.Client, q admin.LogQuery) error {
	if a.format == "json" {
		a.format = "jsonl"
	}
	return cl.FollowLog(ctx, q, func() { a.err.Printf("following\n") }, func(e api.Entry) error {
		return a.print(e, func(w *terminal.Writer) { entryRow(w, e) })
	})
}

// entryNumber parses the number of an entry.
func entryNumber(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 {
		return 0, usage("%s: must be the number of an entry", s)
	}
	return n, nil
}

func (a *app) auditShow() *cobra.Command {
	return &cobra.Command{Use: "show N", Short: "Show one entry, with the salt and body that its hash covers", Args: positional(cobra.ExactArgs(1)), RunE: func(c *cobra.Command, args []string) error {
		n, err := entryNumber(args[0])
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		e, err := cl.Entry(c.Context(), n)
		if err != nil {
			return err
		}
		return a.print(e, func(w *terminal.Writer) {
			e.Body = ""         // it is printed by the table
			_ = w.JSON(e, true) // the table has the error
		})
	}}
}

func (a *app) auditExport() *cobra.Command {
	export := &cobra.Command{
		Use: "export [FILE]", Short: "Export the audit log as JSON lines, for audit verify",
		Long: "The whole log as JSON lines, which audit verify checks. Of entries that the flags do not select, and of pruned ones, it has only the hash.", Args: positional(cobra.MaximumNArgs(1)),
	}
	query := logQuery(export)
	export.RunE = func(c *cobra.Command, args []string) error {
		q, err := query()
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		if len(args) == 0 || args[0] == "-" {
			return a.exportJSON(func(w io.Writer) error { return cl.ExportLog(c.Context(), q, w) })
		}
		f, err := os.OpenFile(args[0], os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, fs.ErrExist) {
			err = watchword.Wrap(err, watchword.Conflict, "%s exists already", args[0])
		}
		if err != nil {
			return err
		}
		if err = cl.ExportLog(c.Context(), q, f); err == nil {
			err = f.Sync()
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			_ = os.Remove(args[0]) // the export is incomplete; the first error is reported
		}
		return err
	}
	return export
}

// exportJSON prints what f writes, as lines of JSON.
func (a *app) exportJSON(f func(io.Writer) error) error {
	w := a.out.JSONStream()
	return errors.Join(f(w), w.Close())
}

func (a *app) auditCheckpoint() *cobra.Command {
	return &cobra.Command{Use: "checkpoint", Short: "Print the log's latest signed checkpoint, to keep elsewhere", Args: positional(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		note, err := cl.LogFile(c.Context(), "checkpoint")
		if err != nil {
			return err
		}
		a.out.Document(string(note))
		return a.out.Err()
	}}
}

func (a *app) auditProve() *cobra.Command {
	return &cobra.Command{Use: "prove N", Short: "Print a proof that the log contains an entry, for audit verify", Args: positional(cobra.ExactArgs(1)), RunE: func(c *cobra.Command, args []string) error {
		n, err := entryNumber(args[0])
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		p, err := cl.Proof(c.Context(), n)
		if err != nil {
			return err
		}
		a.out.Document(string(p))
		return a.out.Err()
	}}
}
