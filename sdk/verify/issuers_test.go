package verify_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/verify"
	"github.com/watchword-iot/watchword/token"
)

// A service accepts tokens of both issuers of a server that moves, each for its own audience, and fetches the keys where the server is.
func TestTokensOfTwoIssuersOfOneServer(t *testing.T) {
	key := newSigner(t, jose.P256)
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/.well-known/oauth-authorization-server" {
			_, _ = w.Write([]byte(`{"issuer":"` + srv.URL + `","jwks_uri":"` + srv.URL + `/jwks"}`))
			return
		}
		_, _ = w.Write(jwks(key))
	}))
	defer srv.Close()
	const dead = "http://127.0.0.1:1" // the former address, which leads nowhere any more
	c := &clock{t: noon}
	check := func(v *verify.Verifier, iss string, aud any) watchword.Code {
		t.Helper()
		raw, err := key.Sign(token.TypAccess, claims(noon, map[string]any{"iss": iss, "aud": aud}))
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.Check(t.Context(), raw)
		return watchword.CodeOf(err)
	}
	for _, tc := range []struct {
		name     string
		opts     []verify.Option
		iss, aud string
		want     watchword.Code
	}{
		{"the first", nil, dead, dead, ""},
		{"the other", nil, srv.URL, srv.URL, ""},
		{"one for the audience of the other", nil, dead, srv.URL, watchword.AudienceMismatch},
		{"a third", nil, "http://127.0.0.1:2", srv.URL, watchword.IssuerMismatch},
		{"the other, for a service of its own", []verify.Option{verify.Audience(audience)}, srv.URL, audience, ""},
		{"the other, for the issuer in place of the service", []verify.Option{verify.Audience(audience)}, srv.URL, srv.URL, watchword.AudienceMismatch},
	} {
		v, err := verify.New(t.Context(), dead, append(tc.opts, verify.AlsoIssuers(srv.URL), verify.LoopbackHTTP(), verify.Now(c.now))...)
		if err != nil {
			t.Fatal(err)
		}
		if got := check(v, tc.iss, tc.aud); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
		v.Close()
	}
	if _, err := verify.New(t.Context(), dead, verify.LoopbackHTTP(), verify.Now(c.now)); watchword.CodeOf(err) != watchword.Unavailable {
		t.Errorf("without the other issuer: %v", err)
	}
	if _, err := verify.New(t.Context(), srv.URL, verify.AlsoIssuers("ftp://x"), verify.LoopbackHTTP()); watchword.CodeOf(err) != watchword.ConfigInvalid {
		t.Errorf("an issuer that is none: %v", err)
	}
}
