package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/watchword-iot/watchword"
)

// Pairing is a device with keys and no link, that waits for an operator's word
// (RFC 8628), or did. State is pending, approved or rejected.
type Pairing struct {
	UserCode  string              `json:"user_code"`
	State     string              `json:"state"`
	Wish      watchword.SubjectID `json:"wish,omitempty"` // the id that the device would like
	Sign      watchword.KeyID     `json:"sign"`           // what the device shows, and what is approved
	Seal      watchword.KeyID     `json:"seal"`
	Remote    string              `json:"remote"`
	CreatedAt time.Time           `json:"created_at"`
	ExpiresAt time.Time           `json:"expires_at"`
	Device    watchword.SubjectID `json:"device,omitempty"` // who it became
	By        watchword.SubjectID `json:"by,omitempty"`
	DecidedAt *time.Time          `json:"decided_at,omitempty"`
}

func pairingPath(userCode, rest string) string {
	return "/v1/enrollments/" + url.PathEscape(userCode) + rest
}

// Pairings calls f for each pairing that is not over, newest first.
func (c *Client) Pairings(ctx context.Context, f func(Pairing) error) error {
	return list(ctx, c, "/v1/enrollments", "enrollments", url.Values{}, f)
}

// Pin returns what a device checks the server's root by.
func (c *Client) Pin(ctx context.Context) (string, error) {
	var out struct {
		Pin string `json:"pin"`
	}
	err := c.call(ctx, http.MethodGet, "/v1/enrollments", url.Values{"page_size": {"1"}}, nil, &out)
	return out.Pin, err
}

// Pairing returns the pairing of a user code. Codes: bad_request, not_found.
func (c *Client) Pairing(ctx context.Context, userCode string) (p Pairing, err error) {
	err = c.call(ctx, http.MethodGet, pairingPath(userCode, ""), nil, nil, &p)
	return p, err
}

// ApprovePairing makes the keys behind a user code those of a device. sign is the
// whole thumbprint that the device shows. id empty means the device's wish; only
// an id that is said here may be that of a device that is there already, new or
// revoked. Codes: bad_request, not_found, conflict, token_too_large.
func (c *Client) ApprovePairing(ctx context.Context, userCode string, sign watchword.KeyID, id watchword.SubjectID, l watchword.Labels) (d Device, err error) {
	in := map[string]any{"sign": sign}
	if id != "" {
		in["id"] = id
	}
	if len(l) > 0 {
		in["labels"] = l
	}
	err = c.call(ctx, http.MethodPost, pairingPath(userCode, "/approve"), nil, in, &d)
	return d, err
}

// RejectPairing turns a device down. Codes: bad_request, not_found, conflict.
func (c *Client) RejectPairing(ctx context.Context, userCode string) (p Pairing, err error) {
	err = c.call(ctx, http.MethodPost, pairingPath(userCode, "/reject"), nil, nil, &p)
	return p, err
}
