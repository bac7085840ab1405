package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// publicAuthority is an authority that this process trusts as one of the public Web PKI.
var publicAuthority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func TestMain(m *testing.M) { os.Exit(withPublicAuthority(m)) }

// withPublicAuthority runs the tests with an authority in the place of the public ones, and returns the exit status. A process reads
// the public authorities once, so each test has it.
func withPublicAuthority(m *testing.M) int {
	dir, err := os.MkdirTemp("", "public")
	if err == nil {
		err = trustAuthority(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "the public authority:", err)
		return 1
	}
	status := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "the public authority:", err)
		return 1
	}
	return status
}

// trustAuthority makes the authority and writes it to dir, from where this process and its children read the public authorities.
func trustAuthority(dir string) error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "public"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, k.Public(), k)
	if err != nil {
		return err
	}
	publicAuthority.cert, publicAuthority.key = authority, k
	file := filepath.Join(dir, "authority.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return err
	}
	if err := os.Setenv("SSL_CERT_DIR", filepath.Join(dir, "none")); err != nil {
		return err
	}
	return os.Setenv("SSL_CERT_FILE", file)
}

// publicCertificate returns a certificate of the authority for a host name or an IP address, and its private key. It skips the test where
// the system verifies certificates itself and does not read SSL_CERT_FILE.
func publicCertificate(t testing.TB, host string) tls.Certificate {
	t.Helper()
	if runtime.GOOS == "darwin" || runtime.GOOS == "windows" {
		t.Skip("the authorities of this system cannot be replaced by an environment variable")
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(500 * time.Hour)}
	if ip := net.ParseIP(host); ip != nil {
		c.IPAddresses = []net.IP{ip}
	} else {
		c.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, publicAuthority.cert, k.Public(), publicAuthority.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

// writeCertificate writes a certificate and its key as PEM files to dir, and returns their names.
func writeCertificate(t testing.TB, dir string, c tls.Certificate) (cert, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
