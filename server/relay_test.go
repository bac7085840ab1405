package server_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/sdk/device"
	"github.com/watchword-iot/watchword/token"
)

// relay is another host, with a public certificate for its own name, that passes every request on to a server.
type relay struct {
	url string

	mu     sync.Mutex
	bundle string   // that it sends in place of the server's; empty: the server's
	posts  []string // paths of requests that are not GET, but for that of signed time
}

func newRelay(t *testing.T, server string) *relay {
	t.Helper()
	to, err := url.Parse(server)
	check(t, err)
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}, // the attacker knows which server it is
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
	}
	r := &relay{}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		if q.Method != http.MethodGet && q.URL.Path != "/v1/time" {
			r.posts = append(r.posts, q.URL.Path)
		}
		bundle := r.bundle
		r.mu.Unlock()
		if bundle != "" && q.URL.Path == "/v1/trust" {
			_, _ = w.Write([]byte(bundle))
			return
		}
		proxy.ServeHTTP(w, q)
	}))
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{publicCertificate(t, "127.0.0.1")}}
	s.StartTLS()
	t.Cleanup(s.Close)
	r.url = s.URL
	return r
}

// got returns the paths of the requests that contain something of a client.
func (r *relay) got() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.posts)
}

// ownBundle returns a bundle of the attacker's own root that names the issuer of a server, a former one if it is not empty, and the relay's
// certificate.
func ownBundle(t *testing.T, issuer, former string, cert []byte) string {
	t.Helper()
	key := func(curve string) *jose.Signer {
		k, err := jose.GenerateKey(curve)
		check(t, err)
		s, err := k.Signer()
		check(t, err)
		return s
	}
	root, other := key(jose.P256), []*jose.PublicKey{key(jose.P256).Public()}
	var history []token.IssuerPeriod
	if former != "" {
		history = []token.IssuerPeriod{{Issuer: former, Until: time.Now().Add(time.Hour)}, {Issuer: issuer}}
	}
	raw, err := token.SignTrust(token.Trust{
		Issuer: issuer, History: history, Version: 1, Epoch: 1, Roots: []*jose.PublicKey{root.Public()}, Issuers: other, Command: other, Time: other, Log: []*jose.PublicKey{key(jose.Ed).Public()},
		CAs: [][]byte{cert}, Issued: time.Now().Add(-time.Minute), Expires: time.Now().Add(time.Hour),
	}, root)
	check(t, err)
	return raw
}

// A public certificate proves which host a peer is, not that it is the server: a host that passes requests on to a server gets no proof, no
// code and no assertion, from a person or from a device, whichever way either comes in. At the address of the server each of them works.
func TestARelayWithAPublicCertificateGetsNothing(t *testing.T) {
	c := config(t, t.TempDir()+"/data")
	c.Server.TLSCert, c.Server.TLSKey = writeCertificate(t, t.TempDir(), publicCertificate(t, "localhost"))
	info := running(t, c)
	o, err := admin.LocalOptions(c.Data)
	check(t, err)
	owner, err := admin.New(o)
	check(t, err)
	pin, err := owner.TrustPin(t.Context())
	check(t, err)
	altered := func(link, server string) string { return server + strings.TrimPrefix(link, info.URL) }
	newDevice := func(t *testing.T) *device.Device {
		d, err := device.OpenWith(t.TempDir()+"/device", device.Options{Log: slog.New(slog.DiscardHandler)})
		check(t, err)
		t.Cleanup(func() { check(t, d.Close()) })
		return d
	}
	newKey := func(t *testing.T) *jose.PrivateKey {
		k, err := jose.GenerateKey(jose.P256)
		check(t, err)
		return k
	}
	pair := func(t *testing.T, server, pin string) error {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		shown := false
		err := newDevice(t).Pair(ctx, server, device.PairOptions{Pin: pin, Show: func(device.Pairing) { shown = true; cancel() }})
		if shown {
			return nil
		}
		return err
	}
	for name, act := range map[string]func(t *testing.T, server string) error{
		"login URL": func(t *testing.T, server string) error {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			shown := false
			_, err := admin.RequestLogin(ctx, server, newKey(t), admin.LoginOptions{Show: func(token.LoginRequest, time.Time) { shown = true; cancel() }})
			if shown {
				return nil
			}
			return err
		},
		"login LINK": func(t *testing.T, server string) error {
			id := watchword.SubjectID("bob-" + strings.TrimPrefix(server, "https://")[:3])
			s, err := owner.CreateOperator(t.Context(), id, "viewer", 0)
			check(t, err)
			_, err = admin.Enroll(t.Context(), altered(s.Enrollment.Link, server), newKey(t), "", nil)
			return err
		},
		"device enroll": func(t *testing.T, server string) error {
			s, err := owner.CreateDevice(t.Context(), watchword.SubjectID("lamp-"+strings.TrimPrefix(server, "https://")[:3]), nil, 0)
			check(t, err)
			return newDevice(t).Enroll(t.Context(), altered(s.Enrollment.Link, server))
		},
		"device pair":            func(t *testing.T, server string) error { return pair(t, server, "") },
		"device pair with a pin": func(t *testing.T, server string) error { return pair(t, server, pin) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelay(t, info.URL)
			switch err := act(t, r.url); {
			case watchword.CodeOf(err) != watchword.PeerUntrusted:
				t.Errorf("at the relay: %v", err)
			case !strings.Contains(err.Error(), info.URL):
				t.Errorf("the error does not name the address of the server: %v", err)
			}
			if got := r.got(); len(got) > 0 {
				t.Errorf("the relay got %v", got)
			}
			if err := act(t, info.URL); err != nil {
				t.Errorf("at the server: %v", err)
			}
		})
	}
	for name, former := range map[string]func(relay string) string{
		"a bundle of the relay's own":                              func(string) string { return "" },
		"a bundle of the relay's own, with it as a former address": func(relay string) string { return relay },
	} {
		t.Run("device pair, and "+name, func(t *testing.T) {
			r := newRelay(t, info.URL)
			nc, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), nil)
			check(t, err)
			own := ownBundle(t, info.Issuer, former(r.url), nc.ConnectionState().PeerCertificates[0].Raw)
			check(t, nc.Close())
			r.mu.Lock()
			r.bundle = own
			r.mu.Unlock()
			if err := pair(t, r.url, ""); watchword.CodeOf(err) != watchword.PeerUntrusted || len(r.got()) > 0 {
				t.Errorf("at the relay: %v; it got %v", err, r.got())
			}
		})
	}
}
