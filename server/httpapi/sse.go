package httpapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
)

// Streams send a comment at intervals, so that both sides notice a broken connection; a peer that
// does not read for sseTimeout is disconnected.
const (
	sseKeepAlive = 15 * time.Second
	sseTimeout   = 10 * time.Second
)

// stream writes server-sent events. It is not safe for concurrent use.
type stream struct{ w *responseWriter }

func wantsStream(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/event-stream")
}

// newStream starts the answer of a request that is a stream.
func newStream(c *caller) *stream {
	w := c.session.response
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	w.perWrite = sseTimeout
	w.WriteHeader(http.StatusOK)
	return &stream{w}
}

// send writes one event; id may be empty. An error means that the client has closed the connection.
func (s *stream) send(name, id string, data any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	out.WriteString("event: " + name + "\n")
	if id != "" {
		out.WriteString("id: " + id + "\n")
	}
	out.WriteString("data: ")
	out.Write(b) // compact JSON has no line breaks
	out.WriteString("\n\n")
	return s.write(out.Bytes())
}

func (s *stream) keepAlive() error { return s.write([]byte(": \n\n")) }

func (s *stream) write(b []byte) error {
	if err := s.w.stream(); err != nil {
		return err
	}
	_, err := s.w.Write(b) // Write charges b while it is written
	return err
}

// endBrokenStream ends a stream after a failed write: the client has closed the connection, or has
// lost the permission to read.
func (a *API) endBrokenStream(s *stream, r *http.Request, c *caller) error {
	if err := streamEnded(c.ctx); err != nil {
		a.endStream(s, r, err)
	}
	return nil
}

// endStream sends the reason why the stream ends, whatever the authority of the session is by then.
func (a *API) endStream(s *stream, r *http.Request, err error) {
	if err == nil {
		err = watchword.Refuse(watchword.Unavailable, "the stream has ended")
	}
	s.w.release()
	_ = s.send("end", "", a.problem(r, err)) // an error means that the client has closed the connection
}
