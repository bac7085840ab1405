package acme

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"time"

	"github.com/watchword-iot/watchword/internal/rest"
)

// Limits on an exchange with the authority.
const (
	exchangeTimeout = 30 * time.Second
	maxAnswer       = 256 << 10 // bytes of a body: a chain has about 6 KiB
)

func newHTTPClient(roots *x509.CertPool, now func() time.Time) *http.Client {
	return rest.ForLibrary(rest.Transport(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, Time: now}, nil), exchangeTimeout, maxAnswer)
}

// backoff is when a request is repeated within an order: a used nonce at once (RFC 8555 §6.5), a failure of the authority a few times.
// A rate limit ends the order.
func backoff(n int, _ *http.Request, res *http.Response) time.Duration {
	const mostNonces, mostFailures = 15, 3
	switch {
	case res.StatusCode == http.StatusBadRequest && n <= mostNonces: // of such answers only badNonce is repeated
		return time.Duration(n) * 20 * time.Millisecond
	case res.StatusCode >= 500 && n <= mostFailures:
		return time.Duration(n) * time.Second
	}
	return 0
}
