package admin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/api"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// bundleServer is a server whose certificate, trust bundle and answer to enrollments can be replaced.
type bundleServer struct {
	url   string
	root  *jose.PrivateKey
	now   time.Time
	epoch int64 // of the bundles that it signs

	mu       sync.Mutex
	cert     tls.Certificate
	bundle   string
	enrolled map[string]any // its answer
	requests []string       // paths
	aud      string         // of the last client assertion
}

func newBundleServer(t *testing.T) *bundleServer {
	t.Helper()
	s := &bundleServer{now: time.Now().Truncate(time.Second), root: newKey(t), cert: newCertificate(t), epoch: 1}
	h := httptest.NewUnstartedServer(s)
	h.TLS = &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.cert}}, nil
	}}
	h.Config.SetKeepAlivesEnabled(false) // each request shows the certificate of that moment
	h.StartTLS()
	t.Cleanup(h.Close)
	s.url = h.URL
	s.bundle = s.sign(t, 2, s.now, s.root, s.cert)
	return s
}

func newKey(t *testing.T) *jose.PrivateKey {
	t.Helper()
	k, err := jose.GenerateKey(jose.P256)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// newCertificate returns a certificate for 127.0.0.1 that is its own authority.
func newCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

// sign returns a bundle that a root signs, with the authority of a certificate.
func (s *bundleServer) sign(t *testing.T, version int64, issued time.Time, root *jose.PrivateKey, c tls.Certificate) string {
	t.Helper()
	signer, err := root.Signer()
	if err != nil {
		t.Fatal(err)
	}
	k := []*jose.PublicKey{newKey(t).Public()}
	log, err := jose.GenerateKey(jose.Ed)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := token.SignTrust(token.Trust{
		Issuer: s.url, Version: version, Epoch: s.epoch, Roots: []*jose.PublicKey{root.Public()}, Issuers: k, Command: k, Time: k, Log: []*jose.PublicKey{log.Public()}, CAs: [][]byte{c.Certificate[0]},
		Issued: issued, Expires: issued.Add(token.TrustLifetime),
	}, signer)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (s *bundleServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.URL.Path)
	switch r.URL.Path {
	case "/v1/trust":
		_, _ = w.Write([]byte(s.bundle))
	case "/oauth/token":
		if a, err := token.ParseAssertion(r.PostFormValue("client_assertion"), true); err == nil && a.CheckClaims("https://moved.example", s.now) == nil {
			s.aud = "https://moved.example"
		}
		_, _ = w.Write([]byte(`{"access_token":"t","token_type":"Bearer","expires_in":600}`))
	case "/v1/enroll":
		_ = json.NewEncoder(w).Encode(s.enrolled)
	default:
		_, _ = w.Write([]byte(`{}`))
	}
}

func (s *bundleServer) pin() string { return token.TrustPin(s.root.Public()) }

// A client with a trust bundle follows the server to a new authority if a root that it knows has signed the bundle that names it,
// and sends nothing to a server of another one.
func TestClientFollowsTheTrustBundle(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		name   string
		age    time.Duration // since the client's bundle was received
		issued time.Duration // before now: when the client's bundle was signed
		change func(t *testing.T, s *bundleServer)
		want   watchword.Code
		saved  int64 // version of the bundle that is stored; 0 for none
	}{
		{"nothing has changed", day - time.Minute, 0, func(*testing.T, *bundleServer) {}, "", 0},
		{"the bundle is a day old", day, 0, func(t *testing.T, s *bundleServer) { s.bundle = s.sign(t, 3, s.now, s.root, s.cert) }, "", 3},
		{"the server has a new authority", 0, 0, func(t *testing.T, s *bundleServer) {
			s.cert = newCertificate(t)
			s.bundle = s.sign(t, 3, s.now, s.root, s.cert)
		}, "", 3},
		{"the server was restored, and has a new authority and a new epoch", 0, 0, func(t *testing.T, s *bundleServer) {
			s.cert, s.epoch = newCertificate(t), 2
			s.bundle = s.sign(t, 2, s.now, s.root, s.cert)
		}, "", 2},
		{"a new authority that no bundle names", 0, 0, func(t *testing.T, s *bundleServer) { s.cert = newCertificate(t) }, watchword.Unavailable, 2},
		{"a new authority that another root names", 0, 0, func(t *testing.T, s *bundleServer) {
			s.cert = newCertificate(t)
			s.bundle = s.sign(t, 3, s.now, newKey(t), s.cert)
		}, watchword.Unavailable, 0},
		{"an older bundle", 0, 0, func(t *testing.T, s *bundleServer) {
			s.cert = newCertificate(t)
			s.bundle = s.sign(t, 1, s.now, s.root, s.cert)
		}, watchword.Unavailable, 0},
		{"a bundle that has expired leads to the next one", day, token.TrustLifetime + day, func(t *testing.T, s *bundleServer) {
			s.bundle = s.sign(t, 3, s.now, s.root, s.cert)
		}, "", 3},
		{"a bundle that has expired, and no next one", day, token.TrustLifetime + day, func(*testing.T, *bundleServer) {}, watchword.BundleInvalid, 0},
		{"a bundle that is old, and no next one", day, token.TrustLifetime - day, func(t *testing.T, s *bundleServer) { s.bundle = "x" }, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newBundleServer(t)
			s.bundle = s.sign(t, 2, s.now.Add(-c.issued), s.root, s.cert)
			var saved []string
			o := Options{
				URL: s.url, Issuer: s.url, Subject: "alice", Key: newKey(t), Bundle: s.bundle, Pin: s.pin(), BundleAt: s.now.Add(-c.age),
				Now: func() time.Time { return s.now }, SaveServer: func(got Server) {
					if got.Pin != s.pin() || got.URL != s.url || got.Issuer != s.url {
						t.Errorf("got %+v", got)
					}
					saved = append(saved, got.Bundle)
				},
			}
			c.change(t, s)
			cl, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			_, err = cl.Self(t.Context())
			if watchword.CodeOf(err) != c.want {
				t.Errorf("got %v, want %q", err, c.want)
			}
			var version int64
			if len(saved) > 0 {
				got, err := token.VerifyTrust(saved[len(saved)-1], s.pin(), s.now)
				if err != nil {
					t.Fatal(err)
				}
				version = got.Version
			}
			if version != c.saved {
				t.Errorf("bundle %d was stored, want %d", version, c.saved)
			}
			for _, path := range s.requests {
				if c.want != "" && path != "/v1/trust" {
					t.Errorf("%s was sent to a server that is not trusted", path)
				}
			}
		})
	}
}

