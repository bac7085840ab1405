package acme_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/internal/testport"
	"github.com/watchword-iot/watchword/internal/testwait"
)

// authorityFile is where this process reads the public authorities from.
var authorityFile string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "acme")
	if err != nil {
		panic(err)
	}
	authorityFile = filepath.Join(dir, "authority.pem")
	for k, v := range map[string]string{"SSL_CERT_FILE": authorityFile, "SSL_CERT_DIR": filepath.Join(dir, "none")} {
		if err := os.Setenv(k, v); err != nil {
			panic(err)
		}
	}
	status := m.Run()
	_ = os.RemoveAll(dir) // a temporary folder
	os.Exit(status)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// externalKey is the key of an external account, ext-1.
const externalKey = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"

// authority is Pebble, the ACME authority of Let's Encrypt for tests, behind a server that counts what comes to it and can fail. It
// validates for real: every name is at 127.0.0.1, at the two ports.
type authority struct {
	tlsPort, httpPort string
	pebble            string // its URL
	management        string
	client            *http.Client      // of pebble
	root              *x509.Certificate // of the certificates that it issues
	ownCA, ownKey     []byte            // PEM of the authority that certifies its own HTTPS server, and its key
}

// startAuthority starts Pebble, and makes it one of the public authorities of this process.
func startAuthority(t *testing.T) *authority {
	t.Helper()
	if _, err := os.Stat(authorityFile); err == nil {
		t.Skip("a process reads the public authorities once: run it again without -count")
	}
	program := filepath.Join("..", "..", "bin", "outside", "pebble")
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("WATCHWORD_OUTSIDE") == "required" {
			t.Fatal("pebble is missing")
		}
		t.Skip("pebble is not installed; make test installs it")
	}
	dir := t.TempDir()
	a := &authority{tlsPort: testport.Reserve(t), httpPort: testport.Reserve(t)}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pebble's own"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	a.ownCA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	a.ownKey = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	own := x509.NewCertPool()
	own.AppendCertsFromPEM(a.ownCA)
	a.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: own}}, Timeout: 30 * time.Second}
	listen, manage := "localhost:"+testport.Reserve(t), "localhost:"+testport.Reserve(t)
	number := func(port string) int {
		n, err := strconv.Atoi(port)
		must(t, err)
		return n
	}
	conf, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": listen, "managementListenAddress": manage, "certificate": filepath.Join(dir, "cert.pem"), "privateKey": filepath.Join(dir, "key.pem"),
		"httpPort": number(a.httpPort), "tlsPort": number(a.tlsPort), "keyAlgorithm": "ecdsa", "domainBlocklist": []string{"blocked.example"},
		"externalAccountMACKeys": map[string]string{"ext-1": externalKey},
		"profiles":               map[string]any{"default": map[string]any{"description": "90 days", "validityPeriod": 90 * 24 * 3600}},
	}})
	must(t, err)
	for name, b := range map[string][]byte{"cert.pem": a.ownCA, "key.pem": a.ownKey, "conf.json": conf} {
		must(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	var out bytes.Buffer
	cmd := exec.Command(program, "-strict", "-config", filepath.Join(dir, "conf.json"), "-dnsserver", answerNames(t))
	cmd.Stdout, cmd.Stderr = &out, &out
	// It rejects a part of the good nonces, as it does by default; PEBBLE_VA_ALWAYS_VALID is not set: it validates.
	cmd.Env = []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=30", "PEBBLE_AUTHZREUSE=0"}
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("pebble:\n%s", out.String())
		}
	})
	a.pebble, a.management = "https://"+listen, "https://"+manage
	var root []byte
	for wait := testwait.Within(); ; {
		wait.Check(t, "pebble")
		res, err := a.client.Get(a.management + "/roots/0")
		if err != nil {
			pause()
			continue
		}
		root, err = io.ReadAll(res.Body)
		must(t, errors.Join(err, res.Body.Close()))
		break
	}
	block, _ := pem.Decode(root)
	a.root, err = x509.ParseCertificate(block.Bytes)
	must(t, err)
	must(t, os.WriteFile(authorityFile, root, 0o600))
	return a
}

