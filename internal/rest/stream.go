package rest

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"time"

	"github.com/watchword-iot/watchword"
)

// streamIdleTimeout is the longest silence of a stream: six times the server's keep-alive interval.
const streamIdleTimeout = 90 * time.Second

// errIdle is the error of a stream that was silent too long.
var errIdle = watchword.Refuse(watchword.Unavailable, "the stream was silent for %s", streamIdleTimeout)

// Stream is an answer that is read as it arrives. It is not safe for concurrent use.
type Stream struct {
	Header http.Header

	client *Client
	body   io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	idle   *time.Timer // runs during a read
}

// Stream sends a request and returns the answer with its body unread. The caller closes it. The
// answer must begin within the deadline of an exchange, and each read ends within 90 s:
// unavailable. The total length is not limited here; readers limit its parts: [Stream.Lines],
// sse.Reader.
func (c *Client) Stream(ctx context.Context, r Request) (*Stream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(r.timeout(), func() { cancel(timeoutError(r.timeout())) })
	res, err := c.doWithRetry(ctx, r)
	timer.Stop()
	if err != nil {
		cancel(nil)
		return nil, err
	}
	s := &Stream{Header: res.Header, client: c, body: res.Body, ctx: ctx, cancel: cancel}
	s.idle = time.AfterFunc(streamIdleTimeout, func() { cancel(errIdle) })
	s.idle.Stop()
	return s, nil
}

// Read reads the next bytes. Code: unavailable, where the stream breaks or is silent.
func (s *Stream) Read(b []byte) (int, error) {
	s.idle.Reset(streamIdleTimeout)
	n, err := s.body.Read(b)
	s.idle.Stop()
	if err != nil && err != io.EOF {
		err = s.client.unreachable(s.ctx, err)
	}
	return n, err
}

// Close ends the stream.
func (s *Stream) Close() error {
	s.idle.Stop()
	s.cancel(nil)
	return s.body.Close()
}

// Lines calls f with each line, including its line break. Codes: those of Read; too_large for a
// line of more than max bytes.
func (s *Stream) Lines(max int, f func(line []byte) error) error {
	r := bufio.NewReaderSize(s, max)
	for {
		line, err := r.ReadSlice('\n')
		switch {
		case err == bufio.ErrBufferFull:
			return s.client.refuse(nil, watchword.TooLarge, "a line of the answer has more than %d bytes", max)
		case err != nil && err != io.EOF:
			return err
		}
		if len(line) > 0 {
			if err := f(line); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}
