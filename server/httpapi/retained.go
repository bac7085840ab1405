package httpapi

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/authz"
	"github.com/watchword-iot/watchword/internal/truncate"
	"github.com/watchword-iot/watchword/server/audit"
	"github.com/watchword-iot/watchword/server/policy"
	"github.com/watchword-iot/watchword/server/session"
)

func viewRetained(m session.Retained) api.Retained {
	return api.Retained{
		Topic: m.Topic, Owner: m.Owner, Incarnation: m.Incarnation, Deliverable: m.Deliverable, QoS: m.QoS, Bytes: len(m.Payload), MemoryBytes: m.MemoryBytes, ContentType: truncate.LogText(m.ContentType),
		ExpiresAt: optionalTime(m.Expires),
	}
}

// retainedPrefix begins the path of one retained message; the topic follows.
const retainedPrefix = "/v1/retained/"

// policyPath returns a request's path in the form that policies match. It is the path of the URL,
// except for topics of retained messages: their levels that a path segment cannot be (empty, ., ..,
// not printable) are written as %, %2E, %2E%2E or percent-encoded, which only wildcards match.
func policyPath(r *http.Request) string {
	topic, ok := strings.CutPrefix(r.URL.Path, retainedPrefix)
	if !ok {
		return r.URL.Path
	}
	levels := strings.Split(topic, "/")
	for i, l := range levels {
		switch {
		case l == "":
			levels[i] = "%"
		case l == "." || l == "..":
			levels[i] = strings.ReplaceAll(l, ".", "%2E")
		case !authz.Printable(l):
			levels[i] = url.PathEscape(l)
		}
	}
	return retainedPrefix + strings.Join(levels, "/")
}

func (a *API) retainedRoutes() {
	type listIn struct {
		Filter string              `query:"filter" maxLength:"1024" doc:"an MQTT topic filter; none: all topics"`
		Owner  watchword.SubjectID `query:"owner" maxLength:"64"`
		Size   int                 `query:"page_size" minimum:"1" maximum:"1000" default:"100"`
		Token  string              `query:"page_token" maxLength:"2048"`
	}
	type listOut struct{ Body api.RetainedList }
	type topicIn struct {
		Topic string `path:"topic" doc:"the topic, with every / as %2F"`
	}
	type wholeOut struct{ Body api.RetainedDetail }

	register(a, operation{method: http.MethodGet, path: "/v1/retained", summary: "List retained messages, sorted by the levels of their topics"},
		func(ctx context.Context, c *caller, in *listIn) (*listOut, error) {
			if in.Filter != "" {
				if err := policy.CheckFilter(in.Filter); err != nil {
					return nil, err
				}
			}
			after, err := base64.RawURLEncoding.DecodeString(in.Token)
			if err != nil {
				return nil, watchword.RefuseField("page_token", "must be next_page_token of the page before, unchanged, for the same list")
			}
			out := &listOut{}
			out.Body.Retained = []api.Retained{}
			if a.Broker == nil {
				return out, nil
			}
			page, next, err := a.Broker.Retained(ctx, c.Tenant(), in.Filter, in.Owner, string(after), in.Size)
			if err != nil {
				return nil, err
			}
			for _, m := range page {
				out.Body.Retained = append(out.Body.Retained, viewRetained(m))
			}
			var more bool
			if out.Body.Retained, more, err = cutPage(out.Body.Retained, in.Size); more {
				next = page[len(out.Body.Retained)-1].Topic
			}
			out.Body.NextPageToken = base64.RawURLEncoding.EncodeToString([]byte(next))
			return out, err
		})
	register(a, operation{method: http.MethodGet, path: retainedPrefix + "{topic...}", summary: "Get the retained message of a topic, with its payload"},
		func(ctx context.Context, c *caller, in *topicIn) (*wholeOut, error) {
			m, err := a.retainedMessage(ctx, c, in.Topic)
			if err != nil {
				return nil, err
			}
			e := c.actor.DoneEntry(audit.RetainedShow, in.Topic, a.Now(), map[string]string{"owner": string(m.Owner), "remote": c.remote})
			if err := a.Entries.AddEntry(ctx, e); err != nil {
				return nil, err
			}
			return &wholeOut{api.RetainedDetail{Retained: viewRetained(m), Payload: m.Payload}}, nil
		})
	register(a, operation{method: http.MethodDelete, path: retainedPrefix + "{topic...}", summary: "Delete the retained message of a topic", status: http.StatusNoContent},
		func(ctx context.Context, c *caller, in *topicIn) (*noBody, error) {
			if _, err := a.retainedMessage(ctx, c, in.Topic); err != nil {
				return nil, err
			}
			return nil, a.Broker.DeleteRetained(ctx, c.Tenant(), in.Topic, func(m session.Retained) error {
				return a.Entries.AddEntry(ctx, c.actor.DoneEntry(audit.RetainedDelete, in.Topic, a.Now(), map[string]string{
					"owner": string(m.Owner), "bytes": strconv.Itoa(len(m.Payload)),
				}))
			})
		})
	// An OpenAPI path template cannot express a parameter of several segments.
	paths := a.huma.OpenAPI().Paths
	paths[retainedPrefix+"{topic}"] = paths[retainedPrefix+"{topic...}"]
	delete(paths, retainedPrefix+"{topic...}")
}

// retainedMessage returns the retained message of a topic. Codes: bad_request, not_found,
// unavailable.
func (a *API) retainedMessage(ctx context.Context, c *caller, topic string) (session.Retained, error) {
	if err := policy.CheckTopic(topic); err != nil {
		return session.Retained{}, err
	}
	if a.Broker == nil {
		return session.Retained{}, watchword.Refuse(watchword.NotFound, "no message is retained for this topic")
	}
	return a.Broker.RetainedMessage(ctx, c.Tenant(), topic)
}
