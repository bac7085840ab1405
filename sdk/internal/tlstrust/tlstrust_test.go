package tlstrust

import (
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/token"
)

// A certificate of the bundle's own authorities is enough under each of its names, also where the bundle allows the public Web PKI.
func TestTheOwnAuthorityIsEnough(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(s.Close)
	for _, webPKI := range []bool{false, true} {
		b := token.Trust{Issuer: "https://hub.example", CAs: [][]byte{s.Certificate().Raw}, WebPKI: webPKI}
		if err := CheckPeer([]*x509.Certificate{s.Certificate()}, s.URL, &b, time.Now()); err != nil {
			t.Errorf("public Web PKI %v: %v", webPKI, err)
		}
		if err := CheckPeer([]*x509.Certificate{s.Certificate()}, "https://192.0.2.1", &b, time.Now()); watchword.CodeOf(err) != watchword.PeerUntrusted {
			t.Errorf("public Web PKI %v, another address: %v", webPKI, err)
		}
	}
}
