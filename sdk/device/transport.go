package device

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"

	"github.com/watchword-iot/watchword/internal/rest"
	"github.com/watchword-iot/watchword/sdk/internal/tlstrust"
)

// unverifiedClient is [tlstrust.UnverifiedClient] over the device's connections.
func (d *Device) unverifiedClient(server string) (c *rest.Client, peerCerts func() []*x509.Certificate) {
	return tlstrust.UnverifiedClient(server, d.connect)
}

// insecureClient is [tlstrust.Client] over the device's connections.
func (d *Device) insecureClient(server string, conf *tls.Config) (c *rest.Client, peerCerts func() []*x509.Certificate) {
	return tlstrust.Client(server, conf, d.connect)
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