// A server that has another address names it in a bundle. The client names the new issuer in its assertions from then on.
func TestClientFollowsTheServersAddress(t *testing.T) {
	s := newBundleServer(t)
	var saved Server
	o := Options{
		URL: s.url, Issuer: s.url, Subject: "alice", Key: newKey(t), Bundle: s.bundle, Pin: s.pin(), BundleAt: s.now.Add(-bundleRefreshAfter),
		Now: func() time.Time { return s.now }, SaveServer: func(got Server) { saved = got },
	}
	known, err := token.VerifyTrust(s.bundle, s.pin(), s.now)
	if err != nil {
		t.Fatal(err)
	}
	known.Version, known.Issuer = 3, "https://moved.example"
	known.History = []token.IssuerPeriod{{Issuer: s.url, Until: s.now.Add(time.Hour)}, {Issuer: known.Issuer}}
	signer, err := s.root.Signer()
	if err != nil {
		t.Fatal(err)
	}
	if s.bundle, err = token.SignTrust(known, signer); err != nil {
		t.Fatal(err)
	}
	for _, bundleAt := range []time.Time{o.BundleAt, s.now} {
		o.BundleAt, s.aud = bundleAt, ""
		cl, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cl.Self(t.Context()); err != nil {
			t.Fatal(err)
		}
		if saved.URL != "https://moved.example" || saved.Issuer != saved.URL || saved.Bundle != s.bundle || s.aud != saved.Issuer {
			t.Errorf("got %+v, and an assertion for %s", saved, s.aud)
		}
		o.Bundle = saved.Bundle // the stored issuer and address may be those of before
	}
}

