package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
)

func policyPath(name string) string { return "/v1/policies/" + url.PathEscape(name) }

// Policies returns all policies, by name.
func (c *Client) Policies(ctx context.Context) ([]api.Policy, error) {
	all := []api.Policy{}
	err := list(ctx, c, "/v1/policies", url.Values{}, func(p api.PolicyList) ([]api.Policy, string) { return p.Policies, p.NextPageToken }, func(p api.Policy) error {
		all = append(all, p)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Policy returns a policy's text and version. Code: not_found.
func (c *Client) Policy(ctx context.Context, name string) (text []byte, version int64, err error) {
	a, err := c.rest.Do(ctx, rest.Request{Method: http.MethodGet, Path: policyPath(name)})
	if err != nil {
		return nil, 0, err
	}
	version, err = strconv.ParseInt(strings.Trim(a.Header.Get("ETag"), `"`), 10, 64)
	return a.Body, version, err
}

// CheckPolicy reports the mistakes in a policy. Codes: policy_invalid, token_too_large.
func (c *Client) CheckPolicy(ctx context.Context, name string, text []byte) error {
	_, err := c.rest.Do(ctx, rest.Request{
		Method: http.MethodPost, Path: "/v1/policies/check", Query: url.Values{"name": {name}}, Type: "application/toml", Body: text,
	})
	return err
}

// DiffPolicy returns what ApplyPolicy with this text would change, or DeletePolicy where text is nil, and changes nothing. Its
// Version is what ApplyPolicy takes as ifVersion. Codes: policy_invalid, too_large, timed_out; not_found for the deletion of a policy
// that is not there.
func (c *Client) DiffPolicy(ctx context.Context, name string, text []byte) (d api.PolicyDiff, err error) {
	r := rest.Request{Method: http.MethodPost, Path: "/v1/policies/diff", Query: url.Values{"name": {name}}, Type: "application/toml", Body: text}
	if text == nil {
		r.Query.Set("delete", "true")
	}
	_, err = c.rest.JSON(ctx, r, nil, &d)
	return d, err
}

// ApplyPolicy applies a policy, which is effective for live sessions when it returns. ifVersion below 0 means any, 0 that
// it must not exist. Codes: policy_invalid, token_too_large, precondition_failed.
func (c *Client) ApplyPolicy(ctx context.Context, name string, text []byte, ifVersion int64) (p api.Policy, err error) {
	r := rest.Request{Method: http.MethodPut, Path: policyPath(name), Type: "application/toml", Body: text}
	switch {
	case ifVersion == 0:
		r.Header = map[string]string{"If-None-Match": "*"}
	case ifVersion > 0:
		r.Header = map[string]string{"If-Match": etag(ifVersion)}
	}
	_, err = c.rest.JSON(ctx, r, nil, &p)
	return p, err
}

// DeletePolicy deletes a policy. Code: not_found.
func (c *Client) DeletePolicy(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, policyPath(name), nil, nil, nil)
}

// Explain returns policy's decision on a subject, an action and a resource. Code: not_found.
func (c *Client) Explain(ctx context.Context, subject watchword.SubjectID, action, resource string, args json.RawMessage) (e api.Explanation, err error) {
	in := api.ExplainRequest{Subject: subject, Action: action, Resource: resource, Args: args}
	err = c.call(ctx, http.MethodPost, "/v1/explain", nil, in, &e)
	return e, err
}

// Self returns the client's own subject and permissions.
func (c *Client) Self(ctx context.Context) (s api.Self, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/self", nil, nil, &s)
	return s, err
}
