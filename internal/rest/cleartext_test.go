package rest_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
)

// wire answers every request itself, and counts them.
type wire struct{ sent int }

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	w.sent++
	rec := httptest.NewRecorder()
	if strings.HasSuffix(r.URL.Path, "/token") {
		_, _ = rec.WriteString(`{"access_token":"t","token_type":"Bearer","expires_in":600}`)
	}
	return rec.Result(), nil
}

// Nothing that is secret leaves the machine without TLS, however it is put into a request.
func TestNoCredentialsOverCleartext(t *testing.T) {
	get := rest.Request{Method: "GET", Path: "/x"}
	with := func(name, value string) rest.Request {
		r := get
		r.Header = map[string]string{name: value}
		return r
	}
	tokens := func(base string, rt http.RoundTripper) *rest.Tokens {
		return &rest.Tokens{Client: rest.New(base, rt, nil), Path: "/token", Now: time.Now, Sign: func() (string, error) { return "assertion", nil }}
	}
	for name, c := range map[string]struct {
		base   string
		public bool
		tokens bool
		r      rest.Request
		goes   bool
	}{
		"TLS carries a token":                            {"https://hub.example", false, true, get, true},
		"TLS carries a header":                           {"https://hub.example", false, false, with("Authorization", "Bearer t"), true},
		"loopback by name carries a token":               {"http://localhost:1", false, true, get, true},
		"loopback by address carries a token":            {"http://127.0.0.9:1", false, true, get, true},
		"loopback by IPv6 carries a token":               {"http://[::1]:1", false, true, get, true},
		"clear carries what is public":                   {"http://hub.example", true, false, get, true},
		"clear carries a harmless header":                {"http://hub.example", true, false, with("Accept", "text/plain"), true},
		"clear carries no token":                         {"http://hub.example", false, true, get, false},
		"clear carries nothing that is not public":       {"http://hub.example", false, false, get, false},
		"clear carries no Authorization":                 {"http://hub.example", true, false, with("Authorization", "Bearer t"), false},
		"clear carries no Authorization in another case": {"http://hub.example", true, false, with("authorization", "Bearer t"), false},
		"clear carries no DPoP":                          {"http://hub.example", true, false, with("DPoP", "p"), false},
		"clear carries no cookie":                        {"http://hub.example", true, false, with("Cookie", "c=1"), false},
		"clear carries no password":                      {"http://user:pass@hub.example", true, false, get, false},
		"clear carries no body":                          {"http://hub.example", true, false, rest.Request{Method: "POST", Path: "/x", Body: []byte("code")}, false},
		"clear carries no proof": {"http://hub.example", true, false, rest.Request{Method: "GET", Path: "/x", Prover: &rest.Prover{
			Sign: func(_, _, _, _ string) (string, error) { return "proof", nil },
		}}, false},
		"a name that begins as loopback is none":     {"http://localhost.example", false, false, get, false},
		"an address that begins as loopback is none": {"http://127.0.0.1.example", false, false, get, false},
		"a user who is called localhost is no host":  {"http://localhost@hub.example", false, false, get, false},
		"another scheme is none":                     {"ftp://hub.example", false, false, get, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := &wire{}
			cl := rest.New(c.base, w, nil)
			switch {
			case c.tokens:
				cl = rest.New(c.base, w, tokens(c.base, w))
			case c.public:
				cl = rest.NewUnauthenticated(c.base, w)
			}
			_, err := cl.Do(t.Context(), c.r)
			if c.goes != (err == nil) || !c.goes && watchword.CodeOf(err) != watchword.BadRequest {
				t.Errorf("got %v", err)
			}
			if !c.goes && w.sent != 0 {
				t.Errorf("%d requests were sent", w.sent)
			}
			if err != nil && strings.Contains(err.Error(), "pass") {
				t.Errorf("the password is in %q", err)
			}
		})
	}
	// The token endpoint by itself.
	w := &wire{}
	if _, err := tokens("http://hub.example", w).Get(t.Context()); watchword.CodeOf(err) != watchword.BadRequest || w.sent != 0 {
		t.Errorf("the assertion went in clear: %d requests, %v", w.sent, err)
	}
}
