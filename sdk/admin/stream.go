package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/internal/sse"
)

// Pauses before a stream or a wait that was lost is requested again.
const (
	streamRetryMin = 500 * time.Millisecond
	streamRetryMax = 30 * time.Second
	streamSteady   = time.Minute // a stream that was open for this long begins again with the shortest pause
)

// isTemporary reports whether an error concerns the connection, or the server as a whole at this time, so that the same
// request may succeed later.
func isTemporary(err error) bool {
	switch watchword.CodeOf(err) {
	case watchword.Unavailable, watchword.ClockUntrusted, watchword.Busy, watchword.RateLimited, watchword.TimedOut:
		return true
	}
	return false
}

// retryPause is a randomized pause that grows with each error.
type retryPause struct{ last time.Duration }

// next returns the pause after err: at least the one that the server states.
func (p *retryPause) next(err error) time.Duration {
	p.last = min(max(2*p.last, streamRetryMin), streamRetryMax)
	pause := p.last/2 + rand.N(p.last/2)
	if e, ok := errors.AsType[*watchword.Error](err); ok {
		pause = max(pause, e.RetryAfter)
	}
	return pause
}

// sleep waits for d. It returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// streamRequest is a stream of server-sent events.
type streamRequest struct {
	path   string
	query  url.Values
	after  string                        // Last-Event-ID of the first request; empty: none
	opened func()                        // called each time that the stream is open; nil: not called
	on     map[string]func([]byte) error // called with the data of the events of each name
}

// lostStream is the error of a stream that may be opened again.
type lostStream struct{ error }

func (l lostStream) Unwrap() error { return l.error }

// stream reads a stream until ctx ends, a function of r.on returns an error or the server refuses it. A stream that was open
// and is lost is opened again, after the last event that was read. The first request is not repeated: its error may be a
// wrong address.
func (c *Client) stream(ctx context.Context, r streamRequest) error {
	open := false
	opened := r.opened
	r.opened = func() {
		if open = true; opened != nil {
			opened()
		}
	}
	pause := retryPause{}
	for {
		began := time.Now()
		err := c.readStream(ctx, &r)
		if ctx.Err() != nil {
			return nil
		}
		lost, is := errors.AsType[lostStream](err)
		switch {
		case !is:
			return err
		case !open:
			return lost.error
		}
		if time.Since(began) > streamSteady {
			pause = retryPause{}
		}
		wait := pause.next(lost.error)
		if c.opts.StreamLost != nil {
			c.opts.StreamLost(lost.error, wait)
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

// readStream opens a stream once and reads it, refreshing it with new tokens. It sets r.after to the ID of each event that was
// read.
func (c *Client) readStream(ctx context.Context, r *streamRequest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	head := map[string]string{"Accept": "text/event-stream"}
	if r.after != "" {
		head["Last-Event-ID"] = r.after
	}
	res, err := c.rest.Stream(ctx, rest.Request{Method: http.MethodGet, Path: r.path, Query: maps.Clone(r.query), Header: head})
	switch {
	case isTemporary(err):
		return lostStream{err}
	case err != nil:
		return err
	}
	defer res.Close()
	events := sse.NewReader(res)
	refreshing := func() {} // stops refreshing the session that was named last
	defer func() { refreshing() }()
	for {
		e, err := events.Next()
		switch {
		case err == io.EOF:
			return lostStream{watchword.Refuse(watchword.Unavailable, "the stream ended")}
		case errors.Is(err, bufio.ErrTooLong):
			return watchword.Wrap(err, watchword.TooLarge, "an event of the stream is too large")
		case watchword.CodeOf(err) == watchword.Unavailable:
			return lostStream{err}
		case err != nil:
			return lostStream{watchword.Wrap(err, watchword.Unavailable, "the stream was interrupted")}
		}
		switch e.Name {
		case "session":
			var s api.SessionEvent
			if err := json.Unmarshal([]byte(e.Data), &s); err != nil {
				return err
			}
			refreshing() // one at a time, however many the server names
			refreshing = c.startRefreshing(ctx, s.Session, s.ExpiresAt)
			if r.opened != nil {
				r.opened()
			}
		case "end":
			var p api.Problem
			if err := json.Unmarshal([]byte(e.Data), &p); err != nil {
				return err
			}
			end := &watchword.Error{Code: p.Code, Detail: p.Detail, Field: p.Field, Rule: p.Rule}
			if isTemporary(end) || p.Code == watchword.TokenExpired { // the next request gets a new token
				return lostStream{end}
			}
			return end
		default:
			if f := r.on[e.Name]; f != nil {
				if err := f([]byte(e.Data)); err != nil {
					return err
				}
			}
		}
		if watchword.ValidName(e.ID) { // it becomes a header field
			r.after = e.ID
		}
	}
}

// startRefreshing refreshes a session until ctx ends or stop is called.
func (c *Client) startRefreshing(ctx context.Context, id watchword.SessionID, ends time.Time) (stop func()) {
	ctx, stop = context.WithCancel(ctx)
	go c.refreshUntil(ctx, id, ends)
	return stop
}

// refreshUntil refreshes a session before its token expires, until ctx ends. If that fails, the end of the stream has the
// reason.
func (c *Client) refreshUntil(ctx context.Context, id watchword.SessionID, ends time.Time) {
	for {
		t := time.NewTimer(max(ends.Sub(c.opts.Now())*4/5, time.Second))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		if _, err := c.tokens.Renew(ctx); err != nil {
			continue
		}
		next, err := c.RefreshSession(ctx, id)
		if err != nil {
			continue
		}
		ends = next
	}
}

// RefreshSession refreshes one of the client's live sessions with its current token, and returns when the session expires.
func (c *Client) RefreshSession(ctx context.Context, id watchword.SessionID) (time.Time, error) {
	var out api.SessionRefresh
	err := c.call(ctx, http.MethodPut, "/v1/self/sessions/"+url.PathEscape(string(id)), nil, nil, &out)
	return out.ExpiresAt, err
}
