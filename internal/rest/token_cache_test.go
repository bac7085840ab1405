package rest_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
)

// memoryCache is the TokenCache of several clients, each of which is that of a process.
type memoryCache struct {
	lock sync.Mutex

	mu    sync.Mutex
	token rest.CachedToken
}

func (m *memoryCache) Load() rest.CachedToken {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.token
}

func (m *memoryCache) Save(c rest.CachedToken) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.token = c
}

func (m *memoryCache) Lock(context.Context) func() {
	m.lock.Lock()
	return m.lock.Unlock
}

// tokenServer issues the tokens t1, t2, …, and refuses requests with one of them.
type tokenServer struct {
	mu      sync.Mutex
	issued  int
	refused map[string]watchword.Code // by the number of a token, or "all"
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.URL.Path == "/oauth/token" {
		s.issued++
		fmt.Fprintf(w, `{"access_token":"t%d","token_type":"DPoP","expires_in":600}`, s.issued)
		return
	}
	for _, token := range []string{r.Header.Get("Authorization"), "all"} {
		if code := s.refused[token]; code != "" {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(w, `{"code":%q}`, code)
			return
		}
	}
	fmt.Fprint(w, `{}`)
}

func TestProcessesShareTheCachedToken(t *testing.T) {
	server := &tokenServer{}
	h := httptest.NewServer(server)
	t.Cleanup(h.Close)
	cache := &memoryCache{}
	start := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	process := func(at time.Duration) *rest.Client {
		tr := http.DefaultTransport
		tokens := &rest.Tokens{
			Client: rest.New(h.URL, tr, nil), Path: "/oauth/token", Now: func() time.Time { return start.Add(at) }, Cache: cache,
			Sign:   func() (string, error) { return "assertion", nil },
			Prover: &rest.Prover{Sign: func(_, _, _, _ string) (string, error) { return "proof", nil }},
		}
		tokens.BindTokens()
		return rest.New(h.URL, tr, tokens)
	}
	request := rest.Request{Method: http.MethodGet, Path: "/v1/self"}
	for _, c := range []struct {
		name   string
		at     time.Duration
		cached watchword.Code // how the token that is cached is refused
		all    watchword.Code // how each token is refused
		tokens int            // that are requested
		want   watchword.Code
	}{
		{"the first process requests a token", 0, "", "", 1, ""},
		{"the next one has it", time.Minute, "", "", 0, ""},
		{"until four fifths of its life", 480*time.Second - 1, "", "", 0, ""},
		{"then another is requested", 480 * time.Second, "", "", 1, ""},
		{"with a clock that stepped back by a minute the token is used", 420 * time.Second, "", "", 0, ""},
		{"by more, it is not", 420*time.Second - 1, "", "", 1, ""},
		{"a token that was revoked is replaced", 430 * time.Second, watchword.TokenRevoked, "", 1, ""},
		{"and one that was issued by a clock that was ahead", 435 * time.Second, watchword.TokenEarly, "", 1, ""},
		{"so is one with the permissions of before", 440 * time.Second, watchword.Denied, "", 1, ""},
		{"the replacement is cached", 450 * time.Second, "", "", 0, ""},
		{"what is denied with a new token too is denied", 450 * time.Second, "", watchword.Denied, 1, watchword.Denied},
	} {
		server.refused = map[string]watchword.Code{"DPoP " + cache.Load().Token: c.cached, "all": c.all}
		before := server.issued
		_, err := process(c.at).Do(t.Context(), request)
		if n := server.issued - before; n != c.tokens || watchword.CodeOf(err) != c.want {
			t.Errorf("%s: %d tokens were requested, %v", c.name, n, err)
		}
	}

	cache.Save(rest.CachedToken{})
	server.refused = nil
	before := server.issued
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := process(0).Do(t.Context(), request); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := server.issued - before; n != 1 {
		t.Errorf("20 processes at once requested %d tokens", n)
	}
}
