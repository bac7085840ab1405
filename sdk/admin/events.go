package admin

import (
	"context"
	"encoding/json"
	"net/url"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
)

// EventQuery selects events. The zero value selects all from now on.
type EventQuery struct {
	Device watchword.SubjectID // empty: all
	Stream string              // empty: all
	After  string              // the ID of an event: those that follow it, as far as the server still has them; empty: from now on
}

// WatchEvents calls f for each event that q selects, until ctx ends, f returns an error or the server refuses the stream. gap
// is called for lost events, before the events that follow them. opened, if not nil, is called each time that the stream is
// open. A stream that was open and is lost goes on after the last event that was read: see [Options.StreamLost].
func (c *Client) WatchEvents(ctx context.Context, q EventQuery, opened func(), gap func(api.EventGap), f func(api.Event) error) error {
	v := url.Values{}
	if q.Device != "" {
		v.Set("device", string(q.Device))
	}
	if q.Stream != "" {
		v.Set("stream", q.Stream)
	}
	return c.stream(ctx, streamRequest{path: "/v1/events", query: v, after: q.After, opened: opened, on: map[string]func([]byte) error{
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
	}})
}

// WatchWithGaps is [Client.WatchEvents] from now on.
func (c *Client) WatchWithGaps(ctx context.Context, device watchword.SubjectID, stream string, opened func(), gap func(api.EventGap), f func(api.Event) error) error {
	return c.WatchEvents(ctx, EventQuery{Device: device, Stream: stream}, opened, gap, f)
}

// Watch is [Client.WatchWithGaps] without notice of lost events.
func (c *Client) Watch(ctx context.Context, device watchword.SubjectID, stream string, opened func(), f func(api.Event) error) error {
	return c.WatchWithGaps(ctx, device, stream, opened, func(api.EventGap) {}, f)
}
