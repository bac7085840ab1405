package admin

import (
	"context"
	"net/http"
	"net/url"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
)

func pairingPath(userCode, rest string) string {
	return "/v1/enrollments/" + url.PathEscape(userCode) + rest
}

// Pairings calls f for each pairing that has not expired, newest first.
func (c *Client) Pairings(ctx context.Context, f func(api.Pairing) error) error {
	return list(ctx, c, "/v1/enrollments", url.Values{}, func(p api.PairingList) ([]api.Pairing, string) { return p.Pairings, p.NextPageToken }, f)
}

// TrustPin returns the pin by which devices verify the server's root.
func (c *Client) TrustPin(ctx context.Context) (string, error) {
	var out api.PairingList
	err := c.call(ctx, http.MethodGet, "/v1/enrollments", url.Values{"page_size": {"1"}}, nil, &out)
	return out.Pin, err
}

// Pairing returns the pairing of a user code. Codes: bad_request, not_found.
func (c *Client) Pairing(ctx context.Context, userCode string) (p api.Pairing, err error) {
	err = c.call(ctx, http.MethodGet, pairingPath(userCode, ""), nil, nil, &p)
	return p, err
}

// ApprovePairing enrolls the keys of a user code as a device. sign is the whole thumbprint that the device shows. An empty
// id means the ID that the device requested. Only an id that is stated here may be that of an existing device, new or
// revoked. Codes: bad_request, not_found, conflict, token_too_large.
func (c *Client) ApprovePairing(ctx context.Context, userCode string, sign watchword.KeyID, id watchword.SubjectID, l watchword.Labels) (d api.Device, err error) {
	in := api.ApprovePairingRequest{Sign: string(sign), ID: string(id), Labels: l}
	err = c.call(ctx, http.MethodPost, pairingPath(userCode, "/approve"), nil, in, &d)
	return d, err
}

// RejectPairing rejects a device's pairing. Codes: bad_request, not_found, conflict.
func (c *Client) RejectPairing(ctx context.Context, userCode string) (p api.Pairing, err error) {
	err = c.call(ctx, http.MethodPost, pairingPath(userCode, "/reject"), nil, nil, &p)
	return p, err
}
