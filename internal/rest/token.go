package rest

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// The bounds of what the token endpoint says.
const (
	maxTokenResponse = 64 << 10 // bytes of its answer
	maxLife          = 86400    // seconds that a token is used for without asking again
)

// Tokens gets access tokens for client assertions and remembers the last one
// until four fifths of its life are over, a second at least. It is safe for concurrent use.
type Tokens struct {
	Client *Client // without Tokens
	Path   string  // of the token endpoint
	Sign   func() (assertion string, err error)
	Now    func() time.Time
	// Prover, if not nil, proves the key where the server wants it, or from Prove on:
	// then tokens are bound to the prover's key (RFC 9449).
	Prover *Prover
	// WithLock, if not nil, is called instead of each look for a token, and calls get for it.
	WithLock func(ctx context.Context, get func(context.Context) error) error

	fetching contextMutex // one fetch at a time; before mu

	mu          sync.Mutex // of what follows; never held while the server is asked
	bindsTokens bool
	token       string
	bound       bool // token is
	refreshAt   time.Time
	dropped     int // how often tokens that were asked for until then ceased to count
}

// contextMutex is a mutex whose wait ends with a context: who holds it may wait for the server.
type contextMutex struct {
	once sync.Once
	free chan struct{}
}

// Lock waits until ctx ends.
func (t *contextMutex) Lock(ctx context.Context) error {
	t.once.Do(func() { t.free = make(chan struct{}, 1) })
	select {
	case t.free <- struct{}{}:
		return nil
	case <-ctx.Done():
		if cause, ok := errors.AsType[*watchword.Error](context.Cause(ctx)); ok {
			return cause
		}
		return ctx.Err()
	}
}

// Unlock gives the turn up.
func (t *contextMutex) Unlock() { <-t.free }

// Get returns a token that is good for a while. Codes: client_invalid and what
// else the token endpoint says.
func (t *Tokens) Get(ctx context.Context) (string, error) {
	token, _, err := t.credential(ctx)
	return token, err
}

// credential returns a token and, where it is bound, who proves its key.
func (t *Tokens) credential(ctx context.Context) (token string, prover *Prover, err error) {
	err = t.withLock(ctx, func(ctx context.Context) (err error) {
		if err := t.fetching.Lock(ctx); err != nil {
			return err
		}
		defer t.fetching.Unlock()
		access, bound := t.cached()
		if access == "" {
			access, bound, err = t.fetch(ctx)
		}
		token, prover = access, nil
		if bound {
			prover = t.Prover
		}
		return err
	})
	return token, prover, err
}

// cached returns the token that was got last; empty where it does not count any more.
func (t *Tokens) cached() (token string, bound bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.Now().Before(t.refreshAt) {
		return "", false
	}
	return t.token, t.bound
}

func (t *Tokens) withLock(ctx context.Context, get func(context.Context) error) error {
	if t.WithLock == nil {
		return get(ctx)
	}
	return t.WithLock(ctx, get)
}

// BindTokens lets every token from now on be a bound one. It reports false where there is
// no prover.
func (t *Tokens) BindTokens() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.Prover == nil {
		return false
	}
	if !t.bindsTokens {
		t.bindsTokens = true
		t.drop()
	}
	return true
}

// BindsTokens reports whether tokens are bound ones.
func (t *Tokens) BindsTokens() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bindsTokens
}

// Renew returns a new token, however good the last one still is.
func (t *Tokens) Renew(ctx context.Context) (access string, err error) {
	err = t.withLock(ctx, func(ctx context.Context) (err error) {
		if err := t.fetching.Lock(ctx); err != nil {
			return err
		}
		defer t.fetching.Unlock()
		access, _, err = t.fetch(ctx)
		return err
	})
	return access, err
}

// Forget drops a token that the server has refused, and one that is being asked for. It does
// not wait for the server.
func (t *Tokens) Forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop()
}

// drop is called with mu held.
func (t *Tokens) drop() {
	t.token = ""
	t.dropped++
}

// fetch asks for a token, and keeps it unless it was dropped meanwhile. The caller holds fetching.
func (t *Tokens) fetch(ctx context.Context) (token string, bound bool, err error) {
	t.mu.Lock()
	proving, dropped := t.bindsTokens, t.dropped
	t.mu.Unlock()
	out, err := t.requestToken(ctx, proving)
	if watchword.CodeOf(err) == watchword.ProofRequired && t.Prover != nil && !proving {
		proving = true
		t.mu.Lock()
		t.bindsTokens = true
		t.mu.Unlock()
		out, err = t.requestToken(ctx, proving)
	}
	if err != nil {
		return "", false, err
	}
	if out.Token == "" || out.In <= 0 || (out.Type == "DPoP") != proving {
		return "", false, watchword.Refuse(watchword.Internal, "the token endpoint gave no token of the sort that was asked for")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if dropped == t.dropped {
		t.token, t.bound = out.Token, proving
		life := max(time.Duration(min(out.In, maxLife))*time.Second*4/5, time.Second)
		t.refreshAt = t.Now().Round(0).Add(life) // by the wall clock: a machine that slept has an old token
	}
	return out.Token, proving, nil
}

type tokenResponse struct {
	Token string `json:"access_token"`
	Type  string `json:"token_type"`
	In    int64  `json:"expires_in"`
}

func (t *Tokens) requestToken(ctx context.Context, proving bool) (out tokenResponse, err error) {
	assertion, err := t.Sign()
	if err != nil {
		return out, err
	}
	form := url.Values{
		"grant_type":            {"client_credentials"},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		"client_assertion":      {assertion},
	}
	r := Request{Method: http.MethodPost, Path: t.Path, Type: "application/x-www-form-urlencoded", Body: []byte(form.Encode()), Max: maxTokenResponse}
	if proving {
		r.Prover = t.Prover
	}
	_, err = t.Client.JSON(ctx, r, nil, &out)
	return out, err
}
