package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
)

// ServerKey is one of the server's own keys.
type ServerKey struct {
	ID        watchword.KeyID `json:"id"`
	Role      string          `json:"role"`
	State     string          `json:"state"`
	Alg       string          `json:"alg"`
	CreatedAt time.Time       `json:"created_at"`
	StartsAt  *time.Time      `json:"starts_at,omitempty"`
	EndsAt    *time.Time      `json:"ends_at,omitempty"`
	Offline   bool            `json:"offline,omitempty"`
}

// ServerKeys is the server's keys, and how it stands with its trust bundle.
type ServerKeys struct {
	Keys   []ServerKey `json:"keys"`
	Next   string      `json:"next_page_token,omitempty"` // of a page; the client follows it
	Pin    string      `json:"pin"`
	Bundle struct {
		Version   int64     `json:"ver"`
		ExpiresAt time.Time `json:"expires_at"`
		Ahead     int       `json:"ahead"`
		Stale     string    `json:"stale,omitempty"`
	} `json:"bundle"`
}

// PlannedBundle is a trust bundle that waits for a root that lives offline, which
// signs Payload byte for byte.
type PlannedBundle struct {
	Version   int64             `json:"ver"`
	StartsAt  time.Time         `json:"starts_at"`
	ExpiresAt time.Time         `json:"expires_at"`
	Roots     []watchword.KeyID `json:"roots"`
	Payload   string            `json:"payload"`
}

// ServerKeys returns the server's own keys, oldest first.
func (c *Client) ServerKeys(ctx context.Context) (ks ServerKeys, err error) {
	var all []ServerKey
	pages := newPages()
	for q := (url.Values{"page_size": {"500"}}); ; q.Set("page_token", ks.Next) {
		ks = ServerKeys{}
		if err := c.call(ctx, http.MethodGet, "/v1/keys", q, nil, &ks); err != nil {
			return ServerKeys{}, err
		}
		if all = append(all, ks.Keys...); ks.Next == "" {
			ks.Keys = all
			return ks, nil
		}
		if err := pages.next(ctx, ks.Next, len(ks.Keys)); err != nil {
			return ServerKeys{}, err
		}
	}
}

// RotateKey makes a role's next key; atOnce lets it sign now. Codes: not_found, conflict.
func (c *Client) RotateKey(ctx context.Context, role string, atOnce bool) (k ServerKey, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/keys/"+url.PathEscape(role)+"/rotate", nil, map[string]any{"now": atOnce}, &k)
	return k, err
}

// RevokeKey ends one of the server's keys. Codes: not_found, conflict.
func (c *Client) RevokeKey(ctx context.Context, id watchword.KeyID, reason string) (k ServerKey, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/keys/"+url.PathEscape(string(id))+"/revoke", nil, map[string]any{"reason": reason}, &k)
	return k, err
}

// PlanBundles lays out count trust bundles for a root that lives offline. Code: conflict.
func (c *Client) PlanBundles(ctx context.Context, count int) ([]PlannedBundle, error) {
	var out struct {
		Bundles []PlannedBundle `json:"bundles"`
	}
	err := c.call(ctx, http.MethodPost, "/v1/keys/bundles/plan", nil, map[string]any{"count": count}, &out)
	return out.Bundles, err
}

// ImportBundles brings back what was planned, signed. Codes: bundle_invalid,
// key_unknown, signature_invalid, conflict.
func (c *Client) ImportBundles(ctx context.Context, bundles []string) error {
	return c.call(ctx, http.MethodPost, "/v1/keys/bundles", nil, map[string]any{"bundles": bundles}, nil)
}

// TrustBundle returns the trust bundle that the server publishes, as it is.
func (c *Client) TrustBundle(ctx context.Context) (string, error) {
	a, err := c.rest.Do(ctx, rest.Request{Method: http.MethodGet, Path: "/v1/trust", Max: watchword.MaxBundle})
	if err != nil {
		return "", err
	}
	return string(a.Body), nil
}
