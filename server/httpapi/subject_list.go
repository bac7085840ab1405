package httpapi

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/server/registry"
)

// subjectListIn are the parameters of the lists of devices, operators and services.
type subjectListIn struct {
	Page
	Label  []string        `query:"label,explode" maxItems:"16" doc:"key=value; key=value,value: one of them; key: any value; key!=value, key!=value,value, !key: the opposites. All must be true"`
	State  watchword.State `query:"state" enum:"new,active,suspended,revoked"`
	Search string          `query:"search" maxLength:"128" doc:"part of the id, of the name, or of a label as key=value; the case of letters does not count"`
	Sort   string          `query:"sort" enum:"id,created,changed,state,last_seen" doc:"default id; then by id"`
	Order  string          `query:"order" enum:"asc,desc" doc:"default asc"`
}

// listSubjects returns a page of the subjects of one kind, without their keys. view is what the answer shows of one, by whose size the page
// is bounded.
func (a *API) listSubjects(ctx context.Context, c *caller, kind watchword.Kind, in *subjectListIn, view func(watchword.Subject) any) (page []watchword.Subject, next string, err error) {
	q := registry.ListQuery{
		Kind: kind, State: in.State, Search: in.Search, Order: registry.Order(cmp.Or(in.Sort, string(registry.OrderID))), Descending: in.Order == "desc", Limit: in.Size,
	}
	if q.Selector, err = watchword.ParseSelector(in.Label); err != nil {
		return nil, "", err
	}
	if in.Token != "" {
		q.After = &registry.Position{ID: watchword.SubjectID(in.Token)}
		if q.Order != registry.OrderID {
			if err := decodePageToken(in.Token, q.After); err != nil {
				return nil, "", err
			}
		}
	}
	rows, after, err := a.Registry.ListPage(ctx, c.Tenant(), q)
	if err != nil {
		return nil, "", err
	}
	bytes := 0
	for i := range rows {
		b, err := json.Marshal(view(rows[i]))
		if err != nil {
			return nil, "", err
		}
		if bytes += len(b) + 1; i > 0 && bytes > pageBytes {
			last := registry.PositionOf(&rows[i-1], q.Order)
			rows, after = rows[:i], &last
			break
		}
	}
	if after == nil {
		return rows, "", nil
	}
	if q.Order == registry.OrderID {
		return rows, string(after.ID), nil
	}
	next, err = encodePageToken(after)
	return rows, next, err
}

func viewSubjects(rows []watchword.Subject) []api.Subject {
	out := []api.Subject{}
	for _, s := range rows {
		out = append(out, viewSubject(s))
	}
	return out
}

func (a *API) totalRoutes() {
	type totalsOut struct{ Body api.Totals }
	register(a, operation{method: http.MethodGet, path: "/v1/totals", summary: "Count devices and services by state"},
		func(ctx context.Context, c *caller, _ *struct{}) (*totalsOut, error) {
			out := &totalsOut{}
			for kind, into := range map[watchword.Kind]*map[watchword.State]int64{
				watchword.Device: &out.Body.Devices, watchword.Service: &out.Body.Services,
			} {
				var err error
				if *into, err = a.Registry.Totals(ctx, c.Tenant(), kind); err != nil {
					return nil, err
				}
			}
			return out, nil
		})
	type labelsIn struct {
		Page
		Kind watchword.Kind `query:"kind" enum:"device,service" doc:"default device"`
		Key  string         `query:"key" maxLength:"64" doc:"labels with this key only"`
	}
	type labelsOut struct{ Body api.LabelTotalList }
	register(a, operation{method: http.MethodGet, path: "/v1/labels", summary: "Count the subjects that have each label, in order of key and value"},
		func(ctx context.Context, c *caller, in *labelsIn) (*labelsOut, error) {
			var after registry.LabelTotal
			if in.Token != "" {
				if err := decodePageToken(in.Token, &after); err != nil {
					return nil, err
				}
			}
			rows, err := a.Registry.LabelTotals(ctx, c.Tenant(), cmp.Or(in.Kind, watchword.Device), in.Key, after, in.Size+1)
			if err != nil {
				return nil, err
			}
			out := &labelsOut{}
			out.Body.Labels = []api.LabelTotal{}
			for i, l := range rows {
				if i == in.Size {
					out.Body.NextPageToken, err = encodePageToken(rows[i-1])
					break
				}
				out.Body.Labels = append(out.Body.Labels, api.LabelTotal{Key: l.Key, Value: l.Value, Count: l.Count})
			}
			return out, err
		})
}
