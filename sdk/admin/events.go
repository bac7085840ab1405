package admin

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/internal/sse"
)

// WatchWithGaps is [Client.Watch], and calls gap for lost events, before the events that follow them.
func (c *Client) WatchWithGaps(ctx context.Context, device watchword.SubjectID, stream string, opened func(), gap func(api.EventGap), f func(api.Event) error) error {
	return c.watch(ctx, device, stream, opened, gap, f)
}

// Watch calls f for each event of a device and stream (empty: all) until ctx or the stream ends. opened, if not nil, is
// called once the stream is open. The stream is refreshed with new tokens.
func (c *Client) Watch(ctx context.Context, device watchword.SubjectID, stream string, opened func(), f func(api.Event) error) error {
	return c.watch(ctx, device, stream, opened, func(api.EventGap) {}, f)
}

func (c *Client) watch(ctx context.Context, device watchword.SubjectID, stream string, opened func(), gap func(api.EventGap), f func(api.Event) error) error {
	q := url.Values{}
	if device != "" {
		q.Set("device", string(device))
	}
	if stream != "" {
		q.Set("stream", stream)
	}
	return c.stream(ctx, "/v1/events", q, opened, map[string]func([]byte) error{
		"event": func(data []byte) error {
			var v api.Event
			if err := json.Unmarshal(data, &v); err != nil {
				return err
			}
			return f(v)
		},
		"gap": func(data []byte) error {
			var g api.EventGap
			if err := json.Unmarshal(data, &g); err != nil {
				return err
			}
			gap(g)
			return nil
		},
	})
}

// stream reads a stream and refreshes it with new tokens.
func (c *Client) stream(ctx context.Context, path string, q url.Values, opened func(), on map[string]func(data []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	res, err := c.rest.Stream(ctx, rest.Request{Method: http.MethodGet, Path: path, Query: q, Header: map[string]string{"Accept": "text/event-stream"}})
	if err != nil {
		return err
	}
	defer res.Close()
	r := sse.NewReader(res)
	refreshing := func() {} // stops refreshing the session that was named last
	defer func() { refreshing() }()
	for {
		e, err := r.Next()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == io.EOF:
			return watchword.Refuse(watchword.Unavailable, "the stream ended")
		case watchword.CodeOf(err) == watchword.Unavailable:
			return err
		case err != nil:
			return watchword.Wrap(err, watchword.Unavailable, "the stream was interrupted")
		}
		switch e.Name {
		case "session":
			var s api.SessionEvent
			if err := json.Unmarshal([]byte(e.Data), &s); err != nil {
				return err
			}
			refreshing() // one at a time, however many the server names
			refreshing = c.startRefreshing(ctx, s.Session, s.ExpiresAt)
			if opened != nil {
				opened()
			}
		case "end":
			var p api.Problem
			if err := json.Unmarshal([]byte(e.Data), &p); err != nil {
				return err
			}
			return &watchword.Error{Code: p.Code, Detail: p.Detail, Field: p.Field, Rule: p.Rule}
		default:
			if f := on[e.Name]; f != nil {
				if err := f([]byte(e.Data)); err != nil {
					return err
				}
			}
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
