package acme

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"
)

// certificate is a chain with its key. It is not changed.
type certificate struct{ pair tls.Certificate }

func (c *certificate) leaf() *x509.Certificate { return c.pair.Leaf }

// missing returns the names that the certificate is not for.
func (c *certificate) missing(names []string) (out []string) {
	for _, n := range names {
		if c.leaf().VerifyHostname(n) != nil {
			out = append(out, n)
		}
	}
	return out
}

func (c *certificate) covers(names []string) bool { return len(c.missing(names)) == 0 }

// validAt reports whether the certificate is valid at a time.
func (c *certificate) validAt(now time.Time) bool {
	return !now.Before(c.leaf().NotBefore) && !now.After(c.leaf().NotAfter)
}

// maxChain is the most certificates of a chain.
const maxChain = 5

// check makes a certificate of what an authority issued for a key, and refuses one that clients would not accept: another key, a name
// that is not in it, an authority that is not known, an end that has passed. One that is not valid yet passes, and is used once it is.
func check(chain [][]byte, key *ecdsa.PrivateKey, names []string, roots *x509.CertPool, now time.Time) (*certificate, error) {
	if len(chain) == 0 || len(chain) > maxChain {
		return nil, fmt.Errorf("the chain has %d certificates, and must have 1 to %d", len(chain), maxChain)
	}
	between := x509.NewCertPool()
	var leaf *x509.Certificate
	for i, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain: %w", i, err)
		}
		if i == 0 {
			leaf = c
		} else {
			between.AddCert(c)
		}
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("the certificate is for another key than the one of the order")
	}
	c := &certificate{tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}}
	if missing := c.missing(names); len(missing) > 0 {
		return nil, fmt.Errorf("the certificate is not for %s", strings.Join(missing, ", "))
	}
	if now.After(leaf.NotAfter) {
		return nil, fmt.Errorf("the certificate ended at %s, before the time of this server", leaf.NotAfter.Format(time.RFC3339))
	}
	at := now
	if at.Before(leaf.NotBefore) {
		at = leaf.NotBefore
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at})
	if err != nil {
		return nil, fmt.Errorf("clients would not accept the certificate, since this machine does not: %w", err)
	}
	return c, nil
}

// The certificate is one file with its key before it, so that the two never come apart.
const (
	keyBlock  = "PRIVATE KEY"
	certBlock = "CERTIFICATE"
)

func (c *certificate) pem() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(c.pair.PrivateKey)
	if err != nil {
		return nil, err
	}
	out := pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der})
	for _, der := range c.pair.Certificate {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: der})...)
	}
	return out, nil
}

// parseCertificate parses what pem returned. It may have ended, and may be for other names than those of today.
func parseCertificate(b []byte, roots *x509.CertPool) (*certificate, error) {
	var key crypto.PrivateKey
	var chain [][]byte
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case keyBlock:
			k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, err
			}
			key = k
		case certBlock:
			chain = append(chain, bytes.Clone(block.Bytes))
		}
	}
	own, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("it has no key of an elliptic curve")
	}
	return check(chain, own, nil, roots, time.Time{})
}

// Certificate returns the certificate for the server name of a handshake, which is empty where the client sent none; nil where there is
// none for it that is valid now.
func (m *Manager) Certificate(serverName string) *tls.Certificate {
	m.mu.Lock()
	c := m.cert
	m.mu.Unlock()
	if c == nil || serverName == "" || !c.validAt(m.o.Now()) || c.leaf().VerifyHostname(serverName) != nil {
		return nil
	}
	return &c.pair
}

// VerifyName returns an error unless there is a certificate for a name.
func (m *Manager) VerifyName(name string) error {
	m.mu.Lock()
	c := m.cert
	m.mu.Unlock()
	if c == nil {
		return errors.New("there is no certificate yet")
	}
	return c.leaf().VerifyHostname(name)
}

// When a certificate is renewed: after two thirds of its time, or 30 days before its end. It is late when half of that has passed
// too, or with a week left.
const (
	longestRenewal = 30 * 24 * time.Hour
	longestLate    = 7 * 24 * time.Hour
)

func renewBefore(life time.Duration) time.Duration { return min(life/3, longestRenewal) }

func lateBefore(life time.Duration) time.Duration { return min(life/6, longestLate) }

// renewAt returns when a certificate is to be renewed: within the window that the authority suggests, if it does, but never late. The
// moment depends on the certificate, so that servers are spread, and this one asks at the same time after a restart.
func (c *certificate) renewAt(w renewalWindow) time.Time {
	leaf := c.leaf()
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	end := leaf.NotAfter.Add(-renewBefore(life))
	start := end.Add(-life / 30)
	if !w.end.IsZero() {
		start, end = w.start, w.end
	}
	sum := sha256.Sum256(leaf.Raw)
	at := start.Add(time.Duration(float64(end.Sub(start)) * float64(binary.BigEndian.Uint16(sum[:])) / (1 << 16)))
	if late := leaf.NotAfter.Add(-lateBefore(life)); at.After(late) {
		return late
	}
	return at
}
