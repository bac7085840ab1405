package device

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/token"
)

// anchors returns the certificate authorities that may certify the server's TLS key.
func anchors(t *token.Trust) (*x509.CertPool, error) {
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

// transportRef is a transport that can be replaced while requests are in progress.
type transportRef struct{ atomic.Pointer[http.Transport] }

// RoundTrip uses the current transport.
func (r *transportRef) RoundTrip(q *http.Request) (*http.Response, error) {
	return r.Load().RoundTrip(q)
}

// CloseIdleConnections closes those of the current transport.
func (r *transportRef) CloseIdleConnections() { r.Load().CloseIdleConnections() }

// newTransport returns a transport that trusts only t's certificate authorities. now is zero for a device without a clock:
// then certificates are verified at the time of the bundle.
func newTransport(t *token.Trust, now time.Time, dial rest.Dial) (*http.Transport, error) {
	pool, err := anchors(t)
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

// unverifiedClient returns a client that does not authenticate the server, for content that proves its own authenticity:
// the trust bundle and signed time. No other answer is used. peerCerts returns the certificates of the last peer.
func (d *Device) unverifiedClient(server string) (c *rest.Client, peerCerts func() []*x509.Certificate) {
	return d.insecureClient(server, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // the bundle is verified by the pin, then this peer by the bundle
	})
}

// insecureClient returns a client for a server whose bundle is not known yet.
func (d *Device) insecureClient(server string, conf *tls.Config) (c *rest.Client, peerCerts func() []*x509.Certificate) {
	var peer atomic.Pointer[[]*x509.Certificate]
	conf.VerifyConnection = func(s tls.ConnectionState) error {
		peer.Store(&s.PeerCertificates)
		return nil
	}
	return rest.NewUnauthenticated(server, rest.WithoutKeepAlive(rest.Transport(conf, d.connect))), func() []*x509.Certificate {
		if p := peer.Load(); p != nil {
			return *p
		}
		return nil
	}
}

// checkPeer verifies the certificates of a TLS peer with the authorities of a verified bundle. Code: peer_untrusted.
func checkPeer(peerCerts []*x509.Certificate, server string, t *token.Trust, now time.Time) error {
	pool, err := anchors(t)
	if err != nil {
		return err
	}
	u, err := url.Parse(server)
	if err != nil || len(peerCerts) == 0 {
		return watchword.Wrap(err, watchword.PeerUntrusted, "the server sent no certificate")
	}
	if now.IsZero() {
		now = t.Issued
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

// HTTPClient returns an HTTP client that trusts only the server of the trust bundle, for requests of the application. Their
// contexts need deadlines. Code: conflict before
// the device is enrolled.
func (d *Device) HTTPClient() (*http.Client, error) {
	if d.identity == nil {
		return nil, errNotEnrolled()
	}
	return rest.WithoutRedirects(&d.transport), nil
}
