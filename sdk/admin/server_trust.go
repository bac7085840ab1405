package admin

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/sdk/internal/tlstrust"
	"github.com/watchword-iot/watchword/token"
)

// Server is a server whose trust bundle was verified, and whose TLS certificate the bundle vouches for.
type Server struct {
	URL    string // https://host:port, without a trailing slash
	Issuer string // the issuer identifier
	Bundle string // the trust bundle, as the server sent it: [Options].Bundle
	Pin    string // of a root that the bundle names: [Options].Pin

	trust token.Trust
}

// VerifyServer fetches the trust bundle of a server that is not authenticated yet, verifies it by the pin of a root key, and the
// server's TLS certificate by the bundle. Where a public certificate is one of another host than those of the bundle's issuers, it
// proves nothing: url must have the host of one of them. pin empty means the newest root that the bundle itself names: the caller has then to
// compare Server.Pin with one that it got another way, before it trusts the server. now is the present time.
//
// Codes: pin_mismatch, bundle_invalid, peer_untrusted if the server is another one; unavailable.
func VerifyServer(ctx context.Context, url, pin string, now time.Time) (*Server, error) {
	c, peerCerts := tlstrust.UnverifiedClient(url, nil)
	a, err := c.Do(ctx, rest.Request{Method: http.MethodGet, Path: "/v1/trust", Max: watchword.MaxBundle})
	if err != nil {
		return nil, err
	}
	raw := string(a.Body)
	if pin == "" {
		if pin, err = token.TrustPinOfBundle(raw); err != nil {
			return nil, tlstrust.NotABundle(err)
		}
	}
	t, err := token.VerifyTrust(raw, pin, now)
	if err != nil {
		return nil, tlstrust.NotABundle(err)
	}
	if err := tlstrust.CheckPeer(peerCerts(), url, &t, now); err != nil {
		return nil, err
	}
	return &Server{URL: url, Issuer: t.Issuer, Bundle: raw, Pin: pin, trust: t}, nil
}

// Client returns a client of the server without tokens, for requests that need none.
func (s *Server) Client(now func() time.Time) (*rest.Client, error) {
	tr, err := tlstrust.NewTransport(&s.trust, now(), nil)
	if err != nil {
		return nil, err
	}
	tr.TLSClientConfig.Time = now
	return rest.New(s.URL, tr, nil), nil
}

// bundleRefreshAfter is the age from which a bundle is replaced by the server's current one at the next use. A bundle lives 90
// days, and keys and authorities appear in it long before they are used.
const bundleRefreshAfter = 24 * time.Hour

// trustedTransport authenticates a server by its trust bundle, and follows the bundle: it asks for the next one where the
// certificate of the server is of an authority that the known bundle does not name, and before the first request if the bundle
// is a day old. It is safe for concurrent use.
type trustedTransport struct {
	tlstrust.Transport
	url  string
	now  func() time.Time
	save func(Server)

	mu    sync.Mutex // one refresh at a time
	trust token.Trust
	next  time.Time // when the bundle is asked for again
}

// newTrustedTransport verifies the bundle of o by its pin. A bundle that has expired still leads to the next one. Codes: those
// of [token.VerifyTrust]; bundle_invalid for the bundle of another issuer.
func newTrustedTransport(o Options) (*trustedTransport, error) {
	t, err := token.VerifyTrust(o.Bundle, o.Pin, time.Time{})
	if err != nil {
		return nil, err
	}
	if !t.HasIssuer(o.Issuer) {
		return nil, watchword.Refuse(watchword.BundleInvalid, "the trust bundle is that of issuer %q, not of %q", t.Issuer, o.Issuer)
	}
	r := &trustedTransport{url: o.URL, now: o.Now, save: o.SaveServer, trust: t, next: o.BundleAt.Add(bundleRefreshAfter)}
	return r, r.use(t)
}

// issuer returns the issuer identifier that the server has by the known bundle.
func (r *trustedTransport) issuer() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.trust.Issuer
}

// use makes t the bundle of further connections. It is called with mu held, or before r is shared.
func (r *trustedTransport) use(t token.Trust) error {
	tr, err := tlstrust.NewTransport(&t, r.now(), nil)
	if err != nil {
		return err
	}
	tr.TLSClientConfig.Time = r.now
	r.trust = t
	if old := r.Swap(tr); old != nil {
		old.CloseIdleConnections()
	}
	return nil
}

// RoundTrip sends a request, with a newer bundle where the server's certificate needs one. Nothing of the request was sent
// before a certificate was refused, so it is sent once.
func (r *trustedTransport) RoundTrip(q *http.Request) (*http.Response, error) {
	if err := r.refreshIfDue(q.Context()); err != nil {
		if q.Body != nil {
			_ = q.Body.Close() // a RoundTripper closes it; nothing was read from it
		}
		return nil, err
	}
	res, err := r.Transport.RoundTrip(q)
	if !tlstrust.IsUnknownAuthority(err) || q.Body != nil && q.GetBody == nil {
		return res, err
	}
	before := r.Load()
	if rerr := r.refresh(q.Context()); rerr != nil || r.Load() == before {
		return res, err // the refusal of the certificate says more than why there is no newer bundle
	}
	again := q.Clone(q.Context())
	if q.GetBody != nil {
		if again.Body, err = q.GetBody(); err != nil {
			return nil, err
		}
	}
	return r.Transport.RoundTrip(again)
}

// withRefresh asks for the current bundle, if that is due, before get requests a token: the assertion names the issuer of it.
func (r *trustedTransport) withRefresh(ctx context.Context, get func(context.Context) error) error {
	if err := r.refreshIfDue(ctx); err != nil {
		return err
	}
	return get(ctx)
}

// bundleRetryAfter is the pause after an error of refreshIfDue.
const bundleRetryAfter = time.Minute

// refreshIfDue asks for the current bundle if the known one is old. An error counts only if the known bundle has expired: else
// a later use asks again.
func (r *trustedTransport) refreshIfDue(ctx context.Context) error {
	r.mu.Lock()
	now := r.now()
	due, expired := !now.Before(r.next), now.After(r.trust.Expires.Add(token.Skew))
	if due && !expired {
		r.next = now.Add(bundleRetryAfter)
	}
	r.mu.Unlock()
	if !due {
		return nil
	}
	if err := r.refresh(ctx); err != nil && expired {
		return err
	}
	return nil
}

// refresh asks for the current bundle, without authenticating the server: a root that the known bundle names must have signed
// it.
func (r *trustedTransport) refresh(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, _ := tlstrust.UnverifiedClient(r.url, nil)
	a, err := c.Do(ctx, rest.Request{Method: http.MethodGet, Path: "/v1/trust", Max: watchword.MaxBundle})
	if err != nil {
		return err
	}
	t, err := token.VerifyNextTrust(string(a.Body), r.trust, r.now())
	if err != nil {
		return tlstrust.NotABundle(err)
	}
	s := Server{URL: r.url, Issuer: t.Issuer, Bundle: string(a.Body), Pin: token.TrustPin(t.Roots[len(t.Roots)-1])}
	if t.Issuer != r.trust.Issuer { // the server has another address, which its issuer identifier is
		s.URL = t.Issuer
	}
	if r.save != nil {
		r.save(s)
	}
	r.next = r.now().Add(bundleRefreshAfter)
	if t.BundleVersion() == r.trust.BundleVersion() {
		return nil
	}
	return r.use(t)
}
