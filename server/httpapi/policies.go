package httpapi

import (
	"context"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/server/policy"
)

func viewPolicy(s policy.Stored) api.Policy {
	return api.Policy{Name: s.Name, Version: s.Version, ChangedAt: s.Changed.UTC()}
}

const (
	tomlType  = "application/toml"
	maxPolicy = 64 << 10
)

func (a *API) policyRoutes() {
	type policyListOut struct{ Body api.PolicyList }
	register(a, operation{method: http.MethodGet, path: "/v1/policies", summary: "List all policies, sorted by name"},
		func(ctx context.Context, c *caller, in *Page) (*policyListOut, error) {
			rows, err := a.Registry.Policies(ctx, c.Tenant())
			if err != nil {
				return nil, err
			}
			out := &policyListOut{}
			out.Body.Policies = []api.Policy{}
			for _, p := range rows {
				if p.Name > in.Token {
					out.Body.Policies = append(out.Body.Policies, viewPolicy(p))
				}
			}
			slices.SortFunc(out.Body.Policies, func(a, b api.Policy) int { return strings.Compare(a.Name, b.Name) })
			var more bool
			if out.Body.Policies, more, err = cutPage(out.Body.Policies, in.Size); more {
				out.Body.NextPageToken = out.Body.Policies[len(out.Body.Policies)-1].Name
			}
			return out, err
		})

	a.handle(route{pattern: "GET /v1/policies/{name}"}, func(w http.ResponseWriter, r *http.Request, c *caller) error {
		p, err := a.Registry.Policy(r.Context(), c.Tenant(), r.PathValue("name"))
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", tomlType)
		w.Header().Set("ETag", etag(p.Version))
		_, _ = w.Write(p.Source) // the error means that the client has closed the connection
		return nil
	})
	a.describe(http.MethodGet, "/v1/policies/{name}", "Get a policy's text (TOML)", nil)

	a.handle(route{pattern: "PUT /v1/policies/{name}", editsPolicy: true, maxBody: maxPolicy, contentType: tomlType}, a.applyPolicy)
	a.describe(http.MethodPut, "/v1/policies/{name}", "Apply a policy; it is effective for live sessions before the response", nil)

	a.handle(route{pattern: "POST /v1/policies/check", safePost: true, maxBody: maxPolicy, contentType: tomlType}, func(w http.ResponseWriter, r *http.Request, c *caller) error {
		name := r.URL.Query().Get("name")
		if err := watchword.CheckName("name", name); err != nil {
			return err
		}
		if err := a.Registry.CheckPolicy(r.Context(), c.Tenant(), name, c.body); err != nil {
			return err
		}
		writeAnswer(w, http.StatusOK, api.PolicyCheck{OK: true})
		return nil
	})
	a.describe(http.MethodPost, "/v1/policies/check", "Check a policy without applying it", nil)

	a.handle(route{pattern: "POST /v1/policies/diff", safePost: true, maxBody: maxPolicy}, a.diffPolicy)
	a.describe(http.MethodPost, "/v1/policies/diff", "Show what an edit of a policy would change, for subjects and live sessions, without applying it", nil)

	type policyDeleteIn struct {
		Name  string `path:"name" maxLength:"64"`
		Match string `header:"If-Match"`
	}
	register(a, operation{method: http.MethodDelete, path: "/v1/policies/{name}", editsPolicy: true, summary: "Delete a policy", status: http.StatusNoContent},
		func(ctx context.Context, c *caller, in *policyDeleteIn) (*noBody, error) {
			v, err := ifMatch(in.Match, -1)
			if err != nil {
				return nil, err
			}
			return nil, c.policyEdit.Delete(ctx, c.actor, in.Name, v, a.Now())
		})
	a.explainRoute()
}

// diffPolicy compares the text in the body, or with ?delete=true the deletion of the policy.
func (a *API) diffPolicy(w http.ResponseWriter, r *http.Request, c *caller) error {
	q := r.URL.Query()
	name := q.Get("name")
	if err := watchword.CheckName("name", name); err != nil {
		return err
	}
	method := http.MethodPut
	source := c.body
	switch del := q.Get("delete"); {
	case del == "true" && len(source) > 0:
		return watchword.RefuseField("body", "must be empty with delete=true")
	case del == "true":
		method, source = http.MethodDelete, nil
	case del != "" && del != "false":
		return watchword.RefuseField("delete", "must be true or false")
	default:
		if ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || ct != tomlType {
			return watchword.Refuse(watchword.UnsupportedMediaType, "Content-Type must be %s", tomlType)
		}
	}
	d, err := a.Registry.DiffPolicy(c.ctx, c.actor, name, source, a.Guard.SubjectSessions)
	if err != nil {
		return err
	}
	if err := c.Authority.Request(method, "/v1/policies/"+name).Err(); err != nil {
		d.Refused = err
	}
	writeAnswer(w, http.StatusOK, viewDiff(name, method == http.MethodDelete, d))
	return nil
}

func (a *API) applyPolicy(w http.ResponseWriter, r *http.Request, c *caller) error {
	name := r.PathValue("name")
	if err := watchword.CheckName("name", name); err != nil {
		return err
	}
	v, err := ifMatch(r.Header.Get("If-Match"), -1)
	if err != nil {
		return err
	}
	if r.Header.Get("If-None-Match") == "*" {
		v = 0
	}
	p, err := c.policyEdit.Apply(r.Context(), c.actor, name, c.body, v, a.Now())
	if err != nil {
		return err
	}
	w.Header().Set("ETag", etag(p.Version))
	writeAnswer(w, http.StatusOK, viewPolicy(p))
	return nil
}

func (a *API) explainRoute() {
	type policyExplainIn struct{ Body api.ExplainRequest }
	type policyExplainOut struct{ Body api.Explanation }
	register(a, operation{method: http.MethodPost, path: "/v1/explain", readsOnly: true, summary: "Explain why an action is allowed or denied"},
		func(ctx context.Context, c *caller, in *policyExplainIn) (*policyExplainOut, error) {
			q := in.Body
			if !explainable(q.Action, q.Resource) {
				return nil, watchword.RefuseField("resource", "must be topic:…, fn:DEVICE/FUNCTION or api:/…, with an action that it has")
			}
			var args []byte
			if len(q.Args) > 0 && string(q.Args) != "null" {
				var err error
				if args, err = compactObject("args", q.Args); err != nil {
					return nil, err
				}
			}
			e, err := a.Registry.Explain(ctx, c.Tenant(), q.Subject, q.Action, q.Resource, args)
			if err != nil {
				return nil, err
			}
			return &policyExplainOut{api.Explanation(e)}, nil
		})
}

func explainable(action, resource string) bool {
	return slices.Contains([]string{"pub", "sub", "call", "get", "put", "post", "patch", "delete"}, action) &&
		watchword.Permission{Resource: resource, Actions: []string{action}}.Check() == nil
}
