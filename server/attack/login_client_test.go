package attack_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/token"
)

// requestLogin runs the SDK's client of a person without a link. shown is what the person's screen shows; it has nothing if the
// client ends before.
func requestLogin(t *testing.T, url string, key *jose.PrivateKey) (shown chan token.LoginRequest, done chan error, got *admin.Options) {
	t.Helper()
	shown, done, got = make(chan token.LoginRequest, 1), make(chan error, 1), &admin.Options{}
	go func() {
		defer close(shown)
		o, err := admin.RequestLogin(t.Context(), url, key, admin.LoginOptions{
			Show: func(r token.LoginRequest, _ time.Time) { shown <- r },
			Wait: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }, // the server's clock does not slow this test
		})
		*got = o
		done <- err
	}()
	return shown, done, got
}

func newLoginKey(t *testing.T) *jose.PrivateKey {
	t.Helper()
	k, err := jose.GenerateKey(jose.P256)
	must(t, err)
	return k
}

// The client asks, an approver decides by the link that it shows, and the client works with its key.
func TestRequestLogin(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Pairing.Interval.Duration = time.Millisecond; c.Limits.TokenRate = 1 << 20 })
	key := newLoginKey(t)
	shown, done, got := requestLogin(t, srv.url, key)
	r := testwait.For(t, "the code", shown)
	parsed, err := token.ParseLoginLink(r.Link())
	must(t, err)
	if parsed != r || r.Key != key.Public().ID() || r.Server != srv.url {
		t.Errorf("shown %+v", r)
	}
	if pin := mustValue(srv.admin.TrustPin(t.Context()))(t); r.Pin != pin {
		t.Errorf("pin %s, want %s", r.Pin, pin)
	}
	_, err = srv.admin.ApproveLogin(t.Context(), parsed, "vera", "viewer", "", 0)
	must(t, err)
	must(t, testwait.For(t, "the decision", done))
	c, err := admin.New(*got)
	must(t, err)
	if self, err := c.Self(t.Context()); err != nil || self.ID != "vera" || self.Role != "viewer" {
		t.Errorf("self %+v, %v", self, err)
	}

	// Rejected; and a key that was used, which is never approved again.
	shown, done, _ = requestLogin(t, srv.url, newLoginKey(t))
	_, err = srv.admin.RejectLogin(t.Context(), testwait.For(t, "the code", shown).UserCode)
	must(t, err)
	wants(t, "rejected", testwait.For(t, "the decision", done), watchword.PairingRejected)
	_, err = srv.admin.Operators().Revoke(t.Context(), "vera", "left")
	must(t, err)
	_, done, _ = requestLogin(t, srv.url, key)
	wants(t, "a revoked key", testwait.For(t, "the end", done), watchword.Conflict)
	for _, url := range []string{"http://localhost", "localhost:8443", srv.url + "/e#code=x", srv.url + "?a=b", "https://user@localhost", ""} {
		_, done, _ = requestLogin(t, url, key)
		wants(t, url, testwait.For(t, "the end", done), watchword.BadRequest)
	}
}

// between is a server between a person and srv, which decides what to answer by itself.
func (srv *testServer) between(t *testing.T, answer func(w http.ResponseWriter, r *http.Request, body []byte) bool) (url string, der []byte, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}, &x509.Certificate{}, key.Public(), key)
	must(t, err)
	client := srv.client()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil || answer(w, r, body) {
			return
		}
		req, err := http.NewRequestWithContext(r.Context(), r.Method, srv.url+r.URL.Path, strings.NewReader(string(body)))
		if err != nil {
			return
		}
		req.Header.Set("Content-Type", r.Header.Get("Content-Type"))
		res, err := client.Do(req)
		if err != nil {
			return
		}
		defer res.Body.Close()
		w.Header().Set("Content-Type", res.Header.Get("Content-Type"))
		w.WriteHeader(res.StatusCode)
		_, _ = io.Copy(w, res.Body) // the client has gone, if at all
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13}
	s.StartTLS()
	t.Cleanup(s.Close)
	_, port, _ := strings.Cut(strings.TrimPrefix(s.URL, "https://"), ":")
	return "https://localhost:" + port, der, key
}

