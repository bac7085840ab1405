package rest

import (
	"context"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// Tokens gets access tokens for client assertions and remembers the last one
// until four fifths of its life are over. It is safe for concurrent use.
type Tokens struct {
	Client *Client // without a Bearer
	Path   string  // of the token endpoint
	Sign   func() (assertion string, err error)
	Now    func() time.Time

	mu    sync.Mutex
	token string
	until time.Time
}

// Get returns a token that is good for a while. Codes: client_invalid and what
// else the token endpoint says.
func (t *Tokens) Get(ctx context.Context) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.token != "" && t.Now().Before(t.until) {
		return t.token, nil
	}
	return t.fetch(ctx)
}

// Renew returns a new token, however good the last one still is.
func (t *Tokens) Renew(ctx context.Context) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fetch(ctx)
}

// Forget drops a token that the server has refused.
func (t *Tokens) Forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.token = ""
}

func (t *Tokens) fetch(ctx context.Context) (string, error) {
	assertion, err := t.Sign()
	if err != nil {
		return "", err
	}
	form := url.Values{
		"grant_type":            {"client_credentials"},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		"client_assertion":      {assertion},
	}
	var out struct {
		Token string `json:"access_token"`
		In    int64  `json:"expires_in"`
	}
	if _, err := t.Client.JSON(ctx, Request{
		Method: http.MethodPost, Path: t.Path, Type: "application/x-www-form-urlencoded", Body: []byte(form.Encode()),
	}, nil, &out); err != nil {
		return "", err
	}
	if out.Token == "" || out.In <= 0 {
		return "", watchword.Refuse(watchword.Internal, "the token endpoint gave no token")
	}
	t.token, t.until = out.Token, t.Now().Add(time.Duration(out.In)*time.Second*4/5)
	return t.token, nil
}
