package acme

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	xacme "golang.org/x/crypto/acme"
)

var at = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// issuer is an authority of a test.
type issuer struct {
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	roots *x509.CertPool
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newIssuer(t *testing.T) issuer {
	t.Helper()
	i := issuer{key: newKey(t), roots: x509.NewCertPool()}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: at.Add(-1000 * time.Hour), NotAfter: at.Add(10000 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, i.key.Public(), i.key)
	if err != nil {
		t.Fatal(err)
	}
	if i.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	i.roots.AddCert(i.cert)
	return i
}

// issue returns a certificate of one name, from a time on, and with a life.
func (i issuer) issue(t *testing.T, key *ecdsa.PrivateKey, from time.Time, life time.Duration, usage x509.ExtKeyUsage, names ...string) []byte {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(0x87654321), NotBefore: from, NotAfter: from.Add(life), DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{usage}}
	der, err := x509.CreateCertificate(rand.Reader, c, i.cert, key.Public(), i.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestACertificateThatClientsWouldRefuseIsRefused(t *testing.T) {
	ca, other, key := newIssuer(t), newIssuer(t), newKey(t)
	names := []string{"a.example", "b.example"}
	good := ca.issue(t, key, at.Add(-time.Hour), 90*24*time.Hour, x509.ExtKeyUsageServerAuth, names...)
	for _, tc := range []struct {
		name  string
		chain [][]byte
		key   *ecdsa.PrivateKey
		says  string // empty: it is accepted
	}{
		{"one that is right", [][]byte{good}, key, ""},
		{"one with its authority", [][]byte{good, ca.cert.Raw}, key, ""},
		{"one that is not valid yet", [][]byte{ca.issue(t, key, at.Add(time.Minute), time.Hour, x509.ExtKeyUsageServerAuth, names...)}, key, ""},
		{"five certificates", [][]byte{good, ca.cert.Raw, ca.cert.Raw, ca.cert.Raw, ca.cert.Raw}, key, ""},
		{"six certificates", [][]byte{good, ca.cert.Raw, ca.cert.Raw, ca.cert.Raw, ca.cert.Raw, ca.cert.Raw}, key, "6 certificates"},
		{"none", nil, key, "0 certificates"},
		{"no certificate", [][]byte{good, []byte("x")}, key, "certificate 1 of the chain"},
		{"one for another key", [][]byte{good}, newKey(t), "another key"},
		{"one without a name", [][]byte{ca.issue(t, key, at.Add(-time.Hour), 24*time.Hour, x509.ExtKeyUsageServerAuth, "a.example")}, key, "not for b.example"},
		{"one that has ended", [][]byte{ca.issue(t, key, at.Add(-2*time.Hour), time.Hour, x509.ExtKeyUsageServerAuth, names...)}, key, "ended at"},
		{"one for clients", [][]byte{ca.issue(t, key, at.Add(-time.Hour), time.Hour*2, x509.ExtKeyUsageClientAuth, names...)}, key, "this machine does not"},
		{"one of another authority", [][]byte{other.issue(t, key, at.Add(-time.Hour), time.Hour*2, x509.ExtKeyUsageServerAuth, names...)}, key, "this machine does not"},
	} {
		c, err := check(tc.chain, tc.key, names, ca.roots, at)
		if tc.says == "" && (err != nil || c == nil) || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestACertificateIsStoredWithItsKey(t *testing.T) {
	ca, key := newIssuer(t), newKey(t)
	c, err := check([][]byte{ca.issue(t, key, at, time.Hour, x509.ExtKeyUsageServerAuth, "a.example"), ca.cert.Raw}, key, []string{"a.example"}, ca.roots, at)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.pem()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseCertificate(b, ca.roots)
	if err != nil || len(got.pair.Certificate) != 2 || !got.leaf().Equal(c.leaf()) {
		t.Errorf("read %v, %v", got, err)
	}
	if _, err := parseCertificate(b, newIssuer(t).roots); err == nil {
		t.Error("a certificate of an authority that is not known any more is used")
	}
	for tm, want := range map[time.Time]bool{at.Add(-time.Second): false, at: true, at.Add(time.Hour): true, at.Add(time.Hour + time.Second): false} {
		if got := c.validAt(tm); got != want {
			t.Errorf("valid at %v: %v", tm, got)
		}
	}
	// RFC 9773 §4.1: the serial number as in DER, with the byte of its sign.
	if id := c.renewalID(); !strings.HasSuffix(id, ".AIdlQyE") {
		t.Errorf("identifier %s", id)
	}
}

func TestWhenACertificateIsRenewed(t *testing.T) {
	ca, key, day := newIssuer(t), newKey(t), 24*time.Hour
	for _, tc := range []struct {
		life             time.Duration
		first, last, now time.Duration // renewed after; late after
	}{
		{90 * day, 57 * day, 60 * day, 83 * day},
		{365 * day, 365*day - 30*day - 365*day/30, 335 * day, 358 * day},
		{6 * day, 6*day - 2*day - 6*day/30, 4 * day, 5 * day},
		{time.Hour, 38 * time.Minute, 40 * time.Minute, 50 * time.Minute},
	} {
		c, err := check([][]byte{ca.issue(t, key, at, tc.life, x509.ExtKeyUsageServerAuth, "a.example")}, key, nil, ca.roots, at)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.renewAt(renewalWindow{}).Sub(at); got < tc.first || got > tc.last {
			t.Errorf("%v: renewed after %v, not %v to %v", tc.life, got, tc.first, tc.last)
		}
		s := Status{NotBefore: c.leaf().NotBefore, NotAfter: c.leaf().NotAfter}
		if s.Late(at.Add(tc.now-time.Second)) || !s.Late(at.Add(tc.now)) {
			t.Errorf("%v: not late after %v", tc.life, tc.now)
		}
		if got := c.renewAt(renewalWindow{start: at.Add(time.Minute), end: at.Add(2 * time.Minute)}).Sub(at); got < time.Minute || got > 2*time.Minute {
			t.Errorf("%v: the window of the authority gives %v", tc.life, got)
		}
		if got := c.renewAt(renewalWindow{start: at.Add(1000 * day), end: at.Add(1001 * day)}).Sub(at); got != tc.now {
			t.Errorf("%v: a window behind the end gives %v", tc.life, got)
		}
	}
	if (Status{}).Late(at) {
		t.Error("no certificate is late")
	}
}

func TestTheWaitsAfterFailures(t *testing.T) {
	other := errors.New("x")
	limited := func(after string) error {
		return &xacme.Error{StatusCode: 429, ProblemType: "urn:ietf:params:acme:error:rateLimited", Header: http.Header{"Retry-After": {after}}}
	}
	for _, tc := range []struct {
		failures int
		err      error
		want     time.Duration
	}{
		{1, other, time.Minute},
		{2, other, 2 * time.Minute},
		{9, other, 256 * time.Minute},
		{10, other, 6 * time.Hour},
		{11, other, 6 * time.Hour},
		{1 << 40, other, 6 * time.Hour},
		{1, limited("30"), time.Minute},
		{1, limited("3600"), time.Hour},
		{1, limited("99999999"), 7 * 24 * time.Hour},
		{1, &xacme.Error{StatusCode: 500, Header: http.Header{"Retry-After": {"3600"}}}, time.Minute},
	} {
		if got := waitAfter(tc.failures, tc.err); got != tc.want {
			t.Errorf("after %d failures (%v): %v, want %v", tc.failures, tc.err, got, tc.want)
		}
	}
	m := &Manager{state: attempts{Failures: 1, Tried: at, Next: at.Add(time.Hour)}}
	if !m.heldUntil(at).Equal(at.Add(time.Hour)) || !m.heldUntil(at.Add(-time.Second)).IsZero() {
		t.Error("an attempt by a clock that was ahead holds the next one")
	}
	res := func(status int) *http.Response { return &http.Response{StatusCode: status} }
	for _, tc := range []struct {
		n, status int
		want      time.Duration
	}{{1, 400, 20 * time.Millisecond}, {15, 400, 300 * time.Millisecond}, {16, 400, 0}, {3, 500, 3 * time.Second}, {4, 500, 0}, {1, 429, 0}, {1, 302, 0}} {
		if got := backoff(tc.n, nil, res(tc.status)); got != tc.want {
			t.Errorf("repetition %d after status %d: %v, want %v", tc.n, tc.status, got, tc.want)
		}
	}
}