// A man in the middle of a first contact gets nothing approved: with the true trust bundle its certificate is refused before a
// request is made; with a root of its own the server refuses the person's proof; with a key of its own the approver sees another
// thumbprint, and with a request of its own in place of the person's, another pin.
func TestLoginThroughAManInTheMiddle(t *testing.T) {
	srv := serve(t, func(c *server.Config) { c.Pairing.Interval.Duration = time.Millisecond; c.Limits.TokenRate = 1 << 20 })
	ctx := t.Context()
	pin := mustValue(srv.admin.TrustPin(ctx))(t)

	var asked atomic.Int64
	relay, _, _ := srv.between(t, func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.Method == http.MethodPost {
			asked.Add(1)
		}
		return false
	})
	_, done, _ := requestLogin(t, relay, newLoginKey(t))
	wants(t, "the true bundle, another certificate", testwait.For(t, "the end", done), watchword.PeerUntrusted)
	if asked.Load() != 0 {
		t.Errorf("%d requests were sent through an unknown certificate", asked.Load())
	}

	// A root of its own, which vouches for its certificate. It passes the person's request on, or answers by itself.
	root := newLoginKey(t)
	signer, err := root.Signer()
	must(t, err)
	var forged string
	var fake atomic.Pointer[api.RequestLoginResponse]
	url, der, _ := srv.between(t, func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		switch f := fake.Load(); {
		case r.URL.Path == "/v1/trust":
			_, _ = io.WriteString(w, forged)
		case r.URL.Path == "/v1/logins" && f != nil:
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(f)
		case r.URL.Path == "/v1/logins/poll" && f != nil:
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"code":"pairing_pending","status":400}`)
		default:
			return false
		}
		return true
	})
	genuine, err := srv.admin.TrustBundle(ctx)
	must(t, err)
	bundle, err := token.VerifyTrust(genuine, pin, time.Now())
	must(t, err)
	bundle.Roots, bundle.CAs = []*jose.PublicKey{root.Public()}, [][]byte{der}
	forged, err = token.SignTrust(bundle, signer)
	must(t, err)
	_, done, _ = requestLogin(t, url, newLoginKey(t))
	wants(t, "passed on to the server", testwait.For(t, "the end", done), watchword.ProofInvalid)

	// It makes a request of its own at the server, and shows the person that code.
	own := srv.newLoginClient(time.Now).ask()
	fake.Store(&own.RequestLoginResponse)
	shown, done, _ := requestLogin(t, url, newLoginKey(t))
	r := testwait.For(t, "the code", shown)
	if r.UserCode != own.UserCode || r.Pin == pin || r.Key == own.sign.Public().ID() {
		t.Fatalf("shown %+v", r)
	}
	_, err = srv.admin.ApproveLogin(ctx, r, "vera", "viewer", "", 0)
	wants(t, "what the person's screen shows", err, watchword.Conflict)
	half := r
	half.Key = own.sign.Public().ID()
	_, err = srv.admin.ApproveLogin(ctx, half, "vera", "viewer", "", 0)
	wants(t, "the attacker's key, the pin of the screen", err, watchword.Conflict)
	half = r
	half.Pin = pin
	_, err = srv.admin.ApproveLogin(ctx, half, "vera", "viewer", "", 0)
	wants(t, "the key of the screen, the true pin", err, watchword.Conflict)
	if a := own.poll(); a.code != watchword.PairingPending {
		t.Errorf("the attacker's own request: %+v", a)
	}
	select {
	case err := <-done:
		t.Errorf("the person's client ended: %v", err)
	default:
	}
	_, err = srv.admin.Operators().Get(ctx, "vera")
	if watchword.CodeOf(err) != watchword.NotFound {
		t.Errorf("an operator was made: %v", err)
	}
}
