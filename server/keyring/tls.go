package keyring

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/watchword-iot/watchword"
)

// Lifetimes of the authority's and of the server's certificate, and when a server certificate is replaced.
const (
	caLifetime      = 10 * 365 * 24 * time.Hour
	leafLifetime    = 90 * 24 * time.Hour
	leafRenewBefore = 30 * 24 * time.Hour
)

type authority struct {
	key  crypto.Signer
	cert *x509.Certificate
}

func selfSign(key crypto.Signer, issuer string, now time.Time) ([]byte, error) {
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "Watchword CA for " + issuer},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(caLifetime),
		IsCA:                  true,
		MaxPathLenZero:        true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	b[0] &= 0x7f           // RFC 5280 §4.1.2.2: positive
	return new(big.Int).SetBytes(b[:])
}

func newAuthority(key crypto.Signer, der []byte) (*authority, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{key: key, cert: cert}, nil
}

// CAPEM returns the valid certificates of the server's own authority as PEM, the active one first.
func (r *Ring) CAPEM() []byte {
	k := r.state.Load()
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.ca.cert.Raw})
	for _, der := range k.anchors {
		if !bytes.Equal(der, k.ca.cert.Raw) {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
	}
	return out
}

// CertSource provides a certificate of the server's own authority for a list of names. It is created when first
// needed, and again when the list or the authority's key changes, 30 days before its end, or if it is not valid yet. While the clock is
// not trusted no certificate is created, and the last one stays in use. Its private key exists only in memory. It is safe for
// concurrent use.
type CertSource struct {
	ring  *Ring
	names func() []string
	now   func() time.Time

	mu   sync.Mutex
	by   *authority
	on   []string // names of leaf
	leaf *tls.Certificate
}

// CertSource returns a source of certificates for localhost, 127.0.0.1, ::1 and names, which returns DNS names and IP
// addresses.
func (r *Ring) CertSource(names func() []string, now func() time.Time) *CertSource {
	return &CertSource{ring: r, names: names, now: now}
}

// GetCertificate is the function for [tls.Config].
func (c *CertSource) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	now, ca := c.now(), c.ring.state.Load().ca
	names := append([]string{"localhost", "127.0.0.1", "::1"}, c.names()...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leaf != nil && c.by.equal(ca) && slices.Equal(c.on, names) && !now.Before(c.leaf.Leaf.NotBefore) && now.Before(c.leaf.Leaf.NotAfter.Add(-leafRenewBefore)) {
		return c.leaf, nil
	}
	leaf, err := ca.issue(names, now)
	switch {
	case err == nil:
		c.leaf, c.by, c.on = leaf, ca, names
	case c.leaf != nil && watchword.CodeOf(err) == watchword.ClockUntrusted:
		return c.leaf, nil
	}
	return leaf, err
}

// AuthorityValid reports whether the certificate of the active authority is valid at a time. Where it is not, [Rotator.Step] replaces
// it.
func (r *Ring) AuthorityValid(now time.Time) bool { return r.state.Load().ca.validAt(now) }

// validAt reports whether the authority's certificate is valid at a time.
func (a *authority) validAt(now time.Time) bool {
	return !now.Before(a.cert.NotBefore) && now.Before(a.cert.NotAfter)
}

func (a *authority) equal(b *authority) bool { return a.cert.Equal(b.cert) }

func (a *authority) issue(names []string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: names[0]},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(leafLifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}
