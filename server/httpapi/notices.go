package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/server/session"
)

// noticeHeader tells an operator of a notice: KIND OBJECT TIME (RFC 3339), once for each.
const noticeHeader = "Watchword-Notice"

// addNotices adds the notices of the tenant to the answer to an operator, whatever the request is.
func (a *API) addNotices(ctx context.Context, header http.Header, who *session.Authority) {
	if header == nil || who.PolicySubject().Kind != watchword.Operator {
		return
	}
	all, err := a.Registry.Notices(ctx, who.Tenant(), a.Now())
	if err != nil {
		a.Log.ErrorContext(ctx, "notices were not read", slog.Any("err", err))
		return
	}
	header.Del(noticeHeader)
	for _, n := range all {
		header.Add(noticeHeader, string(n.Kind)+" "+string(n.Object)+" "+n.At.UTC().Format(time.RFC3339))
	}
}

func viewNotices(all []watchword.Notice) []api.Notice {
	out := []api.Notice{}
	for _, n := range all {
		out = append(out, api.Notice{Kind: n.Kind, Object: n.Object, At: n.At.UTC(), ExpiresAt: n.Expires.UTC()})
	}
	return out
}

func (a *API) noticeRoutes() {
	type noticesOut struct{ Body api.NoticeList }
	register(a, operation{method: http.MethodGet, path: "/v1/notices", summary: "List what every operator is told, and what ends within a week"},
		func(ctx context.Context, c *caller, _ *noBody) (*noticesOut, error) {
			all, err := a.Registry.Notices(ctx, c.Tenant(), a.Now())
			if err != nil {
				return nil, err
			}
			out := &noticesOut{api.NoticeList{Notices: viewNotices(all), Endings: []api.Ending{}}}
			if a.Endings != nil {
				out.Body.Endings, err = a.Endings(ctx, c.Tenant(), a.Now())
			}
			return out, err
		})
	type noticeIn struct {
		Kind   watchword.NoticeKind `path:"kind" maxLength:"64"`
		Object watchword.SubjectID  `query:"object" required:"true" maxLength:"64" doc:"what the notice is about"`
		At     time.Time            `query:"at" required:"true" doc:"when it was made (RFC 3339), to the second"`
	}
	register(a, operation{method: http.MethodDelete, path: "/v1/notices/{kind}", summary: "Acknowledge a notice: no operator is told of it any more", status: http.StatusNoContent},
		func(ctx context.Context, c *caller, in *noticeIn) (*noBody, error) {
			return nil, a.Registry.AcknowledgeNotice(ctx, c.actor, in.Kind, in.Object, in.At, a.Now())
		})
}
