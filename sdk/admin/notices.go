package admin

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
)

// noticeHeader is the header of an answer that tells an operator of a notice.
const noticeHeader = "Watchword-Notice"

// noticeReader is a transport that calls f for the notices of each answer.
type noticeReader struct {
	http.RoundTripper
	f func(api.Notice)
}

// maxNotices is how many notices of one answer are read.
const maxNotices = 8

func (t noticeReader) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := t.RoundTripper.RoundTrip(r)
	if err != nil {
		return res, err
	}
	all := res.Header.Values(noticeHeader)
	for _, line := range all[:min(len(all), maxNotices)] {
		if f := strings.Split(line, " "); len(f) == 3 {
			if at, err := time.Parse(time.RFC3339, f[2]); err == nil {
				t.f(api.Notice{Kind: watchword.NoticeKind(f[0]), Object: watchword.SubjectID(f[1]), At: at})
			}
		}
	}
	return res, nil
}

// Notices returns what every operator is told, and what ends within a week. Codes: denied, unavailable.
func (c *Client) Notices(ctx context.Context) (out api.NoticeList, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/notices", nil, nil, &out)
	return out, err
}

// AcknowledgeNotice ends a notice for all operators: Kind, Object and At of n count. Codes: not_found; conflict where there is a newer
// notice of the kind; denied, also for the operator whom it is about and for a key that is not older than the notice.
func (c *Client) AcknowledgeNotice(ctx context.Context, n api.Notice) error {
	q := url.Values{"object": {string(n.Object)}, "at": {n.At.UTC().Format(time.RFC3339)}}
	return c.call(ctx, http.MethodDelete, "/v1/notices/"+url.PathEscape(string(n.Kind)), q, nil, nil)
}
