package terminal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"text/tabwriter"
	"unicode/utf8"
)

// format is a text of the program itself. The type is not exported, so only constants of callers
// convert to it.
type format string

// Writer prints to one stream and escapes all untrusted text. It is safe for concurrent use.
type Writer struct {
	mu       sync.Mutex
	to       io.Writer
	terminal bool
	width    int   // characters of a line of the terminal
	err      error // first error of to
}

// New returns a Writer to a stream; shows says whether it is a terminal.
func New(to io.Writer, shows bool) *Writer {
	return &Writer{to: to, terminal: shows, width: DefaultWidth}
}

// SetWidth sets how many characters a line of the terminal has; less than 20 means [DefaultWidth]. Call it before the first print.
func (w *Writer) SetWidth(characters int) *Writer {
	if w.width = characters; characters < 20 {
		w.width = DefaultWidth
	}
	return w
}

// IsTerminal reports whether the stream is a terminal.
func (w *Writer) IsTerminal() bool { return w.terminal }

// Printf prints a constant format with fields, like [fmt.Printf]. Each field is escaped, as by
// [Escape]: line breaks, cells and colours come from the format only. See [Writer.Err] for errors.
func (w *Writer) Printf(text format, fields ...any) {
	for i, f := range fields {
		fields[i] = escapedField{f}
	}
	w.put(fmt.Appendf(nil, string(text), fields...))
}

// escapedField is a field that is escaped with every verb.
type escapedField struct{ v any }

// Format implements [fmt.Formatter].
func (e escapedField) Format(s fmt.State, verb rune) {
	_, _ = io.WriteString(s, Escape(fmt.Sprintf(fmt.FormatString(s, verb), e.v))) // a buffer returns no error
}

// Line prints fields with tabs between them, and ends the line.
func (w *Writer) Line(fields ...string) {
	var out []byte
	for i, f := range fields {
		if i > 0 {
			out = append(out, '\t')
		}
		out = append(out, Escape(f)...)
	}
	w.put(append(out, '\n'))
}

// Write prints a whole text of several lines, such as a library's usage text or a log, and keeps
// its line breaks and tabs. It implements [io.Writer].
func (w *Writer) Write(p []byte) (int, error) {
	w.put([]byte(escape(string(p), modeDocument)))
	return len(p), w.Err()
}

// Document prints like Write.
func (w *Writer) Document(text string) { w.put([]byte(escape(text, modeDocument))) }

// JSON prints v as JSON, in one line or indented. Invisible characters are written as \u escapes,
// which are the same JSON.
func (w *Writer) JSON(v any, indented bool) error {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if indented {
		enc.SetIndent("", "  ")
	}
	if err := enc.Encode(v); err != nil {
		return err
	}
	w.put([]byte(escape(out.String(), modeJSON)))
	return w.Err()
}

// Data returns a writer for machine-readable bytes: unchanged where the stream is no terminal,
// otherwise escaped like Write. Callers write complete lines.
func (w *Writer) Data() io.Writer {
	if w.terminal {
		return w
	}
	return rawWriter{w}
}

type rawWriter struct{ w *Writer }

func (r rawWriter) Write(p []byte) (int, error) {
	r.w.put(p)
	return len(p), r.w.Err()
}

// JSONStream returns a writer for lines of JSON from others, in any pieces. Close it at the end.
func (w *Writer) JSONStream() io.WriteCloser { return &jsonStream{w: w} }

type jsonStream struct {
	w    *Writer
	tail []byte // an incomplete character
}

func (s *jsonStream) Write(p []byte) (int, error) {
	b := append(s.tail, p...)
	whole := len(b)
	for back := 1; back <= min(utf8.UTFMax-1, len(b)); back++ {
		if c := b[len(b)-back]; utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-back:]) {
				whole = len(b) - back
			}
			break
		}
	}
	s.w.put([]byte(escape(string(b[:whole]), modeJSON)))
	s.tail = append([]byte(nil), b[whole:]...)
	return len(p), s.w.Err()
}

func (s *jsonStream) Close() error {
	s.w.put([]byte(escape(string(s.tail), modeJSON)))
	s.tail = nil
	return s.w.Err()
}

// Table calls f with a Writer whose lines have cells between tabs, and prints them in columns. On a terminal, lines that are
// longer than its width ([Writer.SetWidth]) are wrapped column by column.
func (w *Writer) Table(f func(*Writer)) error {
	if w.terminal {
		var cells bytes.Buffer
		inner := New(&cells, w.terminal)
		f(inner)
		if err := inner.Err(); err != nil {
			return err
		}
		w.put([]byte(columns(cells.String(), w.width)))
		return w.Err()
	}
	t := tabwriter.NewWriter(rawWriter{w}, 0, 4, 2, ' ', 0)
	inner := New(t, w.terminal)
	f(inner)
	if err := inner.Err(); err != nil {
		return err
	}
	return t.Flush()
}

// Err returns the first error of the stream; nothing was printed after it.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *Writer) put(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && len(p) > 0 {
		_, w.err = w.to.Write(p)
	}
}
