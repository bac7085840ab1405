package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/watchword-iot/watchword"
	"github.com/watchword-iot/watchword/jose"
	"github.com/watchword-iot/watchword/mqtt/packet"
	"github.com/watchword-iot/watchword/sdk/admin"
	"github.com/watchword-iot/watchword/server"
	"github.com/watchword-iot/watchword/token"
)

// running serves until the test ends.
func running(t *testing.T, c server.Config) server.Info { return runningAt(t, c, quiet) }

func runningAt(t *testing.T, c server.Config, o server.Options) server.Info {
	t.Helper()
	s, err := server.New(t.Context(), c, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s.Info()
}

// proxyHeader is what a proxy says of a TCP connection from one address to another.
func proxyHeader(from, to netip.AddrPort) []byte {
	b := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x21, 0x11)
	family := from.Addr().AsSlice()
	if len(family) == 16 {
		b[13] = 0x21
	}
	body := append(append([]byte{}, family...), to.Addr().AsSlice()...)
	body = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(body, from.Port()), to.Port())
	body = append(body, 0x04, 0, 3, 1, 2, 3) // a TLV that says nothing
	return append(binary.BigEndian.AppendUint16(b, uint16(len(body))), body...)
}

// connected sends CONNECT as the operator of the machine and returns the connection
// that has its CONNACK.
func connected(t *testing.T, nc net.Conn, dir string, issuer string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "operator.jwk"))
	if err != nil {
		t.Fatal(err)
	}
	k, err := jose.ParsePrivateJWK(raw, jose.ForSigning)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := k.Signer()
	if err != nil {
		t.Fatal(err)
	}
	a, err := token.SignAssertion(signer, watchword.SubjectID("operator"), issuer, time.Now(), token.AssertionLifetime)
	if err != nil {
		t.Fatal(err)
	}
	p := &packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "operator/x", Username: "jwt", HasUser: true, HasPass: true, Password: []byte(a)}
	if _, err := nc.Write(packet.Append(nil, p, packet.V5)); err != nil {
		t.Fatal(err)
	}
	var b [4]byte
	if _, err := io.ReadFull(nc, b[:]); err != nil || packet.Type(b[0]>>4) != packet.CONNACK || b[3] != 0 {
		t.Fatalf("%x %v", b, err)
	}
}

func TestProxyProtocolSetsClientAddress(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	c := config(t, dir)
	c.Server.MQTT, c.Server.ProxyProtocol = "127.0.0.1:0", []string{"127.0.0.2", "10.0.0.0/8"}
	info := running(t, c)
	dial := func(from string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		nc, err := d.DialContext(t.Context(), "tcp", info.MQTT)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		return nc
	}
	adm, err := admin.Local(dir)
	if err != nil {
		t.Fatal(err)
	}
	for header, want := range map[string]string{
		string(proxyHeader(netip.MustParseAddrPort("203.0.113.7:4242"), netip.MustParseAddrPort("192.0.2.1:8883"))):       "203.0.113.7:4242",
		string(proxyHeader(netip.MustParseAddrPort("[2001:db8::7]:4242"), netip.MustParseAddrPort("[2001:db8::1]:8883"))): "[2001:db8::7]:4242",
		"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00": "", // a health check of its own
	} {
		nc := dial("127.0.0.2")
		if _, err := nc.Write([]byte(header[:5])); err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write([]byte(header[5:])); err != nil {
			t.Fatal(err)
		}
		connected(t, nc, dir, info.Issuer)
		ss, err := adm.Sessions(t.Context(), "operator")
		if err != nil || len(ss) == 0 {
			t.Fatal(ss, err)
		}
		for _, s := range ss {
			if s.Transport != "mqtt" {
				continue
			}
			if want == "" {
				want = nc.LocalAddr().String()
			}
			if s.Remote != want {
				t.Errorf("remote %s, want %s", s.Remote, want)
			}
		}
	}
	// Without a header no connection from there is accepted, and other clients cannot claim another address.
	header := string(proxyHeader(netip.MustParseAddrPort("203.0.113.7:4242"), netip.MustParseAddrPort("192.0.2.1:8883")))
	for from, first := range map[string]string{"127.0.0.2": "\x10\x10\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00", "127.0.0.1": header, "127.0.0.3": header} {
		nc := dial(from)
		if _, err := nc.Write([]byte(first)); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(nc); len(b) > 0 {
			t.Errorf("from %s: %x %v", from, b, err)
		}
	}
	// A silent one delays no other.
	dial("127.0.0.2")
	connected(t, dial("127.0.0.1"), dir, info.Issuer)
}

// certificate writes a self-signed pair for localhost with that serial number.
func certificate(t *testing.T, dir string, serial int64) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: kder}} {
		if err := os.WriteFile(path+".new", pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestANewCertificateNeedsNoRestart(t *testing.T) {
	dir := t.TempDir()
	c := config(t, filepath.Join(dir, "data"))
	c.Server.TLSCert, c.Server.TLSKey = certificate(t, dir, 1)
	var ahead atomic.Int64 // seconds
	o := quiet
	o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load()) * time.Second) }
	info := runningAt(t, c, o)
	serial := func() int64 {
		nc, err := tls.Dial("tcp", info.MQTTS, &tls.Config{InsecureSkipVerify: true}) // what it shows is the question
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		return nc.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if n := serial(); n != 1 {
		t.Fatalf("serial %d", n)
	}
	if err := os.WriteFile(c.Server.TLSKey, []byte("half of a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	ahead.Add(1)
	if n := serial(); n != 1 {
		t.Fatalf("serial %d from a pair that is none", n)
	}
	certificate(t, dir, 2)
	ahead.Add(1)
	if n := serial(); n != 2 {
		t.Fatalf("serial %d a second after the new pair", n)
	}
}

func TestTLS(t *testing.T) {
	strict := running(t, config(t, filepath.Join(t.TempDir(), "data")))
	c := config(t, filepath.Join(t.TempDir(), "data"))
	c.Server.TLSMin = "1.2"
	loose := running(t, c)
	for _, address := range []string{strict.MQTTS, strict.HTTPS} {
		nc, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		if s := nc.ConnectionState(); s.Version != tls.VersionTLS13 || s.CurveID != tls.X25519MLKEM768 {
			t.Errorf("version %x, curve %v", s.Version, s.CurveID)
		}
		_ = nc.Close()
		if _, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
			t.Error("TLS 1.2 without being configured")
		}
	}
	for suite, want := range map[uint16]bool{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256: true, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: true, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA: false, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256: false} {
		nc, err := tls.Dial("tcp", loose.MQTTS, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite}})
		if (err == nil) != want {
			t.Errorf("%s: %v", tls.CipherSuiteName(suite), err)
		}
		if err == nil {
			_ = nc.Close()
		}
	}
	if _, err := tls.Dial("tcp", loose.MQTTS, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1")
	}
}
