package hostile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/token"
)

// Issuer is the issuer of every [Server].
const Issuer = "https://hostile.example"

// authority holds a server's keys: its root, the signing keys by role, and its TLS CA.
type authority struct {
	root, command, time, issuer, log *jose.Signer
	ca                               []byte // DER
	certificate                      tls.Certificate
}

func newAuthority(now time.Time) (*authority, error) {
	a := &authority{}
	for _, s := range []**jose.Signer{&a.root, &a.command, &a.time, &a.issuer, &a.log} {
		k, err := jose.GenerateKey(jose.P256)
		if err != nil {
			return nil, err
		}
		if *s, err = k.Signer(); err != nil {
			return nil, err
		}
	}
	var err error
	a.ca, a.certificate, err = newCertificate(now)
	return a, err
}

// newCertificate makes a certificate for loopback addresses, and its CA.
func newCertificate(now time.Time) (ca []byte, _ tls.Certificate, err error) {
	caKey, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	key, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err := errors.Join(err1, err2); err != nil {
		return nil, tls.Certificate{}, err
	}
	issuer := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "hostile"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if ca, err = x509.CreateCertificate(rand.Reader, issuer, issuer, caKey.Public(), caKey); err != nil {
		return nil, tls.Certificate{}, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: issuer.NotBefore, NotAfter: issuer.NotAfter,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, issuer, key.Public(), caKey)
	return ca, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// bundle returns the trust bundle of that version, as changed by edit.
func (a *authority) bundle(version int64, now time.Time, edit func(*token.Trust)) (string, error) {
	public := func(s *jose.Signer) []*jose.PublicKey { return []*jose.PublicKey{s.Public()} }
	t := token.Trust{
		Issuer: Issuer, Version: version, Epoch: epoch, Roots: public(a.root), Issuers: public(a.issuer), Command: public(a.command), Time: public(a.time), Log: public(a.log),
		CAs: [][]byte{a.ca}, Issued: now, Expires: now.Add(token.TrustLifetime),
	}
	if edit != nil {
		edit(&t)
	}
	return token.SignTrust(t, a.root)
}

// epoch is the epoch of every [Server].
const epoch = 1

func newCommandID(now time.Time) watchword.CommandID {
	return watchword.CommandID(watchword.NewID("cmd_", now))
}
