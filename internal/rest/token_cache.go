package rest

import (
	"context"
	"time"
)

// CachedToken is a bound access token in a [TokenCache]. The times are those of the clock of the machine that requested it.
type CachedToken struct {
	Token     string    `json:"token"`
	Obtained  time.Time `json:"obtained"`
	RefreshAt time.Time `json:"refresh_at"` // when another one is requested
}

// clockTolerance is how far the clock may step back before a cached token is not used: its times are of a clock that was wrong.
const clockTolerance = time.Minute

// usable reports whether the token is to be used now.
func (c CachedToken) usable(now time.Time) bool {
	return c.Token != "" && now.Before(c.RefreshAt) && !now.Before(c.Obtained.Add(-clockTolerance))
}

// TokenCache keeps the bound token of one key of one server between processes. It is safe for concurrent use. Its methods report
// their own errors: without a cache, tokens are only requested more often.
type TokenCache interface {
	// Load returns the token that was saved last; the zero value for none.
	Load() CachedToken
	Save(CachedToken)
	// Lock waits until no other process requests a token for the cache, or gives up. unlock is never nil.
	Lock(ctx context.Context) (unlock func())
}

// loadOrFetch returns the token of the cache, or requests one. Of several processes with one cache, one requests it. The caller
// holds fetching.
func (t *Tokens) loadOrFetch(ctx context.Context) (token string, bound bool, err error) {
	if t.Cache == nil || !t.BindsTokens() {
		return t.fetch(ctx)
	}
	if t.load() {
		token, bound = t.cached()
		return token, bound, nil
	}
	unlock := t.Cache.Lock(ctx)
	defer unlock()
	if t.load() { // another process has saved one meanwhile
		token, bound = t.cached()
		return token, bound, nil
	}
	return t.fetch(ctx)
}

// load takes the token of the cache, unless a server has refused it, and reports whether there was one.
func (t *Tokens) load() bool {
	c := t.Cache.Load()
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.Token == t.refused || !c.usable(t.Now()) {
		return false
	}
	t.token, t.bound, t.loaded, t.refreshAt = c.Token, true, true, c.RefreshAt
	return true
}

// forgetLoaded invalidates the token if it is from the cache, and reports whether it was. The permissions in such a token may be
// older than a change that this process relies on; those of a token that this process requested are not.
func (t *Tokens) forgetLoaded() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.loaded && t.token != ""
	if was {
		t.drop()
	}
	return was
}