func TestStoredBundleIsVerified(t *testing.T) {
	s := newBundleServer(t)
	o := Options{URL: s.url, Issuer: s.url, Subject: "alice", Key: newKey(t), Bundle: s.bundle, Pin: s.pin()}
	for name, c := range map[string]struct {
		change func(*Options)
		want   watchword.Code
	}{
		"that of the server":   {func(*Options) {}, ""},
		"of another root":      {func(o *Options) { o.Pin = token.TrustPin(newKey(t).Public()) }, watchword.PinMismatch},
		"of another issuer":    {func(o *Options) { o.Issuer = "https://other" }, watchword.BundleInvalid},
		"what is not a bundle": {func(o *Options) { o.Bundle = "x" }, watchword.TokenMalformed},
	} {
		one := o
		c.change(&one)
		if _, err := New(one); watchword.CodeOf(err) != c.want {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// The code of a link is sent only to the server of the link, and of its answer only a subject of the verified issuer is taken.
func TestEnrollSendsTheCodeToTheLinksServerAlone(t *testing.T) {
	good := func(s *bundleServer) map[string]any {
		return map[string]any{"id": "alice", "kind": "operator", "issuer": s.url, "https": "https://elsewhere"}
	}
	answering := func(name string, value any) func(*testing.T, *bundleServer) {
		return func(_ *testing.T, s *bundleServer) { s.enrolled[name] = value }
	}
	for _, c := range []struct {
		name   string
		change func(t *testing.T, s *bundleServer)
		want   watchword.Code
		asked  bool // the code was sent
	}{
		{"an operator", func(*testing.T, *bundleServer) {}, "", true},
		{"a service", answering("kind", "service"), "", true},
		{"a device", answering("kind", "device"), watchword.IssuerMismatch, true},
		{"another issuer", answering("issuer", "https://other"), watchword.IssuerMismatch, true},
		{"an ID that is none", answering("id", "../x"), watchword.IssuerMismatch, true},
		{"an answer of another type", answering("id", 7), watchword.Internal, true},
		{"another root", func(t *testing.T, s *bundleServer) { s.bundle = s.sign(t, 2, s.now, newKey(t), s.cert) }, watchword.PinMismatch, false},
		{"what is not a bundle", func(_ *testing.T, s *bundleServer) { s.bundle = "x" }, watchword.BundleInvalid, false},
		{"a certificate that the bundle does not name", func(t *testing.T, s *bundleServer) { s.cert = newCertificate(t) }, watchword.PeerUntrusted, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newBundleServer(t)
			s.enrolled = good(s)
			link := token.EnrollmentLink(s.url, watchword.NewNonce(), s.pin())
			c.change(t, s)
			key := newKey(t)
			o, err := Enroll(t.Context(), link, key, "laptop", nil)
			if watchword.CodeOf(err) != c.want {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			asked := false
			for _, path := range s.requests {
				asked = asked || path == "/v1/enroll"
			}
			if asked != c.asked {
				t.Errorf("the code was sent: %v", asked)
			}
			if err == nil && (o.URL != s.url || o.Issuer != s.url || o.Subject != "alice" || o.Bundle != s.bundle || o.Pin != s.pin() || o.Key != key) {
				t.Errorf("got %+v", o)
			}
		})
	}
}

// Without a pin the server is as its own bundle says, and its pin is for the caller to compare.
func TestVerifyServerWithoutPin(t *testing.T) {
	s := newBundleServer(t)
	got, err := VerifyServer(t.Context(), s.url, "", s.now)
	if err != nil {
		t.Fatal(err)
	}
	if got.Pin != s.pin() || got.Issuer != s.url {
		t.Errorf("got pin %s of %s", got.Pin, got.Issuer)
	}
	if _, err := got.Options(api.EnrollResponse{ID: "alice", Kind: watchword.Operator, Issuer: s.url}, newKey(t), s.now); err != nil {
		t.Error(err)
	}
	s.cert = newCertificate(t)
	if _, err := VerifyServer(t.Context(), s.url, "", s.now); watchword.CodeOf(err) != watchword.PeerUntrusted {
		t.Errorf("a certificate that the bundle does not name: %v", err)
	}
}
