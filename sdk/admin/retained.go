package admin

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
)

// RetainedQuery selects retained messages. Empty fields select all.
type RetainedQuery struct {
	Filter string              // an MQTT topic filter
	Owner  watchword.SubjectID // the subject that published them
}

// Retained calls f for each retained message that q selects, sorted by the levels of their topics, and ends with f's error.
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

// retainedPath returns the path of a topic's retained message. Dots are encoded too, since a segment of one or two dots
// would be removed from a path.
func retainedPath(topic string) string {
	return "/v1/retained/" + strings.ReplaceAll(url.PathEscape(topic), ".", "%2E")
}
