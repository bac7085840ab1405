package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/token"
)

const loginsPath = "/v1/logins"

func loginPath(userCode, rest string) string {
	return loginsPath + "/" + url.PathEscape(userCode) + rest
}

// Logins calls f for each login that has not expired, newest first: keys of people that wait to become those of operators.
func (c *Client) Logins(ctx context.Context, f func(api.Login) error) error {
	return list(ctx, c, loginsPath, url.Values{}, func(p api.LoginList) ([]api.Login, string) { return p.Logins, p.NextPageToken }, f)
}

// Login returns the login of a user code. Codes: bad_request, not_found.
func (c *Client) Login(ctx context.Context, userCode string) (l api.Login, err error) {
	err = c.call(ctx, http.MethodGet, loginPath(userCode, ""), nil, nil, &l)
	return l, err
}

// ApproveLogin makes the key of a login one of the operator id. r.Key and r.Pin are what the person's screen shows; the server
// refuses others than those of the login and of its root, so a code alone approves nothing. role is that of an operator who is
// added; empty for an operator who exists. keyName tells the keys of one operator apart; it may be empty. keyTTL is
// the lifetime of the key from now on; 0 means that it has no end. Codes: bad_request,
// not_found, conflict, exceeds_own.
func (c *Client) ApproveLogin(ctx context.Context, r token.LoginRequest, id watchword.SubjectID, role, keyName string, keyTTL time.Duration) (s api.Subject, err error) {
	in := api.ApproveLoginRequest{Sign: string(r.Key), Pin: r.Pin, ID: string(id), Role: role, Name: keyName}
	if keyTTL > 0 {
		in.KeyTTL = keyTTL.String()
	}
	err = c.call(ctx, http.MethodPost, loginPath(r.UserCode, "/approve"), nil, in, &s)
	return s, err
}

// RejectLogin rejects a login. Codes: bad_request, not_found, conflict.
func (c *Client) RejectLogin(ctx context.Context, userCode string) (l api.Login, err error) {
	err = c.call(ctx, http.MethodPost, loginPath(userCode, "/reject"), nil, nil, &l)
	return l, err
}
