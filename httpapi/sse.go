package httpapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
)

// How a stream lives: a comment now and then shows both sides that the other is
// there, and a peer that does not read for that long is cut off.
const (
	sseKeepAlive = 15 * time.Second
	sseTimeout   = 10 * time.Second
)

// stream writes server-sent events. It is for one goroutine.
type stream struct{ w *responseWriter }

func wantsStream(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/event-stream")
}

// newStream starts the answer of a request whose session is one of a stream.
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

// send writes one event; id may be empty. The error says that the peer has gone.
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
	out.Write(b) // JSON has no line breaks
	out.WriteString("\n\n")
	return s.write(out.Bytes())
}

func (s *stream) keepAlive() error { return s.write([]byte(": \n\n")) }

func (s *stream) write(b []byte) error {
	if err := s.w.stream(); err != nil {
		return err
	}
	_, err := s.w.Write(b) // it counts b while it is written
	return err
}

// endBrokenStream ends a stream that could not be written to: the peer has gone, or may have no more of it.
func (a *API) endBrokenStream(s *stream, r *http.Request, c *caller) error {
	if err := streamEnded(c.ctx); err != nil {
		a.endStream(s, r, err)
	}
	return nil
}

// endStream tells the peer why the stream is over: that is said whatever the session may still do.
func (a *API) endStream(s *stream, r *http.Request, err error) {
	if err == nil {
		err = watchword.Refuse(watchword.Unavailable, "the stream is over")
	}
	s.w.release()
	_ = s.send("end", "", a.problem(r, err)) // who has gone needs no reason
}
