package admin

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
)

// RetainedQuery chooses retained messages. Empty fields choose all.
type RetainedQuery struct {
	Filter string              // an MQTT topic filter
	Owner  watchword.SubjectID // who published them
}

// Retained calls f with the retained messages that q chooses, in the order of their topics'
// levels, and ends with its error.
func (c *Client) Retained(ctx context.Context, q RetainedQuery, f func(api.Retained) error) error {
	v := url.Values{}
	if q.Filter != "" {
		v.Set("filter", q.Filter)
	}
	if q.Owner != "" {
		v.Set("owner", string(q.Owner))
	}
	return list(ctx, c, "/v1/retained", v, func(p api.RetainedList) ([]api.Retained, string) { return p.Retained, p.NextPageToken }, f)
}

// RetainedMessage returns the retained message of a topic, with its payload. Code: not_found.
func (c *Client) RetainedMessage(ctx context.Context, topic string) (m api.RetainedDetail, err error) {
	err = c.call(ctx, http.MethodGet, retainedPath(topic), nil, nil, &m)
	return m, err
}

// DeleteRetained removes the retained message of a topic. Code: not_found.
func (c *Client) DeleteRetained(ctx context.Context, topic string) error {
	return c.call(ctx, http.MethodDelete, retainedPath(topic), nil, nil, nil)
}

// retainedPath is the path of a topic's retained message. Dots are encoded too: a topic of
// one or two is no step of a path.
func retainedPath(topic string) string {
	return "/v1/retained/" + strings.ReplaceAll(url.PathEscape(topic), ".", "%2E")
}
