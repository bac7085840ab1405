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

// Limits of the token endpoint's answers.
const (
	maxTokenResponse = 64 << 10 // bytes of the answer
	maxLife          = 86400    // longest time in seconds that a token is used
)

// Tokens requests access tokens with client assertions and caches the last one for four fifths of
// its lifetime, at least a second. It is safe for concurrent use.
type Tokens struct {
	Client *Client // a client without Tokens
	Path   string  // of the token endpoint
	Sign   func() (assertion string, err error)
	Now    func() time.Time
	// Prover, if not nil, proves the key where the server demands it, or from BindTokens on: then
	// tokens are bound to the prover's key (RFC 9449).
	Prover *Prover
	// Cache, if not nil, keeps the token between processes. Only bound tokens are kept: without the key they are of no use.
	Cache TokenCache
	// WithLock, if not nil, is called around each use of the cached token; it must call get.
	WithLock func(ctx context.Context, get func(context.Context) error) error

	fetching contextMutex // one request at a time; locked before mu

	mu          sync.Mutex // protects the fields below; not held during requests
	bindsTokens bool
	token       string
	bound       bool // the token is bound
	loaded      bool // the token is from the cache
	refreshAt   time.Time
	refused     string // the last token that was invalidated, which the cache may still have
	dropped     int    // counts invalidations, to detect one during a request
}

// contextMutex is a mutex whose Lock can be cancelled, since its holder may wait for the server.
type contextMutex struct {
	once sync.Once
	free chan struct{}
}

// Lock locks the mutex, or returns when ctx ends.
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

// Unlock unlocks the mutex.
func (t *contextMutex) Unlock() { <-t.free }

// Get returns a valid token. Codes: those of the token endpoint, such as client_invalid.
func (t *Tokens) Get(ctx context.Context) (string, error) {
	token, _, err := t.credential(ctx)
	return token, err
}

// credential returns a token and, if it is bound, the prover of its key.
func (t *Tokens) credential(ctx context.Context) (token string, prover *Prover, err error) {
	err = t.withLock(ctx, func(ctx context.Context) (err error) {
		if err := t.fetching.Lock(ctx); err != nil {
			return err
		}
		defer t.fetching.Unlock()
		access, bound := t.cached()
		if access == "" {
			access, bound, err = t.loadOrFetch(ctx)
		}
		token, prover = access, nil
		if bound {
			prover = t.Prover
		}
		return err
	})
	return token, prover, err
}

// cached returns the cached token; empty if it has expired.
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

// BindTokens makes all further tokens bound to the prover's key. It returns false without a prover.
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

// BindsTokens reports whether tokens are bound.
func (t *Tokens) BindsTokens() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bindsTokens
}

// Renew requests a new token even if the cached one is valid.
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

// Forget invalidates the cached token, and one that is being requested. It does not wait for the
// server.
func (t *Tokens) Forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop()
}

// drop is called with mu held.
func (t *Tokens) drop() {
	if t.token != "" {
		t.refused = t.token
	}
	t.token = ""
	t.dropped++
}

// fetch requests a token, and caches it unless Forget was called meanwhile. The caller holds
// fetching.
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
		return "", false, watchword.Refuse(watchword.Internal, "the token endpoint did not return a token of the requested type")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if dropped == t.dropped {
		t.token, t.bound, t.loaded = out.Token, proving, false
		life := max(time.Duration(min(out.In, maxLife))*time.Second*4/5, time.Second)
		now := t.Now().Round(0) // wall clock: after the machine slept, the token is older
		t.refreshAt = now.Add(life)
		if t.Cache != nil && proving {
			t.Cache.Save(CachedToken{Token: out.Token, Obtained: now, RefreshAt: t.refreshAt})
		}
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
