package server_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/watchword-iot/watchword/internal/testwait"
	"github.com/watchword-iot/watchword/server"
)

// lines is a log that a test reads.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// with returns the lines that have all of these.
func (l *lines) with(parts ...string) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
next:
	for line := range strings.SplitSeq(l.b.String(), "\n") {
		for _, p := range parts {
			if !strings.Contains(line, p) {
				continue next
			}
		}
		out = append(out, line)
	}
	return out
}

// metric reads one number of the operations listener.
func metric(t *testing.T, address, name string) int {
	t.Helper()
	res, err := (&http.Client{Timeout: testwait.Limit}).Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for s := bufio.NewScanner(res.Body); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), name+" "); ok {
			n, err := strconv.ParseFloat(rest, 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// comes waits until the metric is n.
func comes(t *testing.T, address, name string, n int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for got := 0; ; {
		if got = metric(t, address, name); got == n {
			return
		}
		if got > n || time.Now().After(deadline) {
			t.Fatalf("%s is %d, want %d", name, got, n)
		}
	}
}

// clearAlerts sends an alert in the clear instead of a sealed record, as OpenSSL's clients do before they have sent one,
// behind the record that is there for middleboxes or without it.
type clearAlerts struct {
	net.Conn
	withChange bool
}

func (c *clearAlerts) Write(b []byte) (int, error) {
	const changeCipherSpec, hello, fatal, unknownAuthority = 20, 22, 2, 48
	if b[0] == hello {
		return c.Conn.Write(b)
	}
	said := []byte{21, 3, 3, 0, 2, fatal, unknownAuthority}
	if c.withChange {
		said = append([]byte{changeCipherSpec, 3, 3, 0, 1, 1}, said...)
	}
	_, err := c.Conn.Write(said)
	return len(b), err
}

// Clients on OpenSSL say in the clear that they refuse the certificate.
func TestAnAlertInTheClearIsTheReason(t *testing.T) {
	log := &lines{}
	info := runningAt(t, config(t, t.TempDir()+"/data"), server.Options{Log: slog.New(slog.NewTextHandler(log, nil)), Version: "test"})
	for listener, address := range map[string]string{"https": info.HTTPS, "mqtts": info.MQTTS} {
		for n, withChange := range []bool{false, true} {
			nc, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			if err := tls.Client(&clearAlerts{nc, withChange}, &tls.Config{ServerName: "localhost", RootCAs: x509.NewCertPool()}).Handshake(); err == nil {
				t.Error("the handshake did not fail")
			}
			_, _ = io.Copy(io.Discard, nc) // until the server hangs up
			_ = nc.Close()
			comes(t, info.Metrics, fmt.Sprintf(`watchword_tls_handshakes_failed_total{listener="%s",reason="certificate"}`, listener), 1+n)
		}
		if n := len(log.with("TLS handshake failed", "listener="+listener, "unknown certificate authority")); n != 2 {
			t.Errorf("%d log lines on %s say why", n, listener)
		}
	}
}

func TestHandshakesThatFailAreCountedAndLogged(t *testing.T) {
	log := &lines{}
	c := config(t, t.TempDir()+"/data")
	info := runningAt(t, c, server.Options{Log: slog.New(slog.NewTextHandler(log, nil)), Version: "test"})
	pem, err := os.ReadFile(info.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	good := &tls.Config{RootCAs: pool, ServerName: "localhost"}
	shake := func(address string, change func(*tls.Config)) {
		conf := good.Clone()
		change(conf)
		nc, err := tls.Dial("tcp", address, conf)
		if err == nil { // a client of TLS 1.3 is ready before the server is
			_, err = nc.Read(make([]byte, 1))
			_ = nc.Close() // broken already
		}
		if err == nil {
			t.Error("the handshake did not fail")
		}
	}
	say := func(address, what string) {
		nc, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if _, err := io.WriteString(nc, what); err != nil {
			t.Fatal(err)
		}
		if what != "" {
			_, _ = io.Copy(io.Discard, nc) // until the server hangs up
		}
	}
	for listener, address := range map[string]string{"https": info.HTTPS, "mqtts": info.MQTTS} {
		for reason, fail := range map[string]func(){
			"version": func() { shake(address, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }) },
			"alpn": func() {
				shake(address, func(c *tls.Config) { c.NextProtos = []string{"x" + strings.Repeat("y", 200)} })
			},
			"certificate": func() { shake(address, func(c *tls.Config) { c.RootCAs = x509.NewCertPool() }) },
			"plain":       func() { say(address, "GET / HTTP/1.0\r\n\r\n") },
			"closed":      func() { say(address, "") },
		} {
			fail()
			name := fmt.Sprintf(`watchword_tls_handshakes_failed_total{listener="%s",reason="%s"}`, listener, reason)
			comes(t, info.Metrics, name, 1)
			found := log.with("TLS handshake failed", "listener="+listener, "reason="+reason, "remote=")
			if len(found) != 1 || len(found[0]) > 500 {
				t.Errorf("%s %s: log lines %q", listener, reason, found)
			}
		}
	}
	// Many fail: all are counted, few are logged, and the log says how many are not in it.
	const flood = 60
	for range flood {
		say(info.MQTTS, "GET / HTTP/1.0\r\n\r\n")
	}
	comes(t, info.Metrics, `watchword_tls_handshakes_failed_total{listener="mqtts",reason="plain"}`, 1+flood)
	if n := len(log.with("TLS handshake failed")); n >= 10+flood/2 {
		t.Errorf("%d log lines", n)
	}
	if metric(t, info.Metrics, `watchword_tls_handshakes_failed_total{listener="https",reason="other"}`) != 0 {
		t.Error("a reason is not told")
	}
	nc, err := tls.Dial("tcp", info.MQTTS, good)
	if err != nil {
		t.Fatal(err)
	}
	_ = nc.Close() // a completed handshake is not a failed one
	say(info.MQTTS, "")
	comes(t, info.Metrics, `watchword_tls_handshakes_failed_total{listener="mqtts",reason="closed"}`, 2)
}