// pause is between two looks of a polling loop.
func pause() { <-time.After(10 * time.Millisecond) }

// answerNames is a DNS server over TCP for which every name is at 127.0.0.1, and returns its address.
func answerNames(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answerOne(c)
		}
	}()
	return l.Addr().String()
}

// answerOne answers the questions of a connection (RFC 1035 §4).
func answerOne(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		var size uint16
		if binary.Read(r, binary.BigEndian, &size) != nil || size < 17 {
			return
		}
		q := make([]byte, size)
		if _, err := io.ReadFull(r, q); err != nil {
			return
		}
		end := 12 // the question: labels, type and class
		for end < len(q) && q[end] != 0 {
			end += int(q[end]) + 1
		}
		if end += 5; end > len(q) {
			return
		}
		a := append([]byte{}, q[:end]...)
		a[2], a[3] = 0x84, 0 // an authoritative answer without error
		copy(a[4:12], []byte{0, 1, 0, 0, 0, 0, 0, 0})
		if q[end-4] == 0 && q[end-3] == 1 { // A
			a[7] = 1
			a = append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1)
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)); err != nil {
			return
		}
	}
}

// front is a server before the authority, for one test.
type front struct {
	directory string
	ca        []byte // PEM of the authority of its own certificate

	mu     sync.Mutex
	counts map[string]int // of requests, by the first part of the path
	down   bool
	alter  func(w http.ResponseWriter, r *http.Request) bool // answers in place of the authority, if it returns true
	body   func(path string, body []byte) []byte             // replaces an answer
}

func newFront(t *testing.T, a *authority) *front {
	t.Helper()
	f := &front{counts: map[string]int{}}
	to, err := url.Parse(a.pebble)
	must(t, err)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { // the URLs that Pebble signs and checks have the host of the request
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = to.Scheme, to.Host, r.In.Host
		},
		Transport: a.client.Transport,
		ModifyResponse: func(res *http.Response) error {
			f.mu.Lock()
			body := f.body
			f.mu.Unlock()
			if body == nil {
				return nil
			}
			b, err := io.ReadAll(res.Body)
			if err != nil {
				return err
			}
			b = body(res.Request.URL.Path, b)
			res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
			res.Header.Set("Content-Length", strconv.Itoa(len(b)))
			return nil
		},
	}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		part, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		f.mu.Lock()
		f.counts[part]++
		down, alter := f.down, f.alter
		f.mu.Unlock()
		if down {
			panic(http.ErrAbortHandler)
		}
		if alter != nil && alter(w, r) {
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	f.directory = s.URL + "/dir"
	f.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	return f
}

func (f *front) set(change func(*front)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// got returns how many requests came for a part: order-plz, sign-me-up, nonce-plz, dir, finalize-order.
func (f *front) got(part string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[part]
}

func (f *front) all() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.counts {
		n += c
	}
	return n
}

// suggest sets the window in which the authority wants a certificate to be renewed.
func (a *authority) suggest(t *testing.T, c *x509.Certificate, start, end time.Time) {
	t.Helper()
	window, err := json.Marshal(map[string]any{"suggestedWindow": map[string]time.Time{"start": start, "end": end}})
	must(t, err)
	b, err := json.Marshal(map[string]string{"Certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})), "ARIResponse": string(window)})
	must(t, err)
	res, err := a.client.Post(a.management+"/set-renewal-info/", "application/json", bytes.NewReader(b))
	must(t, err)
	if must(t, res.Body.Close()); res.StatusCode != http.StatusOK {
		t.Fatalf("set-renewal-info: %s", res.Status)
	}
}

// shown returns the certificate that a handshake for a name gets at an address; nil where it fails.
func shown(t *testing.T, address, name string, protocols ...string) *x509.Certificate {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testwait.Limit)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protocols}} // the test looks at the certificate
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil
	}
	defer c.Close()
	return c.(*tls.Conn).ConnectionState().PeerCertificates[0]
}
