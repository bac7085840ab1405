package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/durable"
	"github.com/watchword-iot/watchword/internal/terminal"
	"github.com/watchword-iot/watchword/server"
)

// app is the state that all commands share. Commands print only through out and err.
type app struct {
	out, err *terminal.Writer

	format string
	json   bool
	data   string
	target

	notices   shownNotices
	completes bool // the shell completes a command line: standard error is its own
}

func (a *app) prepare() error {
	if a.json {
		a.format = "json"
	}
	switch a.format {
	case "table", "json", "jsonl":
	default:
		f := a.format
		a.format = "table"
		return usage("-o %s: must be table, json or jsonl", f)
	}
	if err := server.CheckVariables(nil); err != nil {
		return err
	}
	return a.chooseData()
}

// print prints a result: as JSON with -o json, else as table writes it.
func (a *app) print(v any, table func(w *terminal.Writer)) error {
	if a.format == "table" {
		return a.out.Table(table)
	}
	return a.out.JSON(v, a.format == "json")
}

// printList prints results: as a table, one JSON array, or one JSON value a line.
func printList[T any](a *app, items []T, head string, row func(w *terminal.Writer, v T)) error {
	if a.format == "jsonl" {
		for _, v := range items {
			if err := a.print(v, nil); err != nil {
				return err
			}
		}
		return nil
	}
	if items == nil {
		items = []T{}
	}
	return a.print(items, func(w *terminal.Writer) {
		w.Line(strings.Split(head, "\t")...)
		for _, v := range items {
			var line bytes.Buffer
			row(terminal.New(&line, false), v)
			w.Document(truncateCells(line.String()))
		}
	})
}

// maxCell is the maximum number of characters of a table cell. JSON output is not shortened.
const maxCell = 100

// truncateCells shortens each cell (text between tabs) to maxCell characters.
func truncateCells(lines string) string {
	var out strings.Builder
	for line := range strings.Lines(lines) {
		for i, cell := range strings.Split(strings.TrimSuffix(line, "\n"), "\t") {
			if i > 0 {
				out.WriteByte('\t')
			}
			if c := []rune(cell); len(c) > maxCell {
				cell = string(c[:maxCell-1]) + "…"
			}
			out.WriteString(cell)
		}
		out.WriteByte('\n')
	}
	return out.String()
}

func (a *app) printProblem(code watchword.Code, detail string) {
	_ = a.err.JSON(map[string]any{"type": code.Page(), "title": code, "code": code, "detail": detail}, false) // an error of standard error cannot be reported
}

// confirm asks for confirmation on a terminal. Without a terminal, --yes is required.
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if !isTerminal(os.Stdin) || !a.err.IsTerminal() {
		return usage("%s: requires --yes without a terminal", question)
	}
	a.err.Printf("%s? [y/N] ", question)
	line, err := bufio.NewReader(io.LimitReader(os.Stdin, 1024)).ReadString('\n')
	if err != nil || !strings.EqualFold(strings.TrimSpace(line), "y") {
		a.err.Printf("not confirmed; nothing was changed\n")
		return &exitError{1}
	}
	return nil
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// parseLabels parses -l k=v flags.
func parseLabels(pairs []string) (watchword.Labels, error) {
	l := watchword.Labels{}
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return nil, usage("-l %s: must be key=value", p)
		}
		l[k] = v
	}
	return l, nil
}

// parseArguments parses k=v and k:=JSON into one JSON object.
func parseArguments(pairs []string) (json.RawMessage, error) {
	out := map[string]json.RawMessage{}
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" || k == ":" {
			return nil, usage("%s: must be key=text or key:=JSON", p)
		}
		raw, err := json.Marshal(v)
		if name, isJSON := strings.CutSuffix(k, ":"); isJSON {
			k, raw = name, []byte(v)
			if !json.Valid(raw) {
				return nil, usage("%s: the value after := is not valid JSON", p)
			}
		}
		if err != nil {
			return nil, err
		}
		if _, twice := out[k]; twice {
			return nil, usage("%s must be given once", k)
		}
		out[k] = raw
	}
	return json.Marshal(out)
}

// readTrusted reads a file that states whom to trust, or standard input for "-". Codes: file_untrusted, not_found,
// too_large.
func readTrusted(name string, limit int64) ([]byte, error) {
	if name == "-" {
		return readInput(name, limit)
	}
	b, err := durable.ReadTrusted(name, limit)
	if errors.Is(err, fs.ErrNotExist) {
		err = watchword.Wrap(err, watchword.NotFound, "file %s does not exist", name)
	}
	return b, err
}

// readInput reads a file, or standard input for "-". Its content must be verified afterwards, or be the user's own input. A
// file that states whom to trust is read by readTrusted.
func readInput(name string, limit int64) ([]byte, error) {
	f := os.Stdin
	if name != "-" {
		var err error
		if f, err = os.Open(name); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = watchword.Wrap(err, watchword.NotFound, "file %s does not exist", name)
			}
			return nil, err
		}
		defer f.Close()
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = watchword.Refuse(watchword.TooLarge, "%s must have at most %d bytes", name, limit)
	}
	return b, err
}

// formatTime formats a time in the local zone, with its offset (RFC 3339 with a space).
func formatTime(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05Z07:00") }

func yesFlag(c *cobra.Command) *bool {
	return c.Flags().Bool("yes", false, "do not ask for confirmation")
}
