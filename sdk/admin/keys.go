package admin

import (
	"context"
	"net/http"
	"net/url"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/rest"
)

// ServerKeys returns the server's own keys, oldest first.
func (c *Client) ServerKeys(ctx context.Context) (ks api.ServerKeyList, err error) {
	var all []api.ServerKey
	pages := newPages()
	for q := (url.Values{"page_size": {"500"}}); ; q.Set("page_token", ks.NextPageToken) {
		ks = api.ServerKeyList{}
		if err := c.call(ctx, http.MethodGet, "/v1/keys", q, nil, &ks); err != nil {
			return api.ServerKeyList{}, err
		}
		if all = append(all, ks.Keys...); ks.NextPageToken == "" {
			ks.Keys = all
			return ks, nil
		}
		if err := pages.next(ctx, ks.NextPageToken, len(ks.Keys)); err != nil {
			return api.ServerKeyList{}, err
		}
	}
}

// RotateKey creates a role's next key; with atOnce it signs immediately. Codes: not_found, conflict.
func (c *Client) RotateKey(ctx context.Context, role string, atOnce bool) (k api.ServerKey, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/keys/"+url.PathEscape(role)+"/rotate", nil, api.RotateKeyRequest{Now: atOnce}, &k)
	return k, err
}

// RevokeKey revokes one of the server's keys. Codes: not_found, conflict.
func (c *Client) RevokeKey(ctx context.Context, id watchword.KeyID, reason string) (k api.ServerKey, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/keys/"+url.PathEscape(string(id))+"/revoke", nil, api.ReasonRequest{Reason: reason}, &k)
	return k, err
}

// PlanBundles returns count trust bundles for an offline root to sign. Code: conflict.
func (c *Client) PlanBundles(ctx context.Context, count int) ([]api.PlannedBundle, error) {
	var out api.PlannedBundles
	err := c.call(ctx, http.MethodPost, "/v1/keys/bundles/plan", nil, api.PlanBundlesRequest{Count: count}, &out)
	return out.Bundles, err
}

// ImportBundles imports signed bundles of a plan. Codes: bundle_invalid, key_unknown, signature_invalid, conflict.
func (c *Client) ImportBundles(ctx context.Context, bundles []string) error {
	return c.call(ctx, http.MethodPost, "/v1/keys/bundles", nil, api.ImportBundlesRequest{Bundles: bundles}, nil)
}

// TrustBundle returns the published trust bundle, unchanged.
func (c *Client) TrustBundle(ctx context.Context) (string, error) {
	a, err := c.rest.Do(ctx, rest.Request{Method: http.MethodGet, Path: "/v1/trust", Max: watchword.MaxBundle})
	if err != nil {
		return "", err
	}
	return string(a.Body), nil
}
