package httpapi

import (
	"context"
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
