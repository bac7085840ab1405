package verify_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/verify"
	"github.com/watchword-iot/watchword/token"
)

const (
	issuerID = "https://watchword.example"
	audience = "https://api.example"
)

var noon = time.Unix(1_800_000_000, 0)

// clock is a time that tests set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = t
}

func newSigner(t testing.TB, curve string) *jose.Signer {
	t.Helper()
	k, err := jose.GenerateKey(curve)
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// jwk writes a key as the issuer publishes it.
func jwk(k *jose.PublicKey) string {
	b := k.JWK()
	return string(b[:len(b)-1]) + `,"kid":"` + string(k.ID()) + `","use":"sig","alg":"` + k.Alg() + `"}`
}

func jwks(ks ...*jose.Signer) []byte {
	var list []string
	for _, k := range ks {
		list = append(list, jwk(k.Public()))
	}
	return []byte(`{"keys":[` + strings.Join(list, ",") + `]}`)
}

// claims is a good token's, at noon, for lamp-1; change is what a test has otherwise, nil to leave out.
func claims(at time.Time, change map[string]any) []byte {
	m := map[string]any{
		"iss": issuerID, "sub": "lamp-1", "aud": audience, "client_id": "lamp-1", "jti": watchword.NewNonce(), "key": "the-key-of-lamp-1",
		"iat": at.Unix(), "exp": at.Add(10 * time.Minute).Unix(), "dev": map[string]any{"id": "lamp-1", "labels": map[string]any{"site": "plant-1"}},
		"perm": [][]any{{"api:/readings", []string{"post"}}, {"topic:plant/#", []string{"pub", "sub"}}, {"fn:*/lamp.*", []string{"call"}}, {"api:/lamps/#", []string{"get", "put"}}},
		"deny": [][]any{{"topic:plant/secret/#", []string{"pub", "sub"}}, {"fn:kind=door/*", []string{"call"}}, {"api:/lamps/9/#", []string{"put"}}},
	}
	for k, v := range change {
		if m[k] = v; v == nil {
			delete(m, k)
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

func signToken(t testing.TB, s *jose.Signer, at time.Time, change map[string]any) string {
	t.Helper()
	raw, err := s.Sign(token.TypAccess, claims(at, change))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func bound(k *jose.Signer) map[string]any {
	return map[string]any{"cnf": map[string]any{"jkt": k.Public().ID()}}
}

// static is a verifier with given keys, at noon.
func static(t testing.TB, keys []byte, opts ...verify.Option) (*verify.Verifier, *clock) {
	t.Helper()
	c := &clock{t: noon}
	v, err := verify.New(t.Context(), issuerID, append([]verify.Option{
		verify.Keys(keys), verify.Audience(audience), verify.Now(c.now), verify.Log(slog.New(slog.DiscardHandler)),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v, c
}

func wants(t testing.TB, what string, err error, code watchword.Code) {
	t.Helper()
	if got := watchword.CodeOf(err); got != code {
		t.Errorf("%s: got %q (%v), want %q", what, got, err, code)
	}
}

// web is an issuer behind an http.Client, with no network: for bubbles.
type web struct {
	mu      sync.Mutex
	keys    []byte
	down    bool
	moved   bool          // the keys, to another path
	fetches int           // of keys
	hold    chan struct{} // if not nil, fetches of keys wait for it
}

func (w *web) publish(ks ...*jose.Signer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keys = jwks(ks...)
}

func (w *web) cut(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = down
}

func (w *web) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fetches
}

func (w *web) wait(hold chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hold = hold
}

func (w *web) client() verify.Option { return verify.HTTPClient(&http.Client{Transport: w}) }

func (w *web) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	body, down, hold, status, path := w.keys, w.down, w.hold, 200, "/keys"
	if w.moved {
		path = "/new/keys"
	}
	switch r.URL.Path {
	case "/.well-known/oauth-authorization-server":
		body, hold = []byte(`{"issuer":"`+issuerID+`","jwks_uri":"`+issuerID+path+`"}`), nil
	case path:
		w.fetches++
	default:
		status = 404
	}
	w.mu.Unlock()
	if down {
		return nil, errors.New("the line is cut")
	}
	if hold != nil {
		select {
		case <-hold:
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	return &http.Response{StatusCode: status, Status: http.StatusText(status), Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
}

// ask sends one request to a handler.
func ask(h http.Handler, method, target string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	for _, line := range headers {
		k, v, _ := strings.Cut(line, ": ")
		r.Header.Add(k, v)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func codeIn(t testing.TB, w *httptest.ResponseRecorder) watchword.Code {
	t.Helper()
	var p struct {
		Code   watchword.Code
		Status int
		Type   string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Errorf("no problem document: %s", w.Body)
	}
	if p.Status != w.Code || p.Type != p.Code.Page() || w.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("status %d, document %+v, type %s", w.Code, p, w.Header().Get("Content-Type"))
	}
	return p.Code
}
