package admin

import (
	"context"
	"net/http"
	"time"

	"github.com/watchword-iot/watchword/api"
)

// Address returns where the server's clients find it, and its addresses of before.
func (c *Client) Address(ctx context.Context) (a api.Address, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/address", nil, nil, &a)
	return a, err
}

// MoveAddress moves the server to another public URL, https://HOST[:PORT], at once. What names the former issuer, such as this client's
// own assertions, is accepted for overlap more; 0 means 720 h. Codes: bad_request; conflict if the server has the address; key_missing
// if its root is offline.
func (c *Client) MoveAddress(ctx context.Context, url string, overlap time.Duration) (a api.Address, err error) {
	q := api.MoveAddressRequest{URL: url}
	if overlap != 0 {
		q.Overlap = overlap.String()
	}
	err = c.call(ctx, http.MethodPost, "/v1/address/move", nil, q, &a)
	return a, err
}
