// Package tlstrust makes HTTP transports and clients that authenticate a server by its trust bundle. A verified bundle comes
// in; transports that accept only certificates that it vouches for go out. Verifying a bundle is the business of package token,
// storing it that of the caller.
package tlstrust

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/token"
)

// Anchors returns the certificate authorities that may certify the server's TLS key. Codes: peer_untrusted, bundle_invalid.
func Anchors(t *token.Trust) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if t.WebPKI {
		system, err := x509.SystemCertPool()
		if err != nil {
			return nil, watchword.Wrap(err, watchword.PeerUntrusted, "this system has no list of public CAs")
		}
		pool = system
	}
	for _, der := range t.CAs {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, watchword.Wrap(err, watchword.BundleInvalid, "tls.ca of the trust bundle must be certificates")
		}
		pool.AddCert(c)
	}
	return pool, nil
}

// AnchorsPEM returns the certificates of the bundle's own authorities as PEM; empty if it has none.
func AnchorsPEM(t *token.Trust) (ca []byte) {
	for _, der := range t.CAs {
		ca = append(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return ca
}

// Transport is a transport that can be replaced while requests are in progress. It is safe for concurrent use.
type Transport struct{ atomic.Pointer[http.Transport] }

// RoundTrip uses the current transport.
func (r *Transport) RoundTrip(q *http.Request) (*http.Response, error) {
	return r.Load().RoundTrip(q)
}

// CloseIdleConnections closes those of the current transport.
func (r *Transport) CloseIdleConnections() { r.Load().CloseIdleConnections() }

// NewTransport returns a transport that trusts only t's certificate authorities. now is zero for a client without a clock: then
// certificates are verified at the time of the bundle. Codes: as [Anchors].
func NewTransport(t *token.Trust, now time.Time, dial rest.Dial) (*http.Transport, error) {
	pool, err := Anchors(t)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
	if now.IsZero() {
		issued := t.Issued
		c.Time = func() time.Time { return issued }
	}
	return rest.Transport(c, dial), nil
}

// UnverifiedClient returns a client that does not authenticate the server, for content that proves its own authenticity:
// the trust bundle and signed time. No other answer may be used. peerCerts returns the certificates of the last peer.
func UnverifiedClient(server string, dial rest.Dial) (c *rest.Client, peerCerts func() []*x509.Certificate) {
	return Client(server, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // the bundle is verified by the pin, then this peer by the bundle
	}, dial)
}

// Client returns a client for a server whose bundle is not known yet, which conf authenticates or does not.
func Client(server string, conf *tls.Config, dial rest.Dial) (c *rest.Client, peerCerts func() []*x509.Certificate) {
	var peer atomic.Pointer[[]*x509.Certificate]
	conf.VerifyConnection = func(s tls.ConnectionState) error {
		peer.Store(&s.PeerCertificates)
		return nil
	}
	return rest.NewUnauthenticated(server, rest.WithoutKeepAlive(rest.Transport(conf, dial))), func() []*x509.Certificate {
		if p := peer.Load(); p != nil {
			return *p
		}
		return nil
	}
}

// CheckPeer verifies the certificates of a TLS peer with the authorities of a verified bundle; now zero means the time of the
// bundle. A certificate of the bundle's own authorities is enough. One of the public Web PKI proves only which host the peer is,
// and every host can get one: then the host must also be that of an issuer of the bundle. Without that, another host could pass
// requests on to the server, and everything that the client sees would be the server's. Code: peer_untrusted.
func CheckPeer(peerCerts []*x509.Certificate, server string, t *token.Trust, now time.Time) error {
	if now.IsZero() {
		now = t.Issued
	}
	u, err := url.Parse(server)
	if err != nil || len(peerCerts) == 0 {
		return watchword.Wrap(err, watchword.PeerUntrusted, "the server sent no certificate")
	}
	own := *t
	own.WebPKI = false
	err = verifyPeer(peerCerts, u, &own, now)
	if err == nil || !t.WebPKI {
		return err
	}
	if err := verifyPeer(peerCerts, u, t, now); err != nil {
		return err
	}
	return CheckHost(server, t, now)
}

// CheckHost refuses a URL whose host is not that of an issuer which the bundle accepts at the time now. Code: peer_untrusted.
func CheckHost(server string, t *token.Trust, now time.Time) error {
	u, err := url.Parse(server)
	if err != nil || !t.HasHost(u.Hostname(), now) {
		return watchword.Wrap(err, watchword.PeerUntrusted, "the address %s is not that of the server whose trust bundle it sent, which is %s: the connection may be intercepted; if %s is the server that you mean, use that address", server, t.Issuer, t.Issuer)
	}
	return nil
}

func verifyPeer(peerCerts []*x509.Certificate, u *url.URL, t *token.Trust, now time.Time) error {
	pool, err := Anchors(t)
	if err != nil {
		return err
	}
	between := x509.NewCertPool()
	for _, c := range peerCerts[1:] {
		between.AddCert(c)
	}
	if _, err := peerCerts[0].Verify(x509.VerifyOptions{DNSName: u.Hostname(), Roots: pool, Intermediates: between, CurrentTime: now}); err != nil {
		return watchword.Wrap(err, watchword.PeerUntrusted, "the trust bundle is valid, but the TLS certificate at %s is not one that it certifies: the connection may be intercepted", u.Host)
	}
	return nil
}

// IsUnknownAuthority reports whether an error means that the trust bundle does not vouch for the peer's certificate: the
// server's authority may have changed.
func IsUnknownAuthority(err error) bool {
	_, is := errors.AsType[*tls.CertificateVerificationError](err)
	return is
}

// NotABundle returns the error for a document that is not the server's trust bundle: bundle_invalid if it cannot be parsed.
func NotABundle(err error) error {
	if watchword.CodeOf(err) == watchword.TokenMalformed {
		return watchword.Wrap(err, watchword.BundleInvalid, "the server did not return a trust bundle")
	}
	return err
}
