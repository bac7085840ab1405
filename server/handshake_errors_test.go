package server

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"
)

// A handshake that runs out of time waits as long as net/http and the MQTT engine let it; its error is the same here.
func TestAHandshakeThatTakesTooLong(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	silent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.SetDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	err = tls.Server(nc, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, io.EOF }}).Handshake()
	if err == nil || handshakeReason(err.Error()) != handshakeTimeout {
		t.Errorf("%v is %q", err, handshakeReason(err.Error()))
	}
}

func TestTheLogOfHandshakesHasABudget(t *testing.T) {
	var out strings.Builder
	now := time.Unix(1_800_000_000, 0)
	h := newHandshakes(slog.New(slog.NewTextHandler(&out, nil)), func() time.Time { return now })
	networks := []string{"192.0.2.1:1", "192.0.2.2:1", "[2001:db8::1]:1", "[2001:db8::2]:1"} // the last two are one
	for range 100 {
		for _, remote := range networks {
			h.failed("mqtts", remote, "tls: first record does not look like a TLS handshake")
		}
	}
	if n := strings.Count(out.String(), "\n"); n != handshakeLogBurst {
		t.Errorf("%d lines, the budget is %d", n, handshakeLogBurst)
	}
	now = now.Add(time.Minute)
	out.Reset()
	for range 20 {
		h.failed("https", networks[0], "EOF")
	}
	if n := strings.Count(out.String(), "\n"); n != 10 {
		t.Errorf("%d lines of one network, its share is 10", n)
	}
	if !strings.Contains(out.String(), "left_out=380") {
		t.Errorf("what was left out is not told: %s", out.String())
	}
}
