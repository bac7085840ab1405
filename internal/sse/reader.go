// Package sse reads server-sent events from a stream. It refuses lines and events longer than its
// limit.
package sse

import (
	"bufio"
	"io"
	"strings"
)

// maxEvent is the longest line, in bytes.
const maxEvent = 256 << 10

// Event is one event. Name is "message" where the stream gives none.
type Event struct {
	Name string
	ID   string
	Data string
}

// Reader reads events. It is not safe for concurrent use.
type Reader struct{ s *bufio.Scanner }

// NewReader returns a reader of r.
func NewReader(r io.Reader) *Reader {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4<<10), maxEvent)
	return &Reader{s}
}

// Next waits for the next event. At the end of the stream it returns io.EOF.
func (r *Reader) Next() (Event, error) {
	e := Event{Name: "message"}
	var data []byte // a []byte: appending many empty lines to a string would take quadratic time
	some, lines := false, false
	for r.s.Scan() {
		line := r.s.Text()
		if line == "" {
			if some {
				e.Data = string(data)
				return e, nil
			}
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			e.Name, some = value, true
		case "id":
			e.ID, some = value, true
		case "data":
			if lines {
				data = append(data, '\n')
			}
			data, some, lines = append(data, value...), true, true
			if len(data) > maxEvent {
				return e, bufio.ErrTooLong
			}
		}
	}
	if err := r.s.Err(); err != nil {
		return e, err
	}
	return e, io.EOF
}
