package httpapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/quota"
	"github.com/watchword-iot/watchword/server/bus"
	"github.com/watchword-iot/watchword/server/session"
)

func viewEvent(e *bus.Event) api.Event {
	v := api.Event{ID: e.ID(), Device: e.Device, Stream: e.Stream, ContentType: e.ContentType, At: e.At.UTC()}
	if len(e.Data) > 0 && json.Valid(e.Data) {
		v.Data = e.Data
	} else {
		v.DataBase64 = base64.StdEncoding.EncodeToString(e.Data)
	}
	return v
}

func (a *API) eventRoutes() {
	a.handle(route{pattern: "GET /v1/events", stream: func(*http.Request) string { return streamTransport }}, a.streamEvents)
	a.describe(http.MethodGet, "/v1/events", "Stream live events as server-sent events", nil)
}

// eventFilter returns the topic filter of a request. Code: bad_request.
func eventFilter(r *http.Request) (string, error) {
	q := r.URL.Query()
	device, stream := q.Get("device"), q.Get("stream")
	if device == "" {
		device = "+"
	} else if err := watchword.CheckName("device", device); err != nil {
		return "", err
	}
	if stream == "" {
		stream = "#"
	} else {
		for segment := range strings.SplitSeq(stream, "/") {
			if err := watchword.CheckName("stream", segment); err != nil {
				return "", err
			}
		}
	}
	return "devices/" + device + "/events/" + stream, nil
}

func (a *API) streamEvents(w http.ResponseWriter, r *http.Request, c *caller) error {
	filter, err := eventFilter(r)
	if err != nil {
		return err
	}
	since := r.Header.Get("Last-Event-ID")
	if len(since) > 64 {
		return watchword.RefuseField("Last-Event-ID", "must be the id of an event of this stream, at most 64 bytes")
	}
	ctx := c.ctx
	if err := c.session.require(func(now *session.Authority) error { return now.Subscribe(filter).Err() }); err != nil {
		return err
	}
	reader, err := a.Bus.Tenant(c.Tenant()).Read(ctx, c.session, quota.Key{Tenant: c.Tenant(), Subject: c.Subject()}, filter, since)
	if err != nil {
		return err
	}
	defer reader.Close()
	out := newStream(c)
	if out.send("session", reader.Start(), sessionEvent(c.session.Session)) != nil {
		return nil // the client has closed the connection
	}
	beat := time.NewTicker(sseKeepAlive)
	defer beat.Stop()
	for {
		select {
		case <-reader.Ready():
			if !sendEvents(ctx, out, reader) {
				return a.endBrokenStream(out, r, c)
			}
		case <-beat.C:
			if out.keepAlive() != nil {
				return nil
			}
		case <-ctx.Done():
			a.endStream(out, r, streamEnded(ctx)) // events that were queued when authority ended are not sent
			return nil
		}
	}
}

// sendEvents sends all available events until ctx ends. false: the client has closed the
// connection.
func sendEvents(ctx context.Context, out *stream, reader *bus.Reader) bool {
	var gap bus.Gap
	for more := true; more && ctx.Err() == nil; {
		var events []*bus.Event
		var step bus.Gap
		events, step, more = reader.Next()
		gap.Join(step)
		if gap.Any() && (len(events) > 0 || !more) {
			if out.send("gap", "", api.EventGap(gap)) != nil {
				return false
			}
			gap = bus.Gap{}
		}
		for _, e := range events {
			if ctx.Err() != nil {
				return true
			}
			if out.send("event", e.ID(), viewEvent(e)) != nil {
				return false
			}
		}
	}
	return true
}
